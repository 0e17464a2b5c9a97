"""rath: a lazy dataflow engine for LLM agent sessions, with sandboxed tools.

The public names below are loaded when first used, so ``import rath`` loads no SDK.
"""

from rath.core.lazy import lazy_exports

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Agent": "rath.flow",
        "BackendSandboxSpec": "rath.backend",
        "ChunkKind": "rath.session",
        "ChunkRow": "rath.session",
        "ChunkTable": "rath.session",
        "Compressor": "rath.flow",
        "FlowToolCall": "rath.flow.tool",
        "LineageKind": "rath.session",
        "Provider": "rath.llm",
        "RathError": "rath.errors",
        "Session": "rath.session",
        "Workflow": "rath.flow",
        "as_completed": "rath.session",
        "backend": "rath.backend:",
        "continue_session_loop": "rath.session",
        "diff": "rath.session",
        "errors": "rath.errors:",
        "flow": "rath.flow:",
        "gather": "rath.session",
        "lineage": "rath.session",
        "list_persisted_sessions": "rath.session",
        "llm": "rath.llm:",
        "load_session": "rath.session",
        "operator": "rath.session",
        "register_price": "rath.llm",
        "resume_session": "rath.session",
        "register_secret": "rath.core.redact",
        "run_session_compress": "rath.session",
        "run_session_loop": "rath.session",
        "session": "rath.session:",
        "session_registry": "rath.session",
        "tool": "rath.flow.tool",
        "watch": "rath.display.watching",
    },
)

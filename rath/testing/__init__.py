"""For tests of code that uses rath and of parts that plug into it: scripted models, conformance suites, checkers."""

from rath.core.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "ModelClientConformance": "rath.testing.client",
        "Reply": "rath.llm.scripted",
        "SandboxConformance": "rath.testing.sandbox",
        "ScriptedClient": "rath.llm.scripted",
        "anthropic_faults": "rath.testing.history",
        "check_history": "rath.testing.history",
        "history_faults": "rath.testing.history",
        "openai_faults": "rath.testing.history",
    },
)

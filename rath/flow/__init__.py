"""Agents and workflows: sessions in, sessions out."""

from rath.core.lazy import lazy_exports

_here = __name__
__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Agent": f"{_here}.agent",
        "AgentParam": f"{_here}.agent_param",
        "Compressor": f"{_here}.compressor",
        "Provider": "rath.llm.provider",
        "Workflow": f"{_here}.workflow",
        "tool": f"{_here}.tool:",
    },
)

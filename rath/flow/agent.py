"""Agent: instructions, a model and tools, as a workflow of one loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

from rath.errors import ToolNameConflictError, UsageTypeError, UsageValueError
from rath.flow.agent_param import AgentParam
from rath.flow.tool.base import FlowToolCall
from rath.flow.workflow import Workflow
from rath.llm.provider import Provider
from rath.session.loop import OnEventCb, run_session_loop
from rath.session.session import Session

__all__ = ["Agent"]


class Agent(Workflow):
    """A layer that maps a session to the session that continues it.

    Args:
        system_prompt: the agent's instructions.
        provider: which model, and how.
        tools: beside the built-in ones.
        model: short for ``provider=Provider(model=...)``, e.g. ``"openai:gpt-5.5"``; with a provider that names no model,
            the model.
        on_event: gets every streamed fragment.
        loop_options: further keyword arguments of :func:`run_session_loop`, e.g. ``max_tool_rounds``, ``persist``.

    Raises:
        UsageValueError: neither provider nor model.
    """

    def __init__(
        self,
        system_prompt: str,
        provider: Provider | None = None,
        tools: Sequence[FlowToolCall] | None = None,
        *,
        model: str | None = None,
        on_event: OnEventCb | None = None,
        description: str = "",
        **loop_options: Any,
    ) -> None:
        super().__init__(description)
        if provider is None:
            if model is None:
                raise UsageValueError('an Agent needs provider=Provider(...) or model="openai:..."')
            provider = Provider(model=model)
        elif not isinstance(provider, Provider):
            raise UsageTypeError(f"provider is a Provider, not {type(provider).__name__}")
        elif model is not None and provider.model is None:
            provider = replace(provider, model=model)
        unknown = set(loop_options) - _LOOP_OPTIONS
        if unknown:
            raise UsageTypeError(
                f"Agent does not know {', '.join(sorted(unknown))}; it knows {', '.join(sorted(_LOOP_OPTIONS))}"
            )
        self.tools: list[FlowToolCall] = list(tools or [])
        self._on_event = on_event
        self._loop_options = loop_options
        self.agent = AgentParam(Session.from_agent_prompt(system_prompt), provider)

    def forward(self, session: Session) -> Session:
        """:func:`run_session_loop` with this agent; returns at once."""
        return run_session_loop(
            session,
            self.agent.agent_session,
            agent_provider=self.agent.provider,
            tools=self.tools,
            on_event=self._on_event,
            **self._loop_options,
        )

    def register_tool(self, tool: FlowToolCall) -> None:
        """Add a tool for calls from now on. Adding the same tool twice does nothing.

        Raises:
            ToolNameConflictError: the agent has another tool of that name.
        """
        for known in self.tools:
            if known.name == tool.name:
                if known is tool or type(known) is type(tool):
                    return
                raise ToolNameConflictError(f"the agent has another tool named {tool.name!r}: unregister_tool it first")
        self.tools.append(tool)

    def unregister_tool(self, tool_name: str) -> None:
        """Remove the tool of that name, if there is one."""
        self.tools = [tool for tool in self.tools if tool.name != tool_name]

    def close(self) -> None:
        """Nothing to release: sessions own their sandboxes. For symmetry with other workflows."""

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


_LOOP_OPTIONS = frozenset(
    {"executor", "lazy", "max_tool_rounds", "middleware", "persist", "persist_path", "sandbox_handle_id", "timeout_s"}
)

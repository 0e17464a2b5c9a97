"""Compressor: a workflow of one compression."""

from __future__ import annotations

from rath.flow.agent_param import AgentParam
from rath.flow.workflow import Workflow
from rath.llm.provider import Provider
from rath.session.compress import run_session_compress
from rath.session.loop import OnEventCb
from rath.session.session import Session

__all__ = ["Compressor"]


class Compressor(Workflow):
    """A layer that maps a session to one user row that stands for it.

    Args:
        compress_instruction: the instructions of the agent that summarises.
        provider: which model, and how.
        on_event: gets every streamed fragment.
    """

    def __init__(
        self,
        compress_instruction: str,
        provider: Provider,
        *,
        on_event: OnEventCb | None = None,
        description: str = "",
    ) -> None:
        super().__init__(description)
        self._on_event = on_event
        self.agent = AgentParam(Session.from_agent_prompt(compress_instruction), provider)

    def forward(self, session: Session) -> Session:
        """:func:`run_session_compress` with these instructions; returns at once."""
        return run_session_compress(
            session, self.agent.agent_session, agent_provider=self.agent.provider, on_event=self._on_event
        )

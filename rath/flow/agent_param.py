"""An agent's parameters: its instructions and its model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from rath.llm.provider import Provider
from rath.session.session import Session

__all__ = ["AgentParam", "Provider"]


@dataclass(slots=True, repr=False)
class AgentParam:
    """The session that instructs an agent, and the provider that runs it. A workflow finds it among its attributes."""

    agent_session: Session
    provider: Provider

    @property
    def data(self) -> Mapping[str, Any]:
        """Both, as a read-only mapping."""
        return MappingProxyType({"agent_session": self.agent_session, "provider": self.provider})

    def __repr__(self) -> str:
        return f"AgentParam(\n  (agent_session): {indent(repr(self.agent_session))}\n  (provider): {self.provider!s}\n)"


def indent(text: str) -> str:
    """``text`` with every line but the first moved in by two spaces: how a child stands in its parent's repr."""
    return text.replace("\n", "\n  ")

"""Workflow: a composition of agents, called like a function from a session to a session."""

from __future__ import annotations

from typing import Any

from rath.errors import UsageTypeError
from rath.flow.agent_param import AgentParam, indent
from rath.session.session import Session

__all__ = ["Workflow"]


class Workflow:
    """Derive from it, assign agents and workflows to attributes, and write ``forward``.

    Example::

        class Review(Workflow):
            def __init__(self):
                super().__init__()
                self.writer = Agent("Write.", model="openai:gpt-5.5")
                self.critic = Agent("Criticise.", model="openai:gpt-5.5")

            def forward(self, session):
                return self.critic(self.writer(session))
    """

    description: str

    def __init__(self, description: str = "") -> None:
        self.__dict__.setdefault("_agents", {})
        self.__dict__.setdefault("_children", {})
        self.description = description

    def __setattr__(self, name: str, value: Any) -> None:
        for store, kind in (("_agents", AgentParam), ("_children", Workflow)):
            # Found even when a subclass assigns before it calls super().__init__().
            members: dict[str, Any] = self.__dict__.setdefault(store, {})
            if isinstance(value, kind):
                members[name] = value
            else:
                members.pop(name, None)
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        self.__dict__.get("_agents", {}).pop(name, None)
        self.__dict__.get("_children", {}).pop(name, None)
        object.__delattr__(self, name)

    def named_agents(self) -> tuple[tuple[str, AgentParam], ...]:
        """This workflow's own agent parameters by attribute name, sorted."""
        return tuple(sorted(self.__dict__.get("_agents", {}).items()))

    def named_children(self) -> tuple[tuple[str, Workflow], ...]:
        """The workflows among its attributes, in order of assignment."""
        return tuple(self.__dict__.get("_children", {}).items())

    def forward(self, session: Session) -> Session:
        """What the workflow does. Override it; sessions may be pending, and nothing has to wait."""
        raise UsageTypeError(f"{type(self).__name__} has no forward(session): write one")

    def __call__(self, session: Session) -> Session:
        if not isinstance(session, Session):
            raise UsageTypeError(f"{type(self).__name__} is called with a Session, not {type(session).__name__}")
        return self.forward(session)

    def __repr__(self) -> str:
        parts = [*self.named_agents(), *self.named_children()]
        if not parts:
            return f"{type(self).__name__}()"
        lines = "\n".join(f"  ({name}): {indent(repr(part))}" for name, part in parts)
        return f"{type(self).__name__}(\n{lines}\n)"

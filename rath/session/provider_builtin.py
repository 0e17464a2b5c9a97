"""The executor behind ``executor=None``, for code that wants to wrap it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rath.core.ports import Tool
from rath.llm.registry import ChatClient
from rath.llm.types import RathLLMChatRequest, RathLLMChatResponse, RathLLMFunctionTool
from rath.session.session import Session

__all__ = ["DefaultSessionLoopExecutor"]


class DefaultSessionLoopExecutor:
    """Completes with a client and runs tools by calling them."""

    __slots__ = ("client",)

    def __init__(self, client: ChatClient) -> None:
        self.client = client

    def complete(self, req: RathLLMChatRequest) -> RathLLMChatResponse:
        """One completion of the client."""
        return self.client.complete(req)

    def dispatch_tool(self, session: Session, tool: Tool, arguments: Mapping[str, Any]) -> Any:
        """``tool(session, arguments)``."""
        return tool(session, dict(arguments))

    def tool_schemas(self) -> tuple[RathLLMFunctionTool, ...]:
        """Empty: the loop's own tools."""
        return ()

"""Every client of rath passes the suite that third parties pass."""

from __future__ import annotations

from typing import Any

from rath.llm.anthropic import RathAnthropicChatClient
from rath.llm.openai import RathOpenAIChatClient
from rath.llm.provider import Provider
from rath.llm.scripted import Reply, ScriptedClient
from rath.testing import ModelClientConformance
from tests.llm.support import KEY, wire_answer
from tests.wire.server import WireServer


class _OverTheWire(ModelClientConformance):
    def setup_method(self) -> None:
        self.servers: list[WireServer] = []

    def close(self) -> None:
        for server in self.servers:
            server.__exit__()

    def serve(self, replies: tuple[Reply, ...]) -> WireServer:
        server = WireServer(*map(wire_answer, replies))
        self.servers.append(server)
        return server.__enter__()


class TestOpenAIClient(_OverTheWire):
    def client(self, *replies: Reply) -> Any:
        return RathOpenAIChatClient(Provider(model="m", api_key=KEY, base_url=self.serve(replies).openai_url))


class TestAnthropicClient(_OverTheWire):
    def client(self, *replies: Reply) -> Any:
        return RathAnthropicChatClient(Provider(model="m", api_key=KEY, base_url=self.serve(replies).url))


class TestScriptedClient(ModelClientConformance):
    def client(self, *replies: Reply) -> Any:
        return ScriptedClient(replies)

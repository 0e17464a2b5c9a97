"""Which client serves which provider, and what importing rath loads."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

import rath.llm
from rath.core.ports import ModelClient
from rath.errors import UsageError, UsageTypeError, UsageValueError
from rath.llm import (
    ChatClient,
    Provider,
    RathAnthropicChatClient,
    RathOpenAIChatClient,
    ScriptedClient,
    StreamingChatClient,
    chat_client_for,
    register_chat_client,
    registered_kinds,
)
from tests.llm.support import KEY


def test_every_public_name_is_there():
    for name in rath.llm.__all__:
        assert getattr(rath.llm, name) is not None


def test_importing_the_package_and_a_provider_loads_no_sdk():
    code = (
        "import sys, rath.llm, rath.testing\n"
        "from rath.llm import Provider, RathLLMChatRequest, ScriptedClient, chat_client_for\n"
        "chat_client_for(ScriptedClient(['x']).as_provider())\n"
        "print([m for m in ('openai', 'anthropic', 'httpx', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.strip() == "[]"


def test_the_kind_chooses_the_client_and_openai_is_the_default():
    assert isinstance(chat_client_for(Provider(model="m", api_key=KEY)), RathOpenAIChatClient)
    assert isinstance(chat_client_for(Provider(model="openai:m", api_key=KEY)), RathOpenAIChatClient)
    assert isinstance(chat_client_for(Provider(model="anthropic:m", api_key=KEY)), RathAnthropicChatClient)


@pytest.mark.parametrize(
    "make", [RathOpenAIChatClient, RathAnthropicChatClient, ScriptedClient.from_provider]
)
def test_raths_clients_have_every_clients_protocol(make: Any):
    provider = Provider(model="m", api_key=KEY, client=ScriptedClient([]))
    client = make(provider)
    for protocol in (ModelClient, ChatClient, StreamingChatClient):
        assert isinstance(client, protocol)


def test_an_unknown_kind_lists_the_known_ones():
    with pytest.raises(UsageValueError, match=r"'nowhere'.*openai, anthropic, scripted") as caught:
        chat_client_for(Provider(model="m", provider_kind="nowhere"))
    assert isinstance(caught.value, ValueError)


def test_a_registered_factory_gets_the_provider():
    seen = []

    def factory(provider: Provider) -> Any:
        seen.append(provider)
        return SimpleNamespace(provider=provider, complete=lambda req: None)

    register_chat_client("test-registry", factory)
    provider = Provider(model="test-registry:m")
    assert chat_client_for(provider).provider is provider is seen[0]
    assert "test-registry" in registered_kinds()


def test_a_provider_that_carries_a_client_is_served_by_it():
    client = ScriptedClient([])
    assert chat_client_for(Provider(model="anthropic:m", client=client)) is client


@pytest.mark.parametrize(("kind", "factory"), [(1, print), ("x", None)])
def test_registering_checks_types(kind: Any, factory: Any):
    with pytest.raises(UsageTypeError):
        register_chat_client(kind, factory)


@pytest.mark.parametrize("kind", ["", "a:b"])
def test_a_kind_must_be_a_usable_prefix(kind: str):
    with pytest.raises(UsageValueError):
        register_chat_client(kind, ScriptedClient.from_provider)


@pytest.mark.parametrize(
    ("make", "variable"),
    [(RathOpenAIChatClient, "OPENAI_API_KEY"), (RathAnthropicChatClient, "ANTHROPIC_API_KEY")],
)
def test_a_missing_key_is_refused_at_construction(make: Any, variable: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(variable, raising=False)
    for url in ("OPENAI_BASE_URL", "ANTHROPIC_BASE_URL"):
        monkeypatch.delenv(url, raising=False)
    with pytest.raises(UsageError, match=rf"{variable}.*rath doctor"):
        make(Provider(model="m"))
    with pytest.raises(UsageError, match=variable):
        make(Provider(model="m", base_url="https://models.example.org/v1"))
    monkeypatch.setenv(variable, KEY)
    assert KEY not in repr(make(Provider(model="m")))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.1", "[::1]", "llm.localhost"])
def test_a_server_on_this_machine_needs_no_key(host: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    RathOpenAIChatClient(Provider(model="m", base_url=f"http://{host}:8000/v1"))


@pytest.mark.parametrize("url", ["models.example.org/v1", "ftp://x/v1", "http://"])
def test_a_base_url_must_be_one(url: str):
    with pytest.raises(UsageValueError, match="base URL"):
        RathOpenAIChatClient(Provider(model="m", api_key=KEY, base_url=url))

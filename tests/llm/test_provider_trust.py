"""Keys go where they were meant to go, and are never shown."""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any

import pytest

from rath.core.redact import redact_text
from rath.errors import ProviderError, UsageError
from rath.llm import Provider, RathAnthropicChatClient, RathOpenAIChatClient, chat_client_for
from tests.llm.support import KEY, ask, request
from tests.wire.server import Answer, Raw, WireServer

pytestmark = pytest.mark.slow

BOTH = pytest.mark.parametrize("vendor", ["openai", "anthropic"])
STREAMING = pytest.mark.parametrize("stream", [False, True])


def client(vendor: str, url: str, **fields: Any) -> Any:
    if vendor == "openai":
        return RathOpenAIChatClient(Provider(**{"model": "m", "base_url": f"{url}/v1", **fields}))
    return RathAnthropicChatClient(Provider(**{"model": "m", "base_url": url, **fields}))


def sent_key(server: WireServer) -> str:
    """The key by either header: the SDKs' versions differ in which they use."""
    headers = server.requests[0].headers
    return headers.get("x-api-key") or headers["authorization"].removeprefix("Bearer ")


# -- keys -------------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("source", ["field", "environment"])
def test_a_key_from_a_mounted_file_is_used_without_its_line_break(
    vendor: str, source: str, monkeypatch: pytest.MonkeyPatch
):
    key = f"sk-{vendor}-{source}-0123456789"
    fields = {"api_key": f" {key}\r\n"} if source == "field" else {}
    if not fields:
        monkeypatch.setenv(f"{vendor.upper()}_API_KEY", f"{key} \n")
    with WireServer(Answer("ok")) as server:
        ask(client(vendor, server.url, **fields))
    assert sent_key(server) == key
    assert redact_text(f"<{key}>") == "<[redacted]>"


@BOTH
@pytest.mark.parametrize("key", ["sk-broken\nin-two-halves", "sk-with-an-em\u2014dash", "sk-with-a-nul\x00byte"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(vendor: str, key: str, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UsageError, match="api_key") as caught:
        client(vendor, "http://127.0.0.1:9", api_key=key)
    said = "".join(traceback.format_exception(caught.value))
    assert "sk-" not in said
    if "\x00" not in key:
        monkeypatch.setenv(f"{vendor.upper()}_API_KEY", key)
        with pytest.raises(UsageError, match=f"{vendor.upper()}_API_KEY") as caught:
            client(vendor, "http://127.0.0.1:9")
        assert "sk-" not in "".join(traceback.format_exception(caught.value))


@BOTH
def test_a_missing_key_is_a_value_error_that_names_the_variable(vendor: str, monkeypatch: pytest.MonkeyPatch):
    variable = f"{vendor.upper()}_API_KEY"
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ValueError, match=variable) as caught:
        client(vendor, "http://198.51.100.1")
    assert isinstance(caught.value, UsageError)


@BOTH
def test_a_broken_custom_header_is_refused_and_not_shown(vendor: str):
    for value in ("Bearer sk-custom-header\n", "Bearer sk-custom-h\u00e9ader"):
        with WireServer(Answer("ok")) as server, pytest.raises(UsageError, match="X-Gate") as caught:
            extra = {"extra_headers": {"X-Gate": value}}
            ask(client(vendor, server.url, api_key=KEY), request(extra_create_args=extra))
        assert "sk-custom" not in "".join(traceback.format_exception(caught.value))
        assert server.requests == []


@BOTH
def test_a_broken_header_from_the_sdks_environment_is_not_shown(vendor: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(f"{vendor.upper()}_CUSTOM_HEADERS", "X-Gate: sk-env\x0bheader-secret")
    with WireServer(Answer("ok")) as server:
        try:
            ask(client(vendor, server.url, api_key=f"sk-own-pool-{vendor}"))
        except ProviderError as error:
            assert "header" in str(error)
            assert "header-secret" not in "".join(traceback.format_exception(error))
        else:  # an SDK that does not know the variable, or drops what cannot be sent
            assert "header-secret" not in json.dumps(dict(server.requests[0].headers))


@BOTH
@STREAMING
def test_a_key_that_the_provider_echoes_stands_in_no_part_of_the_traceback(vendor: str, stream: bool):
    body = json.dumps({"error": {"message": f"bad key {KEY}", "type": "auth"}}).encode()
    with WireServer(Raw(status=401, body=body)) as server, pytest.raises(ProviderError) as caught:
        ask(client(vendor, server.url, api_key=KEY), stream=stream)
    assert KEY not in "".join(traceback.format_exception(caught.value))


# -- redirects --------------------------------------------------------------------------------------------------------


@BOTH
@STREAMING
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_an_error_and_nothing_reaches_its_target(vendor: str, stream: bool, status: int):
    with WireServer(Answer("stolen"), repeat=True) as target:
        headers = {"Location": f"{target.url}/v1/chat/completions?token=1"}
        with WireServer(Raw(status=status, headers=headers)) as server, pytest.raises(ProviderError) as caught:
            ask(client(vendor, server.url, api_key=KEY), stream=stream)
    assert (caught.value.status, caught.value.retryable) == (status, False)
    assert f"{target.url}/v1/chat/completions" in str(caught.value)
    assert "token=1" not in str(caught.value)
    assert target.requests == []


@BOTH
@pytest.mark.parametrize("location", [None, "http://[", "http://x:99999999/", ""])
def test_a_redirect_to_nowhere_is_an_error_too(vendor: str, location: str | None):
    headers = {} if location is None else {"Location": location}
    with WireServer(Raw(status=302, headers=headers)) as server, pytest.raises(ProviderError, match="redirect"):
        ask(client(vendor, server.url, api_key=KEY))


# -- whose address ----------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cloned repository with a configuration in it, and a user with a key in the environment."""
    monkeypatch.delenv("OPENRATH_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    (tmp_path / "clone" / ".openrath").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "clone")
    return tmp_path


def configure(directory: Path, **entry: Any) -> None:
    (directory / ".openrath").mkdir(parents=True, exist_ok=True)
    config = {"llm": {"default_provider": "main", "providers": {"main": {"model": "m", **entry}}}}
    (directory / ".openrath" / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("key", [{}, {"api_key": None}, {"api_key": " "}])
def test_a_cloned_configuration_cannot_send_the_environments_key_to_its_address(project: Path, key: dict[str, Any]):
    configure(project / "clone", base_url="https://evil.example/v1", **key)
    with pytest.raises(UsageError, match=r"base_url without an api_key.*OPENRATH_HOME"):
        Provider.from_config()


def test_an_address_with_a_key_of_its_own_or_named_by_the_user_is_taken(project: Path, monkeypatch: pytest.MonkeyPatch):
    address = "https://models.example/v1"
    configure(project / "clone", base_url=address, api_key="of its own")
    assert Provider.from_config().api_key == "of its own"
    configure(project / "clone", base_url=address)
    assert Provider.from_config(api_key="given").base_url == address
    assert Provider.from_config(base_url="https://mine.example").base_url == "https://mine.example"
    monkeypatch.setenv("OPENRATH_HOME", str(project / "clone" / ".openrath"))
    assert Provider.from_config().base_url == address


def test_the_users_own_configuration_may_leave_the_key_to_the_environment(project: Path, monkeypatch: pytest.MonkeyPatch):
    configure(project / "user", base_url="https://models.example/v1")
    monkeypatch.chdir(project / "user")
    assert Provider.from_config().base_url == "https://models.example/v1"


# -- mistyped kinds ---------------------------------------------------------------------------------------------------


@pytest.fixture
def no_address(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("OPENAI_BASE_URL", "ANTHROPIC_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_mistyped_kind_is_refused_with_the_kind_that_was_meant(no_address: pytest.MonkeyPatch):
    provider = Provider(model="antropic:claude-sonnet-5", api_key=KEY)
    with pytest.raises(UsageError, match=r"no provider kind 'antropic'; there are: openai, anthropic.*'anthropic'"):
        chat_client_for(provider)


def test_models_with_a_colon_in_their_name_keep_working(no_address: pytest.MonkeyPatch):
    local = "http://127.0.0.1:11434/v1"
    for provider in (
        Provider(model="mistral:7b", base_url=local),
        Provider(model="llama3:8b", api_key=KEY),
        Provider(model="ft:gpt-4o:acme::abc", api_key=KEY),
        Provider(model="openai:antropic:x", api_key=KEY),
    ):
        assert isinstance(chat_client_for(provider), RathOpenAIChatClient)
    no_address.setenv("OPENAI_BASE_URL", local)
    assert isinstance(chat_client_for(Provider(model="mistral:7b")), RathOpenAIChatClient)

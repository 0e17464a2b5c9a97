"""Provider: what it takes, what it shows, where it comes from."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest

from rath.core.home import openrath_home
from rath.core.redact import redact_text
from rath.errors import UsageError, UsageTypeError, UsageValueError
from rath.llm import RathLLMChatRequest, RathLLMFunctionTool, RathLLMMessage, chat_client_for, register_chat_client
from rath.llm.provider import Provider, request_options
from tests.llm.support import KEY, ask, request
from tests.wire.server import Answer, WireServer

DOCUMENTED = [
    "base_url",
    "api_key",
    "model",
    "temperature",
    "top_p",
    "max_completion_tokens",
    "max_tokens",
    "stop",
    "n",
    "seed",
    "frequency_penalty",
    "presence_penalty",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "reasoning_effort",
    "verbosity",
    "metadata",
    "user",
    "store",
    "service_tier",
    "extra_create_args",
    "retry_max_attempts",
    "retry_base_seconds",
    "budget_total_tokens",
    "on_budget_exceeded",
    "provider_kind",
]
TOOL = RathLLMFunctionTool("look", {"type": "object"})


def test_it_has_the_documented_fields_in_their_order():
    names = [field.name for field in fields(Provider)]
    assert names[: len(DOCUMENTED)] == DOCUMENTED


@pytest.mark.parametrize(
    ("written", "kind", "model"),
    [
        ("openai:gpt-5.5", "openai", "gpt-5.5"),
        ("anthropic:claude-sonnet-4-5", "anthropic", "claude-sonnet-4-5"),
        ("scripted:some/path.json", "scripted", "some/path.json"),
        ("openai:llama3:8b", "openai", "llama3:8b"),
        ("llama3:8b", None, "llama3:8b"),
        ("gpt-5.5", None, "gpt-5.5"),
        ("openai:", None, "openai:"),
    ],
)
def test_a_known_kind_before_the_colon_is_split_off(written: str, kind: str | None, model: str):
    provider = Provider(model=written)
    assert (provider.provider_kind, provider.model) == (kind, model)


def test_a_given_kind_leaves_the_model_whole():
    provider = Provider(model="openai:x", provider_kind="anthropic")
    assert (provider.provider_kind, provider.model) == ("anthropic", "openai:x")


def test_a_registered_kind_is_a_known_prefix():
    register_chat_client("test-prefix", lambda provider: SimpleNamespace(provider=provider))  # type: ignore[arg-type,return-value]
    assert Provider(model="test-prefix:m").provider_kind == "test-prefix"


def test_replacing_a_field_keeps_the_normalised_model():
    assert replace(Provider(model="openai:a:b"), temperature=1).model == "a:b"


def test_repr_shows_the_model_and_never_the_key():
    provider = Provider(model="openai:gpt-5.5", api_key=KEY, base_url="http://user:secret@host/v1")
    assert repr(provider) == str(provider) == f"{provider}" == "Provider(model='gpt-5.5')"


def test_its_key_is_redacted_from_then_on():
    Provider(api_key="a-key-that-only-this-test-uses")
    assert redact_text("it is a-key-that-only-this-test-uses!") == "it is [redacted]!"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", 5),
        ("api_key", b"bytes"),
        ("base_url", Path("x")),
        ("temperature", "0.5"),
        ("temperature", True),
        ("max_tokens", 1.5),
        ("retry_max_attempts", True),
        ("parallel_tool_calls", 1),
        ("stop", ["a", 1]),
        ("stop", 3),
        ("tool_choice", 1),
        ("response_format", "json"),
        ("extra_create_args", [("a", 1)]),
        ("on_budget_exceeded", "print"),
        ("provider_kind", 1),
        ("client", object()),
    ],
)
def test_a_wrong_type_names_the_field(field: str, value: Any):
    with pytest.raises(UsageTypeError, match=rf"Provider\.{field}\b"):
        Provider(**{field: value})


@pytest.mark.parametrize(
    "field", ["retry_max_attempts", "retry_base_seconds", "budget_total_tokens", "max_tokens"]
)
def test_a_negative_amount_names_the_field(field: str):
    with pytest.raises(UsageValueError, match=rf"Provider\.{field}\b"):
        Provider(**{field: -1})


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan")])
def test_a_timeout_must_be_positive(seconds: float):
    with pytest.raises(UsageValueError, match=r"Provider\.timeout_s"):
        Provider(timeout_s=seconds)


def test_it_is_frozen_and_takes_keywords_only():
    provider = Provider(model="m")
    with pytest.raises(AttributeError):
        provider.model = "n"  # type: ignore[misc]
    with pytest.raises(TypeError):
        Provider("http://x")  # type: ignore[misc]


def test_it_can_be_taken_apart_whatever_mapping_it_was_given():
    provider = Provider(model="m", extra_create_args=MappingProxyType({"a": {"b": 1}}))
    assert asdict(provider)["extra_create_args"] == {"a": {"b": 1}}


# -- request_options --------------------------------------------------------------------------------------------------


def test_request_options_are_every_field_but_the_messages():
    options = request_options(Provider(model="m", temperature=0.5), tools=(TOOL,))
    assert {*options, "messages"} == {field.name for field in fields(RathLLMChatRequest)}
    messages = (RathLLMMessage("user", "hi"),)
    late = RathLLMChatRequest.deferred(options, lambda: messages)
    assert late == RathLLMChatRequest(
        messages=messages, model="m", temperature=0.5, tools=(TOOL,), tool_choice="auto", extra_create_args={}
    )


@pytest.mark.parametrize("tools", [None, ()])
def test_without_tools_nothing_about_tools_is_sent(tools: Any):
    options = request_options(Provider(model="m"), tools=tools, default_tool_choice="auto")
    assert (options["tools"], options["tool_choice"], options["parallel_tool_calls"]) == (None, None, None)


def test_without_tools_what_was_set_is_sent():
    provider = Provider(model="m", tool_choice="none", parallel_tool_calls=False)
    options = request_options(provider, tools=None)
    assert (options["tool_choice"], options["parallel_tool_calls"]) == ("none", False)


def test_the_providers_tool_choice_is_stronger_than_the_default():
    options = request_options(
        Provider(model="m", tool_choice="required"), tools=(TOOL,), default_tool_choice="auto"
    )
    assert options["tool_choice"] == "required"


# -- configuration ----------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPENRATH_HOME", str(tmp_path))
    return tmp_path


def _configure(home: Path, **providers: Any) -> None:
    llm = {"default_provider": "main", "providers": providers}
    (home / "config.json").write_text(json.dumps({"llm": llm}))


def test_from_config_reads_the_default_and_the_named_provider(home: Path):
    _configure(
        home,
        main={"model": "openai:a", "api_key": KEY, "temperature": 0.1, "max_tokens": 9},
        other={"model": "b"},
    )
    main = Provider.from_config()
    assert (main.provider_kind, main.model, main.api_key, main.temperature, main.max_tokens) == (
        "openai",
        "a",
        KEY,
        0.1,
        9,
    )
    assert Provider.from_config("other", temperature=1.0) == Provider(model="b", temperature=1.0)


def test_from_config_lists_what_there_is(home: Path):
    _configure(home, one={"model": "a"}, two={"model": "b"})
    with pytest.raises(KeyError, match=r"'three'.*one, two"):
        Provider.from_config("three")
    with pytest.raises(KeyError, match=r"'main'.*one, two"):
        Provider.from_config()


def test_from_config_without_a_file_is_a_missing_provider(home: Path):
    with pytest.raises(KeyError, match="none"):
        Provider.from_config()


@pytest.mark.parametrize("text", ["{", "[]", '{"llm": 3}', '{"llm": {"providers": []}}'])
def test_a_broken_configuration_names_its_file(home: Path, text: str):
    (home / "config.json").write_text(text)
    with pytest.raises(UsageError, match=r"config\.json"):
        Provider.from_config("main")


def test_unknown_keys_are_said_and_ignored(home: Path, caplog: pytest.LogCaptureFixture):
    _configure(home, main={"model": "a", "temprature": 0.5})
    assert Provider.from_config() == Provider(model="a")
    assert "temprature" in caplog.text


def test_a_store_takes_the_files_place(home: Path):
    store = SimpleNamespace(get_llm_provider=lambda name: {"model": f"{name}-model"})
    assert Provider.from_config("x", store=store).model == "x-model"
    entry = SimpleNamespace(model="m", provider_kind="anthropic", something_else=1)
    store = SimpleNamespace(get_llm_provider=lambda name: entry)
    assert Provider.from_config(store=store) == Provider(model="m", provider_kind="anthropic")
    with pytest.raises(KeyError, match="nobody"):
        Provider.from_config("nobody", store=SimpleNamespace(get_llm_provider=lambda name: None))


@pytest.fixture
def bare_env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for kind in ("OPENAI", "ANTHROPIC"):
        for name in ("API_KEY", "BASE_URL", "MODEL"):
            monkeypatch.delenv(f"{kind}_{name}", raising=False)
    monkeypatch.delenv("RATH_MODEL", raising=False)
    return monkeypatch


def test_from_env_says_what_to_set(bare_env: pytest.MonkeyPatch):
    with pytest.raises(UsageError, match="RATH_MODEL"):
        Provider.from_env()


def test_from_env_takes_the_model_that_the_environment_names(bare_env: pytest.MonkeyPatch):
    bare_env.setenv("ANTHROPIC_API_KEY", KEY)
    bare_env.setenv("ANTHROPIC_MODEL", "claude")
    assert Provider.from_env() == Provider(provider_kind="anthropic", model="claude")
    bare_env.setenv("RATH_MODEL", "openai:gpt")
    assert Provider.from_env(temperature=0) == Provider(provider_kind="openai", model="gpt", temperature=0)


# -- the data directory -----------------------------------------------------------------------------------------------


def test_the_data_directory_is_the_nearest_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENRATH_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    (tmp_path / ".openrath").mkdir()
    assert openrath_home() == tmp_path / ".openrath"
    (tmp_path / "a" / ".openrath").mkdir()
    assert openrath_home() == tmp_path / "a" / ".openrath"
    monkeypatch.setenv("OPENRATH_HOME", str(tmp_path / "named"))
    assert openrath_home() == tmp_path / "named"


def test_the_data_directory_is_in_the_users_home_if_there_is_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("OPENRATH_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert openrath_home() == tmp_path / "user" / ".openrath"
    (tmp_path / "work").rmdir()
    assert openrath_home() == tmp_path / "user" / ".openrath"


# -- the environment's model ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("vendor", ["openai", "anthropic"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_provider_without_a_model_takes_its_vendors_default(
    vendor: str, stream: bool, bare_env: pytest.MonkeyPatch
):
    bare_env.setenv(f"{vendor.upper()}_DEFAULT_MODEL", "from-the-environment")
    with WireServer(Answer("ok"), Answer("ok")) as server:
        url = server.openai_url if vendor == "openai" else server.url
        for model in (None, "named"):
            provider = Provider(provider_kind=vendor, model=model, api_key=KEY, base_url=url)
            ask(chat_client_for(provider), request(), stream=stream)
        assert [asked.body["model"] for asked in server.requests] == ["from-the-environment", "named"]

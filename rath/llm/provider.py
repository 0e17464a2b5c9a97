"""Which model, reached how, with which settings: the one value that configures a completion."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from rath.core import ports
from rath.core.encoding import decode_json
from rath.core.home import home_was_found, openrath_home
from rath.core.redact import register_headers, register_secret, register_url
from rath.errors import UsageError, UsageTypeError, UsageValueError
from rath.llm.types import RathLLMFunctionTool

__all__ = ["Provider", "request_options"]

_set = object.__setattr__
_log = logging.getLogger("rath.llm")
CONFIG_FILE_NAME = "config.json"


@dataclass(frozen=True, kw_only=True, repr=False)
class Provider:
    """A model and its settings. ``None`` leaves a setting to the provider's default.

    ``Provider(model="anthropic:claude-…")`` is the same as ``provider_kind="anthropic", model="claude-…"``: a
    prefix that is a registered kind is split off (``"llama3:8b"`` stays whole). ``provider_kind=None`` means
    ``"openai"``. ``repr`` shows the model only; ``api_key`` is redacted wherever rows are encoded.

    Args:
        extra_create_args: passed to the provider's API as they are, over everything else.
        retry_max_attempts: how often a model call is made at most, the first included (4); 1 = never again.
        retry_base_seconds: the first pause in seconds (0.5); it doubles from attempt to attempt.
        budget_total_tokens: a run's cap; ``on_budget_exceeded(session, usage)`` is called once when it is
            passed.
        timeout_s: seconds to wait for the provider at each step: to connect, and for each next piece of the
            reply.
        client: an already made client that is used instead of one made for ``provider_kind``.

    Raises:
        UsageTypeError: a field has the wrong type.
        UsageValueError: a number that counts or lasts is negative.
    """

    base_url: str | None = None
    api_key: str | None = None
    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    tool_choice: Literal["auto", "none", "required"] | Mapping[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    logit_bias: dict[str, int] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    store: bool | None = None
    service_tier: str | None = None
    extra_create_args: Mapping[str, Any] = field(default_factory=dict)
    retry_max_attempts: int | None = None
    retry_base_seconds: float | None = None
    budget_total_tokens: int | None = None
    on_budget_exceeded: Callable[..., None] | None = None
    provider_kind: str | None = None
    timeout_s: float | None = None
    client: Any | None = None

    def __post_init__(self) -> None:
        _check_types(self)
        _check_values(self)
        # A read-only view cannot be deep-copied, which `dataclasses.asdict` does.
        if type(self.extra_create_args) is not dict:
            _set(self, "extra_create_args", dict(self.extra_create_args or {}))
        if self.api_key:
            register_secret(self.api_key)
        for option in ("extra_headers", "extra_query"):
            if isinstance(fields := self.extra_create_args.get(option), Mapping):
                register_headers(fields)
        if self.base_url:
            register_url(self.base_url)
        if self.provider_kind is None and self.model is not None and ":" in self.model:
            kind, _, model = self.model.partition(":")
            if model and kind in ports.names("client"):
                _set(self, "provider_kind", kind)
                _set(self, "model", model)

    def __repr__(self) -> str:
        return f"Provider(model={self.model!r})"

    __str__ = __repr__

    @classmethod
    def from_config(cls, name: str | None = None, *, store: Any = None, **overrides: Any) -> Provider:
        """The provider called ``name`` in the configuration, with ``overrides`` for single fields.

        Reads ``<data directory>/config.json``: ``llm.default_provider`` is the name when none is given, and
        ``llm.providers.<name>`` has any of the fields (usually ``provider_kind, model, api_key, base_url,
        temperature, max_tokens``). ``store``, an object with ``get_llm_provider(name)``, takes the file's
        place.

        A file that was met on the way up from the working directory may be somebody else's: an entry there with a
        ``base_url`` must have its ``api_key`` too, so that no key of the environment goes to that address.

        Raises:
            KeyError: there is no such provider; the message lists those there are.
            UsageError: the file cannot be read, is not of this form, or has a ``base_url`` without an ``api_key``.
        """
        entry = _from_store(store, name) if store is not None else _from_file(name)
        if store is None:
            _check_address(entry, overrides)
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(entry) - known)
        if unknown:
            # The file is shared with other tools, so a key of theirs is no error; a typing mistake is worth a
            # line.
            _log.warning("provider %r: ignored configuration keys that no Provider field has: %s", name, unknown)
        return cls(**{**{key: entry[key] for key in entry if key in known}, **overrides})

    @classmethod
    def from_env(cls, **overrides: Any) -> Provider:
        """A provider from environment variables, with ``overrides`` for single fields.

        The model is ``RATH_MODEL`` (``"openai:gpt-5.5"``); else ``OPENAI_MODEL`` if ``OPENAI_API_KEY`` or
        ``OPENAI_BASE_URL`` is set; else ``ANTHROPIC_MODEL`` if ``ANTHROPIC_API_KEY`` is. The client reads the
        key and base URL variables of its kind itself.

        Raises:
            UsageError: none of them names a model.
        """
        if "model" in overrides:
            return cls(**overrides)
        model = os.environ.get("RATH_MODEL")
        if model:
            return cls(**{"model": model, **overrides})
        for kind, signs in (
            ("openai", ("OPENAI_API_KEY", "OPENAI_BASE_URL")),
            ("anthropic", ("ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL")),
        ):
            model = os.environ.get(f"{kind.upper()}_MODEL")
            if model and any(os.environ.get(sign) for sign in signs):
                return cls(**{"provider_kind": kind, "model": model, **overrides})
        raise UsageError(
            "the environment names no model: set RATH_MODEL, e.g. RATH_MODEL=openai:gpt-5.5, "
            "and OPENAI_API_KEY or ANTHROPIC_API_KEY; `rath doctor` shows what is configured"
        )


def request_options(
    provider: Provider,
    *,
    tools: tuple[RathLLMFunctionTool, ...] | None,
    default_tool_choice: Any | None = "auto",
) -> dict[str, Any]:
    """Every field of a request but ``messages``: computed once a run, shared by its requests.

    Without tools, ``tool_choice`` and ``parallel_tool_calls`` are sent only if the provider sets them: OpenAI
    refuses them otherwise.
    """
    options = {name: getattr(provider, name) for name in _PASSED_ON}
    options["tools"] = tools = tuple(tools) if tools else None
    choice = provider.tool_choice
    options["tool_choice"] = default_tool_choice if choice is None and tools else choice
    return options


_TEXT = (
    "base_url",
    "api_key",
    "model",
    "reasoning_effort",
    "verbosity",
    "user",
    "service_tier",
    "provider_kind",
)
_NUMBER = ("temperature", "top_p", "frequency_penalty", "presence_penalty", "retry_base_seconds", "timeout_s")
_WHOLE = (
    "max_completion_tokens",
    "max_tokens",
    "n",
    "seed",
    "top_logprobs",
    "retry_max_attempts",
    "budget_total_tokens",
)
_FLAG = ("parallel_tool_calls", "logprobs", "store")
_OBJECT = ("response_format", "logit_bias", "metadata", "extra_create_args")
_NOT_NEGATIVE = (
    "max_completion_tokens",
    "max_tokens",
    "retry_max_attempts",
    "retry_base_seconds",
    "budget_total_tokens",
)
_TYPES: tuple[tuple[tuple[str, ...], tuple[type, ...], str], ...] = (
    (_TEXT, (str,), "a str"),
    (_NUMBER, (int, float), "a number"),
    (_WHOLE, (int,), "an int"),
    (_FLAG, (bool,), "a bool"),
    (_OBJECT, (Mapping,), "a dict"),
    (("stop",), (str, list, tuple), "a str or a list of str"),
    (("tool_choice",), (str, Mapping), "a str or a dict"),
)
_PASSED_ON = tuple(
    f.name
    for f in fields(Provider)
    if f.name
    not in {
        "base_url",
        "api_key",
        "retry_max_attempts",
        "retry_base_seconds",
        "budget_total_tokens",
        "on_budget_exceeded",
        "provider_kind",
        "timeout_s",
        "client",
    }
)


def _check_types(provider: Provider) -> None:
    values = provider.__dict__
    for names, types, wanted in _TYPES:
        for name in names:
            value = values[name]
            if value is None:
                continue
            # bool is an int, but True is no count.
            if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
                raise UsageTypeError(f"Provider.{name} must be {wanted} or None, not {type(value).__name__}")
    stop = values["stop"]
    if isinstance(stop, list | tuple):
        if not all(isinstance(item, str) for item in stop):
            raise UsageTypeError("Provider.stop must be a str or a list of str: one of its items is no str")
        _set(provider, "stop", list(stop))
    callback = values["on_budget_exceeded"]
    if callback is not None and not callable(callback):
        raise UsageTypeError(f"Provider.on_budget_exceeded must be callable or None, not {type(callback).__name__}")
    client = values["client"]
    if client is not None and not (hasattr(client, "open_completion") or hasattr(client, "complete")):
        raise UsageTypeError(
            "Provider.client must have `open_completion` (rath.core.ports.ModelClient) or `complete` "
            f"(rath.llm.ChatClient); a {type(client).__name__} has neither"
        )


def _check_values(provider: Provider) -> None:
    for name in _NOT_NEGATIVE:
        value = getattr(provider, name)
        if value is not None and not value >= 0:
            raise UsageValueError(f"Provider.{name} must not be negative: {value!r}")
    if provider.timeout_s is not None and not provider.timeout_s > 0:
        raise UsageValueError(f"Provider.timeout_s is a number of seconds above 0, not {provider.timeout_s!r}")


def _check_address(entry: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    merged = {**entry, **overrides}
    key = merged.get("api_key")
    if "base_url" in overrides or not merged.get("base_url") or (isinstance(key, str) and key.strip()):
        return
    if merged.get("client") is None and home_was_found():
        raise UsageError(
            f"{openrath_home() / CONFIG_FILE_NAME} has a base_url without an api_key, and was found by looking upwards "
            "from the working directory: no key of the environment is sent to an address from such a file. Put api_key "
            "beside the base_url (any text, if the server needs none), or set OPENRATH_HOME to trust that directory"
        )


def _from_store(store: Any, name: str | None) -> Mapping[str, Any]:
    found = store.get_llm_provider(name)
    if found is None:
        raise KeyError(f"the given configuration store has no provider {name!r}")
    if isinstance(found, Mapping):
        return found
    return {f.name: value for f in fields(Provider) if (value := getattr(found, f.name, None)) is not None}


def _from_file(name: str | None) -> Mapping[str, Any]:
    path = openrath_home() / CONFIG_FILE_NAME
    llm = _section(_read_config(path), "llm", path)
    providers = _section(llm, "providers", path)
    available = ", ".join(sorted(providers)) or "none"
    wanted = name if name is not None else llm.get("default_provider")
    if wanted is None:
        raise KeyError(f"{path} has no llm.default_provider; name one of its providers: {available}")
    if wanted not in providers:
        raise KeyError(f"{path} has no provider {wanted!r}; available: {available}")
    return _section(providers, wanted, path)


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        config = decode_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot read the configuration {path}: {error}") from error
    if not isinstance(config, Mapping):
        raise UsageError(f"the configuration {path} must be a JSON object, not {type(config).__name__}")
    return config


def _section(parent: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Any]:
    section = parent.get(key, {})
    if not isinstance(section, Mapping):
        raise UsageError(f"{key!r} in the configuration {path} must be a JSON object, not {type(section).__name__}")
    return section

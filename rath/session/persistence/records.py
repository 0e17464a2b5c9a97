"""What stands in header and trailer: sessions, providers and specs as JSON, and back.

Everything that a person or a model may have written is redacted here, value by value: a secret must not reach
the file, and cutting one out of encoded JSON could leave text that is no JSON.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from rath.backend.types import BackendSandboxSpec
from rath.core.redact import REDACTED, redact_text, scan_environment
from rath.llm.types import RathLLMTokenUsage
from rath.session.graph.kind import LineageKind
from rath.session.persistence.format import CURRENT_SCHEMA_VERSION, BadLine
from rath.session.persistence.lock import owner

__all__ = [
    "Logged",
    "PersistedSessionHeader",
    "Prefix",
    "header_fields",
    "header_from_record",
    "pairs_to_json",
    "plain",
    "timestamp",
    "usage_from_json",
    "usage_to_json",
]

# The settings of a provider that shape its replies. A list of what may be written, not of what may not:
# free-form ones (headers, metadata, the URL) are where credentials hide.
_PARAMETERS = (
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
    "service_tier",
)
_SECONDS = "_seconds"
_TOO_DEEP = "(nested too deep to be written)"
_COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")
_DETAILS = ("completion_tokens_details", "prompt_tokens_details")
_EPOCH = re.compile(r"[0-9a-f]{16}")
_DIGEST = re.compile(r"[0-9a-f]{32}")
# In its usual form only: it becomes a file's name.
_SESSION_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
MAX_ROWS = 2**53
"""Most rows that a log may say to have: what every JSON reader can count to."""
_MAX_TOKENS = 2**63
_MAX_VALUE_DEPTH = 100
"""How deep a value may nest that is written: less than :data:`MAX_DEPTH`, for it stands inside other objects."""


@dataclasses.dataclass(frozen=True, slots=True)
class Prefix:
    """The first ``length`` rows stand in the log of another session in the same directory; ``digest`` is theirs."""

    session_id: UUID
    length: int
    digest: bytes


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PersistedSessionHeader:
    """Who a logged session is, and where it comes from. ``created_at`` is in UTC."""

    schema_version: int
    id: UUID
    created_at: datetime
    parent_session_ids: tuple[UUID, ...]
    lineage_operator: str
    lineage_kind: LineageKind
    lineage_extras: tuple[tuple[str, Any], ...]
    sandbox_backend: str | None
    sandbox_spec: BackendSandboxSpec | None
    sandbox_handle_id: str | None
    epoch: str | None = None
    writer: dict[str, Any] | None = dataclasses.field(default=None, repr=False)
    provider: dict[str, Any] | None = dataclasses.field(default=None, repr=False)
    seed_rows: int | None = dataclasses.field(default=None, repr=False)
    durability: str | None = dataclasses.field(default=None, repr=False)
    prefix: Prefix | None = None


class Logged(Protocol):
    """What a header says of a session: all of it is known before the session has rows. Every ``Session`` is one."""

    @property
    def id(self) -> UUID: ...
    @property
    def parent_session_ids(self) -> tuple[UUID, ...]: ...
    @property
    def lineage_operator(self) -> str: ...
    @property
    def lineage_kind(self) -> LineageKind: ...
    @property
    def lineage_extras(self) -> tuple[tuple[str, Any], ...]: ...
    @property
    def sandbox_backend(self) -> str | None: ...
    @property
    def sandbox_spec(self) -> BackendSandboxSpec | None: ...


# -- to JSON -------------------------------------------------------------------------------------------------


def timestamp() -> str:
    """Now: ISO 8601, UTC, microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def plain(value: Any) -> Any:
    """``value`` as JSON can hold it, redacted: what JSON has no form for becomes its ``str``."""
    try:
        return _plain(value, _MAX_VALUE_DEPTH)
    except RecursionError:  # a __str__ of somebody's own
        return _TOO_DEEP


def _plain(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        # A password may be all digits, and then it is one as a number too.
        text = str(int(value))
        return int(value) if redact_text(text) == text else redact_text(text)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (Mapping, list, tuple, set, frozenset)) and depth == 0:
        return _TOO_DEEP
    if isinstance(value, Mapping):
        return {redact_text(str(key)): _plain(item, depth - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item, depth - 1) for item in value]
    return redact_text(str(value))


def pairs_to_json(extras: tuple[tuple[str, Any], ...]) -> list[list[Any]]:
    """``lineage_extras`` as a list of pairs."""
    return [[redact_text(str(key)), plain(value)] for key, value in extras]


def usage_to_json(usage: RathLLMTokenUsage | None) -> dict[str, Any] | None:
    """Token counts; the breakdowns where the provider gave them. ``None`` if no count is one.

    Providers send what they like, also null, -1 or 1e30: what is no number of tokens is left out.
    """
    if usage is None:
        return None
    counts: dict[str, Any] = {name: getattr(usage, name) for name in _COUNTS if _is_count(getattr(usage, name))}
    if not counts:
        return None
    for name in _DETAILS:
        given = getattr(usage, name)
        if isinstance(given, Mapping) and (details := _detail_counts(plain(given))):
            counts[name] = details
    return counts


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < _MAX_TOKENS


def _detail_counts(given: Mapping[str, Any]) -> dict[str, int]:
    return {name: value for name, value in given.items() if _is_count(value)}


def header_fields(
    session: Logged,
    *,
    epoch: str,
    provider: object | None,
    sandbox_handle_id: str | None,
    durability: str,
    seed_rows: int | None = None,
    prefix: Prefix | None = None,
) -> dict[str, Any]:
    """The fields of the header record of ``session``. Never waits for the session's rows."""
    spec = session.sandbox_spec
    if spec is not None:
        # The sandbox's environment is where its credentials are.
        scan_environment(spec.env or {})
    return {
        "schema_version": CURRENT_SCHEMA_VERSION,
        "id": str(session.id),
        "created_at": timestamp(),
        "epoch": epoch,
        "writer": owner(),
        "parent_session_ids": [str(parent) for parent in session.parent_session_ids],
        "lineage_operator": redact_text(session.lineage_operator),
        "lineage_kind": session.lineage_kind.value,
        "lineage_extras": pairs_to_json(session.lineage_extras),
        "sandbox_backend": plain(session.sandbox_backend),
        "sandbox_spec": _spec_to_json(spec),
        "sandbox_handle_id": plain(sandbox_handle_id),
        "provider": _provider_to_json(provider),
        "seed_rows": seed_rows,
        "durability": durability,
        "prefix": _prefix_to_json(prefix),
    }


def _prefix_to_json(prefix: Prefix | None) -> dict[str, Any] | None:
    if prefix is None:
        return None
    return {"session_id": str(prefix.session_id), "length": prefix.length, "digest": prefix.digest.hex()}


def _provider_to_json(provider: object | None) -> dict[str, Any] | None:
    if provider is None:
        return None
    settings = {name: getattr(provider, name, None) for name in _PARAMETERS}
    return {
        "kind": plain(getattr(provider, "provider_kind", None)),
        "model": plain(getattr(provider, "model", None)),
        "parameters": {name: plain(value) for name, value in settings.items() if value is not None},
    }


_DOCUMENTED_SPEC = ("image", "entrypoint", "env", "timeout", "working_dir")
"""The fields that a header's spec always has; readers of other programs look for them."""


def _spec_to_json(spec: BackendSandboxSpec | None) -> dict[str, Any] | None:
    """Its fields by name; a duration as seconds under the name with ``_seconds``; of ``env`` only the names."""
    if spec is None:
        return None
    out: dict[str, Any] = {}
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if field.name not in _DOCUMENTED_SPEC and value == field.default:
            continue
        if field.name == "timeout" or isinstance(value, timedelta):
            out[field.name + _SECONDS] = None if value is None else value.total_seconds()
        elif field.name == "env" and value is not None:
            # Credentials of every form stand there; no list of names or patterns knows them all.
            out["env"] = {redact_text(str(name)): REDACTED for name in value}
        elif field.name == "mounts" and value is not None:
            out["mounts"] = {inside: plain(os.fspath(path)) for inside, path in value.items()}
        else:
            out[field.name] = plain(os.fspath(value) if isinstance(value, os.PathLike) else value)
    return out


# -- from JSON: hostile --------------------------------------------------------------------------------------


def header_from_record(record: dict[str, Any]) -> PersistedSessionHeader:
    """The header of a decoded record of the current schema (or lifted to it).

    Raises:
        BadLine: a field is missing or not what it should be.
    """
    epoch = record.get("epoch")
    if epoch is not None and not (isinstance(epoch, str) and _EPOCH.fullmatch(epoch)):
        raise BadLine("header: epoch is not 16 hex digits")
    return PersistedSessionHeader(
        schema_version=CURRENT_SCHEMA_VERSION,
        id=_uuid(record.get("id"), "id"),
        created_at=_moment(record.get("created_at")),
        parent_session_ids=tuple(_uuid(p, "parent_session_ids") for p in _list(record, "parent_session_ids")),
        lineage_operator=_optional(record, "lineage_operator", str) or "implicit",
        lineage_kind=_kind(record.get("lineage_kind")),
        lineage_extras=tuple(_pair(entry) for entry in _list(record, "lineage_extras")),
        sandbox_backend=_optional(record, "sandbox_backend", str),
        sandbox_spec=_spec_from_json(_optional(record, "sandbox_spec", dict)),
        sandbox_handle_id=_optional(record, "sandbox_handle_id", str),
        epoch=epoch,
        writer=_optional(record, "writer", dict),
        provider=_optional(record, "provider", dict),
        seed_rows=_optional(record, "seed_rows", int),
        durability=_optional(record, "durability", str),
        prefix=_prefix(record.get("prefix")),
    )


def usage_from_json(raw: object) -> RathLLMTokenUsage | None:
    """The inverse of :func:`usage_to_json`; ``None`` for what is none: no reason not to load the rows."""
    if not isinstance(raw, dict):
        return None
    counts = [0 if raw.get(name) is None else raw[name] for name in _COUNTS]
    details = [raw.get(name) for name in _DETAILS]
    if not all(map(_is_count, counts)) or not all(given is None or isinstance(given, dict) for given in details):
        return None
    prompt, completion, total = counts
    of_completion, of_prompt = (given and _detail_counts(given) for given in details)
    return RathLLMTokenUsage(prompt, completion, total, of_completion, of_prompt)


def _optional(record: dict[str, Any], name: str, kind: type[Any]) -> Any:
    value = record.get(name)
    if value is not None and type(value) is not kind:
        raise BadLine(f"{name} is not of type {kind.__name__}")
    return value


def _list(record: dict[str, Any], name: str) -> list[Any]:
    return _optional(record, name, list) or []


def _uuid(value: object, name: str) -> UUID:
    try:
        return UUID(value) if isinstance(value, str) else UUID("")
    except ValueError:
        raise BadLine(f"{name} is not a UUID") from None


def _moment(value: object) -> datetime:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
        if moment is None:
            raise ValueError
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise BadLine("created_at is not a time") from None


def _prefix(value: object) -> Prefix | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise BadLine("prefix: not an object")
    session_id, length, digest = value.get("session_id"), value.get("length"), value.get("digest")
    if not (isinstance(session_id, str) and _SESSION_ID.fullmatch(session_id)):
        raise BadLine("prefix: session_id is not a UUID")
    if type(length) is not int or not 0 < length <= MAX_ROWS:
        raise BadLine("prefix: length is not a number of rows")
    if not (isinstance(digest, str) and _DIGEST.fullmatch(digest)):
        raise BadLine("prefix: digest is not 32 hex digits")
    return Prefix(UUID(session_id), length, bytes.fromhex(digest))


def _kind(value: object) -> LineageKind:
    """An operator kind that this version does not know is no reason not to load the rows."""
    try:
        return LineageKind(value)
    except ValueError:
        return LineageKind.UNKNOWN


def _pair(entry: object) -> tuple[str, Any]:
    if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)):
        raise BadLine("lineage_extras is not a list of pairs")
    return entry[0], entry[1]


def _spec_from_json(raw: dict[str, Any] | None) -> BackendSandboxSpec | None:
    if raw is None:
        return None
    given: dict[str, Any] = {}
    for field in dataclasses.fields(BackendSandboxSpec):
        seconds = raw.get(field.name + _SECONDS)
        value = raw.get(field.name)
        if seconds is not None:
            given[field.name] = _duration(seconds)
        elif field.name == "env" and value is not None:
            given["env"] = _environment(value) or None
        elif isinstance(value, list):
            given[field.name] = tuple(value)
        elif value is not None:
            given[field.name] = value
    _check_documented(given)
    try:
        return BackendSandboxSpec(**given)
    except Exception as error:  # a spec checks itself, in its own words
        raise BadLine(f"sandbox_spec: {error!s:.200}") from None


def _check_documented(given: dict[str, Any]) -> None:
    for name in ("image", "working_dir"):
        if not isinstance(given.get(name, ""), str):
            raise BadLine(f"sandbox_spec: {name} is not text")
    entrypoint = given.get("entrypoint", ())
    if not isinstance(entrypoint, tuple) or not all(isinstance(part, str) for part in entrypoint):
        raise BadLine("sandbox_spec: entrypoint is not a list of text")
    if not isinstance(given.get("timeout", timedelta()), timedelta):
        raise BadLine("sandbox_spec: timeout is not a number of seconds")


def _environment(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise BadLine("sandbox_spec: env is not text by name")
    # A variable whose value was redacted is left out: absent is better than wrong. Older logs have values.
    return {name: text for name, text in value.items() if REDACTED not in text}


def _duration(seconds: object) -> timedelta:
    try:
        if type(seconds) not in (int, float):
            raise ValueError
        return timedelta(seconds=seconds)  # type: ignore[arg-type]
    except (ValueError, OverflowError):
        raise BadLine("sandbox_spec: a duration is not a number of seconds") from None

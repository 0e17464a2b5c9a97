"""Results of tools as JSON text for the model.

Texts that are too long for a model are cut, never the JSON around them, which is therefore always valid. A text that was
cut is *kept* whole, redacted, under its SHA-256: the result names it (``whole``), and the model reads on with the tool
``result_read``. What cannot be JSON is shown by its ``repr``, without addresses in memory: the same run gives the same text
again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import NoneType
from typing import Any, NamedTuple, TypeAlias

from rath.backend.types import (
    CodeResult,
    CommandResult,
    FileContent,
    FileEntries,
    FileEntry,
    FileWriteResult,
    ToolExecutionFailure,
)
from rath.errors import ToolError
from rath.runtime.cutting import Whole, cut, cut_and_whole
from rath.runtime.dumping import ADDRESS, dump_any, dumps, is_small
from rath.utils.decoding import decode_subprocess_output

__all__ = [
    "Begun",
    "Encoded",
    "Keep",
    "Later",
    "LongResult",
    "begin_error",
    "begin_result",
    "encode_result",
    "failure_payload",
    "is_failure",
]

MAX_CHARACTERS = 48_000
MAX_FILE_CHARACTERS = 12_000
MAX_DETAIL_CHARACTERS = 4_000
MAX_ENTRIES = 500

_FAILURE_START = '{"ok":false,"error_kind":'
_SURROGATE = re.compile("[\ud800-\udfff]")

_TEXT = (str, bytes, bytearray)

Keep: TypeAlias = Callable[[str, bytes], None]
"""Keeps a whole text: its SHA-256 in hex, and its bytes."""


class Encoded(NamedTuple):
    """A result for the model, whether the tool did its work, and what was cut: digest and bytes of each whole text."""

    body: str
    ok: bool
    spills: tuple[tuple[str, int], ...] = ()


def encode_result(raw: Any, keep: Keep | None = None) -> Encoded:
    """What a tool returned, as JSON text. Never raises an ``Exception`` of its own, whatever ``raw`` is.

    ============================  ============================================================
    ``bool``                      ``{"ok": raw}``
    ``CommandResult``             ``exit_code, stdout, stderr, elapsed_ms``; ``timed_out``, ``out_of_memory``, ``truncated``
    ``FileContent``               ``data``, at most 12,000 characters
    ``FileEntries``               ``entries`` (``name, path, is_dir``), at most 500; ``left_out``: the rest
    ``FileWriteResult``           ``bytes_written``
    ``CodeResult``                ``text, stdout, stderr, error``; ``figures`` (how many), ``state_lost``
    ``ToolExecutionFailure``      ``ok, error_kind, message, detail``; the only one that is not ``ok``
    pydantic model                its own JSON
    anything else                 JSON with ``str`` for what JSON has not; or ``repr`` and ``type``
    ============================  ============================================================

    Texts are at most 48,000 characters each; a longer result of the last two kinds is
    ``{"truncated": true, "text", "characters"}``. Where something was cut, ``whole`` has the digest of the whole text: of
    each field that was cut, by its name; of a result of the last two kinds, just the digest.

    Args:
        keep: gets each whole text; what it raises goes through.
    """
    begun = begin_result(raw)
    return begun if isinstance(begun, Encoded) else begun.encode(keep)


def begin_result(raw: Any) -> Begun:
    """:func:`encode_result` for a loop that must not stall: what may be long is left to be encoded in a thread."""
    if raw is True:
        return _TRUE
    if raw is False:
        return _FALSE
    try:
        encode = _ENCODERS.get(type(raw)) or _encoder_of_base(raw)
        return encode(raw)
    except Exception:
        # Among others: a backend of somebody else filled the fields with other types than it promised.
        return _shown(raw)


def begin_error(error: Exception) -> Begun:
    """The result of a tool call that raised ``error``: a ``ToolError`` with the kind it names."""
    name = type(error).__name__
    try:
        message = str(error)
        if isinstance(error, ToolError):
            return _failure(str(error.kind), message or name, None if error.detail is None else str(error.detail))
    except Exception:  # a broken __str__ is the tool's fault, not the run's
        message = ""
    return _failure("tool_execution_exception", f"{name}: {message}" if message else name, name)


def failure_payload(kind: str, message: str, detail: str | None = None) -> str:
    """The JSON text of a failed tool call. ``message`` and ``detail`` are cut at 4,000 characters."""
    body = dumps(
        {
            "ok": False,
            "error_kind": kind,
            "message": _brief(message),
            "detail": None if detail is None else _brief(detail),
        }
    )
    return _decodable(body)


def is_failure(body: str) -> bool:
    """Whether ``body`` is a failure that rath encoded."""
    return body.startswith(_FAILURE_START)


# -- what is cut and kept whole ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LongResult:
    """A result that may have to be cut, and its whole texts to be kept: some 10 ms a megabyte.

    Attributes:
        fields: the result's.
        texts: which of them are text (or bytes that are) of at most ``limit`` characters.
        only: whether the text is all there is: then ``whole`` is just its digest, and ``characters`` are counted.
        left_out: a whole text for a field that shows less of it already.
    """

    fields: dict[str, Any]
    texts: tuple[str, ...]
    limit: int
    ok: bool = True
    only: bool = False
    left_out: Callable[[], tuple[str, str]] | None = None

    def encode(self, keep: Keep | None = None) -> Encoded:
        """The result as :func:`encode_result` has it. Thread-safe; raises what ``keep`` does, and nothing else."""
        fields = dict(self.fields)
        wholes: dict[str, Whole] = {}
        for name in self.texts:
            text = _as_text(fields[name])
            if text is not None and len(text) > self.limit:
                text, wholes[name] = cut_and_whole(text, self.limit)
                if self.only:
                    fields["characters"] = wholes[name].characters
            fields[name] = text
        if self.left_out is not None:
            name, text = self.left_out()
            wholes[name] = Whole.of(text)
        if wholes:
            digests = {name: whole.digest for name, whole in wholes.items()}
            fields["whole"] = next(iter(digests.values())) if self.only else digests
        try:
            body = dumps(fields)
        except Exception:  # fields of other types than promised
            return Encoded(_decodable(dumps({"repr": cut(_text_of(fields, repr), MAX_CHARACTERS)})), self.ok)
        for whole in wholes.values():
            if keep is not None:
                keep(whole.digest, whole.data)
        return Encoded(_decodable(body), self.ok, tuple((whole.digest, len(whole.data)) for whole in wholes.values()))


@dataclass(frozen=True, slots=True)
class Later:
    """A result of which nothing is known yet but that to look at it may take long."""

    begin: Callable[[], Begun]

    def encode(self, keep: Keep | None = None) -> Encoded:
        """As :meth:`LongResult.encode`."""
        begun = self.begin()
        return begun if isinstance(begun, Encoded) else begun.encode(keep)


Begun: TypeAlias = Encoded | LongResult | Later


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return decode_subprocess_output(value)  # raises for what is no bytes


# -- one function a kind -------------------------------------------------------------------------------------------------


def _texts(fields: dict[str, Any], names: tuple[str, ...], limit: int, ok: bool = True) -> Begun:
    """A result with these texts in it; a long one is left for later."""
    for name in names:
        value = fields[name]
        if value is None:
            continue
        if len(value) > limit and isinstance(value, _TEXT):  # bytes: at least as many as characters
            return LongResult(fields, names, limit, ok)
        if type(value) is not str:
            fields[name] = _as_text(value)
    return Encoded(_decodable(dumps(fields)), ok)


def _command(raw: CommandResult) -> Begun:
    fields: dict[str, Any] = {
        "exit_code": raw.exit_code,
        "stdout": raw.stdout,
        "stderr": raw.stderr,
        "elapsed_ms": raw.elapsed_ms,
    }
    if raw.timed_out:
        fields["timed_out"] = True
    if raw.oom_killed:
        fields["out_of_memory"] = True
    if raw.truncated:
        fields |= {"truncated": True, "stdout_bytes": raw.stdout_bytes, "stderr_bytes": raw.stderr_bytes}
    return _texts(fields, ("stdout", "stderr"), MAX_CHARACTERS)


def _file(raw: FileContent) -> Begun:
    return _texts({"data": raw.data}, ("data",), MAX_FILE_CHARACTERS)


def _entries(raw: FileEntries) -> Begun:
    entries = raw.entries
    fields: dict[str, Any] = {"entries": [_entry(entry) for entry in entries[:MAX_ENTRIES]]}
    if len(entries) <= MAX_ENTRIES:
        return Encoded(_decodable(dumps(fields)), True)
    fields["left_out"] = len(entries) - MAX_ENTRIES

    def all_of_them() -> tuple[str, str]:
        return "entries", "".join(dumps(_entry(entry)) + "\n" for entry in entries)

    return LongResult(fields, (), 0, left_out=all_of_them)


def _entry(entry: FileEntry) -> dict[str, Any]:
    return {"name": entry.name, "path": entry.path, "is_dir": entry.is_dir}


def _written(raw: FileWriteResult) -> Encoded:
    return Encoded(dumps({"bytes_written": raw.bytes_written}), True)


def _code(raw: CodeResult) -> Begun:
    fields: dict[str, Any] = {"text": raw.text, "stdout": raw.stdout, "stderr": raw.stderr, "error": raw.error}
    if raw.figures:
        fields["figures"] = len(raw.figures)
    if raw.restarted:
        fields["state_lost"] = True
    return _texts(fields, ("text", "stdout", "stderr", "error"), MAX_CHARACTERS)


def _failed(raw: ToolExecutionFailure) -> Begun:
    return _failure(str(raw.kind), str(raw.message or raw.kind), None if raw.detail is None else str(raw.detail))


def _failure(kind: str, message: str, detail: str | None) -> Begun:
    if len(message) + len(detail or "") > MAX_CHARACTERS:
        return Later(partial(_described, kind, message, detail))
    return _described(kind, message, detail)


def _described(kind: str, message: str, detail: str | None) -> Begun:
    message, detail = ADDRESS.sub("", message), None if detail is None else ADDRESS.sub("", detail)
    fields = {"ok": False, "error_kind": kind, "message": message, "detail": detail}
    return _texts(fields, ("message", "detail"), MAX_DETAIL_CHARACTERS, ok=False)


# -- anything else -------------------------------------------------------------------------------------------


def _any(raw: Any) -> Begun:
    return _dumped(raw, small=True) if is_small(raw) else Later(partial(_dumped_or_shown, raw))


def _dumped(raw: Any, *, small: bool) -> Begun:
    text = dump_any(raw, small=small)
    return Encoded(_decodable(text), True) if len(text) <= MAX_CHARACTERS else _truncated(text)


def _dumped_or_shown(raw: Any) -> Begun:
    try:
        return _dumped(raw, small=False)
    except Exception:
        return _shown(raw)


def _string(raw: str) -> Begun:
    text = str.__str__(raw)  # of a str-valued Enum too: its value, as JSON has it inside other results
    # Cut before it is quoted: an escape must not be halved, and the count is that of the text itself.
    return Encoded(_decodable(dumps(text)), True) if len(text) <= MAX_CHARACTERS else _truncated(text)


def _truncated(text: str) -> LongResult:
    return LongResult({"truncated": True, "text": text, "characters": 0}, ("text",), MAX_CHARACTERS, only=True)


def _shown(raw: Any) -> Begun:
    kind = type(raw)
    text = ADDRESS.sub("", _text_of(raw, repr) or f"<{kind.__qualname__}>")
    return _texts({"repr": text, "type": f"{kind.__module__}.{kind.__qualname__}"}, ("repr",), MAX_CHARACTERS)


def _decodable(body: str) -> str:
    """``body`` with lone surrogates, which stand in strings only, as escapes: UTF-8 has no bytes for them."""
    if body.isascii():
        return body
    try:
        body.encode()
    except UnicodeEncodeError:
        return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", body)
    return body


def _brief(text: str) -> str:
    return cut(ADDRESS.sub("", text), MAX_DETAIL_CHARACTERS)


def _text_of(value: object, how: Callable[[object], str]) -> str:
    try:
        return str(how(value))
    except Exception:
        return f"<{type(value).__qualname__}, whose {how.__name__} failed>"


_TRUE = Encoded('{"ok":true}', True)
_FALSE = Encoded('{"ok":false}', True)
_Encoder: TypeAlias = Callable[[Any], "Begun"]
_DOCUMENTED: Mapping[type, _Encoder] = {
    CommandResult: _command,
    FileContent: _file,
    FileEntries: _entries,
    FileWriteResult: _written,
    CodeResult: _code,
    ToolExecutionFailure: _failed,
    str: _string,
}
_ENCODERS: Mapping[type, _Encoder] = {**_DOCUMENTED, dict: _any, list: _any, int: _any, float: _any, NoneType: _any}


def _encoder_of_base(raw: Any) -> _Encoder:
    return next((encode for base, encode in _DOCUMENTED.items() if isinstance(raw, base)), _any)

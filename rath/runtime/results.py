"""Results of tools as JSON text for the model.

Texts that are too long for a model are cut, never the JSON around them, which is therefore always valid. What
cannot be JSON is shown by its ``repr``, without addresses in memory: the same run gives the same text again.
"""

from __future__ import annotations

import json
import math
import re
import traceback
from collections.abc import Callable, Mapping
from types import NoneType
from typing import Any, NamedTuple

from rath.backend.types import (
    CodeResult,
    CommandResult,
    FileContent,
    FileEntries,
    FileWriteResult,
    ToolExecutionFailure,
)
from rath.errors import ToolError
from rath.utils.decoding import decode_subprocess_output

__all__ = ["Encoded", "cut", "encode_result", "exception_payload", "failure_payload", "is_failure"]

MAX_CHARACTERS = 48_000
MAX_FILE_CHARACTERS = 12_000
MAX_DETAIL_CHARACTERS = 4_000
MAX_ENTRIES = 500

_FAILURE_START = '{"ok":false,"error_kind":'
_SURROGATE = re.compile("[\ud800-\udfff]")
# "<function f at 0x7f52c0>": what stands behind "at" is another number in every process.
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+(?=[>,])")


class Encoded(NamedTuple):
    """A result for the model, and whether the tool did its work."""

    body: str
    ok: bool


def encode_result(raw: Any) -> Encoded:
    """What a tool returned, as JSON text. Never raises an ``Exception``, whatever ``raw`` is.

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
    ``{"truncated": true, "text", "characters"}``.
    """
    if raw is True:
        return _TRUE
    if raw is False:
        return _FALSE
    try:
        encode = _ENCODERS.get(type(raw)) or _encoder_of_base(raw)
        return encode(raw)
    except Exception:
        # Among others: a backend of somebody else filled the fields with other types than it promised.
        return Encoded(_shown(raw), True)


def failure_payload(kind: str, message: str, detail: str | None = None) -> str:
    """The JSON text of a failed tool call. ``message`` and ``detail`` are cut at 4,000 characters."""
    body = _dumps(
        {
            "ok": False,
            "error_kind": kind,
            "message": _brief(message),
            "detail": None if detail is None else _brief(detail),
        }
    )
    return _decodable(body)


def exception_payload(error: BaseException) -> str:
    """The JSON text of a tool call that raised ``error``: a ``ToolError`` with the kind it names."""
    message = _text_of(error, str) or type(error).__name__
    if isinstance(error, ToolError):
        return failure_payload(str(error.kind), message, None if error.detail is None else str(error.detail))
    try:
        detail = "".join(traceback.format_exception_only(error)).strip()
    except Exception:
        detail = type(error).__name__
    return failure_payload("tool_execution_exception", message, detail)


def is_failure(body: str) -> bool:
    """Whether ``body`` is a failure that rath encoded."""
    return body.startswith(_FAILURE_START)


def cut(text: str, limit: int) -> str:
    """``text``, or at most ``limit`` characters of it: its head, how much is missing, and its tail."""
    if len(text) <= limit:
        return text
    # The number of characters left out depends on the marker's own length, and that on the number's digits.
    room = max(0, limit - len(_marker(len(text))))
    head = room - room // 2
    tail = room // 2
    return text[:head] + _marker(len(text) - head - tail) + text[len(text) - tail :]


def _marker(missing: int) -> str:
    return f"…[{missing:,} characters left out]…"


# -- one function a kind -------------------------------------------------------------------------------------


def _output(data: bytes | str) -> str:
    return cut(data if isinstance(data, str) else decode_subprocess_output(data), MAX_CHARACTERS)


def _command(raw: CommandResult) -> Encoded:
    fields: dict[str, Any] = {
        "exit_code": raw.exit_code,
        "stdout": _output(raw.stdout),
        "stderr": _output(raw.stderr),
        "elapsed_ms": raw.elapsed_ms,
    }
    if raw.timed_out:
        fields["timed_out"] = True
    if raw.oom_killed:
        fields["out_of_memory"] = True
    if raw.truncated:
        fields |= {"truncated": True, "stdout_bytes": raw.stdout_bytes, "stderr_bytes": raw.stderr_bytes}
    return Encoded(_decodable(_dumps(fields)), True)


def _file(raw: FileContent) -> Encoded:
    text = raw.data if isinstance(raw.data, str) else decode_subprocess_output(raw.data)
    return Encoded(_decodable(_dumps({"data": cut(text, MAX_FILE_CHARACTERS)})), True)


def _entries(raw: FileEntries) -> Encoded:
    shown = raw.entries[:MAX_ENTRIES]
    fields: dict[str, Any] = {
        "entries": [{"name": entry.name, "path": entry.path, "is_dir": entry.is_dir} for entry in shown]
    }
    if len(raw.entries) > MAX_ENTRIES:
        fields["left_out"] = len(raw.entries) - MAX_ENTRIES
    return Encoded(_decodable(_dumps(fields)), True)


def _written(raw: FileWriteResult) -> Encoded:
    return Encoded(_dumps({"bytes_written": raw.bytes_written}), True)


def _code(raw: CodeResult) -> Encoded:
    fields: dict[str, Any] = {
        "text": None if raw.text is None else _output(raw.text),
        "stdout": _output(raw.stdout),
        "stderr": _output(raw.stderr),
        "error": None if raw.error is None else _output(raw.error),
    }
    if raw.figures:
        fields["figures"] = len(raw.figures)
    if raw.restarted:
        fields["state_lost"] = True
    return Encoded(_decodable(_dumps(fields)), True)


def _failed(raw: ToolExecutionFailure) -> Encoded:
    detail = None if raw.detail is None else str(raw.detail)
    return Encoded(failure_payload(str(raw.kind), str(raw.message or raw.kind), detail), False)


# -- anything else -------------------------------------------------------------------------------------------


def _any(raw: Any) -> Encoded:
    try:
        text = _dumps(raw)
    except ValueError:
        # NaN and infinities, which JSON has not, are one reason; if they are not the reason it raises again.
        text = _dumps(_finite(raw, 0))
    return Encoded(_decodable(text) if len(text) <= MAX_CHARACTERS else _truncated(text), True)


def _string(raw: str) -> Encoded:
    text = str.__str__(raw)  # of a str-valued Enum too: its value, as JSON has it inside other results
    # Cut before it is quoted: an escape must not be halved, and the count is that of the text itself.
    return Encoded(_decodable(_dumps(text)) if len(text) <= MAX_CHARACTERS else _truncated(text), True)


def _truncated(text: str) -> str:
    return _decodable(_dumps({"truncated": True, "text": cut(text, MAX_CHARACTERS), "characters": len(text)}))


def _shown(raw: Any) -> str:
    kind = type(raw)
    text = _text_of(raw, repr) or f"<{kind.__qualname__}>"
    return _decodable(
        _dumps(
            {
                "repr": cut(_ADDRESS.sub("", text), MAX_CHARACTERS),
                "type": f"{kind.__module__}.{kind.__qualname__}",
            }
        )
    )


def _default(value: Any) -> Any:
    """What JSON has not: a pydantic model as its own JSON, anything else as ``str`` says it."""
    if not isinstance(value, type) and hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    return _ADDRESS.sub("", str(value))


def _finite(value: Any, depth: int) -> Any:
    """``value`` with words for the floats that JSON has not. Raises ``ValueError`` if it is circular."""
    if depth > 200:
        raise ValueError("too deep")
    if isinstance(value, float):
        return value if math.isfinite(value) else {"inf": "Infinity", "-inf": "-Infinity"}.get(str(value), "NaN")
    if isinstance(value, dict):
        return {(str(key) if isinstance(key, float) else key): _finite(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item, depth + 1) for item in value]
    if not isinstance(value, type) and hasattr(value, "model_dump"):
        return _finite(value.model_dump(mode="json"), depth + 1)
    return value


# Made once: ``json.dumps`` makes an encoder a call, which is most of its time for a small result.
_dumps = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_default).encode


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
    return cut(_ADDRESS.sub("", text), MAX_DETAIL_CHARACTERS)


def _text_of(value: object, how: Callable[[object], str]) -> str:
    try:
        return str(how(value))
    except Exception:
        return f"<{type(value).__qualname__}, whose {how.__name__} failed>"


_TRUE = Encoded('{"ok":true}', True)
_FALSE = Encoded('{"ok":false}', True)
_DOCUMENTED: Mapping[type, Callable[[Any], Encoded]] = {
    CommandResult: _command,
    FileContent: _file,
    FileEntries: _entries,
    FileWriteResult: _written,
    CodeResult: _code,
    ToolExecutionFailure: _failed,
    str: _string,
}
_ENCODERS: Mapping[type, Callable[[Any], Encoded]] = {**_DOCUMENTED, dict: _any, list: _any, NoneType: _any}


def _encoder_of_base(raw: Any) -> Callable[[Any], Encoded]:
    return next((encode for base, encode in _DOCUMENTED.items() if isinstance(raw, base)), _any)

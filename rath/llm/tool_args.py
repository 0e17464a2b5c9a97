"""A tool call's arguments: the text that a model wrote, and what it means."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterable
from typing import Any

import msgspec

from rath.core.ids import new_id
from rath.llm.types import RathLLMToolCallFunction, RathLLMToolCallPart

__all__ = ["distinct_call_ids", "function_name", "parse_tool_arguments", "tool_call_part"]

_decode = msgspec.json.Decoder().decode
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_NOT_IN_NAME = re.compile(r"[^a-zA-Z0-9_-]")


def parse_tool_arguments(arg_str: str | None) -> tuple[dict[str, Any] | None, bool]:
    """``(arguments, had_error)``. No text at all means no arguments, ``({}, False)``.

    ``(None, True)`` when the text is not JSON, or is JSON but no object.
    """
    if arg_str is None or not arg_str.strip():
        return {}, False
    try:
        value = _decode(arg_str)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        # msgspec refuses lone surrogates and NaN, which Python's own reader takes and models do write.
        try:
            value = json.loads(arg_str)
        except (ValueError, RecursionError):
            return None, True
    return (value, False) if isinstance(value, dict) else (None, True)


def tool_call_part(call_id: str, name: str, arguments: str) -> RathLLMToolCallPart:
    """A tool call of an assistant message, its arguments parsed."""
    parsed, wrong = parse_tool_arguments(arguments)
    return RathLLMToolCallPart(call_id, "function", RathLLMToolCallFunction(name, arguments, parsed, wrong))


def distinct_call_ids(ids: Iterable[str | None]) -> list[str]:
    """The ids of one message's calls, with fresh ones where an id is missing or repeats an earlier one.

    Results are matched to calls by id, and some servers send none, or the same for all.
    """
    distinct: list[str] = []
    for call_id in ids:
        distinct.append(call_id if call_id and call_id not in distinct else f"call_{new_id().hex}")
    return distinct


def function_name(name: str, known: Container[str]) -> str:
    """The name of a call in a history as providers take it. A name of the request's own tools stays as it is.

    Models call what was never offered (``functions.read``, a whole command), and a name may have been redacted. Providers
    refuse the history for it, at every request from then on.
    """
    if name in known or _NAME.fullmatch(name):
        return name
    return _NOT_IN_NAME.sub("_", name)[:64] or "_"

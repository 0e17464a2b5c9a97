"""Reading on in a result that was cut: a result names the digest of the whole text, and this reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rath.core import ports
from rath.core.kept import Window, kept_texts, run_log
from rath.errors import PersistenceError, ToolError
from rath.flow.tool.base import (
    FlowToolCall,
    InvalidToolArguments,
    check_names,
    object_schema,
    optional_number,
    required_text,
)
from rath.session.graph.lineage import records_of
from rath.session.session import Session

__all__ = ["FlowToolResultRead", "flow_tool_result_read"]

_LIMIT = 12_000
# A result of more JSON text than this would itself be cut.
_MAX_JSON = 47_000
_MAX_OFFSET = 2**53
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PARAMETERS = object_schema(
    {"digest": {"type": "string", "description": "The 64 hexadecimal digits that the result has in whole."}},
    {
        "offset": {"type": "integer", "description": "The first character to read, from 0, which is the default."},
        "limit": {"type": "integer", "description": f"How many characters to read at most. {_LIMIT:,} by default."},
    },
)


class FlowToolResultRead(FlowToolCall):
    """``result_read(digest, offset=0, limit=12000)``: a piece of the whole text of a result that was cut.

    The result is ``{"text", "offset", "next_offset", "characters"}``: where the piece begins, where to read on (null at the
    end), and how long the whole text is.
    """

    parallel_safe = True
    idempotent = True

    @property
    def name(self) -> str:
        return "result_read"

    @property
    def description(self) -> str | None:
        return (
            "Read on in an earlier result that was cut. Such a result has the digest of its whole text in the field "
            "'whole' (an object: one digest for each field that was cut), and says at the cut which offset to read from. "
            "Returns text and next_offset, from which to go on; null at the end."
        )

    @property
    def parameters(self) -> Mapping[str, Any]:
        return _PARAMETERS

    def __call__(self, session: Session, arguments: Mapping[str, Any]) -> Any:
        check_names(arguments, _PARAMETERS["properties"])
        digest = _digest(required_text(arguments, "digest"))
        offset = optional_number(arguments, "offset", 0, 0, _MAX_OFFSET)
        limit = optional_number(arguments, "limit", _LIMIT, 1, _MAX_JSON)
        found = _find(session, digest, offset, limit)
        if offset > found.characters:
            raise InvalidToolArguments(
                f"argument 'offset' is {offset}, and the text has {found.characters} characters: read from 0 to there"
            )
        text = _that_fits(found.text)
        end = offset + len(text)
        next_offset = end if end < found.characters else None
        return {"text": text, "offset": offset, "next_offset": next_offset, "characters": found.characters}


def flow_tool_result_read(session: Session, digest: str, *, offset: int = 0, limit: int | None = None) -> str:
    """The whole text of a result that was cut, or a piece of it, as it was kept: secrets are redacted.

    Args:
        session: one that has the result, or continues one that has: its log says where the text may be. Never waits.
        digest: what the result has in ``whole``.
        offset, limit: in characters; to the end by default.

    Raises:
        ToolError: the text is not kept (any more), or is damaged.
    """
    if offset < 0 or (limit is not None and limit < 0):
        raise InvalidToolArguments(f"offset and limit are numbers of characters, 0 or more; got {offset!r} and {limit!r}")
    return _find(session, _digest(digest), offset, limit).text


def _digest(given: str) -> str:
    digest = given.strip().lower()
    if _DIGEST.fullmatch(digest) is None:
        raise InvalidToolArguments(
            "argument 'digest' must be the 64 hexadecimal digits that an earlier result has in its field 'whole'"
        )
    return digest


def _find(session: Session, digest: str, offset: int, limit: int | None) -> Window:
    found: Window | None = kept_texts.read(digest, offset, limit)
    if found is not None:
        return found
    try:
        found = ports.load("log", "find_text")(digest, offset, limit, _logs(session))
    except PersistenceError as error:
        # Not the log's failure: the model can do without the text.
        raise ToolError(f"{error}. Run what gave that result again, so that it says less", kind="result_damaged") from None
    if found is None:
        raise ToolError(
            "the text is not kept, or not any more. Check the digest; if it is right, run what gave that result again, so "
            "that it says less or writes to a file, and read that",
            kind="result_not_found",
        )
    return found


def _logs(session: Session) -> Iterator[Path]:
    """The logs that may have the text among their blobs: of the run under way, where the session's rows stand, and of its
    ancestors (the rows of a merge's second side stand in theirs)."""
    own = run_log.get()
    if own is not None:
        yield own
    yield from (table.logged.path for table in session.partial.ancestry() if table.logged is not None)
    yield from (Path(record.log) for record in reversed(records_of((session._record,))) if record.log is not None)


def _that_fits(text: str) -> str:
    """As much of ``text`` as makes a result that is not cut itself: characters that JSON escapes count for more."""
    while (size := len(json.dumps(text, ensure_ascii=False))) > _MAX_JSON:
        text = text[: max(1, len(text) * _MAX_JSON // size - 1)]
    return text

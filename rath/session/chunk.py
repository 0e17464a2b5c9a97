"""Rows and tables: the transcript of a session as values that share what they have in common.

A table is a node in a chain: *the rows of its parent, then these*. Append makes a node (O(1)), fork shares the node,
merge hangs two chains together. Reading ``rows`` flattens a chain once and keeps the tuple, after which the chain is
let go. So nothing is copied until somebody looks, and no table keeps rows alive that are not its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, cast, overload

from rath.core import ports
from rath.core.encoding import decode_json, encode_json
from rath.core.redact import redact_bytes
from rath.errors import UsageTypeError, UsageValueError
from rath.llm.types import RathLLMMessage, RathLLMToolCallPart
from rath.session.logplace import LogPlace

__all__ = [
    "INTERRUPTED_BODY",
    "ChunkKind",
    "ChunkRow",
    "ChunkTable",
    "assistant_turn_chunk",
    "chunk_table_to_messages",
    "format_chunk_row_brief",
    "row_to_message",
    "system_text_chunk",
    "tool_feedback_chunk",
    "user_text_chunk",
]

_set = object.__setattr__
DIGEST_BYTES = 16
_EMPTY_DIGEST = bytes(DIGEST_BYTES)


class ChunkKind(str, Enum):
    """Who speaks in a row."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL_RESULT = "tool_result"

    # As the text that it equals. Enum's own is a function in Python, and whoever reads a log needs three a row.
    __hash__ = str.__hash__


_PREFIX = {kind: b'{"kind":"' + kind.value.encode() + b'","payload":' for kind in ChunkKind}
# The kinds differ in their first four letters: one look-up for a reader of many rows.
_KIND_AT = slice(9, 13)
_KIND_BY_LETTERS = {prefix[_KIND_AT]: kind for kind, prefix in _PREFIX.items()}


@dataclass(frozen=True, init=False, eq=False, repr=False)
class ChunkRow:
    """One row: a kind and a JSON object.

    The row's truth is its encoded bytes. ``payload`` is a fresh plain dict at each read, so changing it changes nothing.
    Where a secret stood in it, ``encoded`` (for digests, logs and displays) has it redacted and ``payload`` has not.

    Raises:
        UsageTypeError: ``payload`` is not a mapping or holds something that JSON cannot.
    """

    __slots__ = ("_message", "_raw", "encoded", "kind")
    __match_args__ = ("kind", "payload")

    kind: ChunkKind
    payload: dict[str, Any]
    if TYPE_CHECKING:  # slots that are no fields
        encoded: bytes
        _raw: bytes | None

    def __init__(self, kind: ChunkKind, payload: Mapping[str, Any]) -> None:
        if type(kind) is not ChunkKind:
            kind = ChunkKind(kind)
        if type(payload) is not dict:
            if not isinstance(payload, Mapping):
                raise UsageTypeError(f"a row's payload is a mapping, not {type(payload).__name__}")
            payload = dict(payload)
        raw = encode_json(payload)
        safe = redact_bytes(raw)
        _set(self, "kind", kind)
        _set(self, "encoded", _PREFIX[kind] + safe + b"}")
        # One copy serves both unless redaction changed something.
        _set(self, "_raw", None if safe is raw else raw)

    @classmethod
    def from_encoded(cls, encoded: bytes) -> ChunkRow:
        """The row that has exactly these encoded bytes: a digest is over them, so they are not spelled anew.

        Raises:
            UsageValueError: they are not ``{"kind":…,"payload":{…}}`` in that form.
        """
        kind = _KIND_BY_LETTERS.get(encoded[_KIND_AT])
        if kind is None or not encoded.startswith(_PREFIX[kind]) or not encoded.endswith(b"}"):
            raise UsageValueError("not the encoding of a row")
        row = object.__new__(cls)
        _set(row, "kind", kind)
        _set(row, "encoded", encoded)
        _set(row, "_raw", None)
        return row

    @property
    def encoded_payload(self) -> bytes:
        """The payload's JSON as it goes to a log: redacted."""
        return self.encoded[len(_PREFIX[self.kind]) : -1]

    @property
    def raw_payload(self) -> bytes:
        """The payload's JSON as it goes to a model."""
        return self.encoded_payload if self._raw is None else self._raw

    @property
    def text(self) -> str | None:
        """``payload["content"]`` as text; ``None`` when there is none."""
        content = self.payload.get("content")
        return None if content is None else str(content)

    @property
    def tool_calls(self) -> tuple[dict[str, Any], ...]:
        """An assistant row's calls in wire form; empty for every other row."""
        return tuple(self.payload.get("tool_calls") or ()) if self.kind is ChunkKind.ASSISTANT else ()

    @property
    def tool_call_id(self) -> str | None:
        """Which call a tool result answers; ``None`` for every other row."""
        value = self.payload.get("tool_call_id") if self.kind is ChunkKind.TOOL_RESULT else None
        return None if value is None else str(value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ChunkRow):
            return NotImplemented
        if self.kind is not other.kind:
            return False
        return self.raw_payload == other.raw_payload or self.payload == other.payload

    def __hash__(self) -> int:
        return hash((self.kind, json.dumps(self.payload, sort_keys=True)))

    def __repr__(self) -> str:
        return f"ChunkRow(kind={self.kind!r}, payload={self.payload!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return ChunkRow, (self.kind, self.payload)


def _payload(self: ChunkRow) -> dict[str, Any]:
    """A fresh plain dict at each read."""
    return cast(dict[str, Any], decode_json(self.raw_payload))


# A field for ``dataclasses.fields`` and ``replace``, a property for readers: the decorator has run, so this is no default.
ChunkRow.payload = property(_payload)  # type: ignore[assignment]


@dataclass(frozen=True, init=False, eq=False, repr=False)
class ChunkTable:
    """An append-only table of rows. ``rows`` is a tuple; iterate, index, slice, ``len``, compare.

    :meth:`extend` costs O(new rows), whatever the length; ``digest`` costs O(1) once the parent's is known.
    """

    __slots__ = ("_digest", "_length", "_logged", "_parent", "_tail", "rows")

    rows: tuple[ChunkRow, ...]
    if TYPE_CHECKING:  # slots that are no fields
        _digest: bytes | None
        _length: int
        _logged: LogPlace | None
        _parent: ChunkTable | None
        _tail: tuple[ChunkRow, ...] | list[ChunkRow] | ChunkTable

    def __init__(self, rows: tuple[ChunkRow, ...] = ()) -> None:
        rows = tuple(rows)
        for row in rows:
            if not isinstance(row, ChunkRow):
                raise UsageTypeError(f"a ChunkTable holds ChunkRow, not {type(row).__name__}")
        _set(self, "rows", rows)
        _set(self, "_parent", None)
        _set(self, "_tail", rows)
        _set(self, "_length", len(rows))
        _set(self, "_digest", None)
        _set(self, "_logged", None)

    def extend(self, *additional: ChunkRow) -> ChunkTable:
        """A table of these rows, then ``additional``. O(number of new rows)."""
        if not additional:
            return self
        for row in additional:
            if not isinstance(row, ChunkRow):
                raise UsageTypeError(f"a ChunkTable holds ChunkRow, not {type(row).__name__}")
        return _node(self, additional, len(additional))

    def concat(self, other: ChunkTable) -> ChunkTable:
        """A table of these rows, then the other's. O(1)."""
        if not other._length:
            return self
        if not self._length:
            return other
        return _node(self, other, other._length)

    @classmethod
    def growing(cls, base: ChunkTable, rows: list[ChunkRow]) -> ChunkTable:
        """A table of ``base``, then what stands in ``rows`` now. O(1): the list is shared and must only ever grow."""
        return _node(base, rows, len(rows)) if rows else base

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[ChunkRow]:
        return iter(self.rows)

    @overload
    def __getitem__(self, index: int) -> ChunkRow: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[ChunkRow, ...]: ...
    def __getitem__(self, index: int | slice) -> ChunkRow | tuple[ChunkRow, ...]:
        if index == -1 and isinstance(self._tail, tuple) and self._tail:
            return self._tail[-1]
        return self.rows[index]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ChunkTable):
            return NotImplemented
        return self is other or (len(self) == len(other) and self.rows == other.rows)

    def __hash__(self) -> int:
        return hash((len(self), self.rows))

    def __repr__(self) -> str:
        return f"ChunkTable(rows={self.rows!r})"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """What Jupyter shows: the rows as far as a cell can hold them, as text and HTML."""
        bundle: dict[str, Any] = ports.load("display", "chunk_table_bundle")(self, include, exclude)
        return bundle

    def _repr_html_(self) -> str:
        """The rows as HTML."""
        html: str = ports.load("display", "chunk_table_html")(self)
        return html

    def __reduce__(self) -> tuple[Any, ...]:
        return ChunkTable, (self.rows,)

    def __getattr__(self, name: str) -> Any:
        # Reached only for an unset slot: a table that nobody has flattened yet.
        if name == "rows":
            rows = _flatten(self)
            base = _digest_base(self)
            _set(self, "rows", rows)
            _set(self, "_tail", rows[base._length :] if base else rows)
            _set(self, "_parent", base)
            return rows
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def digest(self) -> bytes:
        """16 bytes that stand for the content: BLAKE2b over (digest of the table before it, the row's encoded bytes)."""
        return self._digest or _compute_digest(self)

    @property
    def known_digest(self) -> bytes | None:
        """The digest if it has been computed, else ``None``. Hashes nothing."""
        return self._digest

    @property
    def logged(self) -> LogPlace | None:
        """Which of the first rows stand in a log, and where; ``None`` if none are known to. No part of equality."""
        return self._logged

    def note_logged(self, place: LogPlace) -> None:
        """Let a log that is made of this table, or of one that continues it, refer to ``place``."""
        _set(self, "_logged", place)

    def ancestry(self) -> Iterator[ChunkTable]:
        """This table and those that it still knows it continues, newest first."""
        node: ChunkTable | None = self
        while node is not None:
            yield node
            node = node._parent

    def digest_within(self, rows: int) -> bytes | None:
        """The digest, if no more than ``rows`` rows have to be hashed for it; else ``None``."""
        node: ChunkTable | None = self
        while node is not None and node._digest is None and self._length - node._length <= rows:
            node = node._parent
        hashed = self._length - (node._length if node is not None else 0)
        return self.digest if hashed <= rows else None


def _node(parent: ChunkTable, tail: tuple[ChunkRow, ...] | list[ChunkRow] | ChunkTable, added: int) -> ChunkTable:
    made = object.__new__(ChunkTable)
    _set(made, "_parent", parent)
    _set(made, "_tail", tail)
    _set(made, "_length", parent._length + added)
    _set(made, "_digest", None)
    _set(made, "_logged", parent._logged)
    return made


def _flat_rows(table: ChunkTable) -> tuple[ChunkRow, ...] | None:
    try:
        return cast(tuple[ChunkRow, ...], object.__getattribute__(table, "rows"))
    except AttributeError:
        return None


def _own_rows(table: ChunkTable) -> tuple[ChunkRow, ...] | ChunkTable:
    """What ``table`` adds to its parent."""
    tail = table._tail
    if isinstance(tail, list):
        return tuple(tail[: table._length - (table._parent._length if table._parent else 0)])
    return tail


def _flatten(table: ChunkTable) -> tuple[ChunkRow, ...]:
    """The rows of a chain, without recursion: chains are as long as sessions are."""
    runs: list[tuple[ChunkRow, ...]] = []
    stack: list[ChunkTable | tuple[ChunkRow, ...]] = [table]
    while stack:  # last run first
        item = stack.pop()
        flat = item if isinstance(item, tuple) else _flat_rows(item)
        if flat is not None:
            runs.append(flat)
        elif isinstance(item, ChunkTable):
            if item._parent is not None:
                stack.append(item._parent)
            stack.append(_own_rows(item))
    return tuple(row for run in reversed(runs) for row in run)


def _digest_base(table: ChunkTable) -> ChunkTable | None:
    """The nearest ancestor worth keeping: its digest is known, or it is flat and will have to be hashed but once."""
    node = table._parent
    while node is not None and node._digest is None and _flat_rows(node) is None:
        node = node._parent
    return node


def _compute_digest(table: ChunkTable) -> bytes:
    chain: list[ChunkTable] = []
    node: ChunkTable | None = table
    while node is not None and node._digest is None:
        chain.append(node)
        node = node._parent
    digest = (node._digest if node else None) or _EMPTY_DIGEST
    for link in reversed(chain):
        for row in _own_rows(link):
            digest = row_digest(digest, row)
        _set(link, "_digest", digest)
    return digest


def row_digest(previous: bytes, row: ChunkRow) -> bytes:
    """The digest of a table that ends in ``row``, from the digest of the table before it."""
    return blake2b(previous + row.encoded, digest_size=DIGEST_BYTES).digest()


def user_text_chunk(text: str) -> ChunkRow:
    """A user's message."""
    return ChunkRow(ChunkKind.USER, {"content": text})


def system_text_chunk(text: str) -> ChunkRow:
    """An agent's instructions."""
    return ChunkRow(ChunkKind.SYSTEM, {"content": text})


def assistant_turn_chunk(*, tool_calls: tuple[RathLLMToolCallPart, ...] | None, content: str | None = None) -> ChunkRow:
    """One assistant message; the calls are kept in wire form."""
    wire = [
        {
            "id": call.id,
            "type": call.type,
            "function": {"name": call.function.name, "arguments": call.function.arguments},
        }
        for call in tool_calls or ()
    ]
    return ChunkRow(ChunkKind.ASSISTANT, {"content": content, "tool_calls": wire or None})


INTERRUPTED_BODY = encode_json(
    {
        "ok": False,
        "error_kind": "interrupted",
        "message": "the run ended before this call had a result; it may or may not have taken effect",
        "detail": None,
    }
).decode()
"""The result of a call that has none: providers want one for every call."""


def tool_feedback_chunk(tool_call_id: str, name: str, body: str) -> ChunkRow:
    """The result of one tool call."""
    return ChunkRow(ChunkKind.TOOL_RESULT, {"tool_call_id": tool_call_id, "name": name, "content": body})


_ROLES = {
    ChunkKind.SYSTEM: "system",
    ChunkKind.USER: "user",
    ChunkKind.ASSISTANT: "assistant",
    ChunkKind.TOOL_RESULT: "tool",
}


def row_to_message(row: ChunkRow) -> RathLLMMessage:
    """The row as a message of a request; made once a row, however many requests it stands in."""
    try:
        return cast(RathLLMMessage, object.__getattribute__(row, "_message"))
    except AttributeError:
        pass
    payload = row.payload
    content = payload.get("content")
    calls = payload.get("tool_calls") if row.kind is ChunkKind.ASSISTANT else None
    message = RathLLMMessage(
        role=_ROLES[row.kind],
        content=None if content is None else str(content),
        tool_call_id=row.tool_call_id,
        tool_calls=tuple(calls) if calls else None,
    )
    _set(row, "_message", message)
    return message


def chunk_table_to_messages(tab: ChunkTable) -> tuple[RathLLMMessage, ...]:
    """The table's rows as the messages of a request, in order."""
    return tuple(map(row_to_message, tab.rows))


def _one_line(text: str, limit: int) -> str:
    flat = text.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\\n")
    if len(flat) <= max(limit, 8):
        return flat
    edge = max(1, (limit - 5) // 2)
    return f"{flat[:edge]} ... {flat[-edge:]}"


def format_chunk_row_brief(index: int, row: ChunkRow, *, max_payload: int = 400) -> str:
    """One line that says what a row holds, cut to ``max_payload`` characters a part: for logs and debugging."""
    payload = decode_json(row.encoded)["payload"]
    content = payload.get("content")
    if row.kind is ChunkKind.ASSISTANT:
        parts = []
        if content is not None and str(content).strip():
            parts.append(f"text={_one_line(str(content), max_payload)!r}")
        names = [str((call.get("function") or {}).get("name", "?")) for call in payload.get("tool_calls") or ()]
        if names:
            parts.append(f"tools=[{', '.join(names)}]")
        body = ", ".join(parts) or "(empty)"
    elif row.kind is ChunkKind.TOOL_RESULT:
        name, text = str(payload.get("name", "")), str(content or "")
        try:
            # Tool results are JSON text: show the characters, not their escapes.
            text = json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":"))
        except ValueError:
            pass
        body = f"name={name!r} body={_one_line(text, max_payload)}"
    else:
        body = repr(_one_line(str(content or ""), max_payload))
    return f"[{index}] {row.kind.value}: {body}"

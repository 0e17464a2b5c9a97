"""``rath sessions show``: who a session is, and its transcript."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from rath.cli.console import Screen, out
from rath.cli.sessions import find_session_log, local_time
from rath.core.encoding import decode_json, encode_json
from rath.display.text import clean, count, fit, one_line, width
from rath.display.transcript import CallView, ResultView, view_row
from rath.errors import PersistenceError
from rath.session.chunk import ChunkKind, ChunkRow
from rath.session.persistence.blobs import BlobStore, is_digest
from rath.session.persistence.compared import spent
from rath.session.persistence.manage import writer_of
from rath.session.persistence.reader import PersistedSession, load_session
from rath.session.persistence.transcript import unanswered

__all__ = ["show_log", "show_prefix", "show_row"]

_PARENTS = 8
_FOLDED_LINES = 5
_FOLDED_COLUMNS = 160
_INDENT = "    "
_MOST_WRAPPED = 100_000
_MOST_CHARACTERS = 50_000_000
"""Of one whole text. A terminal has no use for more, and its blob is named."""


def show_log(session: str, *, as_json: bool, full: bool) -> int:
    """Print one log: its header and its transcript."""
    path = find_session_log(session)
    loaded = load_session(path.name.partition(".")[0], path=path)
    blobs = BlobStore.of_log(path)
    screen = out()
    if as_json:
        screen.json(_session_json(loaded, blobs if full else None))
        return 0
    _show_header(screen, loaded)
    prefix = loaded.header.prefix
    for index, row in enumerate(loaded.chunk_table):
        screen.line()
        if prefix is not None and index in (0, prefix.length):
            if index:
                screen.line(("── rows of this log ──", "dim"))
            else:
                show_prefix(screen, prefix.length, str(prefix.session_id))
            screen.line()
        show_row(screen, index, row, full, blobs)
    if loaded.verdict != "complete":
        _show_end(screen, loaded)
    return 0


def show_prefix(screen: Screen, rows: int, session_id: str) -> None:
    """Say that the first rows of a transcript stand in another log."""
    screen.line((f"── {count(rows, 'row')} from session {session_id} ──", "dim"))


# -- who it is ----------------------------------------------------------------------------------------------------------


def _show_header(screen: Screen, loaded: PersistedSession) -> None:
    header = loaded.header
    facts = [("session", str(header.id)), ("created", local_time(header.created_at)), ("operator", header.lineage_operator)]
    facts += zip(("parents", *[""] * _PARENTS), map(str, header.parent_session_ids[:_PARENTS]), strict=False)
    if len(header.parent_session_ids) > _PARENTS:
        facts.append(("", f"and {len(header.parent_session_ids) - _PARENTS:,} more"))
    if header.provider:
        names = (header.provider.get("kind"), header.provider.get("model"))
        facts.append(("model", ":".join(str(name) for name in names if name)))
    if header.sandbox_backend:
        where = header.sandbox_spec.working_dir if header.sandbox_spec else None
        facts.append(("sandbox", f"{header.sandbox_backend} {where or ''}".strip()))
    rows = f"{len(loaded.chunk_table):,}"
    if header.prefix is not None:
        rows += f", the first {header.prefix.length:,} from session {header.prefix.session_id}"
    facts.append(("rows", rows))
    if tokens := _tokens(loaded):
        facts.append(("tokens", tokens))
    facts += [("state", _state(loaded)), ("log", str(loaded.path))]
    for name, value in facts:
        screen.line((f"{name:9}", "dim"), one_line(value, 400))


def _tokens(loaded: PersistedSession) -> str:
    usage, cost_usd = spent(loaded)
    if usage is None:
        return ""
    said = f"{usage.total_tokens:,}: {usage.prompt_tokens:,} in, {usage.completion_tokens:,} out"
    completions = sum(1 for record in loaded.records if record.get("record_type") == "usage")
    if completions:
        said += f", {count(completions, 'completion')}"
    return said if cost_usd is None else f"{said}, ${cost_usd:,.4f}"


def _state(loaded: PersistedSession) -> str:
    if loaded.closed:
        outcome = (loaded.trailer_raw or {}).get("outcome")
        status = outcome.get("status") if isinstance(outcome, Mapping) else None
        return f"closed, {status}" if status else "closed"
    return {"open": "open (no trailer)", "torn": "torn (the last line was cut off)"}.get(loaded.verdict, loaded.verdict)


def _show_end(screen: Screen, loaded: PersistedSession) -> None:
    """How a log without a trailer ends: which calls have no result, and why there is no more."""
    writer = writer_of(loaded.path)
    missing = unanswered(loaded.chunk_table.rows) or ()
    begun = {record.get("call_id") for record in loaded.records if record.get("record_type") == "tool_intent"}
    screen.line()
    for row in missing:
        payload = decode_json(row.encoded)["payload"]
        name, call_id = str(payload.get("name")), payload.get("tool_call_id")
        if writer is not None:
            said = "has no result yet"
        elif call_id in begun:
            said = "had begun, and may or may not have taken effect"
        elif loaded.header.epoch is None:  # schema 1 has no record of a tool's start
            said = "has no result, and its log does not say whether it had begun"
        else:
            said = "had not begun"
        screen.line(("⚠ interrupted: " if writer is None else "… ", "bold yellow"), (one_line(name), "cyan"), f" {said}")
    screen.line((f"the log {_why_unfinished(loaded, writer)}", "yellow"))


def _why_unfinished(loaded: PersistedSession, writer: str | None) -> str:
    if writer is not None:
        return f"is being written by {writer}"
    if loaded.verdict == "torn":
        return "was cut off within its last line: its process died"
    return "has no trailer: its run failed, was cancelled, or its process died"


# -- the transcript -----------------------------------------------------------------------------------------------------


def show_row(screen: Screen, index: int, row: ChunkRow, full: bool, blobs: BlobStore | None = None) -> None:
    """Print one row of a transcript; long results are folded unless ``full``.

    Args:
        blobs: where the whole texts of results are that were cut.
    """
    try:
        cut = _whole_texts(row, blobs, read=full)
        view = view_row(cut.row)
    except (ValueError, OverflowError, RecursionError) as error:  # a row that somebody made to be a nuisance
        screen.line((f"[{index}] ", "dim"), (f"{row.kind.value}: cannot be shown: {one_line(str(error), 100)}", "yellow"))
        return
    if view.result is not None:
        _show_result(screen, index, view.tool, view.result, full)
        for note, style in cut.notes:
            screen.line((f"{_INDENT}… {one_line(note, 400)}", style))
        return
    style = {"user": "bold cyan", "assistant": "bold green"}.get(view.role, "bold")
    screen.line((f"[{index}] ", "dim"), (view.role, style))
    if view.text:
        _show_prose(screen, view.text)
    for call in view.calls:
        _show_call(screen, call, full)


def _show_call(screen: Screen, call: CallView, full: bool) -> None:
    screen.line(f"{_INDENT}→ ", (one_line(call.name), "cyan"), f" {one_line(call.short, _columns(screen) // 2)}")
    if full and len(call.arguments) > len(call.short):
        _show_lines(screen, call.arguments, folded=False)


def _show_result(screen: Screen, index: int, tool: str, result: ResultView, full: bool) -> None:
    head = ((f"[{index}] ", "dim"), ("tool ", "bold"), (one_line(tool), "cyan"))
    if not result.ok and result.summary == "interrupted":
        screen.line(*head, " ", ("⚠ interrupted", "bold yellow"), ": no result; it may or may not have taken effect")
        return
    style = "green" if result.ok and result.clean_exit else "yellow" if result.ok else "bold red"
    mark = (result.mark if result.ok else f"{result.mark} failed:", style)
    taken = sum(width(text) for text, _ in (*head, mark)) + 2
    screen.line(*head, " ", mark, f" {fit(result.summary, max(20, min(80, _columns(screen) + len(_INDENT) - taken)))}")
    for name, text in result.parts:
        if name:
            screen.line((f"{_INDENT}{one_line(name)}:", "dim"))
        _show_lines(screen, text, folded=not full)


def _show_lines(screen: Screen, text: str, *, folded: bool) -> None:
    lines = clean(text).rstrip("\n").split("\n")
    if not folded:
        # At once and without a style: 60,000 lines in 0.1 s, not 5.
        screen.write("".join(f"{_INDENT}{line}\n" for line in lines))
        return
    shown = lines[:_FOLDED_LINES] if len(lines) > _FOLDED_LINES + 1 else lines
    columns = _columns(screen)
    for line in shown:
        screen.line(_INDENT, (_cut_line(line, columns), "dim"))
    if len(shown) < len(lines):
        screen.line((f"{_INDENT}… {count(len(lines) - len(shown), 'more line')} (--full)", "dim italic"))


def _show_prose(screen: Screen, text: str) -> None:
    """What somebody says: broken between words for a person."""
    for line in clean(text).rstrip("\n").split("\n"):
        wrapped = [line]
        if screen.console.is_terminal and len(line) <= _MOST_WRAPPED:
            wrapped = [piece.plain.rstrip() for piece in Text(line).wrap(screen.console, _columns(screen))]
        for piece in wrapped:
            screen.line(_INDENT, piece)


def _cut_line(line: str, columns: int) -> str:
    short = line[: columns + 1]
    if width(short) <= columns:
        return short
    while width(short) >= columns:
        short = short[:-1]
    return short + "…"


def _columns(screen: Screen) -> int:
    """How long a folded line may be: one line of a terminal."""
    if not screen.console.is_terminal:
        return _FOLDED_COLUMNS
    return max(20, min(_FOLDED_COLUMNS, screen.console.width - len(_INDENT)))


# -- results that were cut ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Cut:
    """A row as it is shown, and what to say of texts that were cut in it."""

    row: ChunkRow
    notes: list[tuple[str, str]]


def _whole_texts(row: ChunkRow, blobs: BlobStore | None, *, read: bool) -> _Cut:
    """The row without the digests of whole texts; with ``read``, with these texts in place of what was cut."""
    made = _Cut(row, [])
    result = _result_object(row)
    whole = _digests(result)
    if not whole or blobs is None:
        return made
    result.pop("whole")
    if "" in whole:
        text = _text_or_note(made, blobs, whole[""], "the result", _of(result), read=read)
        cut = result.get("text")
        shown = text if text is not None else cut if isinstance(cut, str) else encode_json(result).decode()
        made.row = _with_content(row, shown)
        return made
    for name, digest in whole.items():
        text = _text_or_note(made, blobs, digest, name, "", read=read)
        if text is not None:
            result[name] = text
    made.row = _with_content(row, encode_json(result).decode())
    return made


def _text_or_note(made: _Cut, blobs: BlobStore, digest: str, what: str, of: str, *, read: bool) -> str | None:
    if read:
        return _whole_text(blobs, digest, what, made.notes)
    made.notes.append((f"{what} was cut{of}: --full shows the whole text", "dim italic"))
    return None


def _of(result: Mapping[str, Any]) -> str:
    characters = result.get("characters")
    return f", of {characters:,} characters" if type(characters) is int and 0 <= characters < 2**63 else ""


def _result_object(row: ChunkRow) -> dict[str, Any]:
    """The JSON object that a tool's result is; an empty one for any other row."""
    content = decode_json(row.encoded)["payload"].get("content") if row.kind is ChunkKind.TOOL_RESULT else None
    if not isinstance(content, str) or '"whole"' not in content:
        return {}
    value = decode_json(content.encode("utf-8", "surrogatepass"))
    return value if isinstance(value, dict) else {}


def _digests(result: Mapping[str, Any]) -> dict[str, str]:
    """By field, the digests of the whole texts; under an empty name that of the whole result."""
    whole = result.get("whole")
    if isinstance(whole, str) and is_digest(whole):
        return {"": whole}
    if isinstance(whole, dict) and all(map(is_digest, whole.values())):
        return {name: digest for name, digest in whole.items() if name}
    return {}


def _whole_text(blobs: BlobStore, digest: str, what: str, notes: list[tuple[str, str]]) -> str | None:
    try:
        found = blobs.read(digest, 0, _MOST_CHARACTERS)
    except PersistenceError as error:
        notes.append((f"{what} was cut, and the whole text cannot be read: {error}", "yellow"))
        return None
    if found is None:
        notes.append((f"{what} was cut, and the whole text is not there: {blobs.path(digest)}", "yellow"))
        return None
    if len(found.text) < found.characters:
        notes.append((f"{what} has {found.characters:,} characters; the rest is in {blobs.path(digest)}", "yellow"))
    return found.text


def _with_content(row: ChunkRow, content: str) -> ChunkRow:
    return ChunkRow(row.kind, {**row.payload, "content": content})


# -- as JSON ----------------------------------------------------------------------------------------------------------


def _session_json(loaded: PersistedSession, blobs: BlobStore | None) -> dict[str, Any]:
    header = loaded.header
    usage, cost_usd = spent(loaded)
    prefix = header.prefix
    made = {
        "id": str(header.id),
        "path": str(loaded.path),
        "created_at": header.created_at.isoformat(),
        "verdict": loaded.verdict,
        "closed": loaded.closed,
        "parent_session_ids": [str(parent) for parent in header.parent_session_ids],
        "lineage_operator": header.lineage_operator,
        "lineage_kind": header.lineage_kind.value,
        "lineage_extras": [list(pair) for pair in header.lineage_extras],
        "provider": header.provider,
        "sandbox_backend": header.sandbox_backend,
        "prefix": None if prefix is None else {"session_id": str(prefix.session_id), "length": prefix.length},
        "usage": usage and {name: getattr(usage, name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")},
        "cost_usd": cost_usd,
        "rows": [decode_json(row.encoded) for row in loaded.chunk_table],
    }
    if blobs is not None:
        made["whole_texts"] = _texts_by_digest(loaded, blobs)
    return made


def _texts_by_digest(loaded: PersistedSession, blobs: BlobStore) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for row in loaded.chunk_table:
        try:
            whole = _digests(_result_object(row))
        except (ValueError, RecursionError):
            continue
        for digest in whole.values():
            if digest not in found:
                found[digest] = _whole_text(blobs, digest, "", [])
    return found


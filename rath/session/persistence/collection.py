"""A directory of logs as a lazy collection: for a notebook, and for the command line."""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID

from rath.core import ports
from rath.core.redact import redact_text
from rath.errors import PersistenceError, UsageError, UsageTypeError, UsageValueError
from rath.session.chunk import ChunkKind, ChunkRow
from rath.session.graph.kind import LineageKind
from rath.session.persistence.edges import read_edges
from rath.session.persistence.format import BadLine, decode_object
from rath.session.persistence.paths import (
    SESSION_FILE_SUFFIX,
    SESSION_PARTIAL_SUFFIX,
    SESSIONS_DIR_NAME,
    is_directory,
    is_there,
    log_path,
    parse_session_id,
    pin_file,
    sessions_dir,
)
from rath.session.persistence.reader import PersistedSession, load_session, open_log
from rath.session.persistence.verdict import verify
from rath.session.persistence.walk import Walk

__all__ = ["VERDICTS", "LogCollection", "LogEntry", "open_dir"]

VERDICTS = ("complete", "open", "torn", "damaged", "unreadable")
_OneOrMore: TypeAlias = "str | tuple[str, ...] | list[str] | set[str] | frozenset[str]"
_SHOWN = 20
_MAX_MODEL = 200


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LogEntry:
    """One log of a collection.

    Attributes:
        id: of the header; ``None`` for a file without a whole one, whose ``created_at`` is when it was last changed
            (1970 where the system does not say).
        verdict: of the whole file if ``checked``; else what its two ends look like. ``unreadable``: it is of a newer
            schema, or the system does not let it be read; ``reason`` says which.
        rows, model, operator, kind: as far as the ends say.
        shared_rows: how many of the rows stand in the log of the session ``shared_with``, which is in the same directory.
    """

    id: UUID | None
    path: Path
    created_at: datetime
    operator: str
    model: str | None
    rows: int
    size_bytes: int
    verdict: str
    reason: str | None = None
    checked: bool = False
    shared_rows: int = 0
    shared_with: UUID | None = None
    kind: LineageKind = LineageKind.UNKNOWN

    @property
    def pinned(self) -> bool:
        """Whether pruning leaves it alone."""
        return os.path.exists(pin_file(self.path))

    def check(self) -> LogEntry:
        """This entry with the verdict on the whole file."""
        if self.checked:
            return self
        try:
            found = verify(self.path)
        except PersistenceError as error:
            return dataclasses.replace(self, verdict="unreadable", reason=str(error), checked=True)
        return dataclasses.replace(
            self,
            verdict=found.verdict,
            reason=found.reason,
            rows=found.rows,
            size_bytes=found.size_bytes,
            checked=True,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class _Filter:
    """Conditions that hold together; cheap ones are looked at first."""

    verdict: frozenset[str] | None = None
    operator: frozenset[str] | None = None
    since: datetime | None = None
    until: datetime | None = None
    model: str | None = None
    text: str | None = None

    def apply(self, entry: LogEntry) -> LogEntry | None:
        """The entry, checked if need be; ``None`` if it is not one of those."""
        if self.operator is not None and entry.operator not in self.operator:
            return None
        if self.model is not None and self.model not in (entry.model or ""):
            return None
        if self.since is not None and entry.created_at < self.since:
            return None
        if self.until is not None and entry.created_at >= self.until:
            return None
        if self.verdict is not None:
            # Complete logs end in a trailer: nothing else needs to be read for them.
            if self.verdict == {"complete"} and entry.verdict != "complete":
                return None
            checked = _checked(entry)
            if checked is None or checked.verdict not in self.verdict:
                return None
            entry = checked
        return None if self.text is not None and not _contains(entry.path, self.text) else entry


class LogCollection:
    """The logs of a directory, newest first. Nothing is read before it is asked for, and then anew each time.

    Iterating reads both ends of each file; ``where(verdict=…)`` and ``where(text=…)`` read those files whole that
    every cheaper condition lets through.
    """

    def __init__(self, directory: Path, filters: tuple[_Filter, ...] = ()) -> None:
        self._directory = directory
        self._filters = filters

    @property
    def path(self) -> Path:
        """The directory."""
        return self._directory

    def where(
        self,
        *,
        verdict: str | tuple[str, ...] | list[str] | set[str] | frozenset[str] | None = None,
        operator: str | tuple[str, ...] | list[str] | set[str] | frozenset[str] | None = None,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        text: str | None = None,
        model: str | None = None,
    ) -> LogCollection:
        """Those of the logs for which all of this holds. Composable; reads nothing yet.

        Args:
            verdict: one of ``complete``, ``open``, ``torn``, ``damaged``, ``unreadable``, or several of them.
            operator: the operator that made the session, ``run_session_loop`` for instance, or several of them.
            since, until: created at ``since`` or later; before ``until``. ISO 8601 or a ``datetime``; local time where
                it has no zone.
            text: a row says this, in upper or lower case.
            model: the model's name contains this.

        Raises:
            UsageValueError: no such verdict, or not a time.
            UsageTypeError: one of them is neither text nor what else it may be.
        """
        operators = None if operator is None else _names("operator", operator)
        for name, given in (("text", text), ("model", model)):
            if not isinstance(given, str | None):
                raise UsageTypeError(f"{name} is text, not {type(given).__name__}")
        made = _Filter(_verdicts(verdict), operators, _moment("since", since), _moment("until", until), model, text)
        return LogCollection(self._directory, (*self._filters, made))

    def __iter__(self) -> Iterator[LogEntry]:
        return self.among(self._all())

    def read(self, progress: Callable[[int, int], None] | None = None) -> list[LogEntry]:
        """The logs as a list.

        Args:
            progress: called with how many files were looked at, and how many there are, after each.
        """
        return list(self.among(self._all(progress)))

    def files(self) -> list[Path]:
        """The directory's logs by name, whatever the conditions: nothing is read of them."""
        return sorted(self._directory / name for name in self._names())

    def among(self, entries: Iterable[LogEntry]) -> Iterator[LogEntry]:
        """Those of ``entries``, logs of this directory that have been read before, for which all conditions hold."""
        for entry in sorted(entries, key=lambda entry: (entry.created_at, entry.path.name), reverse=True):
            kept: LogEntry | None = entry
            for condition in self._filters:
                kept = None if kept is None else condition.apply(kept)
            if kept is not None:
                yield kept

    def __len__(self) -> int:
        return sum(1 for _ in self) if self._filters else len(self._names())

    def __bool__(self) -> bool:
        return any(True for _ in self) if self._filters else bool(self._names())

    def load(self, session_id: UUID | str) -> PersistedSession:
        """The session with this id.

        Raises:
            PersistenceError: ``session_id`` is no UUID, there is no such log here, or it cannot be loaded.
        """
        wanted = parse_session_id(session_id)
        for suffix in (SESSION_FILE_SUFFIX, SESSION_PARTIAL_SUFFIX):
            path = self._directory / f"{wanted}{suffix}"
            if is_there(path):
                loaded = load_session(wanted, path=path)
                if loaded.header.id != wanted:
                    raise PersistenceError(f"{path} is of session {loaded.header.id}: load_session(id, path=…) reads it")
                return loaded
        raise PersistenceError(f"no log of session {wanted} in {self._directory}")

    def verify_all(self, progress: Callable[[int, int], None] | None = None) -> list[LogEntry]:
        """Every log with the verdict on the whole of it; one that is deleted meanwhile is left out.

        Args:
            progress: called with how many are done, and how many there are, after each.
        """
        entries = list(self)
        checked = []
        for done, entry in enumerate(entries, 1):
            found = _checked(entry)
            if found is not None:
                checked.append(found)
            if progress is not None:
                progress(done, len(entries))
        return checked

    def to_records(self) -> list[dict[str, Any]]:
        """One plain dict for each log."""
        return [_record(entry) for entry in self]

    def to_frame(self) -> Any:
        """A pandas ``DataFrame`` of :meth:`to_records`.

        Raises:
            UsageError: pandas is not installed.
        """
        try:
            pandas = importlib.import_module("pandas")
        except ImportError as error:
            raise UsageError("to_frame needs pandas: pip install pandas, or use to_records()") from error
        return pandas.DataFrame(self.to_records(), columns=[*_COLUMNS])

    def __repr__(self) -> str:
        return f"LogCollection({str(self._directory)!r}{', filtered' if self._filters else ''})"

    def _repr_html_(self) -> str:
        entries = list(self)
        title = f"{len(entries):,} session logs in {self._directory}"
        rows = [[str(_record(entry)[name] or "") for name in _SHOWN_COLUMNS] for entry in entries[:_SHOWN]]
        more = f"… {len(entries) - _SHOWN:,} more" if len(entries) > _SHOWN else ""
        html: str = ports.load("display", "table_html")(title, _SHOWN_COLUMNS, rows, more)
        return html

    def _names(self) -> list[str]:
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise PersistenceError(f"cannot list the logs in {self._directory}: {error.strerror or error}") from error
        return [name for name in names if name.endswith((SESSION_FILE_SUFFIX, SESSION_PARTIAL_SUFFIX)) and name[0] != "."]

    def _all(self, progress: Callable[[int, int], None] | None = None) -> Iterator[LogEntry]:
        names = self._names()
        for done, name in enumerate(names, 1):
            try:
                yield _entry(self._directory / name)
            except FileNotFoundError:  # deleted since
                continue
            finally:
                if progress is not None:
                    progress(done, len(names))


def open_dir(path: Path | str | None = None) -> LogCollection:
    """The logs in a directory, as a lazy collection.

    Args:
        path: a directory of logs, or the data directory whose ``sessions`` they are in; by default the sessions
            directory. It need not be there.

    Raises:
        PersistenceError: ``path`` is a file, or the system does not let it be looked at.
    """
    directory = sessions_dir() if path is None else log_path(path)
    if is_there(directory) and not is_directory(directory):
        raise PersistenceError(f"{directory} is not a directory: verify(path) and load_session(id, path=…) read one log")
    made, inner = LogCollection(directory), directory / SESSIONS_DIR_NAME
    return LogCollection(inner) if path is not None and os.path.isdir(inner) and not made else made


_COLUMNS = (
    *("id", "path", "created_at", "operator", "model", "rows", "size_bytes", "verdict", "reason", "checked"),
    *("shared_rows", "shared_with"),
)
_SHOWN_COLUMNS = ("id", "created_at", "operator", "model", "rows", "shared_rows", "size_bytes", "verdict")


def _record(entry: LogEntry) -> dict[str, Any]:
    values = {name: getattr(entry, name) for name in _COLUMNS}
    ids = {name: None if values[name] is None else str(values[name]) for name in ("id", "shared_with")}
    return values | ids | {"path": str(entry.path)}


def _checked(entry: LogEntry) -> LogEntry | None:
    """The entry with the verdict on the whole file; ``None`` if the file has gone since."""
    found = entry.check()
    return None if found.verdict == "unreadable" and not os.path.lexists(entry.path) else found


def _entry(path: Path) -> LogEntry:
    try:
        edges = read_edges(path)
    except FileNotFoundError:
        raise
    except BadLine as error:
        verdict = "torn" if str(error) == "no whole header" else "damaged"
        return _unknown(path, verdict, str(error))
    except OSError as error:
        return _unknown(path, "unreadable", error.strerror or str(error))
    header = edges.header
    model = (header.provider or {}).get("model")
    return LogEntry(
        id=header.id,
        path=path,
        created_at=header.created_at,
        operator=header.lineage_operator,
        model=model[:_MAX_MODEL] if isinstance(model, str) else None,
        rows=edges.rows,
        size_bytes=edges.size_bytes,
        verdict=edges.ending,
        kind=header.lineage_kind,
        shared_rows=header.prefix.length if header.prefix else 0,
        shared_with=header.prefix.session_id if header.prefix else None,
    )


def _unknown(path: Path, verdict: str, reason: str) -> LogEntry:
    changed, size = datetime.fromtimestamp(0, UTC), 0
    try:
        status = path.lstat()
        size = status.st_size
        changed = datetime.fromtimestamp(status.st_mtime, UTC)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, OverflowError):  # not to be looked at; or changed in a year that there is not
        pass
    return LogEntry(
        id=None,
        path=path,
        created_at=changed,
        operator="",
        model=None,
        rows=0,
        size_bytes=size,
        verdict=verdict,
        reason=reason,
    )


def _names(name: str, given: _OneOrMore) -> frozenset[str]:
    """One or several names as a set."""
    several = (given,) if isinstance(given, str) else given
    if not isinstance(several, tuple | list | set | frozenset) or not all(isinstance(one, str) for one in several):
        raise UsageTypeError(f"{name} is text or a list of texts, not {given!r:.100}")
    return frozenset(several)


def _verdicts(given: _OneOrMore | None) -> frozenset[str] | None:
    if given is None:
        return None
    wanted = _names("verdict", given)
    if not wanted or not wanted <= set(VERDICTS):
        raise UsageValueError(f"a verdict is one of {', '.join(VERDICTS)}; got {given!r:.100}")
    return wanted


def _moment(name: str, given: datetime | str | None) -> datetime | None:
    if isinstance(given, str):
        try:
            given = datetime.fromisoformat(given)
        except ValueError:
            raise UsageValueError(f"{name} is a time such as 2026-01-31 or 2026-01-31T12:00; got {given!r:.60}") from None
    if given is not None and not isinstance(given, datetime):
        raise UsageTypeError(f"{name} is a datetime or text, not {type(given).__name__}")
    try:
        return None if given is None else given.astimezone(UTC)
    except (OverflowError, ValueError, OSError):  # the first or last day of all, in another time zone
        raise UsageValueError(f"{name} is {given}, which UTC has no year for") from None


# -- looking for text ------------------------------------------------------------------------------------------


def _contains(path: Path, text: str) -> bool:
    """Whether a whole row of the log says ``text``."""
    wanted = redact_text(text).casefold()
    hits: list[bool] = []

    def look(row: ChunkRow) -> None:
        if not hits and any(wanted in said.casefold() for said in _texts(row)):
            hits.append(True)

    try:
        with open_log(path) as file:
            walk = Walk(file, os.fstat(file.fileno()).st_size, path, each_row=look)
            for _ in walk:
                if hits:
                    return True
            for row in walk.rows_from_results():
                look(row)
    except PersistenceError:
        return False
    return bool(hits)


def _texts(row: ChunkRow) -> Iterator[str]:
    """What a row says: its text, the arguments of its calls, and of a tool's result the text inside the JSON."""
    payload = row.payload
    content = payload.get("content")
    if isinstance(content, str):
        yield content
        if row.kind is ChunkKind.TOOL_RESULT:
            try:
                yield from _strings(decode_object(content.encode("utf-8", "surrogatepass"), lenient=True))
            except (BadLine, RecursionError):
                pass
    calls = payload.get("tool_calls")
    yield from _strings(calls)


def _strings(value: Any) -> Iterator[str]:
    level = [value]
    while level:
        item = level.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            level.extend(item.values())
        elif isinstance(item, list):
            level.extend(item)

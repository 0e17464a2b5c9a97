"""Writing one session's log: which records, in which order. How they reach the disk is ``logfile.py``."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from uuid import UUID

from rath.errors import UsageTypeError, UsageValueError
from rath.session.chunk import ChunkKind, ChunkRow, ChunkTable, row_digest
from rath.session.logplace import LogPlace
from rath.session.persistence.ancestry import lineage_fields
from rath.session.persistence.format import EMPTY_DIGEST, chunk_fields, encode_fields, result_fields
from rath.session.persistence.logfile import Durability, LogFile
from rath.session.persistence.paths import log_name, log_path, session_file
from rath.session.persistence.records import (
    Logged,
    header_fields,
    pairs_to_json,
    plain,
    timestamp,
    usage_to_json,
)
from rath.session.persistence.sharing import shared_prefix

if TYPE_CHECKING:
    from rath.llm.types import RathLLMTokenUsage
    from rath.session.session import Session

__all__ = ["Durability", "LogFile", "SessionLog", "SessionWriter"]


class SessionLog:
    """One session's records on a :class:`LogFile`: the header at once, rows in order, a trailer at the end.

    Args:
        seed: the rows that the session has before its run. Those that stand in another log of the directory are not
            stored again; the others are written now.
    """

    def __init__(
        self,
        session: Logged,
        path: Path | str | None,
        *,
        provider: object | None = None,
        sandbox_handle_id: str | None = None,
        durability: Durability = "turn",
        seed: ChunkTable | None = None,
    ) -> None:
        self.session_id = session.id
        self.rows = self._shared_rows = 0
        self._digest = EMPTY_DIGEST
        self._results: dict[int, bytes] = {}
        self.file = LogFile(session_file(session.id) if path is None else log_path(path), durability)
        try:
            with shared_prefix(None if seed is None else seed.logged, self.file.path, durability) as prefix:
                fields = header_fields(
                    session,
                    epoch=self.file.epoch,
                    provider=provider,
                    sandbox_handle_id=sandbox_handle_id,
                    durability=durability,
                    seed_rows=None if seed is None else len(seed),
                    prefix=prefix,
                )
                self.file.append("header", encode_fields(fields | lineage_fields(session, self.file.path)))
            if prefix is not None:
                self.rows = self._shared_rows = prefix.length
                self._digest = prefix.digest
            if seed is not None:
                self._write_seed(seed)
        except BaseException:
            self.file.discard()
            raise

    @classmethod
    def reopened(
        cls, file: LogFile, session_id: UUID, *, rows: int, shared_rows: int, digest: bytes, results: dict[int, bytes]
    ) -> SessionLog:
        """The log that ``file`` goes on with.

        Args:
            rows: how many it has, of that digest; ``shared_rows`` of them in other logs.
            results: the payloads of tool results that stand in it and have no row yet, by row number.
        """
        log = object.__new__(cls)
        log.file, log.session_id, log.rows, log._shared_rows = file, session_id, rows, shared_rows
        log._digest, log._results = digest, results
        return log

    def _write_seed(self, seed: ChunkTable) -> None:
        # Its ancestors too: forks of the same session have different seeds. Known before it is flat.
        tables = {len(table): table for table in seed.ancestry() if len(table) > self.rows}
        rows = seed.rows if tables else ()
        for index in range(self.rows, len(rows)):
            self.append_row(index, rows[index])
            self.note(tables.get(index + 1))

    def note(self, table: ChunkTable | None, durable: bool = False) -> None:
        """Let logs of what continues ``table``, whose rows are those that were written, refer to this log.

        Args:
            durable: whether they are on the disk.
        """
        path = self.file.path
        if table is None or self.rows == self._shared_rows:
            return
        # A log under another name can lend no rows, but what continues it finds its blobs.
        if path.name != log_name(self.session_id) and table.logged is not None:
            return
        if len(table) == self.rows and table.known_digest in (None, self._digest):
            place = LogPlace(path, self.session_id, self.rows, self._digest, self.file.size_bytes, self.file.h, durable)
            table.note_logged(place)

    def append_result(self, call_id: str, index: int, payload: bytes) -> None:
        """Write a tool's result, which will be row number ``index``: that row is then not written again.

        A result for a row that is there, or a second and different one, is left out: readers would see a contradiction.
        """
        with self.file.mutex:
            # Readers count a row that stands in a result later than it came: a second one would be a contradiction to them.
            if index >= self.rows and self._results.get(index, payload) == payload:
                self.file.append("tool_result", result_fields(call_id, index, payload))
                self._results[index] = payload

    def append_row(self, index: int, row: ChunkRow) -> None:
        """Write row number ``index``, which must be the next one."""
        file = self.file
        with file.mutex:
            file.check()
            if index != self.rows:
                raise UsageValueError(f"rows are logged in order: the next index is {self.rows}, not {index!r}")
            try:
                digest = row_digest(self._digest, row)
                result = self._results.pop(index, None) if self._results else None
                if result is None or row.kind is not ChunkKind.TOOL_RESULT or row.encoded_payload != result:
                    file.append("chunk", chunk_fields(index, row.encoded, digest))
                self._digest = digest
                self.rows = index + 1
            except BaseException as error:
                file.latch(error)  # a Ctrl-C between these lines would let row and digest disagree
                raise

    def close(
        self,
        usage: RathLLMTokenUsage | None,
        lineage_extras: tuple[tuple[str, Any], ...],
        outcome: dict[str, Any],
    ) -> bool:
        """Write the trailer, make everything durable, let file and lock go. ``False`` if that had been done."""

        def trailer() -> bytes:
            return encode_fields(
                {
                    "closed_at": timestamp(),
                    "final_chunk_count": self.rows,
                    "record_count": self.file.records + 1,
                    "digest": self._digest.hex(),
                    "cumulative_usage": usage_to_json(usage),
                    "lineage_extras": pairs_to_json(lineage_extras),
                    "outcome": plain(outcome),
                }
            )

        return self.file.finish("trailer", trailer)


class SessionWriter:
    """Writes one session's log by hand: the header at once, then rows, then :meth:`close`.

    A context manager: leaving it normally closes, leaving it with an exception abandons. The file is
    ``.openrath/sessions/<id>.jsonl`` from its first byte; only the trailer says that it is complete. Rows are
    durable against the death of the process when :meth:`write_chunk` returns, and against a power cut when
    :meth:`close` does.

    Args:
        session: whose log it is.
        sandbox_handle_id: a name for the sandbox, kept in the header.
        path: write there instead.

    Raises:
        PersistenceError: the file is there already, somebody else writes it, or it cannot be written. The
            first failure is final: every later call raises the same error, and no trailer is ever written.
    """

    def __init__(self, session: Session, *, sandbox_handle_id: str | None = None, path: Path | str | None = None) -> None:
        self._session = session
        self._log = SessionLog(session, path, sandbox_handle_id=sandbox_handle_id)
        session._record.log, session._record.verdict = str(self.path), "open"

    @property
    def path(self) -> Path:
        """The log."""
        return self._log.file.path

    @property
    def partial_path(self) -> Path:
        """The log while it is open: the same file as :attr:`path`. Nothing is renamed on close."""
        return self._log.file.path

    @property
    def chunks_written(self) -> int:
        """How many rows were written."""
        return self._log.rows

    def write_chunk(self, index: int, row: ChunkRow) -> None:
        """Append row number ``index``.

        Raises:
            UsageValueError: ``index`` is not :attr:`chunks_written`.
        """
        if not isinstance(row, ChunkRow):
            raise UsageTypeError(f"write_chunk takes a ChunkRow, not {type(row).__name__}")
        self._log.append_row(index, row)

    def close(self) -> None:
        """Write the trailer and let go. Waits for the session's usage. Closing again does nothing."""
        if self._log.file.finished:
            return
        session = self._session
        self._log.close(session.cumulative_usage, session.lineage_extras, {"status": "completed"})
        session._record.verdict = "complete"

    def abandon(self) -> None:
        """Let the file go without a trailer: it reads as not closed. Idempotent, never raises."""
        self._log.file.abandon()

    def __enter__(self) -> SessionWriter:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if exc_type is not None:
            self.abandon()
            return
        try:
            self.close()
        except BaseException:
            self.abandon()  # whatever stopped the trailer, the lock goes
            raise

"""Writing one session's log: which records, in which order. How they reach the disk is ``logfile.py``."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rath.errors import UsageTypeError, UsageValueError
from rath.session.chunk import ChunkRow, row_digest
from rath.session.persistence.format import EMPTY_DIGEST, chunk_fields, encode_fields
from rath.session.persistence.logfile import Durability, LogFile
from rath.session.persistence.paths import log_path, session_file
from rath.session.persistence.records import (
    Logged,
    header_fields,
    pairs_to_json,
    plain,
    timestamp,
    usage_to_json,
)

if TYPE_CHECKING:
    from rath.llm.types import RathLLMTokenUsage
    from rath.session.session import Session

__all__ = ["Durability", "LogFile", "SessionLog", "SessionWriter"]


class SessionLog:
    """One session's records on a :class:`LogFile`: the header at once, rows in order, a trailer at the end."""

    def __init__(
        self,
        session: Logged,
        path: Path | str | None,
        *,
        provider: object | None = None,
        sandbox_handle_id: str | None = None,
        durability: Durability = "turn",
        seed_rows: int | None = None,
    ) -> None:
        self.rows = 0
        self._digest = EMPTY_DIGEST
        self.file = LogFile(session_file(session.id) if path is None else log_path(path), durability)
        try:
            fields = header_fields(
                session,
                epoch=self.file.epoch,
                provider=provider,
                sandbox_handle_id=sandbox_handle_id,
                seed_rows=seed_rows,
            )
            self.file.append("header", encode_fields(fields))
        except BaseException:
            self.file.discard()
            raise

    @classmethod
    def reopened(cls, file: LogFile, rows: int, digest: bytes) -> SessionLog:
        """The log that ``file`` goes on with, which has ``rows`` rows of that digest."""
        log = object.__new__(cls)
        log.file, log.rows, log._digest = file, rows, digest
        return log

    def append_row(self, index: int, row: ChunkRow) -> None:
        """Write row number ``index``, which must be the next one."""
        file = self.file
        with file.mutex:
            file.check()
            if index != self.rows:
                raise UsageValueError(f"rows are logged in order: the next index is {self.rows}, not {index!r}")
            try:
                digest = row_digest(self._digest, row)
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
    ) -> None:
        """Write the trailer, make everything durable, let file and lock go."""

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

        self.file.finish("trailer", trailer)


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

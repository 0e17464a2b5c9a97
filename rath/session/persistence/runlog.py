"""The log of a run as it goes: events in, records out."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rath.core.events import Event, RowAppended, ToolFinished, ToolStarted, UsageReported
from rath.core.redact import redact_text
from rath.llm.pricing import price_of
from rath.session.chunk import DIGEST_BYTES, ChunkRow, ChunkTable, tool_feedback_chunk
from rath.session.persistence.blobs import BlobStore
from rath.session.persistence.format import encode_fields
from rath.session.persistence.records import Logged, usage_to_json
from rath.session.persistence.writer import Durability, SessionLog
from rath.session.request import LoggedSoFar

if TYPE_CHECKING:
    from rath.core.ports import RunLog
    from rath.llm.types import RathLLMTokenUsage

__all__ = ["JsonlRunLog", "arguments_digest", "open_run_log"]


def open_run_log(
    session: Logged,
    *,
    path: Path | str | None = None,
    provider: object | None = None,
    sandbox_handle_id: str | None = None,
    durability: Durability = "turn",
    seed: ChunkTable | None = None,
) -> JsonlRunLog:
    """The open log of a run, its header and its first rows written. Waits for the disk: call it in a thread.

    Args:
        session: the run's output; only what is known at once is read.
        path: ``.openrath/sessions/<id>.jsonl`` by default.
        provider: its kind, model and sampling settings go into the header.
        durability: ``"process"`` (survives SIGKILL), ``"turn"`` (what :meth:`JsonlRunLog.sync` returned for
            survives a power cut) or ``"record"`` (each record does).
        seed: the rows that the session has before the run. Those that stand in another log of the same directory are
            not stored again; of the others, and of the tables that they continue, it is noted that they stand here.

    Raises:
        PersistenceError: the file is there already, somebody else writes it, or it cannot be written.
    """
    return JsonlRunLog(
        SessionLog(
            session,
            path,
            provider=provider,
            sandbox_handle_id=sandbox_handle_id,
            durability=durability,
            seed=seed,
        ),
        model=getattr(provider, "model", None),
    )


def arguments_digest(arguments: str) -> str:
    """A ``tool_intent``'s word for the call's arguments: BLAKE2b (16 bytes, hex) of the redacted text."""
    text = redact_text(arguments).encode("utf-8", "surrogatepass")
    return blake2b(text, digest_size=DIGEST_BYTES).hexdigest()


class JsonlRunLog:
    """The log that a run writes. Methods raise ``PersistenceError`` at the first failure and ever after.

    Events and rows come from one thread; :meth:`sync` may be called from another meanwhile.
    """

    __slots__ = ("_file", "_log", "_model", "_so_far")

    def __init__(self, log: SessionLog, so_far: LoggedSoFar | None = None, model: str | None = None) -> None:
        self._log = log
        self._model = model
        self._file = log.file
        self._so_far = so_far

    @property
    def path(self) -> Path:
        """The log."""
        return self._file.path

    @property
    def so_far(self) -> LoggedSoFar | None:
        """What was in it when it was reopened; ``None`` for a new log."""
        return self._so_far

    def append_row(self, index: int, row: ChunkRow) -> None:
        """Write row number ``index``, which must be the next one."""
        self._log.append_row(index, row)

    def on_event(self, event: Event) -> None:
        """Write what the log keeps of ``event``: when this returns, it survives the death of the process."""
        kind = type(event)
        if kind is RowAppended:
            self._log.append_row(event.index, event.row)  # type: ignore[union-attr]
        elif isinstance(event, ToolStarted):
            self._tool_started(event)
        elif isinstance(event, ToolFinished):
            self._tool_finished(event)
        elif isinstance(event, UsageReported):
            self._usage_reported(event)

    def _tool_started(self, event: ToolStarted) -> None:
        fields = {
            "call_id": redact_text(event.call_id),
            "name": redact_text(event.name),
            "arguments_digest": arguments_digest(event.arguments),
            "idempotent": event.idempotent,
        }
        self._file.append("tool_intent", encode_fields(fields))

    def keep(self, digest: str, data: bytes) -> None:
        """Keep the whole text of a result that was cut among the log's blobs. May wait for the disk; any thread.

        A text that cannot be kept fails the log, as a record that cannot be written does.
        """
        file = self._file
        file.check()
        try:
            BlobStore.of_log(file.path).put(data, digest=digest, durable=file.durability != "process")
        except BaseException as error:
            with file.mutex:
                file.latch(error)
            raise

    def _tool_finished(self, event: ToolFinished) -> None:
        for digest, size in event.spills:
            spill = {"digest": digest, "bytes": size, "call_id": redact_text(event.call_id)}
            self._file.append("spill", encode_fields(spill))
        payload = tool_feedback_chunk(event.call_id, event.name, event.body).encoded_payload
        self._log.append_result(redact_text(event.call_id), event.row_index, payload)

    def _usage_reported(self, event: UsageReported) -> None:
        price = price_of(event.model) or price_of(self._model)
        fields = {
            **(usage_to_json(event.usage) or {}),
            "model": redact_text(event.model),
            "price": None if price is None else price._asdict(),
        }
        self._file.append("usage", encode_fields(fields))

    def needs_sync(self) -> bool:
        """Whether :meth:`sync` has anything to do: at ``"turn"``, if anything was written since the last."""
        return self._file.needs_sync()

    def sync(self) -> None:
        """Make what was written durable. May take as long as the disk does: call it in a thread."""
        self._file.sync()

    def close(
        self,
        *,
        usage: RathLLMTokenUsage | None,
        lineage_extras: tuple[tuple[str, Any], ...],
        outcome: dict[str, Any],
        table: ChunkTable | None = None,
    ) -> None:
        """Write the trailer, make everything durable, let file and lock go. May wait for the disk.

        Args:
            table: the rows that were written, if somebody has them: logs of what continues them can refer to this one.
            usage: of the whole run.
            lineage_extras: all of them, those that the run found included.
            outcome: how the run ended, as JSON: ``{"status": "completed", …}``.
        """
        if self._log.close(usage, lineage_extras, outcome):
            self._log.note(table, durable=self._file.durability != "process")

    def abandon(self) -> None:
        """Let file and lock go without a trailer. Idempotent, never raises."""
        self._file.abandon()


if TYPE_CHECKING:
    _: type[RunLog] = JsonlRunLog

"""Session: an immutable value whose rows may still be on their way.

A session is four references: a *record* (who it is and where it comes from), a *cell* (its rows, once resolved), a
*lease* (its hold on the sandbox it is placed in) and, for a loop's output, the ids of its two producers. Operators make
new sessions from old ones and return at once; reading the rows waits.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any
from uuid import UUID

import msgspec

from rath.backend.branching import WorkspaceSnapshot
from rath.backend.lease import Lease, Placement
from rath.backend.types import BackendSandbox, BackendSandboxSpec
from rath.core import ports
from rath.core.broadcast import SessionEvents
from rath.core.cell import Cell, Status
from rath.core.ids import new_id
from rath.errors import UsageTypeError, UsageValueError
from rath.llm.types import RathLLMTokenUsage, add_usage
from rath.session.chunk import ChunkRow, ChunkTable, format_chunk_row_brief, system_text_chunk, user_text_chunk
from rath.session.graph.kind import LineageKind, SessionLineage
from rath.session.graph.record import LineageRecord
from rath.session.graph.recording import note_in_journal, session_graph_mode
from rath.session.outcome import Outcome, RunView, Settled, derived_cell
from rath.session.placing import Placed

__all__ = ["Session"]

_set = object.__setattr__
_EMPTY = ChunkTable()


class Session(Placed):
    """An immutable conversation: rows, lineage, and where its tools run.

    ``id``, lineage and placement are known at once. ``chunk_table``, ``cumulative_usage`` and ``digest`` wait for the run
    that makes them; ``await session`` waits in any event loop. A failed session raises the same error at every read.

    Args:
        chunk_table: the rows.
        id: a new one by default.
        sandbox: an open sandbox to share; takes one reference to it.
        sandbox_backend: where to open a sandbox when one is needed.
    """

    __slots__ = ("__weakref__", "_cell", "_depth", "_lease", "_record", "_run", "lineage")

    _cell: Cell[Outcome]
    _depth: int
    _lease: Lease | None
    _record: LineageRecord
    _run: RunView | None
    lineage: SessionLineage | None

    def __init__(
        self,
        chunk_table: ChunkTable,
        *,
        id: UUID | None = None,
        sandbox: BackendSandbox | None = None,
        sandbox_backend: str | None = None,
        lineage: SessionLineage | None = None,
        parent_session_ids: tuple[UUID, ...] = (),
        lineage_operator: str = "implicit",
        lineage_kind: LineageKind = LineageKind.UNKNOWN,
        lineage_extras: tuple[tuple[str, Any], ...] = (),
        cumulative_usage: RathLLMTokenUsage | None = None,
    ) -> None:
        if not isinstance(chunk_table, ChunkTable):
            raise UsageTypeError(f"chunk_table is a ChunkTable, not {type(chunk_table).__name__}")
        lease = None
        if sandbox is not None:
            lease = Placement.of_sandbox(sandbox).acquire()
        elif sandbox_backend is not None:
            lease = Placement(sandbox_backend).acquire()
        record = LineageRecord(
            id or new_id(),
            tuple(parent_session_ids),
            lineage_operator,
            LineageKind(lineage_kind),
            tuple(lineage_extras),
        )
        _fill(self, record, Cell.resolved(Outcome(chunk_table, cumulative_usage)), lease, lineage)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(
            f"a Session is immutable: cannot assign {name!r}. Operations return a new session, e.g. "
            'session = session.to("local") or session = session.append(row)'
        )

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a Session is immutable: cannot delete {name!r}")

    def __copy__(self) -> Session:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Session:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        raise UsageTypeError(
            "a Session cannot be pickled: its run and its sandbox belong to this process. Send session.chunk_table, which "
            "can be, or persist the session and load_session(id) there"
        )

    # -- constructors -------------------------------------------------------------------------------------------------

    @classmethod
    def from_user_message(cls, message: str) -> Session:
        """A session with one user row."""
        return cls(ChunkTable((user_text_chunk(_text(message)),)))

    @classmethod
    def from_agent_prompt(cls, prompt: str) -> Session:
        """A session with one system row: an agent's instructions."""
        return cls(ChunkTable((system_text_chunk(_text(prompt)),)))

    @classmethod
    def create(cls, kind: str = "user", text: str = "") -> Session:
        """A session of one row by kind: ``"user"``, ``"system"``, or ``"empty"`` (no rows).

        Raises:
            UsageValueError: any other kind.
        """
        if kind == "empty":
            return cls(ChunkTable())
        if kind not in ("user", "system"):
            raise UsageValueError(f"Session.create: unknown kind {kind!r}; one of 'user', 'system', 'empty'")
        made = cls.from_user_message(text) if kind == "user" else cls.from_agent_prompt(text)
        if not session_graph_mode():
            return made
        leaf = LineageKind.LEAF_USER if kind == "user" else LineageKind.LEAF_SYSTEM
        return journaled(made.with_lineage((), "Session.create", leaf, (("source", "Session.create"),)))

    # -- known at once ------------------------------------------------------------------------------------------------

    @property
    def id(self) -> UUID:
        """Who this is."""
        return self._record.id

    @property
    def parent_session_ids(self) -> tuple[UUID, ...]:
        """What it was made from, in order."""
        return self._record.parent_ids

    @property
    def lineage_operator(self) -> str:
        """The operator that made it."""
        return self._record.operator

    @property
    def lineage_kind(self) -> LineageKind:
        """The kind of that operator."""
        return self._record.kind

    @property
    def lineage_extras(self) -> tuple[tuple[str, Any], ...]:
        """Further facts as pairs: those known at the call, and, once resolved, those the run found. Never waits."""
        return self._record.extras

    @property
    def sandbox_backend(self) -> str | None:
        """The name of the backend it is placed in, if any."""
        return None if self._lease is None else self._lease.placement.backend

    @property
    def sandbox_spec(self) -> BackendSandboxSpec | None:
        """How its sandbox is, or will be, opened."""
        return None if self._lease is None else self._lease.placement.spec

    @property
    def sandbox(self) -> BackendSandbox | None:
        """The open sandbox; ``None`` before the first use and after release. Never opens, never waits."""
        lease = self._lease
        return None if lease is None or lease.released else lease.placement.sandbox

    @property
    def status(self) -> Status:
        """``pending``, ``running``, ``completed``, ``failed`` or ``cancelled``. Does not wait."""
        return self._cell.status

    @property
    def done(self) -> Settled:
        """Whether it is completed, failed or cancelled; ``session.done()`` says the same. Does not wait."""
        return Settled(self._cell.done)

    @property
    def failed_ancestor(self) -> UUID | None:
        """The session whose failure this one inherited; ``None`` for an own failure, or none."""
        failure = self._cell.failure
        return None if failure is None or failure.origin == self.id else failure.origin

    @property
    def partial(self) -> ChunkTable:
        """The rows so far: all of them once completed, what was reached if it failed, a snapshot while running."""
        outcome = self._cell.peek()
        if outcome is not None:
            return outcome.table
        return _EMPTY if self._run is None else self._run.partial

    def exception(self) -> BaseException | None:
        """The error it failed with; ``None`` while pending or when all is well. Does not wait."""
        return self._cell.exception()

    def cancel(self, reason: str = "") -> bool:
        """Stop the run that makes this session; what it started in the sandbox is killed. ``False`` if it had ended."""
        return self._cell.cancel(reason)

    def events(self, *kinds: type[Any]) -> SessionEvents:
        """The events of the run that makes this session: what has passed, then live. For ``for`` and ``async for``.

        Args:
            kinds: only these types of event; the terminal event always comes.
        """
        return SessionEvents(None if self._run is None else self._run.stream, self._cell, kinds)

    # -- waiting ------------------------------------------------------------------------------------------------------

    @property
    def chunk_table(self) -> ChunkTable:
        """The rows. Waits."""
        return self._cell.get().table

    @property
    def cumulative_usage(self) -> RathLLMTokenUsage | None:
        """The tokens of this session's own run; ``None`` where no model was called. Waits."""
        return self._cell.get().usage

    @property
    def digest(self) -> bytes:
        """16 bytes that stand for the rows: equal rows, equal digests. Waits."""
        digest = self._cell.get().table.digest
        self._record.digest = digest
        return digest

    def synchronize(self, timeout: float | None = None) -> Session:
        """Wait until resolved and return the session itself.

        Args:
            timeout: seconds; after them the *wait* ends with ``TimeoutError``, the run goes on.
        """
        self._cell.get(timeout)
        return self

    def __await__(self) -> Generator[Any, None, Session]:
        yield from self._cell.__await__()
        return self

    # -- operators ----------------------------------------------------------------------------------------------------

    def append(self, *rows: ChunkRow) -> Session:
        """A session that continues this one with ``rows``. O(number of new rows); never blocks."""
        for row in rows:
            if not isinstance(row, ChunkRow):
                raise UsageTypeError(f"append takes rows (user_text_chunk(...), …), not {type(row).__name__}")
        return _derived("Session.append", LineageKind.OP_APPEND, (self,), lambda o: Outcome(o.table.extend(*rows)))

    def user(self, text: str) -> Session:
        """:meth:`append` of one user row."""
        return self.append(user_text_chunk(_text(text)))

    def fork(self, *, sandbox: str = "share") -> Session:
        """A branch: the same rows, parent ``self``. Costs the same at any length; never blocks.

        Args:
            sandbox: ``"share"`` the sandbox with this session, or give the branch its own ``"copy"`` of the workspace as
                it is now (when this session resolves, if it is pending). Files only: processes are not forked.
        """
        if sandbox not in ("share", "copy"):
            raise UsageValueError(f"fork(sandbox={sandbox!r}): one of 'share', 'copy'")
        lease = share_lease(self._lease) if sandbox == "share" else self._copied_lease()
        return self._branch("Session.fork", lease, None if lease is None or sandbox == "share" else lease.placement.layer)

    def _branch(self, operator: str, lease: Lease | None, layer: str | None) -> Session:
        extras = () if layer is None else (("workspace_layer", layer),)
        return _derived(operator, LineageKind.OP_FORK, (self,), lambda o: Outcome(o.table), lease, extras=extras)

    def _copied_lease(self) -> Lease | None:
        if self._lease is None:
            return None
        self._lease.check()
        child = self._lease.placement.copy(None if self._cell.done else self._cell)
        lease = child.acquire()
        # The freeze is queued now or the moment the parent resolves: before anything that uses its files afterwards.
        self._cell.on_done(lambda _cell: child.freeze())
        return lease

    def detach(self) -> Session:
        """The same rows and sandbox, without parents. Never blocks."""
        return _derived(
            "Session.detach",
            LineageKind.OP_DETACH,
            (self,),
            lambda o: Outcome(o.table),
            share_lease(self._lease),
            parents=(),
        )

    def merge(self, other: Session) -> Session:
        """These rows, then the other's; usage added up; this session's sandbox. Never blocks.

        Raises:
            UsageValueError: both are placed in different backends and neither sandbox is open.
        """
        if not isinstance(other, Session):
            raise UsageTypeError(f"merge takes a Session, not {type(other).__name__}")
        mine, theirs = self.sandbox_backend, other.sandbox_backend
        if self.sandbox is None and other.sandbox is None and mine and theirs and mine != theirs:
            raise UsageValueError(
                f"cannot merge sessions that are placed in different backends, {mine!r} and {theirs!r}, before either "
                "sandbox is open: place both in one backend with session.to(...)"
            )
        return _derived(
            "Session.merge",
            LineageKind.OP_MERGE,
            (self, other),
            lambda a, b: Outcome(a.table.concat(b.table), add_usage(a.usage, b.usage)),
            share_lease(self._lease),
        )

    # -- placement ----------------------------------------------------------------------------------------------------

    def to(self, backend: str = "local", *, spec: BackendSandboxSpec | str | None = None) -> Session:
        """This session, same id and lineage, placed in a backend. The sandbox opens on first use, once for all who share it.

        Args:
            backend: ``"docker"`` or ``"bwrap"`` (both isolate), ``"auto"`` (the first of them that works here), ``"local"``
                (the host itself: no isolation), or another registered backend.
            spec: how to open it; a string is its ``working_dir``.

        Raises:
            BackendNotFound: no backend has this name.
        """
        return _placed(self, Placement(backend, spec).acquire())

    def bind_sandbox(self, sandbox: BackendSandbox) -> Session:
        """This session, same id and lineage, placed in an open sandbox; takes one reference to it."""
        return _placed(self, Placement.of_sandbox(sandbox).acquire())

    def restore(self, snapshot: WorkspaceSnapshot) -> Session:
        """A branch of this session, as :meth:`fork` makes it, whose workspace starts with the files of ``snapshot``.

        Raises:
            SandboxClosed: the snapshot is closed.
        """
        return self._branch("Session.restore", Placement.of_snapshot(snapshot).acquire(), snapshot.id)

    # -- for the rest of rath -----------------------------------------------------------------------------------------

    def with_lineage(
        self,
        parent_session_ids: tuple[UUID, ...],
        lineage_operator: str,
        lineage_kind: LineageKind,
        lineage_extras: tuple[tuple[str, Any], ...],
    ) -> Session:
        """This session, same id, rows and sandbox, with another lineage."""
        record = msgspec.structs.replace(
            self._record,
            parent_ids=tuple(parent_session_ids),
            operator=lineage_operator,
            kind=lineage_kind,
            extras=tuple(lineage_extras),
            parents=tuple(parent for parent in self._record.parents if parent.id in parent_session_ids),
            status="pending",  # until the cell says otherwise, which may be now
        )
        return make_session(record, self._cell, share_lease(self._lease), self.lineage, self._run)

    def _repr_html_(self) -> str:
        """What Jupyter shows. Never waits."""
        html: str = ports.load("display", "session_html")(self)
        return html

    def __repr__(self) -> str:
        head = f"{type(self).__name__}(id={str(self.id)[:8]}…, operator={self.lineage_operator!r}"
        if self.sandbox_backend is not None:
            head += f", sandbox={self.sandbox_backend!r}"
        outcome = self._cell.peek()
        if outcome is None:
            return f"{head}, {self.status})"
        count, rows = len(outcome.table), outcome.table.rows
        shown = (
            list(enumerate(rows))
            if count <= 9
            else [*enumerate(rows[:4]), *zip(range(count - 4, count), rows[-4:], strict=True)]
        )
        lines = [f"    {format_chunk_row_brief(index, row, max_payload=160)}," for index, row in shown]
        if count > 9:
            lines.insert(4, f"    … {count - 8} rows …")
        return f"{head}, rows={count}, [\n" + "\n".join(lines) + "\n])" if lines else f"{head}, rows=0)"


def _text(text: str) -> str:
    if not isinstance(text, str):
        raise UsageTypeError(f"a message is a str, not {type(text).__name__}")
    return text


def _fill(
    session: Session,
    record: LineageRecord,
    cell: Cell[Outcome],
    lease: Lease | None,
    lineage: SessionLineage | None,
    run: RunView | None = None,
    settles: bool = True,
) -> None:
    _set(session, "_record", record)
    _set(session, "_cell", cell)
    _set(session, "_lease", lease)
    _set(session, "lineage", lineage)
    _set(session, "_run", run)
    _set(session, "_depth", 0)
    if settles:
        # Resolved or not, the record learns what the cell knows without holding the rows.
        cell.on_done(record.settle)


def make_session(
    record: LineageRecord,
    cell: Cell[Outcome],
    lease: Lease | None,
    lineage: SessionLineage | None = None,
    run: RunView | None = None,
) -> Session:
    session = object.__new__(Session)
    _fill(session, record, cell, lease, lineage, run)
    return session


def snapshot_session(record: LineageRecord, outcome: Outcome, lease: Lease | None) -> Session:
    """A resolved session that stands for a run under way; the run's record stays pending."""
    session = object.__new__(Session)
    _fill(session, record, Cell.resolved(outcome), lease, None, settles=False)
    return session


def share_lease(lease: Lease | None) -> Lease | None:
    """One more reference to the same placement. A released lease is passed on as it is: released."""
    if lease is None or lease.released:
        return lease
    return lease.placement.acquire()


def _placed(session: Session, lease: Lease) -> Session:
    return make_session(session._record, session._cell, lease, session.lineage, session._run)


def journaled(session: Session) -> Session:
    note_in_journal(session)
    return session


def new_record(
    operator: str,
    kind: LineageKind,
    inputs: tuple[Session, ...],
    extras: tuple[tuple[str, Any], ...] = (),
    id: UUID | None = None,
) -> LineageRecord:
    """The record of a session made from ``inputs``; without lineage where stamping is switched off."""
    # Where an input is placed when it is used is where the graph says that it was: its first use counts.
    for session in inputs:
        if session._lease is not None and session._record.sandbox is None:
            session._record.sandbox = session._lease.placement.backend
    placed = inputs[0].sandbox_backend if inputs else None
    if not session_graph_mode():
        return LineageRecord(id or new_id(), sandbox=placed)
    parents = tuple(s._record for s in inputs)
    return LineageRecord(id or new_id(), tuple(s.id for s in inputs), operator, kind, extras, parents, sandbox=placed)


def _derived(
    operator: str,
    kind: LineageKind,
    inputs: tuple[Session, ...],
    combine: Callable[..., Outcome],
    lease: Lease | None = None,
    parents: tuple[Session, ...] | None = None,
    extras: tuple[tuple[str, Any], ...] = (),
) -> Session:
    """A session computed from others' rows alone: no engine, no run."""
    if lease is None and inputs:
        lease = share_lease(inputs[0]._lease)
    record = new_record(operator, kind, inputs if parents is None else parents, extras)
    record.sandbox = None if lease is None else lease.placement.backend
    record.derived = True
    cell = derived_cell(record.id, operator, tuple(s._cell for s in inputs), combine)
    return journaled(make_session(record, cell, lease))

"""The lineage of sessions as plain nodes: pure data, collected without recursion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

from rath.core.cell import Cell
from rath.core.redact import redact_text
from rath.llm.types import RathLLMTokenUsage, add_usage
from rath.session.graph.kind import LineageKind
from rath.session.graph.record import LineageRecord

__all__ = [
    "OWNS_NOTHING",
    "LineageNode",
    "Recorded",
    "collect",
    "fold",
    "node_of",
    "records_of",
    "roles_of",
    "short_label",
    "snapshot_of",
    "total_usage",
]

# A node's *own* usage is what its own completions used; these operators make none, whatever the session's
# `cumulative_usage` adds up.
OWNS_NOTHING = frozenset({LineageKind.OP_FORK, LineageKind.OP_DETACH, LineageKind.OP_APPEND, LineageKind.OP_MERGE})
# Their second parent is the agent's session: its instructions.
_WITH_AGENT = frozenset({LineageKind.OP_SESSION_LOOP, LineageKind.OP_SESSION_COMPRESS})
_SHORT = {
    LineageKind.LEAF_USER: "user",
    LineageKind.LEAF_SYSTEM: "system",
    LineageKind.OP_CREATE: "create",
    LineageKind.OP_SESSION_LOOP: "loop",
    LineageKind.OP_FORK: "fork",
    LineageKind.OP_DETACH: "detach",
    LineageKind.OP_MERGE: "merge",
    LineageKind.OP_SESSION_COMPRESS: "compress",
    LineageKind.OP_APPEND: "append",
}


class _Rows(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


class Recorded(Protocol):
    """What is read of a session; none of it waits."""

    @property
    def _record(self) -> LineageRecord: ...
    @property
    def _cell(self) -> Cell[Any]: ...
    @property
    def partial(self) -> _Rows: ...
    @property
    def status(self) -> str: ...
    @property
    def sandbox_backend(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class LineageNode:
    """One session in a lineage graph.

    Attributes:
        parents: ids of the nodes it was made from, in order, each once; where appends are folded, they are skipped over.
        status: ``pending running completed failed cancelled``, or ``unknown`` for a session known by its id alone.
        rows: how many it has, or has so far; ``None`` where only the lineage record is left.
        usage: tokens of its own completions.
        label: a word or two for people.
        folded: how many append nodes went into it.
        roles: one a parent: ``user``, ``system`` (its instructions), ``merge`` (what a merge added) or ``parent``.
        model: which one its run asked first. ``cost_usd``: of its own completions; ``None`` where one has no known price.
        created_at: when its run began, in UTC; until then, and for what no run makes, when it was made. ``duration_s``
            is how long the run took; of one that went on with a log, since then. ``None`` where nobody measured.
        verdict: of its log (``complete open torn damaged unreadable``), which is at ``path``; ``None`` without one.
        sandbox: the backend it is placed in; ``snapshot`` is the id of the copy of a workspace that it began with.
        digest: of its rows, in hexadecimal, where it is known.
        covers: the sessions whose runs' tokens are in ``usage``: those inside a user's operator.
    """

    id: UUID
    parents: tuple[UUID, ...] = ()
    operator: str = ""
    kind: LineageKind = LineageKind.UNKNOWN
    status: str = "unknown"
    rows: int | None = None
    usage: RathLLMTokenUsage | None = None
    extras: tuple[tuple[str, Any], ...] = ()
    label: str = ""
    folded: int = 0
    roles: tuple[str, ...] = ()
    model: str | None = None
    cost_usd: float | None = None
    created_at: datetime | None = None
    duration_s: float | None = None
    verdict: str | None = None
    path: Path | None = None
    sandbox: str | None = None
    snapshot: str | None = None
    digest: str | None = None
    covers: tuple[UUID, ...] = ()

    def __hash__(self) -> int:
        """That of the id: extras and usage may hold lists and dicts."""
        return hash(self.id)

    @property
    def parents_and_roles(self) -> tuple[tuple[UUID, str], ...]:
        """Each parent with its role; a node made by hand, without roles, has ``parent`` ones."""
        return tuple(zip(self.parents, self.roles or ("parent",) * len(self.parents), strict=True))

    # What the helpers of ``traverse.py`` read of sessions, headers and records they can read of nodes.

    @property
    def parent_session_ids(self) -> tuple[UUID, ...]:
        """``parents``."""
        return self.parents

    @property
    def lineage_operator(self) -> str:
        """``operator``."""
        return self.operator

    @property
    def lineage_kind(self) -> LineageKind:
        """``kind``."""
        return self.kind

    @property
    def lineage_extras(self) -> tuple[tuple[str, Any], ...]:
        """``extras``."""
        return self.extras


def collect(
    sessions: Iterable[Recorded], *, labels: Mapping[UUID, str] | None = None, fold_appends: bool = True
) -> list[LineageNode]:
    """The nodes of ``sessions`` and all their ancestors, each once, parents before children. Never waits.

    An append node is folded into each of its children; one without children stays.

    Args:
        labels: names for some of them, by session id.
    """
    wanted = list(sessions)
    given = {session._record.id: session for session in wanted}
    nodes: dict[UUID, LineageNode] = {}
    for record in records_of(session._record for session in wanted):
        for parent in record.parent_ids:
            # Every parent that was a session of this process stands before its child: this one was not.
            if parent not in nodes:
                nodes[parent] = LineageNode(parent, label="elsewhere")
        session = given.get(record.id)
        node = nodes[record.id] = node_of(record, session, _label(record, None if session is None else session.partial))
        if node.kind in _WITH_AGENT and len(node.parents) > 1:
            agent = nodes[node.parents[1]]
            if agent.label == "session" and not agent.parents:
                nodes[agent.id] = replace(agent, label="system")
    found = fold(nodes.values()) if fold_appends else list(nodes.values())
    names = {named: redact_text(label) for named, label in (labels or {}).items()}
    return [replace(node, label=names[node.id]) if node.id in names else node for node in found]


def total_usage(nodes: Iterable[LineageNode]) -> RathLLMTokenUsage | None:
    """The tokens of all completions of these nodes."""
    total: RathLLMTokenUsage | None = None
    for node in nodes:
        total = add_usage(total, node.usage)
    return total


def records_of(starts: Iterable[LineageRecord]) -> list[LineageRecord]:
    """Every record that can be reached, each once, parents first.

    Two may have one id: a session that was loaded again, gone on with, or stamped anew, beside the one before.
    """
    ordered: list[LineageRecord] = []
    seen: set[int] = set()
    for start in starts:
        stack = [(start, False)]
        while stack:
            record, parents_done = stack.pop()
            if parents_done:
                ordered.append(record)
            elif id(record) not in seen:
                seen.add(id(record))
                stack.append((record, True))
                stack.extend((parent, False) for parent in reversed(record.parents))
    return ordered


def node_of(record: LineageRecord, session: Recorded | None, label: str) -> LineageNode:
    """The node of a record, and of its session while that lives; of a session with another record, nothing. Never waits.

    Names are redacted, as they are in logs: every form of a graph shows them.
    """
    if session is not None and session._record is not record:  # another one with this id
        session = None
    if session is not None and session._cell.done:
        # Who waits for a cell may be awake before the record has heard of its end.
        record.settle(session._cell)
    # The status is read first: a record that says it is over has all of it.
    status = record.status if session is None else session.status
    rows = record.rows
    if rows is None and session is not None:
        rows = len(session.partial)
    return LineageNode(
        id=record.id,
        parents=record.parent_ids if len(record.parent_ids) < 2 else tuple(dict.fromkeys(record.parent_ids)),
        operator=redact_text(record.operator),
        kind=record.kind,
        status=status,
        rows=rows,
        usage=None if record.kind in OWNS_NOTHING else _as_logged(record.usage),
        extras=record.extras,
        label=redact_text(label),
        roles=roles_of(record.kind, record.parent_ids),
        model=record.model and redact_text(record.model),
        cost_usd=None if record.kind in OWNS_NOTHING else record.cost_usd,
        created_at=datetime.fromtimestamp(record.created_at, UTC),
        duration_s=record.duration_s,
        verdict=record.verdict,
        path=None if record.log is None else Path(record.log),
        sandbox=record.sandbox if session is None else session.sandbox_backend or record.sandbox,
        snapshot=snapshot_of(record.extras),
        digest=None if record.digest is None else record.digest.hex(),
        covers=record.covers,
    )


def _as_logged(usage: RathLLMTokenUsage | None) -> RathLLMTokenUsage | None:
    """``usage`` as the graph has it from logs, too: executors and providers send what they like, also null, -1 and 1e30.

    With those parts of its breakdowns that are numbers of tokens; ``None`` where a count itself is none.
    """
    if usage is None or not all(map(_is_count, (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens))):
        return None
    if usage.prompt_tokens_details is None and usage.completion_tokens_details is None:
        return usage
    return replace(
        usage,
        prompt_tokens_details=_numbers(usage.prompt_tokens_details),
        completion_tokens_details=_numbers(usage.completion_tokens_details),
    )


def _numbers(details: object) -> dict[str, int] | None:
    given = details if isinstance(details, Mapping) else {}
    return {str(name): value for name, value in given.items() if _is_count(value)} or None


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**53


def roles_of(kind: LineageKind, parents: tuple[UUID, ...]) -> tuple[str, ...]:
    """What each parent, taken once, was for a session of this kind."""
    distinct = dict.fromkeys(parents) if len(parents) > 1 else parents
    if kind in _WITH_AGENT:
        names = ("user", "system")
    elif kind is LineageKind.OP_MERGE:
        names = ("parent", "merge")
    else:
        return ("parent",) * len(distinct)
    return tuple(names[place] if place < 2 else "parent" for place in range(len(distinct)))


def snapshot_of(extras: Iterable[tuple[str, Any]]) -> str | None:
    """The id of the copy of a workspace that a session with these extras began with."""
    for name, value in extras:
        if name == "workspace_layer":
            return str(value)
    return None


def short_label(kind: LineageKind, operator: str) -> str:
    """A word for a session that was made so; empty where that says nothing."""
    short = _SHORT.get(kind)
    if short is not None:
        return short
    return operator if operator != "implicit" else ""


def _label(record: LineageRecord, rows: _Rows | None) -> str:
    label = short_label(record.kind, record.operator)
    if not label and rows is not None and len(rows) == 1:
        return str(rows[0].kind.value)
    return label or "session"


def fold(nodes: Iterable[LineageNode]) -> list[LineageNode]:
    """``nodes``, each append folded into each of its children; one without children stays."""
    given = list(nodes)
    has_child = {parent for node in given for parent in node.parents}
    # For a folded node: what its children have as a parent in its place, and how many appends that skips.
    gone: dict[UUID, tuple[UUID, int]] = {}
    kept: list[LineageNode] = []
    for node in given:
        parents: dict[UUID, str] = {}
        folded = 0
        for parent, role in node.parents_and_roles:
            instead, skipped = gone.get(parent, (parent, 0))
            parents.setdefault(instead, role)
            folded += skipped
        if node.kind is LineageKind.OP_APPEND and len(parents) == 1 and node.id in has_child:
            gone[node.id] = (next(iter(parents)), folded + 1)
        elif folded:
            kept.append(replace(node, parents=tuple(parents), roles=tuple(parents.values()), folded=folded))
        else:
            kept.append(node)
    return kept

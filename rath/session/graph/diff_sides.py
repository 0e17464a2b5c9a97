"""What is compared: a session's rows, its lineage, and its workspace as far as that is open. Opens no sandbox."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from rath.backend.lease import Lease
from rath.backend.types import WorkspaceDiff
from rath.core import ports
from rath.errors import RathError
from rath.llm.types import RathLLMTokenUsage
from rath.session.chunk import ChunkTable
from rath.session.graph import questions
from rath.session.graph.kind import LineageKind
from rath.session.graph.lineage import LineageNode, collect
from rath.session.graph.links import CONTINUES, Links
from rath.session.graph.sums import total
from rath.session.session import Session

__all__ = ["Compared", "Measures", "changed_alone", "fork_point", "measures", "merged_rows", "of_session", "open_workspace"]

_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(rb"\\([0-7]{3}|.)")
_LETTERS = {b"a": b"\a", b"b": b"\b", b"t": b"\t", b"n": b"\n", b"v": b"\v", b"f": b"\f", b"r": b"\r"}
_RUNS = frozenset({LineageKind.OP_SESSION_LOOP, LineageKind.OP_SESSION_COMPRESS, LineageKind.OP_CUSTOM})


@dataclass(frozen=True, slots=True)
class Compared:
    """A session to compare.

    Attributes:
        nodes: its lineage, parents before children, itself last.
        lease: its hold on a sandbox; ``None`` for a log.
        no_files: why nothing is known about its workspace, if that is so.
    """

    session_id: UUID
    label: str
    status: str
    table: ChunkTable
    nodes: Sequence[LineageNode]
    lease: Lease | None = None
    no_files: str = ""


@dataclass(frozen=True, slots=True)
class Measures:
    """What runs used, added up. A sum is ``None`` where nothing is known; ``…unknown``: of how many runs that is so."""

    runs: int
    models: tuple[str, ...]
    usage: RathLLMTokenUsage | None
    usage_unknown: int
    cost_usd: float | None
    cost_unknown: int
    duration_s: float | None
    duration_unknown: int


def of_session(session: Session, left_s: Callable[[], float | None], partial: bool) -> Compared:
    """A session of this process. Waits for its rows, unless what it has so far will do."""
    table = session.partial if partial else session.synchronize(left_s()).chunk_table
    nodes = collect((session,), fold_appends=False)
    no_files = ""
    lease = session._lease
    if lease is None:
        no_files = "no sandbox"
    elif lease.released:
        no_files = "unknown: its sandbox was released"
    elif not session.done:
        no_files = "unknown: it is still running"
    label = session.lineage_operator if session.lineage_operator != "implicit" else "session"
    return Compared(session.id, label, session.status, table, nodes, lease, no_files)


def open_workspace(side: Compared, left_s: Callable[[], float | None]) -> tuple[WorkspaceDiff | None, str]:
    """What changed in the workspace, or why that is not known. Asks a sandbox that is open, and opens none."""
    if side.no_files or side.lease is None:
        return None, side.no_files
    lease = side.lease
    if lease.placement.sandbox is None:
        if lease.placement.layer is not None:
            return None, "unknown: its copy was never opened"
        return WorkspaceDiff(""), ""
    engine = ports.engine()
    if engine.on_loop_thread():
        return None, "unknown: asked on the engine's own thread"
    try:
        return engine.run(_asked(lease, left_s())), ""
    except TimeoutError:
        return None, "unknown: its sandbox is busy"
    except RathError as error:
        return None, f"unknown: {type(error).__name__}: {error}"


def changed_alone(mine: WorkspaceDiff | None, theirs: WorkspaceDiff | None) -> tuple[str, ...] | None:
    """The paths whose change in ``mine`` is not in ``theirs`` too; ``None`` where one of them is not known. Sorted."""
    if mine is None or theirs is None:
        return None
    if mine == theirs and not mine.binary:
        return ()
    here, there = _by_file(mine.text), _by_file(theirs.text)
    alone = []
    for path in sorted((*mine.added, *mine.removed, *mine.modified)):
        # What binary files hold is not shown: it may well differ.
        change = here.get(f"a/{path} b/{path}")
        if change is None or path in mine.binary or there.get(f"a/{path} b/{path}") != change:
            alone.append(path)
    return tuple(alone)


def _by_file(diff: str) -> dict[str, str]:
    """The parts of a unified diff by what stands in their first line: lines of a file never begin so."""
    parts = ("\n" + diff).split("\ndiff --git ")[1:]
    heads = (part.rstrip("\n").partition("\n") for part in parts)
    return {_QUOTED.sub(_as_it_is, head): change for head, _, change in heads}


def _as_it_is(quoted: re.Match[str]) -> str:
    """A name that git has put in quotes, as it does with any that has more than plain ASCII in it."""
    raw = _ESCAPE.sub(_escaped_byte, quoted[1].encode("utf-8", "surrogateescape"))
    return raw.decode("utf-8", "surrogateescape")


def _escaped_byte(escape: re.Match[bytes]) -> bytes:
    said = escape[1]
    return bytes([int(said, 8) & 255]) if len(said) == 3 else _LETTERS.get(said, said)


async def _asked(lease: Lease, timeout_s: float | None) -> WorkspaceDiff:
    return await asyncio.wait_for(lease.diff(), timeout_s)


def measures(nodes: Iterable[LineageNode]) -> Measures:
    """The tokens, cost and time of the runs among ``nodes``. Sessions that are known by their ids alone do not count."""
    known = [node for node in nodes if node.status != "unknown"]
    ran = [node for node in known if node.kind in _RUNS or node.usage is not None]
    usage, cost = total(known, "usage"), total(known, "cost")
    times = [node.duration_s for node in ran]
    measured = [time_s for time_s in times if time_s is not None]
    return Measures(
        len(ran),
        tuple(dict.fromkeys(node.model for node in ran if node.model)),
        usage.value,
        usage.unknown,
        cost.value,
        cost.unknown,
        sum(measured) if measured or not ran else None,
        times.count(None),
    )


def fork_point(a: Compared, b: Compared) -> UUID | None:
    """The last session whose rows, as a whole, both still begin with, as :meth:`SessionGraph.fork_point` has it."""
    known = {node.id for node in a.nodes}
    nodes = [*a.nodes, *(node for node in b.nodes if node.id not in known)]
    links = Links.of(nodes)
    found = questions.fork_point(links, links.index[a.session_id], links.index[b.session_id])
    return None if found is None else nodes[found].id


def merged_rows(side: Compared, other: Compared) -> dict[int, UUID]:
    """Which rows a merge put there, and from which session: the other side or an ancestor of it where that is so, else
    what was merged last."""
    nodes = {node.id: node for node in side.nodes}
    theirs = {node.id for node in other.nodes}
    sources: dict[int, UUID] = {}
    total = len(side.table)
    todo = [(side.session_id, 0, total)]
    spent = 0
    while todo:
        session_id, start, stop = todo.pop()
        for merged, first, last in _merges(nodes, session_id, start, min(stop, total)):
            # A merge of merges of merges names each row once a level.
            spent += last - first + 1
            if spent > 4 * total + 1000:
                return sources
            for row in range(first, last):
                if row not in sources or merged in theirs:
                    sources[row] = merged
            todo.append((merged, first, last))
    return sources


def _merges(
    nodes: Mapping[UUID, LineageNode], session_id: UUID, start: int, stop: int
) -> list[tuple[UUID, int, int]]:
    """The second parents of the merges among what ``session_id`` continues, newest first, and where their rows are."""
    found: list[tuple[UUID, int, int]] = []
    node = nodes.get(session_id)
    while node is not None and node.kind in CONTINUES and node.parents:
        first = nodes.get(node.parents[0])
        if node.kind is LineageKind.OP_MERGE:
            second = nodes.get(node.parents[-1])
            kept = None if first is None else first.rows
            added = None if second is None else second.rows
            if second is not None and kept is not None and added is not None:
                found.append((second.id, min(start + kept, stop), min(start + kept + added, stop)))
        node = first
    return found

"""The lineage graph: sessions as nodes, what they were made from as edges. Immutable; it keeps no session alive."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import UUID

from rath.core import ports
from rath.errors import UsageTypeError, UsageValueError
from rath.session.chunk import ChunkTable
from rath.session.graph import questions, sums, tables
from rath.session.graph.filters import condition
from rath.session.graph.forms import Forms
from rath.session.graph.frame import to_frame
from rath.session.graph.lineage import LineageNode
from rath.session.graph.links import Links
from rath.session.graph.source import Source
from rath.session.graph.sums import Total

__all__ = ["Edge", "SessionGraph", "Total"]


class Edge(NamedTuple):
    """One edge. ``role``: what the parent was for the child, ``user``, ``system``, ``merge`` or ``parent``."""

    parent: UUID
    child: UUID
    role: str


class SessionGraph(Forms):
    """How sessions descend from each other. Made by :func:`rath.lineage`.

    Nodes are :class:`LineageNode`, in an order that is the same wherever the graph was read from: parents before
    children, else by time, else by id. An edge joins two nodes that are both here; in a graph that nothing was taken out
    of, every parent is. A session can be named by a ``Session`` (or anything with its ``id``), its ``UUID``, its text, or
    the first characters of that.

    ``len``, iteration, ``in`` and ``graph[name]`` work on nodes. No question recurses, waits, or opens a sandbox.

    Raises (each question that takes a session):
        UsageValueError: no session here has this name, or several have.
    """

    def __init__(self, nodes: Sequence[LineageNode], source: Source | None = None) -> None:
        self._nodes = tuple(nodes)
        self._source = Source() if source is None else source

    # -- nodes and edges ----------------------------------------------------------------------------------------------

    @property
    def nodes(self) -> tuple[LineageNode, ...]:
        """Every node, parents before children."""
        return self._nodes

    @cached_property
    def by_id(self) -> Mapping[UUID, LineageNode]:
        """The nodes by their ids: what ``ancestors_bfs``, ``edge_pairs``, ``validate_acyclic`` and their like take."""
        return MappingProxyType({node.id: node for node in self._nodes})

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """Every edge, in the order of the children and of each one's parents."""
        index = self._links.index
        return tuple(
            Edge(parent, node.id, role)
            for node in self._nodes
            for parent, role in node.parents_and_roles
            if parent in index
        )

    @cached_property
    def nx(self) -> Any:
        """A frozen ``networkx.DiGraph``: ids as nodes, the columns of their table as attributes; edges have a ``role``."""
        return ports.load("graph", "networkx")(self)

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[LineageNode]:
        return iter(self._nodes)

    def __contains__(self, name: object) -> bool:
        try:
            self._at(name)
        except (UsageTypeError, UsageValueError):
            return False
        return True

    def __getitem__(self, name: object) -> LineageNode:
        return self._nodes[self._at(name)]

    def __eq__(self, other: object) -> bool:
        return self._nodes == other._nodes if isinstance(other, SessionGraph) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(node.id for node in self._nodes))

    # -- questions ----------------------------------------------------------------------------------------------------

    def parents(self, name: object) -> tuple[LineageNode, ...]:
        """What a session was made from, in order."""
        return self._those(self._links.parents[self._at(name)])

    def children(self, name: object) -> tuple[LineageNode, ...]:
        """What was made from a session."""
        return self._those(self._links.children[self._at(name)])

    def ancestors(self, name: object) -> tuple[LineageNode, ...]:
        """Everything that a session descends from."""
        return self._those(sorted(questions.reached(self._links.parents, self._at(name))))

    def descendants(self, name: object) -> tuple[LineageNode, ...]:
        """Everything that descends from a session."""
        return self._those(sorted(questions.reached(self._links.children, self._at(name))))

    def roots(self) -> tuple[LineageNode, ...]:
        """The nodes without parents here."""
        return self._those(at for at, parents in enumerate(self._links.parents) if not parents)

    def leaves(self) -> tuple[LineageNode, ...]:
        """The nodes without children here."""
        return self._those(at for at, children in enumerate(self._links.children) if not children)

    def path(self, a: object, b: object) -> tuple[LineageNode, ...]:
        """The shortest way from ``a`` to ``b`` along the edges, both included; of two, the one by earlier parents.

        Downwards if ``b`` descends from ``a``, upwards if ``a`` descends from ``b``; empty if neither does.
        """
        return self._those(questions.path(self._links, self._at(a), self._at(b)))

    def common_ancestor(self, a: object, b: object) -> LineageNode | None:
        """The lowest session that both are, or descend from; ``None`` if there is none.

        Lowest: no other common one descends from it. Of several, the last in the order of :attr:`nodes`. An agent's
        instructions (role ``system``) count only if nothing else is common.
        """
        found = questions.common_ancestor(self._links, self._at(a), self._at(b))
        return None if found is None else self._nodes[found]

    def fork_point(self, a: object, b: object) -> LineageNode | None:
        """The last session whose rows, as a whole, both still begin with; ``None`` if there is none.

        A session begins with the rows of its *row parent*: the first parent of a loop, an append, a fork and a merge (a
        merge's second side stands behind them). A compression, a detached copy, a user's own operator and what no
        operator made have none. So each session has one line of row ancestors, and this is where the lines of ``a`` and
        ``b`` (each from itself on) part: ``a`` if ``b`` continues it. Equal text without common descent is not shared.
        """
        found = questions.fork_point(self._links, self._at(a), self._at(b))
        return None if found is None else self._nodes[found]

    def branches(self) -> tuple[tuple[LineageNode, ...], ...]:
        """The graph cut at its forks and merges, into runs in which each session continues the one before.

        A branch starts at a root, below a session that was continued several times, or at one made from several; it ends
        at a leaf or where the next starts. Instructions (role ``system``) are no continuation: sessions that only
        instruct are in no branch, every other one is in exactly one. In the order of their first nodes.
        """
        return tuple(self._those(branch) for branch in questions.branches(self._links))

    def critical_path(self) -> tuple[LineageNode, ...]:
        """The way from a root to a leaf whose runs took longest together; of two, the one with more nodes."""
        return self._those(questions.critical_path(self._links, [node.duration_s or 0.0 for node in self._nodes]))

    def where(self, predicate: Callable[[LineageNode], bool] | None = None, /, **conditions: Any) -> SessionGraph:
        """The graph of those nodes for which everything holds, as they are, and of the edges among them.

        Args:
            predicate: any function of a node.
            status, kind, operator, model, verdict, sandbox, snapshot, label: equal to this, or to one of these. A kind is
                a ``LineageKind`` or its text. ``None`` finds nodes without a model, verdict, sandbox or snapshot.
            text: stands in the operator, label, model, extras or id, in upper or lower case.
            since, until: made at ``since`` or later; before ``until``. ISO 8601 or a ``datetime``; local time where it
                has no zone.
            min_cost, min_tokens, min_duration, min_rows: its own, in US dollars, tokens, seconds, rows. What is
                unknown is not found.

        Raises:
            UsageValueError: there is no such condition, or not such a value.
        """
        wanted = condition(predicate, conditions)
        return SessionGraph([node for node in self._nodes if wanted(node)], self._source.where(wanted))

    # -- totals -------------------------------------------------------------------------------------------------------

    def total(self, what: str = "tokens") -> Total:
        """What the runs of all nodes used: each node's own, once.

        Args:
            what: ``"tokens"``, ``"cost"`` (US dollars) or ``"usage"`` (all the counts).

        Raises:
            UsageValueError: anything else.
        """
        return sums.total(self._nodes, what)

    def subtree_total(self, name: object, what: str = "tokens") -> Total:
        """:meth:`total` of a session and everything it descends from: what it took to make it, shared parts once."""
        at = self._at(name)
        return sums.total([self._nodes[at], *self._those(questions.reached(self._links.parents, at))], what)

    def subtree_totals(self, what: str = "tokens") -> Mapping[UUID, Total | None]:
        """:meth:`subtree_total` of every node at once; ``None`` where a graph is so knotted that it would take too long."""
        return sums.subtree_totals(self._nodes, self._links, what)

    # -- tables -------------------------------------------------------------------------------------------------------

    def tables(self, name: str = "sessions") -> list[dict[str, Any]]:
        """One of the tables as plain dicts, columns as in ``rath.session.graph.tables.COLUMNS``.

        Args:
            name: ``sessions``, ``edges``, ``rows`` (each row once, by the first session that has it) or ``calls`` (tool
                calls). The last two read transcripts, as :meth:`transcript` does.
        """
        return tables.table(self, name)

    def to_frame(self, table: str = "sessions") -> Any:
        """A table as a pandas ``DataFrame``.

        Raises:
            UsageError: pandas is not installed.
        """
        return to_frame(self.tables(table), tables.columns(table))

    def sessions_frame(self) -> Any:
        """:meth:`to_frame` of the sessions."""
        return self.to_frame("sessions")

    def edges_frame(self) -> Any:
        """:meth:`to_frame` of the edges."""
        return self.to_frame("edges")

    def rows_frame(self) -> Any:
        """:meth:`to_frame` of the rows."""
        return self.to_frame("rows")

    def calls_frame(self) -> Any:
        """:meth:`to_frame` of the tool calls."""
        return self.to_frame("calls")

    # -- live ---------------------------------------------------------------------------------------------------------

    def transcript(self, name: object) -> ChunkTable | None:
        """A session's rows so far, if it is alive in this process, else those in its log; ``None`` if there is neither.

        Never waits. A log of more than 64 MiB, or one that cannot be loaded, has none.
        """
        return self._source.transcript(self[name])

    def refresh(self) -> SessionGraph:
        """The graph of the same sources as they are now, with the same conditions. Sessions that were seen once stay."""
        return SessionGraph(self._source.nodes(), self._source) if self._source.live else self

    # -- inside -------------------------------------------------------------------------------------------------------

    @cached_property
    def _links(self) -> Links:
        return Links.of(self._nodes)

    @cached_property
    def _texts(self) -> list[str]:
        return sorted(node.id.hex for node in self._nodes)

    def _those(self, places: Any) -> tuple[LineageNode, ...]:
        return tuple(self._nodes[at] for at in places)

    def _at(self, name: object) -> int:
        """The place of the node that ``name`` means."""
        session_id = name if isinstance(name, (UUID, str)) else _id_of(name)
        if isinstance(session_id, str):
            session_id = self._by_text(session_id)
        try:
            return self._links.index[session_id]
        except KeyError:
            raise UsageValueError(f"no session {session_id} among the {len(self):,} of this graph") from None

    def _by_text(self, text: str) -> UUID:
        wanted = text.strip().lower().replace("-", "")
        if not wanted:
            raise UsageValueError("a session is named by its id or the first characters of it; got an empty text")
        first = bisect_left(self._texts, wanted)
        found = [known for known in self._texts[first : first + 4] if known.startswith(wanted)]
        if len(found) == 1:
            return UUID(found[0])
        if not found:
            raise UsageValueError(f"no session among the {len(self):,} of this graph has an id with {text!r:.80} first")
        listed = ", ".join(str(UUID(known)) for known in found[:3]) + (", …" if len(found) > 3 else "")
        raise UsageValueError(f"several sessions have ids that begin with {text!r:.100}: {listed}. Give more of it")


def _id_of(named: object) -> UUID:
    found = getattr(getattr(named, "header", named), "id", None)
    if not isinstance(found, UUID):
        raise UsageTypeError(f"a session is named by a Session, a UUID or text, not by {type(named).__name__}")
    return found

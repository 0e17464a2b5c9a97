"""What runs used, added up over distinct nodes. What is not known is counted, never taken for 0."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from rath.errors import UsageValueError
from rath.llm.types import RathLLMTokenUsage, add_usage
from rath.session.graph.kind import LineageKind
from rath.session.graph.lineage import LineageNode
from rath.session.graph.links import Links

__all__ = ["Total", "subtree_totals", "tokens", "total"]

# Kinds that ask a model in their own name. What no run made spends nothing.
_ASKS = frozenset({LineageKind.OP_SESSION_LOOP, LineageKind.OP_SESSION_COMPRESS})
_MAX_STEPS = 2_000_000
"""How many nodes :func:`subtree_totals` looks at again for those whose ancestors overlap: about a second's worth."""


class Total(NamedTuple):
    """A sum, and how much is missing from it.

    Attributes:
        value: the sum of what is known; ``None`` if nothing is and something is missing.
        unknown: how many nodes spent something that nobody knows: a run whose provider reported no usage, or, in US
            dollars, one for whose model no price is registered; and sessions that are known by their ids alone.
    """

    value: Any
    unknown: int = 0

    @property
    def exact(self) -> bool:
        """Whether nothing is missing."""
        return self.unknown == 0


def total(nodes: Iterable[LineageNode], what: str) -> Total:
    """The sum over ``nodes``, each once. A run inside a user's operator that is here too is in the operator's figures."""
    own = _measure(what)
    given = list(nodes)
    inside = {covered for node in given for covered in node.covers}
    value: Any = None
    unknown = 0
    for node in given:
        if node.id in inside:
            continue
        spent = own(node)
        if spent is None:
            unknown += _may_have_spent(node)
        else:
            value = spent if value is None else _add(value, spent)
    return Total(_ZERO[what] if value is None and not unknown else value, unknown)


def subtree_totals(nodes: Sequence[LineageNode], links: Links, what: str) -> Mapping[UUID, Total | None]:
    """:func:`total` of each node with its ancestors.

    A node with one parent that spent anything adds its own to what that parent has. Where several have, their ancestors
    may be the same ones: those are walked, up to a limit, beyond which the answer is ``None``. So are those of an operator
    if what was inside it is here, too.
    """
    own = _measure(what)
    nothing = Total(_ZERO[what])
    alone = [total((node,), what) for node in nodes]
    covered = {inside for node in nodes for inside in node.covers if inside in links.index}
    found: list[Total | None] = []
    steps = 0
    for at, node in enumerate(nodes):
        above = [parent for parent in links.parents[at] if found[parent] != nothing]
        if not above:
            found.append(alone[at])
        elif len(above) == 1 and not (covered and (node.id in covered or not covered.isdisjoint(node.covers))):
            before = found[above[0]]
            found.append(None if before is None else _sum(before, alone[at], own(node) is not None))
        elif steps > _MAX_STEPS:
            found.append(None)
        else:
            seen = {at}
            waiting = list(links.parents[at])
            while waiting:
                parent = waiting.pop()
                if parent not in seen:
                    seen.add(parent)
                    waiting.extend(links.parents[parent])
            steps += len(seen)
            found.append(total([nodes[place] for place in sorted(seen)], what))
    return {node.id: one for node, one in zip(nodes, found, strict=True)}


def _sum(before: Total, own: Total, known: bool) -> Total:
    unknown = before.unknown + own.unknown
    if not known:
        return Total(before.value, unknown)
    return Total(own.value if before.value is None else _add(before.value, own.value), unknown)


def _add(a: Any, b: Any) -> Any:
    return add_usage(a, b) if isinstance(a, RathLLMTokenUsage) else a + b


def tokens(node: LineageNode) -> int | None:
    """How many a node's own completions used; ``None`` if nobody knows."""
    if node.usage is None:
        return None
    # Executors of your own send what they like, also null and -1.
    counts = (node.usage.prompt_tokens, node.usage.completion_tokens, node.usage.total_tokens)
    return counts[-1] if all(type(count) is int and count >= 0 for count in counts) else None


_MEASURES: dict[str, Callable[[LineageNode], Any]] = {
    "tokens": tokens,
    "cost": lambda node: node.cost_usd,
    "usage": lambda node: None if tokens(node) is None else node.usage,
}
_ZERO: dict[str, Any] = {"tokens": 0, "cost": 0.0, "usage": RathLLMTokenUsage(0, 0, 0)}


def _measure(what: str) -> Callable[[LineageNode], Any]:
    try:
        return _MEASURES[what]
    except (KeyError, TypeError):
        raise UsageValueError(f"a total is of {', '.join(_MEASURES)}; got {what!r:.60}") from None


def _may_have_spent(node: LineageNode) -> bool:
    """Whether a node without a figure may have used something all the same."""
    if node.status == "pending":
        return False
    if node.status in ("failed", "cancelled") and node.duration_s is None:  # before it began
        return False
    if node.usage is not None:  # tokens, but no price for them
        return True
    if node.kind in _ASKS:
        return True
    # A user's operator has the tokens of the runs inside it when it is done: if there were runs and no tokens, nobody knows
    # them. What is known by its id may be anything.
    if node.kind is LineageKind.OP_CUSTOM:
        return node.status != "completed" or bool(node.covers)
    return node.status == "unknown" and node.kind is LineageKind.UNKNOWN

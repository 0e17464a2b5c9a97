"""Conditions on nodes, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from rath.errors import UsageTypeError, UsageValueError
from rath.session.graph.kind import LineageKind
from rath.session.graph.lineage import LineageNode
from rath.session.graph.sums import tokens

__all__ = ["condition"]

Condition = Callable[[LineageNode], bool]

_FIELDS = ("status", "operator", "model", "verdict", "sandbox", "snapshot", "label")
_KNOWN: dict[str, tuple[str | None, ...]] = {
    "status": ("pending", "running", "completed", "failed", "cancelled", "unknown"),
    "verdict": ("complete", "open", "torn", "damaged", "unreadable", None),
}
_LEAST: dict[str, Callable[[LineageNode], float | None]] = {
    "min_cost": lambda node: node.cost_usd,
    "min_tokens": tokens,
    "min_duration": lambda node: node.duration_s,
    "min_rows": lambda node: node.rows,
}
_NAMES = (*_FIELDS, "kind", "text", "since", "until", *_LEAST)


def condition(predicate: Condition | None, wanted: Mapping[str, Any]) -> Condition:
    """Whether all of it holds for a node.

    Raises:
        UsageTypeError: ``predicate`` is no function, or a value has the wrong type.
        UsageValueError: there is no such condition, or not such a value.
    """
    if predicate is not None and not callable(predicate):
        raise UsageTypeError(f"where takes a function of a node, not {type(predicate).__name__}; fields by name: status=...")
    checks: list[Condition] = [] if predicate is None else [predicate]
    checks += [_check(name, value) for name, value in wanted.items()]
    return lambda node: all(check(node) for check in checks)


def _check(name: str, value: Any) -> Condition:
    if name in _FIELDS:
        return _one_of(name, _choices(name, value))
    if name == "kind":
        return _one_of("kind", frozenset(map(_kind, _choices(name, value))))
    if name == "text":
        return _says(value)
    if name in ("since", "until"):
        return _in_time(name, value)
    if name in _LEAST:
        return _at_least(name, value)
    raise UsageValueError(f"no condition {name!r:.60}; there are {', '.join(_NAMES)}, and any function of a node")


def _choices(name: str, value: Any) -> frozenset[Any]:
    choices = (value,) if isinstance(value, str) or not isinstance(value, Iterable) else tuple(value)
    known = _KNOWN.get(name)
    for choice in choices:
        if not isinstance(choice, str | None):
            raise UsageTypeError(f"{name} is text, or several texts, not {type(choice).__name__}")
        if known is not None and choice not in known:
            raise UsageValueError(f"no {name} {choice!r:.60}; there are {', '.join(filter(None, known))}")
    return frozenset(choices)


def _one_of(name: str, choices: frozenset[Any]) -> Condition:
    return lambda node: getattr(node, name) in choices


def _kind(value: Any) -> LineageKind:
    try:
        return LineageKind(value)
    except ValueError:
        known = ", ".join(kind.value for kind in LineageKind)
        raise UsageValueError(f"no kind {value!r:.60}; there are {known}") from None


def _says(value: Any) -> Condition:
    if not isinstance(value, str):
        raise UsageTypeError(f"text is a str, not {type(value).__name__}")
    wanted = value.casefold()

    def says(node: LineageNode) -> bool:
        said = (str(node.id), node.operator, node.label, node.model or "", *(f"{key} {of}" for key, of in node.extras))
        return any(wanted in text.casefold() for text in said)

    return says


def _at_least(name: str, value: Any) -> Condition:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UsageTypeError(f"{name} is a number, not {type(value).__name__}")
    if value != value:
        raise UsageValueError(f"{name} is a number; got nan")
    measure = _LEAST[name]

    def enough(node: LineageNode) -> bool:
        found = measure(node)
        return found is not None and found >= value

    return enough


def _in_time(name: str, value: Any) -> Condition:
    limit = _moment(name, value)
    if name == "since":
        return lambda node: node.created_at is not None and node.created_at >= limit
    return lambda node: node.created_at is not None and node.created_at < limit


def _moment(name: str, value: Any) -> datetime:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise UsageValueError(f"{name} is a time such as 2026-01-31 or 2026-01-31T12:00; got {value!r:.60}") from None
    if not isinstance(value, datetime):
        raise UsageTypeError(f"{name} is a datetime or text, not {type(value).__name__}")
    try:
        return value.astimezone(UTC)
    except (OverflowError, ValueError, OSError):  # the first or last day of all, in another time zone
        raise UsageValueError(f"{name} is {value}, which UTC has no year for") from None

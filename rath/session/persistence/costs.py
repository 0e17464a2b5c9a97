"""What completions cost, as logs have it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from rath.llm.pricing import Bill, Price, Unpriced
from rath.session.persistence.records import usage_from_json

__all__ = ["UnpricedJson", "amount", "bill_of", "bill_of_records"]

_MAX_MODELS = 9
_MAX_NAME = 200
_UNKNOWN = Bill().plus(None, "", None)

UnpricedJson = tuple[str, str | None, int, int, int]
"""An :class:`~rath.llm.pricing.Unpriced` as JSON."""


def bill_of(cost_usd: object, priced_usd: object = None, unpriced: object = None) -> Bill:
    """The inverse of ``Bill.as_json``, whatever is in it."""
    whole = amount(cost_usd)
    if whole is not None:
        return Bill(whole)
    if not unpriced and priced_usd is None:
        return Bill()
    try:
        given = msgspec.convert(unpriced or (), tuple[UnpricedJson, ...])
    except (msgspec.ValidationError, RecursionError):
        return _UNKNOWN
    if len(given) > _MAX_MODELS or not all(0 <= tokens < 2**53 for one in given for tokens in one[2:]):
        return _UNKNOWN
    parts = (Unpriced(model[:_MAX_NAME], asked and asked[:_MAX_NAME], *tokens) for model, asked, *tokens in given)
    return Bill(amount(priced_usd), tuple(parts))


def bill_of_records(records: Iterable[Mapping[str, Any]], asked: object = None) -> Bill:
    """What the completions cost that a log's ``usage`` records tell of, at the prices that they were made at.

    Args:
        asked: the model of the header, if there is one.
    """
    bill = Bill()
    known = asked if isinstance(asked, str) else None
    for record in records:
        if record.get("record_type") == "usage":
            model = record.get("model")
            price = _price(record.get("price"))
            bill = bill.plus(usage_from_json(record), model if isinstance(model, str) else "", known, price)
    return bill


def _price(raw: object) -> Price | None:
    """A price, if it is one."""
    if not isinstance(raw, Mapping):
        return None
    given, said, cached = (_rate(raw.get(name)) for name in Price._fields)
    return None if given is None or said is None else Price(given, said, cached)


def _rate(value: object) -> float | None:
    return float(value) if type(value) in (int, float) and 0 <= value < 1e12 else None  # type: ignore[arg-type, operator]


def amount(value: object) -> float | None:
    """``value`` if it is a number of seconds or dollars."""
    return float(value) if type(value) in (int, float) and 0 <= value < 1e15 else None  # type: ignore[arg-type, operator]

"""What tokens cost. There is no table of prices here, since it would be wrong soon: register those that you pay.

::

    register_price("gpt-5", input_usd_per_mtok=1.25, cached_input_usd_per_mtok=0.125, output_usd_per_mtok=10)

From then on each completion's price goes into the run's log beside its tokens, and costs appear in the lineage graph. Where
no price is known, a cost is ``None``, never 0. Input that a provider wrote to its cache costs as other input does: what some
ask beyond that is not in it.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from rath.errors import UsageTypeError, UsageValueError
from rath.llm.types import RathLLMTokenUsage

__all__ = ["Bill", "Price", "Unpriced", "cost_usd", "price_of", "register_price"]

# Providers answer with the dated name of what was asked for: gpt-5-2025-08-07, claude-sonnet-4-20250514.
_DATED = re.compile(r"-(?:\d{4}-\d{2}-\d{2}|\d{8}|latest)$")
_MTOK = 1_000_000
_MAX_UNPRICED = 8
"""How many models a bill keeps apart: what others use has no cost."""
_MAX_TOKENS = 2**53
_MAX_NAME = 200
_MAX_PRICE = 1e12
"""Logs have none above it: its products with numbers of tokens are finite."""


class Price(NamedTuple):
    """US dollars for a million tokens. ``cached_input_usd_per_mtok``: ``None`` for as much as other input."""

    input_usd_per_mtok: float
    output_usd_per_mtok: float
    cached_input_usd_per_mtok: float | None = None


_lock = threading.Lock()
_prices: dict[str, Price] = {}


def _reset_after_fork() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_reset_after_fork)


def register_price(
    model: str,
    *,
    input_usd_per_mtok: float,
    output_usd_per_mtok: float,
    cached_input_usd_per_mtok: float | None = None,
) -> Price:
    """Let ``model`` cost this much in this process, in US dollars for a million tokens, in place of what it did.

    Completions before this keep the price that they were made at, and those that had none get this one.

    Args:
        model: as in ``Provider.model``. A reply under the same name with a date behind it costs the same.
        cached_input_usd_per_mtok: for the part of the input that the provider had in its cache.

    Raises:
        UsageTypeError: not a name, or not numbers.
        UsageValueError: an empty name; a price that is negative, or 10¹² and more.
    """
    if not isinstance(model, str):
        raise UsageTypeError(f"a model is named by text, not by {type(model).__name__}")
    if not model:
        raise UsageValueError("a price needs the name of its model; got an empty text")
    given = {
        "input_usd_per_mtok": input_usd_per_mtok,
        "output_usd_per_mtok": output_usd_per_mtok,
        "cached_input_usd_per_mtok": cached_input_usd_per_mtok,
    }
    for name, value in given.items():
        if value is None and name.startswith("cached"):
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UsageTypeError(f"{name} is a number of US dollars, not {type(value).__name__}")
        if not 0 <= value < _MAX_PRICE:
            got = f"; got {value!r}" if value != value or abs(value) <= _MAX_PRICE else ""  # ints can be of any length
            raise UsageValueError(f"{name} is a number of US dollars, 0 or more and less than 10^12{got}")
    cached = None if cached_input_usd_per_mtok is None else float(cached_input_usd_per_mtok)
    price = Price(float(input_usd_per_mtok), float(output_usd_per_mtok), cached)
    with _lock:
        _prices[model] = price
    return price


def price_of(model: str | None) -> Price | None:
    """What was registered for ``model``, or else for its name without the date at its end; ``None`` if neither was."""
    if not model or not _prices:
        return None
    found = _prices.get(model)
    return _prices.get(_DATED.sub("", model)) if found is None else found


def cost_usd(usage: RathLLMTokenUsage | None, price: Price | None) -> float | None:
    """What ``usage`` costs at ``price``, in US dollars; ``None`` where either is unknown.

    Cached input is what the provider says it is (``prompt_tokens_details["cached_tokens"]``); a sum of several
    completions has no such figure, and costs as if nothing had been cached.
    """
    if usage is None or price is None:
        return None
    counts = _counts(usage)
    return None if counts is None else _cost(*counts, price)


class Unpriced(msgspec.Struct, frozen=True, gc=False):
    """What completions used that had no price. They cost what ``model``, or else the ``asked`` one, turns out to cost."""

    model: str
    asked: str | None
    input_tokens: int
    cached_tokens: int
    output_tokens: int

    @property
    def cost_usd(self) -> float | None:
        """At the price that is registered by now."""
        price = price_of(self.model) or price_of(self.asked)
        return None if price is None else _cost(self.input_tokens, self.cached_tokens, self.output_tokens, price)

    def plus(self, other: Unpriced) -> Unpriced:
        """Both together, under the names of this one."""
        return Unpriced(
            self.model,
            self.asked,
            self.input_tokens + other.input_tokens,
            self.cached_tokens + other.cached_tokens,
            self.output_tokens + other.output_tokens,
        )


_NAMELESS = Unpriced("", None, 0, 0, 0)
"""What has no cost whatever is registered."""


class Bill(msgspec.Struct, frozen=True, gc=False):
    """What completions cost.

    Attributes:
        priced_usd: those whose price was known; ``None`` if there were none.
        unpriced: what the others used, by model.
    """

    priced_usd: float | None = None
    unpriced: tuple[Unpriced, ...] = ()

    @property
    def cost_usd(self) -> float | None:
        """All of them, at the prices that are known by now; ``None`` where one is not, or where there was no completion."""
        total = self.priced_usd
        for one in self.unpriced:
            cost = one.cost_usd
            if cost is None:
                return None
            total = cost if total is None else total + cost
        return total

    def as_json(self) -> dict[str, Any]:
        """Its sum, or else its parts, so that it has one when the prices are known."""
        if not self.unpriced:
            return {"cost_usd": self.priced_usd}
        unpriced = [list(msgspec.structs.astuple(one)) for one in self.unpriced]
        return {"cost_usd": self.cost_usd, "priced_usd": self.priced_usd, "unpriced": unpriced}

    def plus(self, usage: RathLLMTokenUsage | None, model: str, asked: str | None, price: Price | None = None) -> Bill:
        """The bill with one more completion.

        Args:
            model: which one answered: its price counts, else that of the one that was ``asked``.
            price: what it cost; by default, what is registered now.
        """
        counts = None if usage is None else _counts(usage)
        if counts is None:
            return self if _NAMELESS in self.unpriced else self.joined(Bill(None, (_NAMELESS,)))
        price = price or price_of(model) or price_of(asked)
        if price is None:
            asked = None if asked is None else asked[:_MAX_NAME]
            return self.joined(Bill(None, (Unpriced(model[:_MAX_NAME], asked, *counts),)))
        return self.joined(Bill(_cost(*counts, price)))

    def joined(self, other: Bill) -> Bill:
        """Both together."""
        priced = self.priced_usd
        if other.priced_usd is not None:
            priced = other.priced_usd if priced is None else priced + other.priced_usd
        found = {(one.model, one.asked): one for one in self.unpriced}
        for one in other.unpriced:
            before = found.get((one.model, one.asked))
            if before is None and len(found) >= _MAX_UNPRICED:
                one = _NAMELESS
            found[one.model, one.asked] = one if before is None else before.plus(one)
        return Bill(priced, tuple(found.values()))


def _counts(usage: RathLLMTokenUsage) -> tuple[int, int, int] | None:
    """Input, cached part of it, output. Providers send what they like, also null, -1 and 1e30."""
    if not all(type(count) is int and 0 <= count < _MAX_TOKENS for count in (usage.prompt_tokens, usage.completion_tokens)):
        return None
    cached = min(_cached_tokens(usage.prompt_tokens_details), usage.prompt_tokens)
    return usage.prompt_tokens, cached, usage.completion_tokens


def _cost(given: int, cached: int, said: int, price: Price) -> float:
    if price.cached_input_usd_per_mtok is None:
        cached = 0
    total = (given - cached) * price.input_usd_per_mtok + said * price.output_usd_per_mtok
    return (total + cached * (price.cached_input_usd_per_mtok or 0.0)) / _MTOK


def _cached_tokens(details: Mapping[str, Any] | None) -> int:
    found = details.get("cached_tokens") if isinstance(details, Mapping) else None
    return found if type(found) is int and found > 0 else 0

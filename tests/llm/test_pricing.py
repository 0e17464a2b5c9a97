"""Prices: registered, never assumed; what is unknown stays unknown."""

from __future__ import annotations

import math
from uuid import uuid4

import pytest

from rath.errors import UsageTypeError, UsageValueError
from rath.llm import Price, cost_usd, price_of, register_price
from rath.llm.types import RathLLMTokenUsage


def test_a_price_is_found_by_its_name_and_by_its_name_with_a_date():
    name = f"model-{uuid4()}"
    price = register_price(name, input_usd_per_mtok=1, output_usd_per_mtok=2)
    assert price == Price(1.0, 2.0, None)
    for known in (name, f"{name}-2025-08-07", f"{name}-20250514", f"{name}-latest"):
        assert price_of(known) is price
    for unknown in (f"{name}-mini", f"{name}-2025", f"x{name}", "", None):
        assert price_of(unknown) is None
    dated = register_price(f"{name}-2025-08-07", input_usd_per_mtok=3, output_usd_per_mtok=4)
    assert price_of(f"{name}-2025-08-07") is dated
    assert price_of(name) is price


def test_a_cost_adds_up_input_cached_input_and_output():
    usage = RathLLMTokenUsage(1_000_000, 100_000, 1_100_000, None, {"cached_tokens": 400_000})
    assert cost_usd(usage, Price(2.0, 10.0)) == 3.0
    assert cost_usd(usage, Price(2.0, 10.0, 0.5)) == pytest.approx(1.2 + 0.2 + 1.0)
    assert cost_usd(RathLLMTokenUsage(1_000_000, 0, 0), Price(2.0, 10.0, 0.5)) == 2.0


def test_what_is_no_number_of_tokens_has_no_cost():
    price = Price(1.0, 1.0, 0.5)
    assert cost_usd(None, price) is None
    assert cost_usd(RathLLMTokenUsage(1, 1, 2), None) is None
    for wrong in (None, -1, 1e30, True):
        assert cost_usd(RathLLMTokenUsage(wrong, 1, 2), price) is None
        assert cost_usd(RathLLMTokenUsage(1, wrong, 2), price) is None
        assert cost_usd(RathLLMTokenUsage(100, 0, 0, None, {"cached_tokens": wrong}), price) == 100 / 1_000_000
    assert cost_usd(RathLLMTokenUsage(100, 0, 0, None, {"cached_tokens": 900}), price) == 50 / 1_000_000


def test_a_price_that_is_none_is_refused():
    for wrong in ("1", None, True):
        with pytest.raises(UsageTypeError, match="input_usd_per_mtok"):
            register_price("m", input_usd_per_mtok=wrong, output_usd_per_mtok=1)
    for wrong in (-1, math.inf, math.nan):
        with pytest.raises(UsageValueError, match="output_usd_per_mtok"):
            register_price("m", input_usd_per_mtok=1, output_usd_per_mtok=wrong)
    with pytest.raises(UsageTypeError, match="cached"):
        register_price("m", input_usd_per_mtok=1, output_usd_per_mtok=1, cached_input_usd_per_mtok="x")
    with pytest.raises(UsageTypeError):
        register_price(5, input_usd_per_mtok=1, output_usd_per_mtok=1)
    with pytest.raises(UsageValueError):
        register_price("", input_usd_per_mtok=1, output_usd_per_mtok=1)

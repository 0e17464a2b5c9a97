"""The collector's thresholds during very many runs."""

import gc

import pytest

from rath.runtime.burst import FEW, MANY, Burst


@pytest.fixture(autouse=True)
def thresholds():
    before = gc.get_threshold()
    yield before
    gc.set_threshold(*before)


def test_the_thresholds_are_as_they_were_when_the_burst_is_over(thresholds):
    burst = Burst()
    burst.update(MANY - 1)
    assert gc.get_threshold() == thresholds
    burst.update(MANY)
    assert gc.get_threshold()[:2] == thresholds[:2]
    assert gc.get_threshold()[2] > thresholds[2]
    burst.update(FEW + 1)
    assert gc.get_threshold() != thresholds
    burst.update(FEW)
    assert gc.get_threshold() == thresholds


def test_what_somebody_else_set_meanwhile_is_left_alone():
    burst = Burst()
    burst.update(MANY)
    gc.set_threshold(123, 4, 5)
    burst.update(0)
    assert gc.get_threshold() == (123, 4, 5)


def test_a_disabled_collector_is_left_alone(thresholds):
    gc.disable()
    try:
        Burst().update(MANY)
        assert gc.get_threshold() == thresholds
    finally:
        gc.enable()

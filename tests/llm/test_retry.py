"""When a model call is made again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rath.errors import ProviderError, TurnTimeoutError
from rath.llm import Provider
from rath.llm.retry import retry_delay_s

PASSING = ProviderError("busy", retryable=True)


def delays(provider: Provider, error: BaseException = PASSING, jitter: float = 0.0) -> list[float | None]:
    return [retry_delay_s(provider, error, attempt, rng=lambda: jitter) for attempt in range(1, 6)]


def test_four_attempts_in_all_with_doubling_pauses():
    assert delays(Provider()) == [0.5, 1.0, 2.0, None, None]


def test_the_provider_says_how_often_and_how_long():
    assert delays(Provider(retry_max_attempts=3, retry_base_seconds=2)) == [2.0, 4.0, None, None, None]
    assert delays(Provider(retry_base_seconds=0)) == [0.0, 0.0, 0.0, None, None]


@pytest.mark.parametrize("attempts", [0, 1])
def test_one_attempt_means_no_second(attempts: int):
    assert delays(Provider(retry_max_attempts=attempts))[0] is None


def test_a_pause_has_a_cap():
    assert retry_delay_s(Provider(retry_max_attempts=10_000), PASSING, 5_000, rng=lambda: 0.0) == 30.0


@given(st.floats(0, 1, exclude_max=True))
def test_jitter_adds_at_most_thirty_percent(jitter: float):
    assert 0.5 <= (delays(Provider(), jitter=jitter)[0] or 0) <= 0.65


@pytest.mark.parametrize(
    "error", [ProviderError("no"), ValueError("x"), TurnTimeoutError("x"), KeyboardInterrupt()]
)
def test_only_a_passing_failure_of_the_provider_is_tried_again(error: BaseException):
    assert delays(Provider(), error) == [None] * 5


def test_a_provider_is_taken_at_its_word():
    error = ProviderError("busy", retryable=True, retry_after_s=45.0)
    assert delays(Provider(), error) == [45.0, 45.0, 45.0, None, None]
    assert delays(Provider(), ProviderError("busy", retryable=True, retry_after_s=0.0))[0] == 0.0


def test_a_wait_beyond_five_minutes_is_given_up():
    assert delays(Provider(), ProviderError("quota", retryable=True, retry_after_s=86_400.0))[0] is None

"""When to make a failed model call again. Pure: waiting is for the caller."""

from __future__ import annotations

import random
from collections.abc import Callable

from rath.errors import ProviderError
from rath.llm.provider import Provider

__all__ = ["retry_delay_s"]

MAX_ATTEMPTS = 4
BASE_S = 0.5
CAP_S = 30.0
JITTER = 0.3
LONGEST_REQUESTED_S = 300.0


def retry_delay_s(
    provider: Provider, error: BaseException, attempt: int, *, rng: Callable[[], float] = random.random
) -> float | None:
    """Seconds to wait before the model call is made again; ``None``: give up.

    The pause is ``retry_base_seconds`` (0.5) × 2^(attempt−1), at most 30, plus up to 30 % so that runs that
    failed together do not come back together. A provider that said how long to wait is taken at its word,
    unless that is more than five minutes: then the error, which says so, is worth more than a program that
    seems to hang.

    Args:
        attempt: how many attempts have failed, from 1. There are ``retry_max_attempts`` (4) in all.
        rng: a random number in [0, 1).
    """
    if not isinstance(error, ProviderError) or not error.retryable:
        return None
    limit = MAX_ATTEMPTS if provider.retry_max_attempts is None else provider.retry_max_attempts
    if attempt >= limit:
        return None
    base = BASE_S if provider.retry_base_seconds is None else provider.retry_base_seconds
    # The exponent is bounded: 2.0 ** 1024 overflows.
    pause = min(CAP_S, base * 2.0 ** min(attempt - 1, 64))
    asked = error.retry_after_s
    if asked is not None:
        if asked > LONGEST_REQUESTED_S:
            return None
        pause = max(asked, 0.0)
    return pause * (1.0 + JITTER * rng())

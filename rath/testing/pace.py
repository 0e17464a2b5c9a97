"""How fast this machine is just now: for tests that bound time, on machines that others use too.

A limit in seconds holds on the machine on which it was written. What a test means is a ratio: so much work takes no longer
than so much of a reference. The reference here is plain Python that allocates, as most of rath's work does.
"""

from __future__ import annotations

import ast
import time

__all__ = ["slowness", "within"]

_SOURCE = "value = {'name': [1, 2, (3, call(4))], 'other': value}\n" * 400
_REFERENCE_S = 0.015
"""What one measurement took, at best, on the machine for which limits are written: CPython 3.11, 2 shared cores."""
_MOST = 12.0
_VALID_S = 5.0
_last: tuple[float, float] = (-_VALID_S, 1.0)


def slowness() -> float:
    """How many times longer than on the reference machine a piece of plain Python takes now; 1 at least, 12 at most."""
    global _last
    if time.monotonic() - _last[0] > _VALID_S:
        took_s = min(_measured_s() for _ in range(3))
        _last = time.monotonic(), min(max(1.0, took_s / _REFERENCE_S), _MOST)
    return _last[1]


def within(limit_s: float) -> float:
    """A limit in seconds, on the reference machine, as it is on this one now."""
    return limit_s * slowness()


def _measured_s() -> float:
    began = time.perf_counter()
    sum(1 for _ in ast.walk(ast.parse(_SOURCE)))
    return time.perf_counter() - began

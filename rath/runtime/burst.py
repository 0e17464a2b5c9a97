"""Full garbage collections wait while very many runs are open.

Ten thousand overlapping runs are a million live objects, none of them garbage. CPython looks through all of them again each
time their number has grown by a quarter: measured, 2.2 of 6.3 seconds. So while more than :data:`MANY` runs are open, the
threshold of the oldest generation is raised; young garbage is collected as ever. When they are done, or if somebody else has
changed the thresholds meanwhile, everything is as it was.
"""

from __future__ import annotations

import gc

__all__ = ["Burst"]

MANY = 1_000
FEW = 200
_RAISED = 1_000


class Burst:
    """Raises and restores the collector's last threshold. All calls hold the engine's lock."""

    def __init__(self) -> None:
        self._before: tuple[int, int, int] | None = None
        self._during: tuple[int, int, int] | None = None

    def update(self, open_runs: int) -> None:
        """Take note of how many runs are open."""
        if self._before is None:
            if open_runs >= MANY and gc.isenabled():
                self._before = gc.get_threshold()
                self._during = (self._before[0], self._before[1], max(self._before[2], _RAISED))
                gc.set_threshold(*self._during)
        elif open_runs <= FEW:
            if gc.get_threshold() == self._during:
                gc.set_threshold(*self._before)
            self._before = None

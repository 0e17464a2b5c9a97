"""One piece of work, described: what a run does, not what it does it with."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from os import sep
from os.path import dirname
from uuid import UUID

__all__ = ["PACKAGE", "Node", "call_site"]

PACKAGE = dirname(dirname(__file__)) + sep
"""Where rath's own code lives: a caller is the first frame outside."""


@dataclass(frozen=True, slots=True)
class Node:
    """An operator applied to sessions.

    Attributes:
        op: the lineage operator, e.g. ``run_session_loop``.
        inputs: ids of the sessions it reads, in order.
        site: ``(file, line)`` of the user's call.
    """

    op: str
    inputs: tuple[UUID, ...]
    site: tuple[str, int]

    @property
    def where(self) -> str:
        return f"{self.site[0]}:{self.site[1]}"


def call_site() -> tuple[str, int]:
    """``(file, line)`` of the nearest caller outside rath."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno

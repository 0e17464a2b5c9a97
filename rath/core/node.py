"""One piece of work, described: what a run does, not what it does it with."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from os.path import dirname
from typing import Any
from uuid import UUID

__all__ = ["Node", "call_site"]

_PACKAGE = dirname(dirname(__file__))


@dataclass(frozen=True, slots=True)
class Node:
    """An operator applied to sessions.

    Attributes:
        op: the lineage operator, e.g. ``run_session_loop``.
        inputs: ids of the sessions it reads, in order.
        params: plain values that shape the work. Callbacks, tools and clients are not among them: they stay with the driver.
        site: ``(file, line)`` of the user's call.
    """

    op: str
    inputs: tuple[UUID, ...]
    site: tuple[str, int]
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def where(self) -> str:
        return f"{self.site[0]}:{self.site[1]}"


def call_site() -> tuple[str, int]:
    """``(file, line)`` of the nearest caller outside rath."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno

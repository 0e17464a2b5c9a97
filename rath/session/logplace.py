"""Where the first rows of a table stand on disk: what lets a new log refer to them in place of storing them again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

__all__ = ["LogPlace"]


@dataclass(frozen=True, slots=True)
class LogPlace:
    """The first ``rows`` rows of a table stand in the log at ``path``, and the log's own rows are the last of them.

    Attributes:
        session_id: whose log it is.
        digest: of these rows.
        end: where the record ends that proves them: the last row's own, or the trailer. ``h`` is that record's hash,
            in which everything before it has a part.
        durable: whether the writer has made that record durable. ``False`` where nobody knows.
    """

    path: Path
    session_id: UUID
    rows: int
    digest: bytes
    end: int
    h: bytes
    durable: bool = False

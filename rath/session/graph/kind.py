"""How a session came to be."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from uuid import UUID

from rath.errors import LineageConsistencyError

__all__ = ["LineageConsistencyError", "LineageKind", "SessionLineage"]


class LineageKind(str, Enum):
    """The kind of a node in the lineage graph."""

    UNKNOWN = "unknown"
    LEAF_USER = "leaf_user"
    LEAF_SYSTEM = "leaf_system"
    OP_CREATE = "op_create"
    OP_SESSION_LOOP = "op_session_loop"
    OP_FORK = "op_fork"
    OP_DETACH = "op_detach"
    OP_MERGE = "op_merge"
    OP_SESSION_COMPRESS = "op_session_compress"
    OP_APPEND = "op_append"
    OP_CUSTOM = "op_custom"


@dataclass(frozen=True, slots=True)
class SessionLineage:
    """Which user session and which agent session a loop's output was made from."""

    producer_user_session_id: UUID
    producer_system_session_id: UUID
    operator: str = "run_session_loop"

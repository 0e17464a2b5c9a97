"""What a guest is told first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["KEEP_BYTES", "GuestConfig"]

KEEP_BYTES = 4 << 20
"""How much of each of a command's outputs is kept."""


@dataclass(frozen=True, slots=True)
class GuestConfig:
    """What a guest is told first.

    Args:
        workspace: the path of the workspace, as the guest sees it.
        uid: whom commands run as; ``None``: as the guest itself.
        env: the variables of every command, without those of a call.
        mode: ``"switch"``: the guest is privileged and changes to ``uid``; ``"same"``: it cannot.
        mark: by what the processes of a call are told from others: ``"groups"``, ``"uts"``, ``"none"``.
        keep_bytes: how much of each output of a command to keep.
    """

    workspace: str
    uid: int | None = None
    gid: int | None = None
    env: Mapping[str, str] | None = None
    mode: str = "same"
    mark: str = "none"
    keep_bytes: int = KEEP_BYTES

    def fields(self) -> list[bytes]:
        """Keys and values by turns."""
        pairs = [("workspace", self.workspace), ("mode", self.mode), ("mark", self.mark), ("keep", str(self.keep_bytes))]
        pairs += [(key, str(value)) for key, value in (("uid", self.uid), ("gid", self.gid)) if value is not None]
        pairs += [("env", f"{name}={value}") for name, value in (self.env or {}).items()]
        return [part.encode("utf-8", "surrogateescape") for pair in pairs for part in pair]

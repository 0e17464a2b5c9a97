"""Frozen workspaces: a snapshot that any number of sandboxes start from, and the kind that is a copy on the host."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

from rath.backend.closing import ending
from rath.backend.guest.channel import Channel
from rath.backend.guest.transfer import receive_archive
from rath.backend.host.diff import Baseline
from rath.backend.host.own import own_directory, remove_own
from rath.core import ports

__all__ = ["GuestSnapshot", "Kept", "Spooled", "spool", "tidy"]


class Kept(Protocol):
    """The files of a workspace at one moment, wherever they are."""

    async def free(self) -> None:
        """Nobody will start from them any more. Called once."""


class GuestSnapshot:
    """One holder's hold on frozen files. The files are never changed; the last :meth:`discard` frees them.

    On the engine's loop only.
    """

    __slots__ = ("_held", "_holders", "baseline", "kept")

    def __init__(self, kept: Kept, baseline: Baseline, holders: list[int] | None = None) -> None:
        self.kept = kept
        self.baseline = baseline
        self._holders = [0] if holders is None else holders
        self._holders[0] += 1
        self._held = True

    @property
    def sole(self) -> bool:
        """Whether nobody else holds these files."""
        return self._held and self._holders[0] == 1

    def share(self) -> GuestSnapshot:
        """One more hold on the same files."""
        return GuestSnapshot(self.kept, self.baseline.share(), self._holders)

    async def discard(self) -> None:
        """Let go. Again: nothing."""
        if not self._held:
            return
        self._held = False
        self._holders[0] -= 1
        if self._holders[0] == 0:
            await self.kept.free()
        if self.baseline.path is None:
            self.baseline.drop()  # nothing on the disk: a thread would take longer than all else of a fork's end
        else:
            await tidy(self.baseline.drop)


class Spooled:
    """A workspace as an archive in a directory of our own. Not looked into: it goes back into a sandbox as it came."""

    __slots__ = ("_directory", "path")

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self.path = os.path.join(directory, "archive")

    async def free(self) -> None:
        """Remove it."""
        await tidy(lambda: remove_own(self._directory))


async def spool(channel: Channel) -> Spooled:
    """A copy of the workspace as it is. Its processes are held meanwhile, so that none writes while it is read.

    Raises:
        SandboxError: it does not fit on the host, or cannot be read.
    """
    kept = Spooled(await ports.engine().call(own_directory))
    try:
        await receive_archive(channel, ".", kept.path)
    except BaseException:
        await kept.free()
        raise
    return kept


async def tidy(function: Callable[[], None]) -> None:
    """Remove what is on the host: in a thread, while there are threads."""
    if ending():
        function()
    else:
        await ports.engine().call(function)

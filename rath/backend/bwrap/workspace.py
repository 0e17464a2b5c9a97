"""The host's side of a workspace: a directory of our own that becomes ``/workspace``, or one that the user named.

A directory of our own holds one entry, ``workspace``, which is what the sandbox sees: whatever its commands do to the
modes of that, the directory around it stays closed to everybody else on the host.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from rath.backend.bwrap.process import User
from rath.backend.closing import ending
from rath.backend.host.own import own_directory, remove_own
from rath.backend.host.paths import Confined
from rath.backend.host.sockets import refuse_engine
from rath.backend.host.tree import check_space, copy_tree
from rath.core import ports
from rath.errors import SandboxClosed, SandboxUnavailable, UsageValueError

__all__ = ["Frozen", "Place", "bound", "copied", "copied_from", "empty"]

_NAME = "workspace"


class Place:
    """A directory for ``/workspace``, entered. ``top``: the directory of ours that it is in, if it is ours."""

    def __init__(self, path: str, top: str | None, who: User | None) -> None:
        self.root = Confined(path)
        self.top = top
        self.who = who
        self.frozen: Frozen | None = None
        self._lock = threading.Lock()
        self._users = 0
        self._left = False

    @contextlib.contextmanager
    def used(self) -> Iterator[Confined]:
        """The directory, whose descriptor is not closed in this block. For threads that may outlive the sandbox.

        Raises:
            SandboxClosed: it is closed already.
        """
        with self._lock:
            if self._left:
                raise SandboxClosed(f"the workspace {self.root.path} is closed: its sandbox was")
            self._users += 1
        try:
            yield self.root
        finally:
            self._used()

    def _used(self) -> None:
        with self._lock:
            self._users -= 1
            last = self._left and self._users == 0
        if last:
            self.root.close()

    def _leave(self) -> None:
        with self._lock:
            self._left = True
            idle = self._users == 0
        if idle:  # else whoever uses it last closes it: the descriptor's number must not get another meaning meanwhile
            self.root.close()

    def remove(self) -> None:
        """Remove what is ours, and let go of the rest. Blocks."""
        self._leave()
        if self.top is not None:
            remove_own(self.top)

    def give_back(self) -> None:
        """Nothing has run in it: what came from a snapshot becomes that again. Any other is removed. Blocks."""
        if self.frozen is None:
            self.remove()
        else:
            self._leave()
            self.frozen.top = self.top


class Frozen:
    """The files of a workspace at one moment: a copy in a directory of ours. Nobody writes to it.

    Attributes:
        sole: whether the sandbox that starts from it next may have the directory itself, because nobody else will.
    """

    def __init__(self, top: str) -> None:
        self.top: str | None = top
        self.sole = False

    async def free(self) -> None:
        """Remove it, unless a sandbox has it."""
        top, self.top = self.top, None
        if top is None:
            return
        if ending():
            remove_own(top)
        else:
            await ports.engine().call(remove_own, top)

    def place(self, who: User | None, stop: Callable[[], bool]) -> Place:
        """Where a sandbox starts with these files. Blocks."""
        assert self.top is not None, "a snapshot that somebody else has, or that was freed"
        if not self.sole:
            return copied_from(os.path.join(self.top, _NAME), who, stop)
        made = Place(os.path.join(self.top, _NAME), self.top, who)
        made.frozen, self.top = self, None
        return made


def empty(who: User | None) -> Place:
    """A place without files. Blocks."""
    return _filled(who, lambda _target: None)


def copied_from(path: str, who: User | None, stop: Callable[[], bool]) -> Place:
    """A copy of the host's directory ``path``, until ``stop`` says to end that. Blocks.

    Raises:
        SandboxUnavailable: it cannot be entered.
        SandboxError: it cannot be read, or does not fit on the disk.
    """
    try:
        source = Confined(path)
    except OSError as error:
        raise SandboxUnavailable(
            f"workspace {path!r} cannot be used: {error.strerror}. Name a directory that is there"
        ) from error
    try:
        return copied(source, who, stop)
    finally:
        source.close()


def copied(source: Confined, who: User | None, stop: Callable[[], bool]) -> Place:
    """A copy of a directory that is held already, until ``stop`` says to end that. Blocks."""

    def fill(target: str) -> None:
        check_space(source, target, stop)
        copy_tree(source, target, stop=stop)

    return _filled(who, fill)


def _filled(who: User | None, fill: Callable[[str], None]) -> Place:
    top = own_directory()
    try:
        path = os.path.join(top, _NAME)
        os.mkdir(path, 0o700)
        fill(path)
        if who is not None:
            _give(top, who)
        return Place(path, top, who)
    except BaseException:
        remove_own(top)
        raise


def _give(top: str, who: User) -> None:
    """Let everything below ``top``, which nobody else has seen yet, belong to ``who``."""
    for directory, names, files in os.walk(os.fsencode(top)):
        os.lchown(directory, who.uid, who.gid)
        for name in (*names, *files):
            os.lchown(os.path.join(directory, name), who.uid, who.gid)


def bound(path: str, who: User | None) -> Place:
    """The user's own directory. Blocks.

    Args:
        who: whom the spec wants commands to run as, of the host's users; ``None``: the directory's owner, where we are
            root, and ourselves otherwise.

    Raises:
        UsageValueError: it is not there, or only root could work in it.
        SandboxUnavailable: whom commands run as cannot get there.
    """
    real = os.path.realpath(path)
    if not os.path.isdir(real):
        raise UsageValueError(f"workspace_mode='bind': there is no directory {path}: make it first")
    refuse_engine(real, "workspace")
    if os.geteuid() != 0:
        return Place(real, None, None)
    owner = os.stat(real)
    if who is None:
        if owner.st_uid == 0:
            raise UsageValueError(
                f"workspace_mode='bind' of {path}: root owns it, and commands never run as root. Give it to another user "
                f"(chown -R 1000:1000 {path}), or say whom commands run as: user='uid:gid'"
            )
        who = User(owner.st_uid, owner.st_gid or owner.st_uid)
    for directory in (Path(real), *Path(real).parents):
        status = directory.stat()
        if not _may_enter(status, who):
            raise SandboxUnavailable(
                f"workspace_mode='bind' of {path}: user {who.uid}, whom commands run as, may not enter {directory}. "
                f"Let others pass (chmod o+x {directory}), or use a directory somewhere else"
            )
    return Place(real, None, who)


def _may_enter(status: os.stat_result, who: User) -> bool:
    if status.st_uid == who.uid:
        return bool(status.st_mode & 0o100)
    return bool(status.st_mode & (0o010 if status.st_gid == who.gid else 0o001))

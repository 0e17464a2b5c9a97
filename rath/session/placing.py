"""What a session does with the sandbox that it is placed in. The other half of :class:`rath.session.session.Session`."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, Self

from rath.backend.branching import WorkspaceSnapshot
from rath.backend.lease import Lease
from rath.backend.types import BackendSandbox, WorkspaceDiff
from rath.core import ports
from rath.core.cell import Cell
from rath.errors import SandboxError, UsageTypeError, UsageValueError

__all__ = ["Placed"]


class Placed:
    """The use of a sandbox, for sessions. What reads or writes the workspace waits until the session has resolved.

    It waits for the end of the run only, however it ended: the workspace of a failed run can be looked at, too.
    """

    __slots__ = ()

    _cell: Cell[Any]
    _lease: Lease | None
    _depth: int

    def require_sandbox(self) -> BackendSandbox:
        """The sandbox, opened if need be.

        Raises:
            SandboxError: the session was never placed.
            SandboxClosed: this session's hold on it was released.
        """
        return self._placed_lease().open_blocking()

    def close_sandbox(self) -> Self:
        """Release this session's hold on its sandbox, for good; the last holder closes it. Returns the session."""
        if self._lease is not None:
            self._lease.release()
        return self

    def workspace_diff(self) -> WorkspaceDiff:
        """What has changed in the workspace since it was opened: a unified diff of text files, a list of binary ones.

        Raises:
            SandboxError: the session was never placed, or the backend cannot tell.
        """
        lease = self._settled_lease()
        return ports.engine().run(lease.diff())

    def upload(self, host_path: str | os.PathLike[str], path: str | os.PathLike[str] | None = None) -> Self:
        """Copy a file or directory of this machine into the workspace. Returns the session.

        Args:
            host_path: what to copy; a directory with all that is in it. Links are copied as links.
            path: where to, in the workspace; by default under its own name.

        Raises:
            SandboxError: the session was never placed, or something cannot be read or written: the message says what.
        """
        source = _on_the_host(host_path, "host_path")
        if not os.path.lexists(source):
            raise UsageValueError(f"there is no {source!r} to upload")
        target = os.path.basename(source) if path is None else _text(path, "path")
        if not target:
            raise UsageValueError(f"upload({source!r}) needs to be told where to: path=...")
        lease = self._settled_lease()
        ports.engine().run(lease.upload(source, target))
        return self

    def download(self, path: str | os.PathLike[str], host_path: str | os.PathLike[str] | None = None) -> Self:
        """Copy a file or directory of the workspace to this machine. Returns the session.

        What comes out of a sandbox is not trusted: nothing is written but ``host_path`` and what is below it.

        Args:
            path: what to copy; ``"."`` is the whole workspace.
            host_path: where to; by default under its own name in the current directory. A file there is replaced; a
                directory there has to be empty.

        Raises:
            SandboxError: the session was never placed, or something cannot be read or written: the message says what.
        """
        source = _text(path, "path")
        if host_path is None:
            name = os.path.basename(source.rstrip("/"))
            if name in ("", ".", ".."):
                raise UsageValueError(f"download({source!r}) needs to be told where to: host_path=...")
            target = os.path.abspath(name)  # not the home directory that "~" would be
        else:
            target = _on_the_host(host_path, "host_path")
        lease = self._settled_lease()
        ports.engine().run(lease.download(source, target))
        return self

    def snapshot(self) -> WorkspaceSnapshot:
        """The files of the workspace as they are now, kept. ``session.restore(snapshot)`` starts from them. Files only.

        Raises:
            SandboxError: the session was never placed, or the backend cannot copy a workspace.
        """
        lease = self._settled_lease()
        return ports.engine().run(lease.snapshot())

    def _settled_lease(self) -> Lease:
        lease = self._placed_lease()
        self._cell.wait()
        return lease

    def _placed_lease(self) -> Lease:
        if self._lease is None:
            raise SandboxError('the session has no sandbox: place it first, session = session.to("local")')
        self._lease.check()
        return self._lease

    def __enter__(self) -> Self:
        if self._depth == 0:
            self._placed_lease().open_blocking()
        object.__setattr__(self, "_depth", self._depth + 1)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        object.__setattr__(self, "_depth", self._depth - 1)
        if self._depth == 0:
            self.close_sandbox()


def _text(path: str | os.PathLike[str], name: str) -> str:
    found = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(found, str):
        raise UsageTypeError(f"{name} is a path, a str or a pathlib.Path; not {type(path).__name__}")
    return found


def _on_the_host(path: str | os.PathLike[str], name: str) -> str:
    text = _text(path, name)
    if not text:
        raise UsageValueError(f'{name} is empty: name a file or a directory ("." is the current one)')
    return os.path.abspath(os.path.expanduser(text))

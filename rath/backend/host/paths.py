"""Paths that cannot leave a directory, whatever a hostile program does to it meanwhile.

A check of the path's *text* followed by an open is no confinement: between the two, a directory can become a symbolic link.
So every path is resolved by the kernel, relative to a descriptor of the directory: by ``openat2`` with
``RESOLVE_BENEATH`` where there is one (Linux 5.6), else component by component with ``O_NOFOLLOW``, links followed by
hand. Both refuse ``..`` above the directory and absolute links; :class:`Confined` uses one or the other throughout.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import stat
from collections.abc import Iterator

__all__ = ["Confined", "Refused"]

_OPENAT2 = 437  # on every architecture that Linux has got since 2019
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_BENEATH = 0x08
_MAX_LINKS = 40
_MAX_RACES = 100
# A descriptor that only names a directory needs no read permission on it, where the system has such.
DIRECTORY = os.O_DIRECTORY | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY)


class Refused(Exception):
    """A path, or what stands there, that the call cannot use. Becomes a ``ToolExecutionFailure``."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


@functools.cache
def _kernel_call() -> ctypes._NamedFuncPointer | None:
    """libc's ``syscall`` if the kernel has, and lets us use, ``openat2``."""
    if os.uname().sysname != "Linux":
        return None
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    try:
        os.close(_openat2(call, os.open("/", DIRECTORY), ".", DIRECTORY, close_root=True))
    except OSError:  # an old kernel, or a seccomp filter that refuses what it does not know
        return None
    return call


def _openat2(call: ctypes._NamedFuncPointer, root: int, path: str, flags: int, *, close_root: bool = False) -> int:
    how = _OpenHow(flags | os.O_CLOEXEC, 0, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)
    size = ctypes.c_size_t(ctypes.sizeof(how))
    try:
        for _ in range(_MAX_RACES):
            fd = call(ctypes.c_long(_OPENAT2), root, os.fsencode(path), ctypes.byref(how), size)
            if fd >= 0:
                return int(fd)
            code = ctypes.get_errno()
            # EAGAIN: something was renamed while a `..` was being resolved, and the kernel cannot vouch for it.
            if code not in (errno.EAGAIN, errno.EINTR):
                break
        raise OSError(code, os.strerror(code), path)
    finally:
        if close_root:
            os.close(root)


class Confined:
    """A directory, and the way to open what is in it and nothing else.

    Args:
        path: the directory; it has to be there.
        kernel: use ``openat2``; by default where it works.
    """

    def __init__(self, path: str, *, kernel: bool | None = None) -> None:
        self.path = path
        self.real_path = os.path.realpath(path)
        self.fd = os.open(self.real_path, DIRECTORY)
        self._identity = _identity(os.fstat(self.fd))
        self._call = None if kernel is False else _kernel_call()

    def close(self) -> None:
        """Give the descriptor back. Idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def exists(self) -> bool:
        """Whether the directory is still where it was."""
        try:
            return _identity(os.stat(self.real_path, follow_symlinks=False)) == self._identity
        except OSError:
            return False

    def relative(self, path: str) -> str:
        """``path`` relative to the directory, checked as text only: what it leads to is checked when it is opened."""
        if not isinstance(path, str):
            raise Refused("invalid_tool_arguments", f"a path is a string, not {type(path).__name__}")
        if "\0" in path:
            raise Refused("invalid_tool_arguments", "a path cannot contain a NUL character")
        try:
            os.fsencode(path)
        except UnicodeEncodeError:
            raise Refused("invalid_tool_arguments", f"{path!r} holds characters that no file name can") from None
        if not path.startswith("/"):
            return path or "."
        for top in (self.path, self.real_path):
            if path == top or path.startswith(top.rstrip("/") + "/"):
                return path[len(top) :].lstrip("/") or "."
        raise outside(path)

    def open(self, relative: str, flags: int) -> int:
        """A descriptor of what ``relative`` leads to. Creates nothing."""
        try:
            if self._call is not None:
                return _openat2(self._call, self.fd, relative, flags)
            return self._walk(relative, flags)
        except OSError as error:
            if error.errno == errno.EXDEV:
                raise outside(relative) from None
            raise

    @contextlib.contextmanager
    def opened(self, relative: str, flags: int) -> Iterator[int]:
        """:meth:`open`, closed at the end of the block."""
        fd = self.open(relative, flags)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def parent(self, relative: str, *, create: bool = False) -> Iterator[tuple[int, str]]:
        """The descriptor of the directory that ``relative`` is in, and its name there; links at its end are followed.

        ``create``: make missing directories on the way.
        """
        for _ in range(_MAX_LINKS):
            head, _, name = relative.rpartition("/")
            if name in ("", ".", ".."):
                with self.opened(relative, DIRECTORY):  # or it leads out, or is not there
                    raise Refused("is_directory", f"{relative!r} is a directory")
            fd = self._directories(head, create)
            try:
                link = _link_at(fd, name)
                if link is None:
                    yield fd, name
                    return
            finally:
                os.close(fd)
            if link.startswith("/"):
                raise outside(relative)
            relative = f"{head}/{link}" if head else link
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), relative)

    def _directories(self, relative: str, create: bool) -> int:
        try:
            return self.open(relative or ".", DIRECTORY)
        except FileNotFoundError:
            if not create:
                raise
        with self.parent(relative.rstrip("/"), create=True) as (above, name), contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o777, dir_fd=above)  # or somebody made it meanwhile
        return self.open(relative, DIRECTORY)

    def _walk(self, relative: str, flags: int) -> int:
        """What ``openat2`` does, by hand: a descriptor for every directory on the way, and no link followed blindly."""
        stack = [os.dup(self.fd)]
        try:
            todo = _parts(relative)
            links = 0
            while todo:
                part = todo.pop()
                if part == ".":
                    continue
                if part == "..":
                    if len(stack) == 1:
                        raise outside(relative)
                    os.close(stack.pop())
                    continue
                link = _link_at(stack[-1], part)
                if link is not None:
                    links += 1
                    if links > _MAX_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), relative)
                    if link.startswith("/"):
                        raise outside(relative)
                    todo += _parts(link)
                    continue
                if not any(rest != "." for rest in todo):
                    how = flags | (os.O_DIRECTORY if todo else 0)
                    # Became a link since we looked: O_NOFOLLOW makes that an error instead of a way out.
                    return _no_link(os.open(part, how | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=stack[-1]), relative)
                stack.append(_no_link(os.open(part, DIRECTORY | os.O_NOFOLLOW, dir_fd=stack[-1]), relative))
            # Ended at a directory we hold: "." opens it anew with the flags asked for.
            return os.open(".", flags | os.O_CLOEXEC, dir_fd=stack[-1])
        finally:
            for fd in stack:
                os.close(fd)


def outside(path: str) -> Refused:
    """The refusal of a path that leads out."""
    return Refused(
        "path_outside_workspace",
        f"{path!r} leads out of the workspace. Use a path relative to it; "
        "links that are absolute or lead out are not followed",
    )


def _parts(path: str) -> list[str]:
    """The components in reverse; a trailing slash means that a directory is meant, as ``.`` does."""
    parts = [part for part in path.split("/") if part]
    if path.endswith("/"):
        parts.append(".")
    return parts[::-1]


def _link_at(directory: int, name: str) -> str | None:
    """Where the link ``name`` in ``directory`` leads; ``None`` if it is not a link, or not there."""
    try:
        return os.readlink(name, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise


def _no_link(fd: int, relative: str) -> int:
    """``fd``, unless O_PATH gave us a link itself."""
    if stat.S_ISLNK(os.fstat(fd).st_mode):
        os.close(fd)
        raise outside(relative)
    return fd


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino

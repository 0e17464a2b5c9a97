"""The mount calls of Linux that an overlay workspace needs, by ctypes: Python has none of them.

Two ways, chosen by what the kernel can do. Since Linux 6.8 layers are named one by one (``fsconfig``, ``lowerdir+``), and a
mount can be put *beneath* the one that is to go, so that no reader ever sees the place empty and nothing piles up. Before,
``mount`` takes all names in one page of 4,096 bytes, and a new overlay is stacked on the old one.

Overlays are mounted ``volatile``: without it the change to read-only writes out the *whole* disk below (seconds after large
writes), and the files do not outlive their owner anyway. Directories can be renamed (``redirect_dir``): without it, renaming
one that is in a lower layer fails with ``EXDEV``, which few programs expect.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import re
from collections.abc import Sequence

__all__ = ["MAX_LAYERS", "bind_shared", "detach", "modern", "mount_overlay", "mounted_below", "set_read_only", "unmount_all"]

_RDONLY, _NOSUID, _NODEV, _REMOUNT, _BIND, _SHARED = 0x1, 0x2, 0x4, 0x20, 0x1000, 0x100000
_DETACH = 2
# The same numbers on every architecture that Linux has got since 2019.
_MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT = 429, 430, 431, 432
_SET_FLAG, _SET_STRING, _CMD_CREATE = 0, 1, 6
_FROM_EMPTY_PATH, _BENEATH = 0x4, 0x200
_AT_FDCWD = -100
_OPTIONS = {"redirect_dir": "on", "index": "off", "metacopy": "off"}
MAX_LAYERS = 60
"""Of one overlay. The kernel takes 500, but cold look-ups take time for each, and the old call has its page of names."""


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{os.strerror(code)} ({what})")
    return result


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    data = None if options is None else os.fsencode(options)
    _check(_libc().mount(*texts, ctypes.c_ulong(flags), data), f"mount at {target}")


@functools.cache
def modern() -> bool:
    """Whether the kernel has ``lowerdir+``, and so mounts beneath too."""
    fd = _libc().syscall(_FSOPEN, b"overlay", 1)
    if fd < 0:
        return False
    try:
        return int(_libc().syscall(_FSCONFIG, fd, _SET_STRING, b"lowerdir+", b"/", 0)) == 0
    finally:
        os.close(fd)


def bind_shared(path: str) -> None:
    """Make the directory ``path`` a mount of its own, whose later mounts reach whoever binds it as a slave."""
    _mount(path, path, None, _BIND)
    try:
        _mount(None, path, None, _SHARED)
    except OSError:
        detach(path)
        raise


def mount_overlay(
    target: str,
    lowers: Sequence[str],
    upper: str | None,
    work: str | None,
    *,
    replace: bool = False,
    new_calls: bool | None = None,
) -> None:
    """Mount an overlay at ``target``: ``lowers`` from the top down, below ``upper``; ``None``: read-only.

    Args:
        replace: take the place of the mount that is there; where the kernel is older, cover it.
        new_calls: use the new mount calls; by default where they work.

    Raises:
        OSError: it cannot be mounted; nothing has changed.
    """
    if modern() if new_calls is None else new_calls:
        fd = _new_overlay(lowers, upper, work)
        try:
            flags = _FROM_EMPTY_PATH | (_BENEATH if replace else 0)
            moved = _libc().syscall(_MOVE_MOUNT, fd, b"", _AT_FDCWD, os.fsencode(target), flags)
            _check(moved, f"mount at {target}")
        finally:
            os.close(fd)
        if replace:
            detach(target)
        return
    options = {"lowerdir": ":".join(lowers), **_OPTIONS}
    flags = _NOSUID | _NODEV
    if upper is None or work is None:
        flags |= _RDONLY
    else:
        options |= {"upperdir": upper, "workdir": work}
    text = ",".join(f"{key}={value}" for key, value in options.items())
    _mount("rath", target, "overlay", flags, text if upper is None else f"{text},volatile")


def _new_overlay(lowers: Sequence[str], upper: str | None, work: str | None) -> int:
    call = _libc().syscall
    fd = _check(call(_FSOPEN, b"overlay", 1), "fsopen overlay")
    try:
        settings = [("source", "rath"), *(("lowerdir+", lower) for lower in lowers), *_OPTIONS.items()]
        if upper is not None and work is not None:
            settings += [("upperdir", upper), ("workdir", work)]
        for key, value in settings:
            _check(call(_FSCONFIG, fd, _SET_STRING, key.encode(), os.fsencode(value), 0), f"overlay {key}={value}")
        flag = b"ro" if upper is None else b"volatile"
        _check(call(_FSCONFIG, fd, _SET_FLAG, flag, None, 0), f"overlay {flag.decode()}")
        _check(call(_FSCONFIG, fd, _CMD_CREATE, None, None, 0), f"overlay of {len(lowers)} layers")
        return int(_check(call(_FSMOUNT, fd, 1, _NOSUID | _NODEV), "fsmount overlay"))
    finally:
        os.close(fd)


def set_read_only(target: str, read_only: bool) -> None:
    """Change the file system mounted at ``target``, wherever else it is mounted too.

    Raises:
        OSError: ``EBUSY``: a file is open for writing.
    """
    _mount("rath", target, None, _REMOUNT | _NOSUID | _NODEV | (_RDONLY if read_only else 0))


def detach(target: str) -> None:
    """Take the topmost mount at ``target`` away; who uses it keeps it until done."""
    _check(_libc().umount2(os.fsencode(target), _DETACH), f"unmount {target}")


def unmount_all(target: str) -> None:
    """Take every mount at ``target`` away, or do nothing if there is none."""
    while True:
        try:
            detach(target)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):  # no mount point (any more)
                return
            raise


def mounted_below(directory: str) -> list[str]:
    """The mount points at or below ``directory``, in an order in which they can be unmounted."""
    with open("/proc/self/mountinfo", "rb") as file:
        points = [os.fsdecode(_unescape(line.split(b" ")[4])) for line in file]
    return [point for point in reversed(points) if point == directory or point.startswith(directory.rstrip("/") + "/")]


def _unescape(name: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), name)

"""What a sandbox's first process does before it becomes the guest: limits, and the Landlock fence.

This file runs *inside*, as ``python3 -I -S -c``, under any Python since 3.8 that has ``ctypes``; rath only reads its text.
The guest comes by an inherited descriptor. Arguments: ``source`` or ``code`` (what ``marshal`` writes), that descriptor,
then ``RLIMIT=VALUE`` pairs.

Landlock is the second fence: should a mount be wrong, or made by somebody after all, files outside of ``/workspace``,
``/tmp`` and ``/dev/shm`` are still not written. Where the kernel has none, or one that cannot rename between directories
(before 5.19), there is the first fence only.
"""

from __future__ import annotations

import ctypes
import marshal
import os
import struct
import sys

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION = 1
_PATH_BENEATH = 1
_EXECUTE, _WRITE, _READ, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_DEVICES = 1 << 6 | 1 << 11
_ALL = (1 << 14) - 1  # everything up to renames between directories, the second version
_TRUNCATE = 1 << 14  # the third
_LOOK = _EXECUTE | _READ | _READ_DIR


def _limit(libc: ctypes.CDLL, resource: int, value: int) -> None:
    both = ctypes.create_string_buffer(16)
    if libc.getrlimit(resource, both) != 0:
        raise OSError(ctypes.get_errno(), "a limit cannot be read", str(resource))
    # Who starts us may have less, and nobody but root can raise that.
    value = min(value, struct.unpack("QQ", both.raw)[1])
    if libc.setrlimit(resource, struct.pack("QQ", value, value)) != 0:
        raise OSError(ctypes.get_errno(), "a limit cannot be set", str(resource))


def _fence(libc: ctypes.CDLL) -> None:
    call = libc.syscall
    call.restype = ctypes.c_long
    version = call(ctypes.c_long(_CREATE_RULESET), None, ctypes.c_size_t(0), _ASK_VERSION)
    if version < 2:
        return
    handled = _ALL | (_TRUNCATE if version >= 3 else 0)
    ruleset = call(ctypes.c_long(_CREATE_RULESET), struct.pack("Q", handled), ctypes.c_size_t(8), 0)
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "Landlock is there and makes no rules")
    devices = _LOOK | _WRITE | handled & _TRUNCATE
    places = {"/": _LOOK, "/proc": devices, "/dev": devices}
    places.update(dict.fromkeys(("/workspace", "/tmp", "/dev/shm"), handled & ~_MAKE_DEVICES))
    for path, allowed in places.items():
        directory = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", allowed, directory)
        failed = call(ctypes.c_long(_ADD_RULE), int(ruleset), _PATH_BENEATH, rule, 0)
        os.close(directory)
        if failed:
            raise OSError(ctypes.get_errno(), "Landlock takes no rule", path)
    if call(ctypes.c_long(_RESTRICT_SELF), int(ruleset), 0) != 0:
        raise OSError(ctypes.get_errno(), "Landlock does not begin")
    os.close(ruleset)


def main() -> None:
    """Fence this process in, and become the guest."""
    libc = ctypes.CDLL(None, use_errno=True)
    kind, descriptor, *limits = sys.argv[1:]
    with open(int(descriptor), "rb") as file:
        guest = file.read()
    for pair in limits:
        resource, _, value = pair.partition("=")
        _limit(libc, int(resource), int(value))
    _fence(libc)
    sys.argv[1:] = []
    code = marshal.loads(guest) if kind == "code" else compile(guest, "guest", "exec")
    exec(code, {"__name__": "__main__", "__builtins__": __builtins__})


if __name__ == "__main__":
    main()

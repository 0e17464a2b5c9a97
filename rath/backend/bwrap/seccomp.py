"""The system calls that a sandbox may not make, as a program for the kernel (classic BPF, see ``man 2 seccomp``).

bubblewrap brings no such program, and without one a command can make a user namespace, be root in it, and reach all the
kernel code that only root reaches otherwise (measured: ``unshare -U`` worked). The list is a deny-list like Docker's
default profile is in effect: what needs a capability that nobody in the sandbox has is on it only where the kernel has had
holes. The program is built here, without libseccomp: ``struct sock_filter`` records, loaded by ``bwrap --seccomp``.
"""

from __future__ import annotations

import errno
import platform
import struct
from dataclasses import dataclass, field

__all__ = ["MACHINES", "program"]

MACHINES = {"x86_64": 0, "aarch64": 1}
"""The processors that the table below knows, by its columns."""

_AUDIT_ARCH = (0xC000003E, 0xC00000B7)
_X32_BIT = 0x40000000

_DENIED: dict[str, tuple[int, int | None]] = {
    # file systems and namespaces
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "setns": (308, 268),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "open_tree_attr": (467, 467), "open_by_handle_at": (304, 265),
    "quotactl": (179, 60), "quotactl_fd": (443, 443), "fanotify_init": (300, 262), "lookup_dcookie": (212, 18),
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438), "kcmp": (312, 272), "migrate_pages": (256, 238), "move_pages": (279, 239),
    # the kernel: large or delicate interfaces that builds and tests do without
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "create_module": (174, None), "query_module": (178, None), "nfsservctl": (180, 42),
    "uselib": (134, None), "sysfs": (139, None),
    # the machine; the kernel's log is the host's
    "syslog": (103, 116), "swapon": (167, 224), "swapoff": (168, 225), "reboot": (169, 142), "acct": (163, 89),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "vhangup": (153, 58), "iopl": (172, None),
    "ioperm": (173, None),
}  # fmt: skip
_CLONE, _CLONE3, _UNSHARE = (56, 220), (435, 435), (272, 97)
_IOCTL, _PERSONALITY, _PRLIMIT64 = (16, 29), (135, 92), (302, 261)
_SOCKET, _SOCKETPAIR = (41, 198), (53, 199)

_CLONE_NEWUTS = 0x04000000
_NAMESPACES = 0x7E020000 | 0x80  # cgroup, uts, ipc, user, pid, net; mount; and time, which only unshare takes by this bit
_TERMINAL_INPUT = (0x5412, 0x541C)  # TIOCSTI and TIOCLINUX: typing into somebody else's terminal
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)  # Linux, 32 bit Linux, both with another uname; "tell me"
_FAMILIES = (1, 2, 10, 16)  # unix, IPv4, IPv6, and netlink: the last of the sandbox's own network namespace

# Where `struct seccomp_data` holds what: int nr; u32 arch; u64 instruction_pointer; u64 args[6]. Both machines are
# little-endian, and every argument looked at is one that the kernel takes as 32 bits.
_NR, _ARCH, _ARG0, _ARG1 = 0, 4, 16, 24
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_JUMP_BITS = 8


def _error(code: int) -> int:
    return 0x00050000 | code


@dataclass
class _Assembler:
    """Instructions whose jumps go to names, resolved at the end."""

    code: list[tuple[int, int, str, str]] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    def label(self, name: str) -> None:
        self.labels[name] = len(self.code)

    def load(self, offset: int) -> None:
        self.code.append((_LOAD, offset, "", ""))

    def jump(self, test: int, value: int, then: str = "", otherwise: str = "") -> None:
        """Go to ``then`` or ``otherwise``; an empty name is the next instruction."""
        self.code.append((test, value, then, otherwise))

    def answer(self, value: int) -> None:
        self.code.append((_RETURN, value, "", ""))

    def bytes(self) -> bytes:
        packed = []
        for place, (operation, value, then, otherwise) in enumerate(self.code):
            steps = [0 if not name else self.labels[name] - place - 1 for name in (then, otherwise)]
            assert all(0 <= step < 1 << _JUMP_BITS for step in steps), "the program is too long for its jumps"
            packed.append(struct.pack("=HBBI", operation, *steps, value))
        return b"".join(packed)


def program(machine: str | None = None) -> bytes:
    """The program for a processor, this one by default.

    What it refuses fails with ``EPERM``, so programs go on; ``clone3`` with ``ENOSYS``, for the C library then uses
    ``clone``, whose flags can be looked at. System calls of another architecture (32 bit, x32) end the process.

    Raises:
        KeyError: there is no table for this processor.
    """
    column = MACHINES[machine or platform.machine()]
    asm = _Assembler()
    asm.load(_ARCH)
    asm.jump(_EQUAL, _AUDIT_ARCH[column], "", "kill")
    asm.load(_NR)
    if column == MACHINES["x86_64"]:
        asm.jump(_AT_LEAST, _X32_BIT, "kill")
    for numbers in _DENIED.values():
        number = numbers[column]
        if number is not None:
            asm.jump(_EQUAL, number, "refuse")
    asm.jump(_EQUAL, _CLONE3[column], "missing")
    looked_at = {
        "clone": _CLONE, "unshare": _UNSHARE, "ioctl": _IOCTL, "personality": _PERSONALITY, "prlimit": _PRLIMIT64,
        "socket": _SOCKET, "socketpair": _SOCKETPAIR,
    }  # fmt: skip
    for name, both in looked_at.items():
        asm.jump(_EQUAL, both[column], "socket" if name == "socketpair" else name)
    asm.answer(_ALLOW)
    _arguments(asm)
    asm.label("refuse")
    asm.answer(_error(errno.EPERM))
    asm.label("missing")
    asm.answer(_error(errno.ENOSYS))
    asm.label("kill")
    asm.answer(_KILL)
    asm.label("allow")
    asm.answer(_ALLOW)
    return asm.bytes()


def _arguments(asm: _Assembler) -> None:
    """The calls that depend on what is asked."""
    asm.label("clone")
    asm.load(_ARG0)
    asm.jump(_ANY_BIT, _NAMESPACES & ~0x80, "refuse", "allow")  # the low byte is the signal at the child's end
    asm.label("unshare")
    asm.load(_ARG0)
    # The guest needs this one for its marks; commands lack the capability.
    asm.jump(_ANY_BIT, _NAMESPACES & ~_CLONE_NEWUTS, "refuse", "allow")
    asm.label("ioctl")
    asm.load(_ARG1)
    for command in _TERMINAL_INPUT:
        asm.jump(_EQUAL, command, "refuse")
    asm.answer(_ALLOW)
    asm.label("personality")
    asm.load(_ARG0)
    for allowed in _PERSONALITIES:
        asm.jump(_EQUAL, allowed, "allow")
    asm.answer(_error(errno.EPERM))
    asm.label("prlimit")
    asm.load(_ARG0)
    asm.jump(_EQUAL, 1, "refuse", "allow")  # the guest's limits: it has the same user, which is all that the kernel asks
    asm.label("socket")
    asm.load(_ARG0)
    # Network namespaces do not hold the rest: AF_VSOCK reaches the machine that this one is virtual on.
    for family in _FAMILIES:
        asm.jump(_EQUAL, family, "allow")
    asm.answer(_error(errno.EAFNOSUPPORT))

"""The seccomp program, run by a small interpreter of its own: what it answers on both processors, and what the kernel says."""

from __future__ import annotations

import errno
import platform
import struct

import pytest

from rath.backend.bwrap import seccomp
from tests.backend.bwrap.conftest import Sh

ALLOW, KILL = 0x7FFF0000, 0x80000000
X86, ARM = ("x86_64", 0xC000003E), ("aarch64", 0xC00000B7)
BOTH = pytest.mark.parametrize("machine", [X86, ARM], ids=["x86_64", "aarch64"])


def error(code: int) -> int:
    return 0x00050000 | code


def judged(machine: str, arch: int, number: int, *args: int) -> int:
    """What the program answers to a system call."""
    data = struct.pack("<iIQ6Q", struct.unpack("<i", struct.pack("<I", number))[0], arch, 0, *(*args, *[0] * 6)[:6])
    code = list(struct.iter_unpack("=HBBI", seccomp.program(machine)))
    at = loaded = 0
    for _ in range(len(code)):  # there is no way back: it ends
        operation, then, otherwise, value = code[at]
        at += 1
        if operation == 0x20:
            loaded = struct.unpack_from("<I", data, value)[0]
        elif operation == 0x06:
            return value
        else:
            holds = {0x15: loaded == value, 0x35: loaded >= value, 0x45: bool(loaded & value)}[operation]
            at += then if holds else otherwise
    raise AssertionError("the program has no end")


@BOTH
def test_ordinary_calls_are_allowed(machine: tuple[str, int]) -> None:
    numbers = {"x86_64": (0, 1, 2, 9, 59, 60, 257, 231, 437), "aarch64": (56, 57, 63, 64, 93, 94, 221, 222, 437)}[machine[0]]
    assert {judged(*machine, number) for number in numbers} == {ALLOW}


@BOTH
def test_every_call_of_the_list_is_refused(machine: tuple[str, int]) -> None:
    column = seccomp.MACHINES[machine[0]]
    listed = {name: both[column] for name, both in seccomp._DENIED.items() if both[column] is not None}
    assert len(listed) > 40
    assert {judged(*machine, number) for number in listed.values()} == {error(errno.EPERM)}


@pytest.mark.parametrize(
    ("name", "x86", "arm"), [("mount", 165, 40), ("bpf", 321, 280), ("setns", 308, 268), ("ptrace", 101, 117), ("keyctl", 250, 219)]
)
def test_the_numbers_are_those_of_the_kernels_headers(name: str, x86: int, arm: int) -> None:
    assert judged(*X86, x86) == judged(*ARM, arm) == error(errno.EPERM)
    assert seccomp._DENIED[name] == (x86, arm)


@BOTH
def test_another_architecture_ends_the_process(machine: tuple[str, int]) -> None:
    name, _ = machine
    for arch in (0x40000003, 0x40000028, 0xC0000016, (ARM if machine is X86 else X86)[1]):
        assert judged(name, arch, 0) == KILL
    assert judged(*X86, 0x40000000) == judged(*X86, 0x40000000 + 165) == KILL  # x32


@BOTH
@pytest.mark.parametrize("flag", [0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000])
def test_no_clone_makes_a_namespace(machine: tuple[str, int], flag: int) -> None:
    clone = {"x86_64": 56, "aarch64": 220}[machine[0]]
    assert judged(*machine, clone, flag | 17) == error(errno.EPERM)
    assert judged(*machine, clone, 0x3D0F00) == ALLOW  # a thread
    assert judged(*machine, clone, 0x4111) == ALLOW  # vfork
    assert judged(*machine, 435) == error(errno.ENOSYS)


@BOTH
def test_unshare_is_for_marks_and_for_what_is_no_namespace(machine: tuple[str, int]) -> None:
    unshare = {"x86_64": 272, "aarch64": 97}[machine[0]]
    for allowed in (0x04000000, 0x200, 0x400, 0):
        assert judged(*machine, unshare, allowed) == ALLOW
    for refused in (0x10000000, 0x14000000, 0x20000, 0x40000000, 0x80, 0x7E020000):
        assert judged(*machine, unshare, refused) == error(errno.EPERM)


@BOTH
def test_arguments_decide_where_a_call_has_a_harmless_use(machine: tuple[str, int]) -> None:
    ioctl, personality, prlimit, socket, socketpair = {
        "x86_64": (16, 135, 302, 41, 53),
        "aarch64": (29, 92, 261, 198, 199),
    }[machine[0]]
    assert judged(*machine, ioctl, 0, 0x5413) == ALLOW
    assert judged(*machine, ioctl, 0, 0x5412) == judged(*machine, ioctl, 0, 0x541C) == error(errno.EPERM)
    assert judged(*machine, ioctl, 0, 0xDEADBEEF00005412) == error(errno.EPERM)  # the kernel looks at 32 bits
    assert judged(*machine, personality, 0xFFFFFFFF) == judged(*machine, personality, 8) == ALLOW
    assert judged(*machine, personality, 0x0400000) == error(errno.EPERM)
    assert judged(*machine, prlimit, 0) == judged(*machine, prlimit, 77) == ALLOW
    assert judged(*machine, prlimit, 1) == error(errno.EPERM)
    assert {judged(*machine, call, family) for call in (socket, socketpair) for family in (1, 2, 10, 16)} == {ALLOW}
    assert {judged(*machine, socket, family) for family in (17, 38, 40)} == {error(errno.EAFNOSUPPORT)}


def test_an_unknown_processor_has_no_program() -> None:
    with pytest.raises(KeyError):
        seccomp.program("vax")


CALLS = """
import ctypes, errno, fcntl, os, pty, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(name, number, *args):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, args))
    print(name, "ok" if result >= 0 else errno.errorcode[ctypes.get_errno()])
x86 = os.uname().machine == "x86_64"
call("mount", 165 if x86 else 40, 0, 0, 0, 0, 0)
call("ptrace", 101 if x86 else 117, 0, 0, 0, 0)
call("userns", 272 if x86 else 97, 0x10000000)
call("netns", 272 if x86 else 97, 0x40000000)
call("clone3", 435, 0, 0)
call("bpf", 321 if x86 else 280, 0, 0, 0)
call("keyctl", 250 if x86 else 219, 0, 0)
call("io_uring", 425, 8, 0)
call("vsock", 41 if x86 else 198, 40, 1, 0)
call("handle", 304 if x86 else 265, 0, 0, 0)
master, slave = pty.openpty()
try:
    fcntl.ioctl(slave, 0x5412, b"x")
    print("TIOCSTI ok")
except OSError as error:
    print("TIOCSTI", errno.errorcode[error.errno])
"""


def test_the_kernel_holds_commands_to_the_program(sh: Sh) -> None:
    status = sh("cat /proc/self/status").stdout.decode()
    assert "Seccomp:\t2" in status
    assert "NoNewPrivs:\t1" in status
    said = sh("python3 -", stdin=CALLS.encode())
    assert dict(line.split() for line in said.stdout.decode().splitlines()) == {
        "mount": "EPERM", "ptrace": "EPERM", "userns": "EPERM", "netns": "EPERM", "clone3": "ENOSYS", "bpf": "EPERM",
        "keyctl": "EPERM", "io_uring": "EPERM", "vsock": "EAFNOSUPPORT", "handle": "EPERM", "TIOCSTI": "EPERM",
    }, said  # fmt: skip


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only there is another architecture in the same kernel")
def test_a_call_of_another_architecture_kills(sh: Sh) -> None:
    """``int 0x80`` would be judged by numbers of another table."""
    machine_code = "import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7)\nm.write(bytes.fromhex('b814000000cd80c3'))\n"
    run = "ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()\nprint('alive')\n"
    ended = sh("python3 -", stdin=(machine_code + run).encode())
    assert b"alive" not in ended.stdout
    assert ended.exit_code == 128 + 31  # SIGSYS

"""Marks of kind "uts", and one user for all: the guest server as the first process under bubblewrap."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backend.guest.client import SOURCE, Guest
from tests.backend.guest.test_server_kills import HIDDEN, sleepers

pytestmark = pytest.mark.slow

PYTHON = "/usr/bin/python3"


@pytest.fixture
def bubble(workspace: Path) -> Iterator[Guest]:
    command = [
        *("bwrap", "--unshare-all", "--unshare-user", "--uid", "1000", "--gid", "1000", "--die-with-parent", "--as-pid-1"),
        *("--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--bind", str(workspace), "/mnt"),
        *("--cap-add", "CAP_SYS_ADMIN", "--cap-add", "CAP_SYS_PTRACE", "--new-session"),
    ]
    try:
        works = subprocess.run([*command, PYTHON, "-c", "import ctypes"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        works = False
    if not works:
        pytest.skip(f"bubblewrap does not work here, or {PYTHON} has no ctypes ({shutil.which('bwrap')})")
    with Guest([*command, PYTHON, "-I", "-S", "-u", "-c", SOURCE]) as guest:
        assert guest.configure("/mnt", mode="same", mark="uts")["mark"] == "uts"
        yield guest


@pytest.mark.parametrize("tree", HIDDEN)
def test_a_timeout_ends_what_hides_and_nothing_else(bubble: Guest, tree: str) -> None:
    other = bubble.spawn("sh", "-c", "(setsid env -i /bin/sleep 43210 &); sleep 1; echo whole")
    call = bubble.spawn("sh", "-c", HIDDEN[tree], timeout_ms=500)
    time.sleep(0.2)
    assert sleepers(bubble)
    assert (bubble.wait(call, 2).flags, sleepers(bubble)) == ("t", [])
    assert bubble.wait(other).out == b"whole\n"
    assert bubble.sh("grep -la '4321[0]' /proc/[0-9]*/cmdline").out


def test_the_server_cannot_be_reached_and_hands_nothing_on(bubble: Guest) -> None:
    for line in ("readlink /proc/1/fd/1", "cat /proc/1/environ", "cat /proc/1/mem", "echo x > /proc/1/fd/1", "unshare -u true"):
        assert bubble.sh(line).exit != "0", line
    for name in ("KILL", "STOP", "TERM", "CHLD"):
        bubble.sh(f"kill -{name} 1")
        assert bubble.call("ping").done == []
    facts = bubble.sh("grep -E '^Cap(Prm|Eff|Amb)' /proc/self/status").out.split()
    assert facts[1::2] == [b"0" * 16] * 3

"""What a command in a bubblewrap sandbox tries, and cannot do."""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from datetime import timedelta
from pathlib import Path

import pytest

from rath.backend.bwrap.backend import BwrapSandbox
from rath.backend.types import (
    Backend,
    BackendSandbox,
    BackendSandboxSpec,
    BackendToolCommandRun,
    BackendToolFilesExists,
    BackendToolFilesRead,
    CommandResult,
    FileContent,
    ToolExecutionFailure,
)
from rath.core import ports
from tests.backend.bwrap.conftest import Sh

# -- the host's files -------------------------------------------------------------------------------------------------


def test_the_hosts_files_are_not_there(sh: Sh, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    for path in ("/root", "/home", "/etc/shadow", "/var/lib", "/var/log", "/sys", "/boot", "/mnt", "/opt", str(secret), str(tmp_path)):
        assert sh(f"ls -d {path}").exit_code != 0, path
    there = set(sh("ls -A /").stdout.decode().split())
    assert there - {"bin", "sbin", "lib", "lib32", "lib64", "libx32"} == {"dev", "etc", "proc", "run", "tmp", "usr", "var", "workspace"}
    assert b"sandbox" in sh("cat /etc/passwd").stdout
    assert os.uname().nodename.encode() not in sh("uname -n; cat /etc/hostname /etc/hosts").stdout


def test_nothing_but_the_workspace_and_tmp_is_writable(sh: Sh) -> None:
    for path in ("/", "/usr", "/usr/bin", "/etc", "/dev", "/proc", "/run", "/var", "/proc/sys/kernel", "/lib"):
        assert sh(f"touch {path}/mine").exit_code != 0, path
    assert sh("touch /workspace/mine /tmp/mine /dev/shm/mine /var/tmp/mine && echo x > /dev/null").exit_code == 0
    assert sh("echo 1 > /proc/sys/kernel/domainname").exit_code != 0
    assert sh("echo 1 > /proc/sys/net/ipv4/ip_forward").exit_code != 0


def test_files_move_between_directories_past_landlock(sh: Sh) -> None:
    moved = sh("mkdir a b && echo x > a/f && python3 -c 'import os; os.rename(\"a/f\", \"b/f\"); os.link(\"b/f\", \"a/g\")' && cat a/g")
    assert moved.stdout == b"x\n", moved


def test_landlock_is_the_second_fence(sh: Sh) -> None:
    """A device of number 0:0, which any user may make anywhere, is one thing that only Landlock forbids."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ctypes.c_long(444), None, ctypes.c_size_t(0), 1) < 2:
        pytest.skip("this kernel has no Landlock, or one that is too old")
    refused = sh("mknod device c 0 0")
    assert refused.exit_code != 0
    assert b"denied" in refused.stderr.lower()
    assert sh("mkfifo pipe && mkdir directory && ln -s x link").exit_code == 0


def test_tmp_has_the_size_that_the_spec_says(bwrap: Backend) -> None:
    with bwrap.open(BackendSandboxSpec(tmp="4m")) as sandbox:
        filled = sandbox.dispatch(BackendToolCommandRun("head -c 9000000 /dev/zero > /tmp/big; stat -c %s /tmp/big"))
        assert isinstance(filled, CommandResult)
        assert filled.stdout == b"4194304\n"


# -- other processes --------------------------------------------------------------------------------------------------


def test_the_hosts_processes_are_invisible(sh: Sh) -> None:
    pids = [int(name) for name in sh("ls /proc").stdout.split() if name.isdigit()]
    assert min(pids) == 1
    assert len(pids) < 6
    assert sh(f"kill -0 {os.getpid()}").exit_code != 0


def test_the_guest_can_be_neither_read_nor_traced_nor_hurt(sh: Sh) -> None:
    for path in ("/proc/1/fd", "/proc/1/environ", "/proc/1/mem", "/proc/1/root/", "/proc/1/maps", "/proc/1/cwd/"):
        assert sh(f"ls {path} && cat {path}").exit_code != 0, path
    assert sh("echo forged > /proc/1/fd/1").exit_code != 0
    assert sh("echo 1000 > /proc/1/oom_score_adj").exit_code != 0
    for signal in ("KILL", "STOP", "TERM", "INT", "HUP", "SEGV", "USR1", "CHLD", "CONT", "ALRM", "QUIT"):
        sh(f"kill -{signal} 1")
    limits = "import ctypes; libc = ctypes.CDLL(None); print(libc.prlimit(1, 7, bytes(16), None))"
    assert sh("python3 -", stdin=limits.encode()).stdout == b"-1\n"
    assert sh("echo alive").stdout == b"alive\n"


def test_commands_have_no_capability_and_gain_none(sh: Sh) -> None:
    status = dict(line.split(":\t", 1) for line in sh("cat /proc/self/status").stdout.decode().splitlines() if ":\t" in line)
    assert {status[name] for name in ("CapEff", "CapPrm", "CapAmb")} == {"0" * 16}
    assert status["Uid"].split() == ["20000"] * 4
    assert sh("cp /bin/sh /workspace/sh && chmod 6755 /workspace/sh && ./sh -p -c 'grep CapEff /proc/self/status'").stdout.endswith(b"0" * 16 + b"\n")
    for line in ("unshare -U true", "unshare -Ur true", "unshare -n true", "unshare -m true", "mount -t tmpfs x /tmp", "chroot / true"):
        assert sh(line).exit_code != 0, line
    assert sh("unshare -u true").exit_code != 0  # the mark of a call cannot be put off


# -- network, environment, terminal -----------------------------------------------------------------------------------


def test_there_is_no_network_but_an_own_loopback(sh: Sh) -> None:
    devices = [line.split(b":")[0].strip() for line in sh("cat /proc/net/dev").stdout.splitlines()[2:]]
    assert devices == [b"lo"]
    code = "import socket\ntry:\n  socket.create_connection(('10.0.0.1', 80), 2)\nexcept OSError as e: print(e.errno)"
    assert sh("python3 -", stdin=code.encode()).stdout == b"101\n"  # network is unreachable


def test_the_hosts_environment_and_terminal_are_not_there(sh: Sh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "sk-of-the-host")
    assert b"sk-of-the-host" not in sh("env; cat /proc/*/environ").stdout
    assert sh("cat < /dev/tty").exit_code != 0


# -- ends -------------------------------------------------------------------------------------------------------------

_HIDE = (
    "import os, sys, time\n"
    "for _ in range(2):\n"
    "    if os.fork(): os._exit(0)\n"
    "    os.setsid()\n"
    "os.closerange(0, 64)\n"
    "time.sleep(float(sys.argv[1]))\n"
    "open(sys.argv[2], 'w').close()\n"
)


@pytest.mark.slow
def test_a_timeout_ends_just_what_its_call_started(sandbox: BackendSandbox, sh: Sh) -> None:
    """setsid, a double fork and an empty environment do not hide; a parallel call and an earlier background process stay."""
    engine = ports.engine()
    sh("cat > hide.py", stdin=_HIDE.encode())
    sh("(sleep 0.8; touch earlier) > /dev/null 2>&1 &")

    async def both() -> tuple[object, object]:
        parallel = asyncio.ensure_future(sandbox.perform(BackendToolCommandRun("sleep 0.6; echo parallel")))
        hidden = "env -i /usr/bin/python3 hide.py 0.6 survivor & env -i setsid sh -c 'sleep 0.6; touch survivor2' & sleep 30"
        return await sandbox.perform(BackendToolCommandRun(hidden, timeout=0.3)), await parallel

    timed_out, parallel = engine.run(both())
    assert isinstance(timed_out, ToolExecutionFailure)
    assert timed_out.kind == "timeout"
    assert isinstance(parallel, CommandResult)
    assert parallel.stdout == b"parallel\n"
    time.sleep(0.5)
    assert [sandbox.dispatch(BackendToolFilesExists(name)) for name in ("survivor", "survivor2", "earlier")] == [False, False, True]


@pytest.mark.slow
@pytest.mark.parametrize("pids", [64, None])
def test_a_fork_bomb_is_bounded_and_ends_and_the_sandbox_answers(bwrap: Backend, pids: int | None) -> None:
    """Each process in a session of its own, and spinning: where sessions share the processor, the guest is one of 256."""
    program = "import os\nwhile True:\n  try: os.fork() or os.setsid()\n  except OSError: pass\n"
    with bwrap.open(BackendSandboxSpec(pids=pids, timeout=timedelta(seconds=20))) as sandbox:
        for _ in range(2):
            bomb = sandbox.dispatch(BackendToolCommandRun(["python3", "-"], stdin=program.encode(), timeout=0.5))
            assert isinstance(bomb, ToolExecutionFailure)
            assert bomb.kind == "timeout"
            after = sandbox.dispatch(BackendToolCommandRun("ls -d /proc/[0-9]* | wc -l"))
            assert isinstance(after, CommandResult)
            assert int(after.stdout) < 6


def test_a_call_that_is_none_does_not_keep_the_sandbox_from_closing(bwrap: Backend) -> None:
    sandbox = bwrap.open()
    assert isinstance(sandbox, BwrapSandbox)
    refused = sandbox.dispatch(BackendToolCommandRun(b"echo x"))  # type: ignore[arg-type]
    assert isinstance(refused, ToolExecutionFailure)
    assert refused.kind == "invalid_tool_arguments"
    assert sandbox.dispatch(BackendToolCommandRun([b"echo", b"x"]))  # type: ignore[list-item]
    bwrap.close(sandbox)
    assert sandbox.place.top is not None
    assert not Path(sandbox.place.top).exists()


def test_processes_are_limited_for_each_sandbox_by_itself(bwrap: Backend) -> None:
    with bwrap.open(BackendSandboxSpec(pids=20)) as one, bwrap.open(BackendSandboxSpec(pids=20)) as other:
        full = one.dispatch(BackendToolCommandRun("for i in $(seq 40); do sleep 9 & done; wait"))
        assert isinstance(full, CommandResult)
        assert b"fork" in full.stderr.lower()
        assert isinstance(other.dispatch(BackendToolCommandRun("true")), CommandResult)


def test_nothing_is_left_of_a_closed_sandbox(bwrap: Backend) -> None:
    sandbox = bwrap.open()
    assert isinstance(sandbox, BwrapSandbox)
    sandbox.dispatch(BackendToolCommandRun("setsid sleep 987 > /dev/null 2>&1 &"))
    top, pid = sandbox.place.top, sandbox.running.process.pid
    assert top is not None
    assert Path(top).is_dir()
    bwrap.close(sandbox)
    assert not Path(top).exists()
    assert not Path(f"/proc/{pid}").exists()
    assert not _running("sleep\x00987")


def _running(command: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if command in (entry / "cmdline").read_text():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


# -- links out of a workspace -----------------------------------------------------------------------------------------


def test_the_host_follows_no_link_that_a_command_made(bwrap: Backend, tmp_path: Path) -> None:
    """Diffs and copies of the workspace are made by the host, on its own files."""
    secret = tmp_path / "secret.txt"
    secret.write_text("of the host\n")
    with bwrap.open() as sandbox:
        made = sandbox.dispatch(BackendToolCommandRun(f"ln -s {secret} link; ln -s {tmp_path} dir; ln -s /etc/shadow shadow; mkfifo pipe"))
        assert isinstance(made, CommandResult)
        diff = ports.engine().run(sandbox.diff())
        assert "of the host" not in diff.text
        snapshot = ports.engine().run(sandbox.frozen("layer"))
        copy = ports.engine().run(bwrap._arestore(None, snapshot))
        with copy:
            read = copy.dispatch(BackendToolFilesRead("link"))
            assert not isinstance(read, FileContent)
            assert isinstance(copy.dispatch(BackendToolCommandRun("readlink link dir shadow")), CommandResult)

"""Limits on memory and processors: they hold where they can be had, and elsewhere nothing is opened without them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rath.backend.bwrap import limits
from rath.backend.bwrap.backend import BwrapSandbox
from rath.backend.types import Backend, BackendSandboxSpec, BackendToolCommandRun, CommandResult
from rath.errors import SandboxUnavailable

pytestmark = pytest.mark.slow

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes control groups")
PERSON = pytest.mark.skipif(os.geteuid() == 0, reason="root needs no systemd for this")


@pytest.fixture
def groups() -> None:
    """Root can make control groups here."""
    try:
        limits.Group.make("test", limits.Limits(1 << 26, 0.5)).remove()
    except SandboxUnavailable as error:
        pytest.skip(str(error))


@ROOT
@pytest.mark.usefixtures("groups")
def test_memory_ends_the_command_and_not_the_sandbox(bwrap: Backend) -> None:
    with bwrap.open(BackendSandboxSpec(memory="64m")) as sandbox:
        hog = sandbox.dispatch(BackendToolCommandRun(["python3", "-c", "x = b'x' * (200 << 20)"]))
        assert isinstance(hog, CommandResult)
        assert (hog.exit_code, hog.oom_killed) == (137, True)
        killed = sandbox.dispatch(BackendToolCommandRun("kill -9 $$"))
        assert isinstance(killed, CommandResult)
        assert (killed.exit_code, killed.oom_killed) == (137, False)


@ROOT
@pytest.mark.usefixtures("groups")
@pytest.mark.slow
def test_processors_are_shared_out(bwrap: Backend) -> None:
    """By the time that processes get, which no load of the machine changes: at most a tenth of what passes."""
    with bwrap.open(BackendSandboxSpec(cpus=0.1)) as sandbox:
        began = time.monotonic()
        program = "import os, time\nend = time.monotonic() + 0.8\nwhile time.monotonic() < end: pass\nprint(sum(os.times()[:2]))"
        busy = sandbox.dispatch(BackendToolCommandRun(["python3", "-c", program]))
        passed = time.monotonic() - began
        assert isinstance(busy, CommandResult)
        assert float(busy.stdout) < 0.1 * passed + 0.15, busy


@ROOT
@pytest.mark.usefixtures("groups")
def test_the_control_group_goes_with_the_sandbox(bwrap: Backend) -> None:
    sandbox = bwrap.open(BackendSandboxSpec(memory="64m", cpus=1))
    assert isinstance(sandbox, BwrapSandbox)
    assert isinstance(sandbox.held, limits.Group)
    directories = sandbox.held.directories
    assert directories
    assert all(str(sandbox.running.process.pid) in (one / "cgroup.procs").read_text().split() for one in directories)
    sandbox.dispatch(BackendToolCommandRun("setsid sleep 99 > /dev/null 2>&1 &"))
    bwrap.close(sandbox)
    assert not any(one.exists() for one in directories)


@ROOT
@pytest.mark.usefixtures("groups")
def test_a_limit_in_which_nothing_can_run_opens_nothing_and_leaves_nothing(bwrap: Backend) -> None:
    def left() -> set[Path]:
        return {path for top in (limits._TOP, limits._TOP / "memory") for path in top.glob(f"{limits._PREFIX}*")}

    before = left()
    with pytest.raises(SandboxUnavailable, match="could not open a sandbox"):
        bwrap.open(BackendSandboxSpec(memory=1, cpus=1))
    assert left() <= before
    bwrap.close(bwrap.open())


@PERSON
def test_without_systemd_limits_are_refused(bwrap: Backend, monkeypatch: pytest.MonkeyPatch, usable_directory: Path) -> None:
    (usable_directory / "bwrap").symlink_to("/usr/bin/bwrap")
    monkeypatch.setenv("PATH", str(usable_directory))
    with pytest.raises(SandboxUnavailable, match="systemd-run"):
        bwrap.open(BackendSandboxSpec(memory="64m"))
    bwrap.close(bwrap.open())  # what failed is in nobody's way


@PERSON
@pytest.mark.parametrize("script", ["echo Failed to connect to bus >&2; exit 1", 'while [ "$1" != -- ]; do shift; done; shift; exec "$@"'])
def test_a_scope_that_limits_nothing_opens_nothing(
    script: str, bwrap: Backend, monkeypatch: pytest.MonkeyPatch, usable_directory: Path
) -> None:
    (usable_directory / "systemd-run").write_text(f"#!/bin/sh\n{script}\n")
    (usable_directory / "systemd-run").chmod(0o755)
    monkeypatch.setenv("PATH", f"{usable_directory}:{os.environ['PATH']}")
    with pytest.raises(SandboxUnavailable, match="Failed to connect to bus|not delegated"):
        bwrap.open(BackendSandboxSpec(memory="64m"))
    bwrap.close(bwrap.open())  # what failed is in nobody's way


@pytest.mark.parametrize(("limit", "hard"), [("RLIMIT_NOFILE", 1024), ("RLIMIT_NPROC", 200)])
@pytest.mark.usefixtures("bwrap")
def test_a_user_with_lower_limits_keeps_them(limit: str, hard: int) -> None:
    """Nobody but root can raise a hard limit; asking for more than one has must not cost the sandbox."""
    program = f"""
import resource
from rath.backend import BackendToolCommandRun, get
resource.setrlimit(resource.{limit}, ({hard}, {hard}))
asked = "import resource; print(resource.getrlimit(resource.{limit}))"
with get("bwrap").open() as sandbox:
    print(sandbox.dispatch(BackendToolCommandRun(["python3", "-c", asked])).stdout.decode())
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert ran.stdout.strip() == f"({hard}, {hard})", ran.stderr

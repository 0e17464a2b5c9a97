"""The ``auto`` backend: the first that works, the same for the whole process, and never the host itself."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rath.backend import registry
from rath.backend.auto import CHOICES, AutoBackend
from rath.backend.bwrap import preflight
from rath.backend.lease import Placement
from rath.backend.types import (
    BackendSandboxSpec,
    BackendToolFilesExists,
    BackendToolFilesRead,
    BackendToolFilesWrite,
    FileContent,
)
from rath.core import ports
from rath.errors import SandboxUnavailable, UsageValueError


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A process in which docker was not asked yet and would not answer. ``docker``'s client is made once a process."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no-engine.sock")


@pytest.fixture
def bwrap_works() -> None:
    try:
        preflight.check()
    except SandboxUnavailable as error:
        if os.environ.get("RATH_REQUIRE_DOCKER") == "1":
            raise
        pytest.skip(str(error))


def in_a_fresh_process(program: str, **env: str) -> str:
    """What a program says that starts without an engine client; on one line."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, env={**os.environ, **env}, timeout=50
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


OPENED_BY = """
from rath.backend import registry
with registry.get("auto").open() as sandbox:
    print(sandbox.backend.name)
"""


def test_it_never_chooses_the_host() -> None:
    assert "local" not in CHOICES
    assert registry.get_class("auto") is AutoBackend


@pytest.mark.slow
@pytest.mark.usefixtures("bwrap_works")
def test_without_an_engine_it_is_bwrap(tmp_path: Path) -> None:
    assert in_a_fresh_process(OPENED_BY, DOCKER_HOST=f"unix://{tmp_path}/no-engine.sock") == "bwrap"


@pytest.mark.docker
@pytest.mark.slow
def test_with_an_engine_it_is_docker() -> None:
    check = "import asyncio\nfrom rath.backend import registry\nfrom rath.core import ports\n"
    choose = "print(ports.engine().run(registry.get('auto').chosen()).name)"
    if not registry.is_available("docker"):
        if os.environ.get("RATH_REQUIRE_DOCKER") == "1":
            pytest.fail("there is no engine")
        pytest.skip("there is no engine")
    assert in_a_fresh_process(check + choose) == "docker"


def test_where_nothing_works_the_error_has_both_remedies(tmp_path: Path) -> None:
    program = """
from rath.backend import registry
from rath.errors import SandboxUnavailable
assert not registry.is_available("auto")
for _ in range(2):
    try:
        registry.get("auto").open()
    except SandboxUnavailable as error:
        print(" ".join(str(error).split()))
"""
    said = in_a_fresh_process(program, DOCKER_HOST=f"unix://{tmp_path}/no-engine.sock", PATH=str(tmp_path)).splitlines()
    assert len(said) == 2
    for line in said:
        assert f"there is no Docker Engine at {tmp_path}/no-engine.sock" in line
        assert "apt install bubblewrap" in line
        assert 'session.to("local")' in line


@pytest.mark.usefixtures("bwrap_works", "no_engine")
def test_the_choice_holds_for_the_process() -> None:
    auto = AutoBackend()
    first = ports.engine().run(auto.chosen())
    os.environ.pop("DOCKER_HOST")  # an engine may appear; the sandboxes of one program are of one kind
    assert ports.engine().run(auto.chosen()) is first is registry.get("bwrap")


@pytest.mark.usefixtures("bwrap_works", "no_engine")
def test_what_the_chosen_one_cannot_honour_is_refused_and_not_ignored() -> None:
    with pytest.raises(UsageValueError, match="the bwrap backend cannot honour image="):
        AutoBackend().open(BackendSandboxSpec(image="python:3.12"))


COPIES = """
import sys
from rath.backend.lease import Placement
from rath.backend.types import *
from rath.core import ports
lease = Placement("auto").acquire()
sandbox = lease.open_blocking()
sandbox.dispatch(BackendToolFilesWrite("f", "parent"))
copy = lease.placement.copy()
held = copy.acquire()
copy.freeze()
unused = lease.placement.copy()
unused_hold = unused.acquire()
unused.freeze()
snapshot = ports.engine().run(lease.snapshot())
sandbox.dispatch(BackendToolFilesWrite("f", "later"))
child = held.open_blocking()
restored = Placement.of_snapshot(snapshot).acquire()
again = restored.open_blocking()
print(*(one.dispatch(BackendToolFilesRead("f")).data for one in (sandbox, child, again)), *(one.backend.name for one in (child, again)))
unused_hold.release()
for one in (held, restored, lease):
    one.release()
snapshot.close()
"""


@pytest.mark.slow
@pytest.mark.usefixtures("bwrap_works")
def test_copies_and_snapshots_find_the_backend_that_made_them(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="rath-test-") as place:
        os.chmod(place, 0o711)  # root's sandboxes run as somebody else
        said = in_a_fresh_process(COPIES, DOCKER_HOST=f"unix://{tmp_path}/no-engine.sock", TMPDIR=place)
        assert said == "later parent parent bwrap bwrap"
        assert not os.listdir(place)


@pytest.mark.usefixtures("bwrap_works", "no_engine")
def test_without_an_engine_its_capabilities_are_those_of_bwrap() -> None:
    assert AutoBackend.capabilities() == registry.get_class("bwrap").capabilities()


@pytest.mark.slow
def test_where_nothing_works_its_capabilities_are_those_of_docker(tmp_path: Path) -> None:
    program = "from rath.backend import registry as r; print(r.get_class('auto').capabilities() == r.get_class('docker').capabilities())"
    assert in_a_fresh_process(program, DOCKER_HOST=f"unix://{tmp_path}/no-engine.sock", PATH=str(tmp_path)) == "True"


@pytest.mark.slow
def test_an_engine_that_accepts_and_says_nothing_is_passed_over_in_good_time(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(f"{tmp_path}/mute.sock")
        mute.listen()
        program = """
import time
from rath.backend import registry
from rath.errors import SandboxUnavailable
began = time.monotonic()
try:
    registry.get("auto").open()
except SandboxUnavailable as error:
    print(time.monotonic() - began < 12, "docker: " in str(error), "bwrap: " in str(error))
"""
        assert in_a_fresh_process(program, DOCKER_HOST=f"unix://{tmp_path}/mute.sock", PATH=str(tmp_path)) == "True True True"


def test_a_sandbox_of_auto_belongs_to_the_chosen_backend(bwrap_works: None, no_engine: None) -> None:
    placement = Placement("auto")
    lease = placement.acquire()
    sandbox = lease.open_blocking()
    assert sandbox.backend is registry.get("bwrap")
    assert sandbox.dispatch(BackendToolFilesExists("nothing")) is False
    sandbox.dispatch(BackendToolFilesWrite("x", "y"))
    assert sandbox.dispatch(BackendToolFilesRead("x")) == FileContent("y")
    lease.release()
    assert sandbox.closed

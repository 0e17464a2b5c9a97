"""Sweeping removes what the dead left, and nothing else: not what lives, not what nobody can judge, not what is foreign."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rath.backend.docker.engine import DockerEngine
from rath.backend.docker.labels import OWNER, SANDBOX, judge, labels
from rath.backend.docker.sweep import everything, sweep_blocking
from rath.backend.owner import Owner, alive, boot_id, machine_id, owner, state_directory
from tests.backend.docker.conftest import NO_PYTHON

FOREIGN = "rath-test-foreign"


class Left:
    """Containers, networks and volumes with labels of the test's choice; all removed at its end."""

    def __init__(self, engine: DockerEngine) -> None:
        self.engine = engine
        self.made: list[tuple[str, str]] = []

    def container(self, found: dict[str, str], *, start: bool = True) -> str:
        host = {"NetworkMode": "none", "Mounts": [{"Type": "volume", "Target": "/v", "VolumeOptions": {"Labels": found}}]}
        body = {"Image": NO_PYTHON, "Cmd": ["sleep", "600"], "Labels": found, "HostConfig": host, "StopSignal": "SIGKILL"}
        made = self.engine.ask_blocking("make", lambda client: client.create_container_from_config(body))["Id"]
        if start:
            self.engine.ask_blocking("start", lambda client: client.start(made))
        self.made.append(("container", made))
        return str(made)

    def network(self, found: dict[str, str]) -> str:
        made = self.engine.ask_blocking(
            "make", lambda client: client.create_network(f"{FOREIGN}-{time.monotonic_ns()}", internal=True, labels=found)
        )["Id"]
        self.made.append(("network", made))
        return str(made)

    def there(self) -> list[str]:
        """The ids of those that are still there."""
        present: set[str] = set()
        present |= {one["Id"] for one in self.engine.ask_blocking("list", lambda client: client.containers(all=True))}
        present |= {one["Id"] for one in self.engine.ask_blocking("list", lambda client: client.networks())}
        return [name for _, name in self.made if name in present]

    def remove(self) -> None:
        for kind, name in sorted(self.made):
            if name in self.there():
                if kind == "container":
                    self.engine.ask_blocking("remove", lambda client, name=name: client.remove_container(name, force=True, v=True))
                else:
                    self.engine.ask_blocking("remove", lambda client, name=name: client.remove_network(name))


@pytest.fixture
def left(docker_engine: DockerEngine) -> Iterator[Left]:
    found = Left(docker_engine)
    yield found
    found.remove()


def dead_owner() -> Owner:
    """An owner whose process is gone, as far as anybody can tell."""
    gone = Owner(state_directory())
    gone.drop()
    return gone


@pytest.mark.docker
@pytest.mark.slow
def test_what_the_dead_left_goes_and_everything_else_stays(docker_engine: DockerEngine, left: Left) -> None:
    dead = dead_owner()
    mine = labels(dead, "0123456789abcdef")
    gone = [left.container(mine), left.container(mine, start=False), left.network(mine)]
    stay = [
        left.container(labels(owner(), "0123456789abcdef")),
        left.container({"com.example": "foreign"}),
        left.container({OWNER: "f" * 16, SANDBOX: "e" * 16}),
        left.network({OWNER: "f" * 16}),
    ]
    dry = sweep_blocking(docker_engine, dry_run=True)
    assert {one.id for one in dry.removed} >= set(gone)
    assert set(left.there()) == {*gone, *stay}
    report = sweep_blocking(docker_engine)
    assert {one.id for one in report.removed} >= set(gone)
    assert {one.id for one in report.kept} >= {stay[0], stay[2], stay[3]}
    assert stay[1] not in {one.id for one in (*report.kept, *report.removed, *report.failed)}
    assert set(left.there()) == set(stay)
    assert everything(docker_engine, dead.id) == []
    assert alive(dead.id) is None, "a dead owner that has nothing left is forgotten"
    reasons = {one.id: one.why for one in report.kept}
    assert "lives" in reasons[stay[0]]
    assert "cannot be asked" in reasons[stay[2]]


@pytest.mark.docker
@pytest.mark.slow
def test_opening_a_sandbox_sweeps_once_in_the_background(docker_engine: DockerEngine, left: Left) -> None:
    gone = left.container(labels(dead_owner(), "0123456789abcdef"))
    code = (
        "import time\nfrom rath.backend import registry\nfrom rath.backend.types import BackendSandboxSpec\n"
        f"sandbox = registry.get('docker').open(BackendSandboxSpec(image={NO_PYTHON!r}))\n"
        "time.sleep(1)\nsandbox.backend.close(sandbox)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=40)
    assert gone not in left.there()


def test_only_a_free_lock_or_an_earlier_start_of_this_machine_means_death() -> None:
    dead = dead_owner()
    assert judge(labels(dead, "s"))[0] is False
    assert judge(labels(owner(), "s"))[0] is True
    unknown = {**labels(owner(), "s"), OWNER: "f" * 16}
    assert judge(unknown)[0] is None
    assert judge({})[0] is None
    before = {**unknown, "rath.boot": "another", "rath.created": "1"}
    if machine_id() and Path("/proc/stat").exists():
        assert judge(before)[0] is False
        assert judge({**before, "rath.created": str(int(time.time()))})[0] is None, "made since this machine was started"
        for odd in ("soon", "", "-1", "²", "١", "1e3", "9" * 5000):
            assert judge({**before, "rath.created": odd})[0] is None, odd
    assert judge({**before, "rath.machine": "another"})[0] is None
    assert judge({**before, "rath.machine": ""})[0] is None
    assert judge({**before, "rath.boot": boot_id()})[0] is None
    dead.directory.joinpath("lock").unlink()

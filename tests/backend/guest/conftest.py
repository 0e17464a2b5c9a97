"""The guest server in each of its surroundings: with one user, as root that switches users, in a container.

Always as the first process of a PID namespace. See :func:`~tests.backend.guest.client.own_namespace`.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backend.guest.client import SOURCE, Guest, own_namespace

UID = 20001
IMAGE = "rath-test:base"
DOCKER = [
    *["docker", "run", "--rm", "-i", "--label", "rath-test-guest", "--log-driver", "none", "--read-only", "--network", "none"],
    *["--cap-drop", "ALL", "--cap-add", "SETUID", "--cap-add", "SETGID", "--cap-add", "KILL", "--security-opt", "no-new-privileges"],
    *["-v", "/workspace", "--tmpfs", "/tmp", "--memory", "512m", "--memory-swap", "512m", "--pids-limit", "256"],
    *f"{IMAGE} python3 -I -S -u -c".split(),
    SOURCE,
]


def need_docker() -> None:
    found = subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True, check=False).returncode == 0
    if not found and os.environ.get("RATH_REQUIRE_DOCKER") == "1":
        pytest.fail(f"no Docker Engine with the image {IMAGE}, and RATH_REQUIRE_DOCKER=1")
    if not found:
        pytest.skip(f"no Docker Engine with the image {IMAGE}")


def opened(kind: str, directory: Path) -> Guest:
    """A guest that is configured. Its workspace is ``directory``, or the container's."""
    if kind == "docker":
        need_docker()
        guest = Guest(DOCKER, pipes=True)
        guest.configure("/workspace", mode="switch", uid=UID, gid=UID, mark="groups")
        return guest
    if kind == "switch" and os.geteuid() != 0:
        pytest.skip("only root can switch users")
    if own_namespace() is None:
        pytest.skip("there are no PID namespaces for us here: that needs root, or user namespaces")
    guest = Guest()
    if kind == "switch":
        for above in (directory, *directory.parents):  # pytest's directories are for their owner only
            if above.is_relative_to("/tmp") and above != Path("/tmp"):
                above.chmod(above.stat().st_mode | 0o055)
        guest.configure(directory, mode="switch", uid=UID, gid=UID, mark="groups")
    else:
        assert guest.configure(directory, mode="same", mark="uts")["mark"] == "uts"
    return guest


# Each container costs a second of the engine's time.
IN_DOCKER = pytest.param("docker", marks=[pytest.mark.docker, pytest.mark.slow])
ANYWHERE = ["same", "switch", IN_DOCKER]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    directory = tmp_path / "workspace"
    directory.mkdir()
    return directory


@pytest.fixture(params=ANYWHERE)
def guest(request: pytest.FixtureRequest, workspace: Path) -> Iterator[Guest]:
    with opened(request.param, workspace) as guest:
        yield guest


@pytest.fixture(params=["switch", IN_DOCKER])
def switching(request: pytest.FixtureRequest, workspace: Path) -> Iterator[Guest]:
    """One whose commands are another user."""
    with opened(request.param, workspace) as guest:
        assert guest.config["mark"] == "groups"
        yield guest


@pytest.fixture
def contained(workspace: Path) -> Iterator[Guest]:
    with opened("docker", workspace) as guest:
        yield guest


@pytest.fixture(params=["same", "switch"])
def outside_docker(request: pytest.FixtureRequest, workspace: Path) -> Iterator[Guest]:
    """One with the programs of this machine."""
    with opened(request.param, workspace) as guest:
        yield guest


@pytest.fixture
def plain(workspace: Path) -> Iterator[Guest]:
    """One whose ``workspace`` the test can look into from outside."""
    with opened("same", workspace) as guest:
        yield guest

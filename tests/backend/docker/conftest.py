"""The engine that these tests need, its images, and the promise that a test leaves nothing behind in it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from rath.backend.docker.engine import DockerEngine, engine
from rath.backend.docker.sweep import everything
from rath.backend.owner import owner
from rath.core import ports
from rath.errors import SandboxError

BASE, DEV, NO_PYTHON = "rath-test:base", "rath-test:dev", "rath-test:nopython"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Containers take a third of a second each: all but a look at the engine (``smoke``) is for CI."""
    here = os.path.dirname(__file__)
    for item in items:
        if str(item.path).startswith(here) and item.get_closest_marker("smoke") is None:
            item.add_marker("slow")


@pytest.fixture(scope="session")
def docker_engine() -> DockerEngine:
    """The engine. Missing, or without the tests' images (see ``.ci/engine``): skips, or fails if RATH_REQUIRE_DOCKER is set."""
    try:
        for name in (BASE, DEV, NO_PYTHON):
            engine().ask_blocking(f"look at image {name!r}", lambda client, name=name: client.inspect_image(name))
    except SandboxError as error:
        if os.environ.get("RATH_REQUIRE_DOCKER"):
            raise
        pytest.skip(f"{error} (RATH_REQUIRE_DOCKER=1 makes this a failure)")
    return engine()


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """What this process has in the engine after a test is what it had before."""
    if request.node.get_closest_marker("docker") is None:
        yield
        return
    found: DockerEngine = request.getfixturevalue("docker_engine")
    before = {one.id for one in everything(found, owner().id)}
    yield
    ports.engine().run(_turn())
    until = time.monotonic() + 3
    while (left := [one for one in everything(found, owner().id) if one.id not in before]) and time.monotonic() < until:
        time.sleep(0.05)
    assert not left


async def _turn() -> None:
    """What was released without waiting has begun to close."""

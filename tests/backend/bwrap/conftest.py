"""Sandboxes by bubblewrap: skipped where it does not work, unless ``RATH_REQUIRE_DOCKER=1`` says that it has to."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rath.backend import registry
from rath.backend.bwrap import preflight
from rath.backend.types import Backend, BackendSandbox, BackendToolCommandRun, CommandResult
from rath.errors import SandboxUnavailable

Sh = Callable[..., CommandResult]


@pytest.fixture(scope="session")
def works() -> None:
    """bubblewrap works here."""
    try:
        preflight.check()
    except SandboxUnavailable as error:
        if os.environ.get("RATH_REQUIRE_DOCKER") == "1":
            raise
        pytest.skip(str(error))


@pytest.fixture
def bwrap(works: None) -> Backend:
    return registry.get("bwrap")


@pytest.fixture
def sandbox(bwrap: Backend) -> Iterator[BackendSandbox]:
    with bwrap.open() as opened:
        yield opened


@pytest.fixture
def sh(sandbox: BackendSandbox) -> Sh:
    """Runs a shell's line in ``sandbox``."""

    def run(line: str, **more: object) -> CommandResult:
        result = sandbox.dispatch(BackendToolCommandRun(line, **more))  # type: ignore[arg-type]
        assert isinstance(result, CommandResult), result
        return result

    return run


@pytest.fixture
def usable_directory() -> Iterator[Path]:
    """A directory that commands may work in when it is bound: of an ordinary user, and below no closed directory."""
    with tempfile.TemporaryDirectory(prefix="rath-test-") as name:
        path = Path(name)
        path.chmod(0o755)
        work = path / "work"
        work.mkdir()
        if os.geteuid() == 0:
            os.chown(work, 20001, 20001)
        yield work

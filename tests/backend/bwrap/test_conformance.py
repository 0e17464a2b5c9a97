"""The bwrap backend does what every backend has to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from rath.backend.types import BackendSandboxSpec
from rath.testing.sandbox import SandboxConformance


@pytest.mark.slow  # the default run has the same promises of the same guest in tests/backend/guest
@pytest.mark.usefixtures("works")
class TestBwrap(SandboxConformance):
    backend_name = "bwrap"


@pytest.mark.slow
@pytest.mark.usefixtures("works")
class TestBwrapInABoundDirectory(SandboxConformance):
    backend_name = "bwrap"

    def make_spec(self) -> BackendSandboxSpec:
        return BackendSandboxSpec(workspace=self.directory, workspace_mode="bind")

    @pytest.fixture(autouse=True)
    def _directory(self, usable_directory: Path) -> None:
        self.directory = usable_directory

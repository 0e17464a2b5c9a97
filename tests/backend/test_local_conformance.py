"""The local backend does what every backend has to do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rath.backend.types import BackendSandboxSpec
from rath.testing.sandbox import SandboxConformance


class TestLocal(SandboxConformance):
    backend_name = "local"


@pytest.mark.slow
class TestLocalInAGivenDirectory(SandboxConformance):
    backend_name = "local"

    def make_spec(self) -> BackendSandboxSpec:
        return BackendSandboxSpec(working_dir=self.directory)

    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path: Path) -> Iterator[None]:
        self.directory = str(tmp_path / "outer" / "work")
        yield
        assert Path(self.directory).is_dir() or not Path(self.directory).exists()

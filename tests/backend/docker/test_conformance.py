"""The docker backend does what every backend has to do, with the guest and, where an image has no Python, without."""

from __future__ import annotations

import pytest

from rath.backend.calls import (
    BackendToolCodeRun,
    BackendToolCommandRun,
    BackendToolFilesRead,
    BackendToolFilesWrite,
    CodeResult,
    FileContent,
    ToolExecutionFailure,
)
from rath.backend.types import BackendSandbox, BackendSandboxSpec
from rath.testing.sandbox import SandboxConformance
from tests.backend.docker.conftest import BASE, DEV, NO_PYTHON

pytestmark = [pytest.mark.docker, pytest.mark.slow]


class TestDockerOnTheLeastImage(SandboxConformance):
    backend_name = "docker"

    def make_spec(self) -> BackendSandboxSpec:
        return BackendSandboxSpec(image=BASE)


class TestDockerOnADevelopersImage(SandboxConformance):
    backend_name = "docker"

    def make_spec(self) -> BackendSandboxSpec:
        return BackendSandboxSpec(image=DEV)


class TestExecMode(SandboxConformance):
    backend_name = "docker"
    copies = False
    transfers = False
    diffs = False

    def make_spec(self) -> BackendSandboxSpec:
        return BackendSandboxSpec(image=NO_PYTHON)

    def test_code_answers_with_output_and_error(self, sandbox: BackendSandbox) -> None:
        self.fail(sandbox.dispatch(BackendToolCodeRun("print(1)")), "unsupported_tool")
        result = sandbox.dispatch(BackendToolCodeRun("echo hello; touch made.txt", language="sh"))
        assert isinstance(result, CodeResult), result
        assert (result.stdout, result.error) == (b"hello\n", None)
        assert self.there(sandbox, "made.txt")
        broken = sandbox.dispatch(BackendToolCodeRun("echo oh no >&2; exit 3", language="sh"))
        assert isinstance(broken, CodeResult)
        assert broken.error == "oh no"

    def test_code_can_time_out(self, sandbox: BackendSandbox) -> None:
        call = BackendToolCodeRun("echo so far; sleep 30", language="sh", timeout=0.7)
        assert "so far" in (self.fail(sandbox.dispatch(call), "timeout").detail or "")

    def test_it_says_what_it_cannot(self, sandbox: BackendSandbox) -> None:
        can = sandbox.capabilities()
        assert (can.supports_copy, can.kills_exactly, can.keeps_state) == (False, False, False)

    def test_what_no_argument_can_hold_is_refused(self, sandbox: BackendSandbox) -> None:
        refused = sandbox.dispatch(BackendToolCommandRun(["echo", "\ud800"]))
        assert isinstance(refused, ToolExecutionFailure)
        assert refused.kind == "invalid_tool_arguments"

    def test_a_swap_during_the_call_does_not_lead_out(self, sandbox: BackendSandbox) -> None:
        # Each call takes 60 ms and looks once: few of them meet the moment that they need to answer.
        self.run(sandbox, "mkdir /tmp/out dir; echo secret > /tmp/out/file; echo inside > dir/file; ln -s /tmp/out evil")
        swap = "while [ ! -e stop ]; do mv -T dir aside; mv -T evil dir; mv -T dir evil; mv -T aside dir; done"
        swapping = sandbox.stream().submit(BackendToolCommandRun(swap, timeout=30))
        for _ in range(20):
            read = sandbox.dispatch(BackendToolFilesRead("dir/file"))
            assert not isinstance(read, FileContent) or read.data in ("inside\n", "tool"), read
            sandbox.dispatch(BackendToolFilesWrite("dir/file", "tool"))
            sandbox.dispatch(BackendToolFilesWrite("dir/made/below", "tool"))
        self.write(sandbox, "stop", "")
        swapping.result(30)
        assert self.run(sandbox, "cat /tmp/out/file; ls -a /tmp/out").stdout == b"secret\n.\n..\nfile\n"

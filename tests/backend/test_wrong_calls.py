"""Calls with arguments of a wrong type, as a model may make them: an answer, in every backend, and never an exception."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from rath.backend import registry
from rath.backend.calls import (
    BackendTool,
    BackendToolCodeRun,
    BackendToolCommandRun,
    BackendToolFilesExists,
    BackendToolFilesList,
    BackendToolFilesRead,
    BackendToolFilesWrite,
    CommandResult,
    FileContent,
    FileWriteResult,
    ToolExecutionFailure,
)
from rath.backend.types import BackendSandbox
from rath.errors import SandboxClosed

NOT_TEXT: list[Any] = [None, 5, b"x"]
COMMANDS: list[tuple[str, list[Any]]] = [
    ("cmd", [*NOT_TEXT, {"echo": "x"}]),
    ("env", ["A=b", [("A", "b")], 5]),
    ("cwd", [5, b"x"]),
    ("timeout", ["5", b"1", [1]]),
    ("stdin", [5, ["x"]]),
]
WRONG: list[tuple[str, BackendTool]] = [
    *((name, BackendToolCommandRun(**{"cmd": "true", name: bad})) for name, values in COMMANDS for bad in values),
    *(("code", BackendToolCodeRun(bad)) for bad in NOT_TEXT),
    *(("language", BackendToolCodeRun("1", language=bad)) for bad in NOT_TEXT),
    *(("timeout", BackendToolCodeRun("1", timeout=bad)) for bad in NOT_TEXT[2:]),
    *(("path", BackendToolFilesRead(bad)) for bad in NOT_TEXT),
    *(("path", BackendToolFilesList(bad)) for bad in NOT_TEXT),
    *(("path", BackendToolFilesExists(bad)) for bad in NOT_TEXT),
    *(("path", BackendToolFilesWrite(bad, "x")) for bad in NOT_TEXT),
    *(("encoding", BackendToolFilesRead("x", bad)) for bad in NOT_TEXT[1:]),
    *(("data", BackendToolFilesWrite("x", bad)) for bad in NOT_TEXT[:2]),
    *(("mode", BackendToolFilesWrite("x", "x", bad)) for bad in (None, b"644")),  # type: ignore[arg-type]
]


@pytest.fixture
def sandbox() -> Iterator[BackendSandbox]:
    with registry.get("local").open() as opened:
        yield opened


@pytest.mark.parametrize(("name", "call"), WRONG)
def test_an_argument_of_a_wrong_type_is_refused_by_its_name(sandbox: BackendSandbox, name: str, call: BackendTool) -> None:
    refused = sandbox.dispatch(call)
    assert isinstance(refused, ToolExecutionFailure)
    assert (refused.kind, refused.message.split()[0]) == ("invalid_tool_arguments", name)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_kind_of_bytes_is_data(sandbox: BackendSandbox, kind: Any) -> None:
    read = sandbox.dispatch(BackendToolCommandRun("cat", stdin=kind(b"in")))
    assert isinstance(read, CommandResult)
    assert read.stdout == b"in"
    assert sandbox.dispatch(BackendToolFilesWrite("f", kind(b"data"))) == FileWriteResult(4)
    assert sandbox.dispatch(BackendToolFilesRead("f")) == FileContent("data")


@pytest.mark.parametrize("call", [BackendToolCommandRun("cat", stdin="\ud800"), BackendToolFilesWrite("f", "\ud800")])  # type: ignore[arg-type]
def test_half_a_surrogate_pair_is_no_data(sandbox: BackendSandbox, call: BackendTool) -> None:
    refused = sandbox.dispatch(call)
    assert isinstance(refused, ToolExecutionFailure)
    assert refused.kind == "encode_error"


@pytest.mark.parametrize("timeout", [math.inf, 1e300, 10**400])
def test_a_limit_that_no_clock_can_take_is_none(sandbox: BackendSandbox, timeout: float) -> None:
    assert isinstance(sandbox.dispatch(BackendToolCommandRun("true", timeout=timeout)), CommandResult)


def test_a_closed_sandbox_says_so_whatever_it_is_asked(sandbox: BackendSandbox) -> None:
    sandbox.backend.close(sandbox)
    with pytest.raises(SandboxClosed):
        sandbox.dispatch(BackendToolCommandRun(NOT_TEXT[0]))

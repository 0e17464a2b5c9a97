"""Backends by name, the documented dataclasses, and backends of other people."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
import threading
import time
from uuid import uuid4

import pytest

import rath.backend as backend
from rath.backend import (
    Backend,
    BackendSandbox,
    BackendSandboxSpec,
    BackendTool,
    BackendToolCommandRun,
    BackendToolFilesRead,
    Capabilities,
    CommandResult,
    IsolationLevel,
    ToolExecutionFailure,
    ToolResult,
    UnsupportedBackendTool,
    WorkspaceDiff,
)
from rath.backend.gate import Gate
from rath.backend.lease import Placement
from rath.backend.types import open_sandboxes
from rath.core import ports
from rath.errors import BackendNotFound, SandboxClosed, SandboxUnavailable, UsageTypeError, UsageValueError
from rath.testing.pace import within

CAPABILITIES = Capabilities(IsolationLevel.PROCESS, True, False, False)


class Blocking(Backend):
    """A backend as people write them without asyncio: three synchronous methods."""

    def __init__(self) -> None:
        self.threads: list[str] = []
        self.closes = 0

    @classmethod
    def capabilities(cls) -> Capabilities:
        return CAPABILITIES

    def open(self, spec: BackendSandboxSpec | None = None) -> BackendSandbox:
        return BackendSandbox(self, f"blocking-{uuid4()}", spec)

    def close(self, sandbox: BackendSandbox) -> None:
        self.closes += 1
        sandbox.closed = True

    def dispatch(self, sandbox: BackendSandbox, call: BackendTool) -> ToolResult | bool:
        self.threads.append(threading.current_thread().name)
        if isinstance(call, BackendToolFilesRead):
            raise UnsupportedBackendTool(type(call), "blocking")
        time.sleep(0.1)
        return CommandResult(0, b"", b"", 0.0)


class Nothing(Backend):
    @classmethod
    def capabilities(cls) -> Capabilities:
        return CAPABILITIES


@dataclasses.dataclass
class Derived(BackendSandbox):
    """A backend's own kind of sandbox, which knows nothing of the state kept in its base."""

    extra: int = 0

    def __post_init__(self) -> None:
        self.doubled = self.extra * 2


def test_every_documented_name_is_there() -> None:
    assert all(getattr(backend, name) is not None for name in backend.__all__)
    assert len(backend.__all__) == 37


def test_importing_the_package_loads_no_backend() -> None:
    code = (
        "import sys, rath.backend, rath.backend.lease; rath.backend.lease.Placement('local'); "
        "print(sorted({'rath.backend.local', 'docker', 'openai', 'networkx'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_backend_is_one_object_a_process() -> None:
    assert backend.get("local") is backend.get("local")
    assert backend.get("local").name == "local"
    assert backend.get_class("local") is type(backend.get("local"))
    assert backend.is_available("local")
    assert not backend.is_available("nowhere")
    assert "local" in backend.list_names()


def test_the_default_is_local_until_it_is_set() -> None:
    assert backend.current() is backend.get("local")
    name = f"other-{uuid4()}"
    backend.register(name)(type("Other", (Blocking,), {}))
    backend.set_default(name)
    assert backend.current() is backend.get(name)
    assert backend.get(name).name == name
    backend.set_default("local")


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    for use in (backend.get, backend.get_class, backend.set_default):
        with pytest.raises(BackendNotFound, match=r"'nowhere'.*local"):
            use("nowhere")
    assert backend.preferred(["nowhere", "local"]) is backend.get("local")
    with pytest.raises(SandboxUnavailable, match="nowhere"):
        backend.preferred(["nowhere"])


def test_a_name_is_given_once_and_to_backends_only() -> None:
    with pytest.raises(UsageValueError, match="local"):
        backend.register("local")(Blocking)
    with pytest.raises(UsageTypeError):
        backend.register("number")(int)  # type: ignore[type-var]
    assert "number" not in backend.list_names()


def test_a_backend_of_three_synchronous_methods_works_everywhere() -> None:
    name = f"blocking-{uuid4()}"
    backend.register(name)(type("B", (Blocking,), {}))
    one = backend.get(name)
    assert isinstance(one, Blocking)
    lease = Placement(name).acquire()
    assert isinstance(lease.dispatch_blocking(BackendToolCommandRun("x")), CommandResult)
    sandbox = lease.open_blocking()
    start = time.monotonic()
    with sandbox.stream() as first, sandbox.stream() as second:
        first.submit(BackendToolCommandRun("x"))
        second.submit(BackendToolCommandRun("y"))
    assert time.monotonic() - start < within(0.19)
    refused = sandbox.dispatch(BackendToolFilesRead("x"))
    assert isinstance(refused, ToolExecutionFailure)
    assert refused.kind == "unsupported_tool"
    assert threading.main_thread().name not in one.threads
    assert one.sandbox_count() == 1
    lease.release()
    assert (sandbox.closed, one.closes, one.sandbox_count()) == (True, 1, 0)
    with one.open() as direct:
        assert isinstance(one.dispatch(direct, BackendToolCommandRun("x")), CommandResult)
    assert one.closes == 2
    with pytest.raises(SandboxClosed):
        direct.dispatch(BackendToolCommandRun("x"))


def test_a_backend_that_implements_nothing_says_so_instead_of_hanging() -> None:
    with pytest.raises(UsageTypeError, match="neither _aopen nor open"):
        Nothing().open()


def test_a_backends_own_sandbox_class_counts_too() -> None:
    sandbox = Derived(Blocking(), "mine", extra=3)
    assert sandbox.doubled == 6
    with sandbox:
        assert sandbox.refcount == 1
        assert sandbox in open_sandboxes()
    assert sandbox.closed


def test_calls_and_results_are_frozen_dataclasses_with_the_documented_fields() -> None:
    documented = {
        "BackendToolCodeRun": "code language timeout",
        "BackendToolCommandRun": "cmd env cwd stdin timeout",
        "BackendToolFilesExists": "path",
        "BackendToolFilesList": "path",
        "BackendToolFilesRead": "path encoding",
        "BackendToolFilesWrite": "path data mode",
        "Capabilities": (
            "isolation supports_command supports_filesystem supports_code_interpreter cold_start_ms_p50 max_sandboxes"
            " supports_copy kills_exactly keeps_state spec_fields"
        ),
        "CodeResult": "text stdout stderr error figures restarted",
        "CommandResult": "exit_code stdout stderr elapsed_ms stdout_bytes stderr_bytes truncated timed_out oom_killed",
        "FileContent": "data",
        "FileEntries": "entries",
        "FileEntry": "name path is_dir",
        "FileWriteResult": "bytes_written",
        "ToolExecutionFailure": "kind message detail",
    }
    for name, fields in documented.items():
        cls = getattr(backend, name)
        assert " ".join(field.name for field in dataclasses.fields(cls)) == fields
        assert cls.__dataclass_params__.frozen
    result = CommandResult(0, b"a", b"", 1.0)
    assert dataclasses.replace(result, exit_code=1).exit_code == 1
    assert pickle.loads(pickle.dumps(result)) == result
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.exit_code = 2  # type: ignore[misc]
    spec = BackendSandboxSpec(image="x")
    spec.image = "y"
    assert dataclasses.asdict(spec)["image"] == "y"


def test_a_diff_is_its_text_and_true_if_anything_changed() -> None:
    assert not WorkspaceDiff("")
    assert WorkspaceDiff("", modified=("x",))
    assert str(WorkspaceDiff("text")) == "text"


def test_a_call_cancelled_in_line_lets_the_next_one_in() -> None:
    gate = Gate()
    order: list[str] = []

    async def call(name: str) -> None:
        import asyncio

        await gate.enter()
        order.append(name)
        await asyncio.sleep(0)
        gate.leave()

    async def scene() -> None:
        import asyncio

        place = gate.reserve()
        first, second = asyncio.create_task(call("first")), asyncio.create_task(call("second"))
        await asyncio.sleep(0)
        first.cancel()
        await gate.alone(place, 1.0)
        order.append("alone")
        gate.done(place)
        gate.done(place)
        await second
        await gate.alone(gate.reserve(), 1.0)

    ports.engine().run(scene())
    assert order == ["alone", "second"]

"""Parking: who does not call gives everything but the files back, and notices nothing but the time when calling again."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from datetime import timedelta
from typing import Any, ClassVar

import pytest

from rath import Session
from rath.backend import BackendSandboxSpec, BackendToolFilesRead, BackendToolFilesWrite, FileContent, registry
from rath.backend.docker.idle import Parking, idle_after_s, in_notebook
from rath.backend.types import PATIENCE_S, BackendSandbox, BackendTool, ToolResult
from rath.core import ports
from rath.errors import SandboxBroken, SandboxClosed, SandboxUnavailable
from tests.backend.memory import MemoryBackend, MemorySandbox, Sleep

AFTER_S = 0.03


class ParkedSandbox(MemorySandbox):
    parking: Parking
    awake = True


@registry.register("parking-memory-for-tests")
class ParkingBackend(MemoryBackend):
    """Dictionaries that are parked. A call of one that is not awake is the error these tests look for."""

    name: ClassVar[str] = "parking-memory-for-tests"

    def reset(self) -> None:
        super().reset()
        self.parked = self.woken = self.called_asleep = 0
        self.park_delay_s = self.wake_delay_s = 0.0
        self.park_error: Exception | None = None
        self.wake_error: Exception | None = None
        self.after_s = AFTER_S

    async def _aopen(self, spec: BackendSandboxSpec | None = None) -> BackendSandbox:
        self.opened += 1
        return self._new(spec, {})

    def _new(self, spec: BackendSandboxSpec | None, files: dict[str, object]) -> BackendSandbox:
        sandbox = ParkedSandbox(self, f"parked-{next(self._numbers)}", spec)
        sandbox.files = files

        async def park() -> object:
            await asyncio.sleep(self.park_delay_s)
            if self.park_error is not None:
                raise self.park_error
            self.parked += 1
            self.live_snapshots += 1
            sandbox.awake = False
            files, sandbox.files = sandbox.files, {}
            return files

        async def wake(snapshot: object) -> None:
            await asyncio.sleep(self.wake_delay_s)
            if self.wake_error is not None:
                raise self.wake_error
            self.woken += 1
            self.live_snapshots -= 1
            sandbox.awake = True
            sandbox.files = snapshot  # type: ignore[assignment]

        sandbox.parking = Parking(sandbox, self.after_s, park, wake, self._adiscard)
        return sandbox

    async def _aclose(self, sandbox: BackendSandbox) -> None:
        assert isinstance(sandbox, ParkedSandbox)
        await sandbox.parking.close()
        await super()._aclose(sandbox)

    async def _adispatch(self, sandbox: BackendSandbox, call: BackendTool) -> ToolResult | bool:
        assert isinstance(sandbox, ParkedSandbox)
        async with sandbox.parking.used():
            self.called_asleep += not sandbox.awake
            answer = await super()._adispatch(sandbox, call)
            self.called_asleep += not sandbox.awake
            return answer

    async def _asnapshot(self, sandbox: BackendSandbox, layer: str) -> object:
        assert isinstance(sandbox, ParkedSandbox)
        parked = await sandbox.parking.snapshot()
        if parked is not None:
            return await self._aclone(parked)
        return await super()._asnapshot(sandbox, layer)

    async def _arestore(self, spec: BackendSandboxSpec | None, snapshot: object) -> BackendSandbox:
        self.restored += 1
        self.live_snapshots -= 1
        return self._new(spec, snapshot)  # type: ignore[arg-type]


@pytest.fixture
def backend() -> Iterator[ParkingBackend]:
    backend = registry.get("parking-memory-for-tests")
    assert isinstance(backend, ParkingBackend)
    backend.reset()
    yield backend
    until(lambda: backend.live_snapshots == 0)
    assert backend.called_asleep == 0
    backend.reset()


def until(true: Callable[[], bool], timeout_s: float = 5.0) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.002)


def parked(sandbox: BackendSandbox) -> bool:
    assert isinstance(sandbox, ParkedSandbox)
    return sandbox.parking.is_parked


def write(sandbox: BackendSandbox, text: str) -> None:
    sandbox.dispatch(BackendToolFilesWrite("f", text))


def read(sandbox: BackendSandbox) -> str | bytes:
    answer = sandbox.dispatch(BackendToolFilesRead("f"))
    assert isinstance(answer, FileContent)
    return answer.data


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return ports.engine().run(work)


def test_who_does_not_call_is_parked_and_the_next_call_finds_the_files(backend: ParkingBackend) -> None:
    with backend.open() as sandbox:
        write(sandbox, "kept")
        for round_ in range(3):
            until(lambda: parked(sandbox))
            assert read(sandbox) == "kept"
            assert (backend.parked, backend.woken) == (round_ + 1, round_ + 1)
        assert backend.opened == 1


def test_who_never_calls_is_parked_too(backend: ParkingBackend) -> None:
    with backend.open() as sandbox:
        until(lambda: parked(sandbox))


def test_a_call_that_runs_keeps_the_sandbox_awake_however_long_it_takes(backend: ParkingBackend) -> None:
    with backend.open() as sandbox:
        sandbox.dispatch(Sleep(AFTER_S * 8))
        assert backend.parked == 0
        until(lambda: parked(sandbox))


def test_the_time_counts_from_the_end_of_the_last_call(backend: ParkingBackend) -> None:
    backend.after_s = 0.3
    with backend.open() as sandbox:
        for _ in range(6):
            time.sleep(0.1)
            sandbox.dispatch(Sleep(0))
        assert backend.parked == 0


def test_many_calls_at_once_bring_it_back_once(backend: ParkingBackend) -> None:
    backend.wake_delay_s = 0.05
    with backend.open() as sandbox:
        write(sandbox, "kept")
        until(lambda: parked(sandbox))

        async def calls() -> list[Any]:
            return await asyncio.gather(*(sandbox.perform(BackendToolFilesRead("f")) for _ in range(20)))

        assert {answer.data for answer in run(calls())} == {"kept"}
        assert backend.woken == 1


def test_a_call_that_is_cancelled_while_it_comes_back_leaves_the_others_theirs(backend: ParkingBackend) -> None:
    backend.wake_delay_s = 0.05
    with backend.open() as sandbox:
        write(sandbox, "kept")
        until(lambda: parked(sandbox))

        async def calls() -> Any:
            first = asyncio.create_task(sandbox.perform(BackendToolFilesRead("f")))
            second = asyncio.create_task(sandbox.perform(BackendToolFilesRead("f")))
            await asyncio.sleep(0.01)
            first.cancel()
            await asyncio.wait([first])
            return await second

        assert run(calls()).data == "kept"


def test_a_sandbox_that_cannot_come_back_says_so_keeps_its_files_and_tries_again(backend: ParkingBackend) -> None:
    with backend.open() as sandbox:
        write(sandbox, "kept")
        until(lambda: parked(sandbox))
        backend.wake_error = SandboxUnavailable("no engine just now")
        for _ in range(2):
            with pytest.raises(SandboxUnavailable, match="just now"):
                read(sandbox)
        backend.wake_error = None
        assert read(sandbox) == "kept"


@pytest.mark.parametrize("error", [SandboxUnavailable("no"), SandboxBroken("no"), OSError("no")])
def test_a_sandbox_that_cannot_be_parked_stays_awake(
    backend: ParkingBackend, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    backend.park_error = error
    with backend.open() as sandbox:
        write(sandbox, "kept")
        until(lambda: len(caplog.records) >= 2)  # and it is tried again
        assert read(sandbox) == "kept"
        assert backend.woken == 0
        backend.park_error = None
        until(lambda: parked(sandbox))


def test_closing_a_parked_sandbox_frees_its_snapshot(backend: ParkingBackend) -> None:
    sandbox = backend.open()
    until(lambda: parked(sandbox))
    assert backend.live_snapshots == 1
    backend.close(sandbox)
    assert (backend.live_snapshots, backend.closed) == (0, 1)
    with pytest.raises(SandboxClosed):
        read(sandbox)


@pytest.mark.parametrize("moment", ["parking", "waking"])
def test_closing_in_the_middle_of_a_move_ends_in_order(backend: ParkingBackend, moment: str) -> None:
    backend.park_delay_s = backend.wake_delay_s = 0.05
    sandbox = backend.open()

    async def close_while_waking() -> Any:
        call = asyncio.create_task(sandbox.perform(BackendToolFilesRead("f")))
        await asyncio.sleep(0.01)
        await sandbox.shut()
        return await asyncio.wait_for(asyncio.gather(call, return_exceptions=True), 1)

    if moment == "parking":
        time.sleep(AFTER_S + 0.02)
        backend.close(sandbox)
    else:
        until(lambda: parked(sandbox))
        run(close_while_waking())
    time.sleep(0.1)
    assert (backend.live_snapshots, backend.closed) == (0, 1)


def test_a_copy_of_a_parked_sandbox_has_its_files_and_leaves_it_parked(backend: ParkingBackend) -> None:
    backend.after_s = 0.1
    with Session.from_user_message("go").to(backend.name) as session:
        sandbox = session.require_sandbox()
        write(sandbox, "of the parent")
        until(lambda: parked(sandbox))
        branch = session.fork(sandbox="copy")
        other = branch.require_sandbox()
        assert read(other) == "of the parent"
        assert parked(sandbox)
        write(other, "of the branch")
        assert read(sandbox) == "of the parent"
        branch.close_sandbox()


@pytest.mark.slow
def test_a_copy_that_has_no_more_patience_with_a_sandbox_that_comes_back_has_its_files(backend: ParkingBackend) -> None:
    backend.wake_delay_s = PATIENCE_S + 0.3
    with Session.from_user_message("go").to(backend.name) as session:
        sandbox = session.require_sandbox()
        write(sandbox, "kept")
        until(lambda: parked(sandbox))

        async def call() -> Any:
            return await sandbox.perform(BackendToolFilesRead("f"))

        ports.engine().start(call)
        time.sleep(0.02)
        branch = session.fork(sandbox="copy")
        backend.after_s = 60
        assert read(branch.require_sandbox()) == "kept"
        assert backend.woken == 1
        branch.close_sandbox()


def test_calls_copies_and_moves_in_any_order_lose_nothing(backend: ParkingBackend) -> None:
    backend.after_s = backend.park_delay_s = backend.wake_delay_s = 0.002
    chance = random.Random(7)

    async def caller(sandbox: BackendSandbox, number: int) -> None:
        for step in range(40):
            await sandbox.perform(BackendToolFilesWrite(f"{number}", f"{step}"))
            await asyncio.sleep(chance.random() * 0.008)
            answer = await sandbox.perform(BackendToolFilesRead(f"{number}"))
            assert isinstance(answer, FileContent)
            assert answer.data == f"{step}"

    async def all_of_them(sandbox: BackendSandbox) -> None:
        await asyncio.gather(*(caller(sandbox, number) for number in range(3)))

    with backend.open() as sandbox:
        run(all_of_them(sandbox))
        assert backend.parked > 3
        assert backend.woken >= backend.parked - 1


# -- when -------------------------------------------------------------------------------------------------------------


def test_outside_of_notebooks_nothing_is_parked_unless_the_spec_says_so() -> None:
    assert not in_notebook()
    assert idle_after_s(None) is None
    assert idle_after_s(BackendSandboxSpec()) is None
    assert idle_after_s(BackendSandboxSpec(idle_timeout=timedelta(0))) is None
    assert idle_after_s(BackendSandboxSpec(idle_timeout=timedelta(minutes=2))) == 120


@pytest.mark.slow
def test_in_a_notebook_it_is_half_an_hour() -> None:
    code = (
        "from ipykernel.kernelapp import IPKernelApp\n"
        "from rath.backend.docker.idle import idle_after_s\n"
        "assert idle_after_s(None) is None  # imported, but no kernel runs\n"
        "IPKernelApp.instance()\n"
        "assert idle_after_s(None) == 1800\n"
        "print('right')"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert told.stdout == "right\n", told.stderr

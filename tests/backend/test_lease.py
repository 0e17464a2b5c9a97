"""Who holds a sandbox, when it opens, and when it closes."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
import weakref

import pytest

from rath.backend.lease import Lease, Placement, close_all
from rath.backend.types import (
    BackendSandbox,
    BackendSandboxSpec,
    BackendToolFilesRead,
    BackendToolFilesWrite,
    FileContent,
    ToolExecutionFailure,
    WorkspaceDiff,
)
from rath.core import ports
from rath.errors import (
    BackendNotFound,
    SandboxBroken,
    SandboxClosed,
    SandboxError,
    SandboxUnavailable,
    UsageError,
    UsageTypeError,
    WouldDeadlock,
)
from rath.testing.pace import within
from tests.backend.memory import Die, MemoryBackend, Sleep

NAME = "memory-for-tests"


def write(lease: Lease, path: str, data: str) -> None:
    lease.dispatch_blocking(BackendToolFilesWrite(path, data))


def read(lease: Lease, path: str) -> str | None:
    answer = lease.dispatch_blocking(BackendToolFilesRead(path))
    if isinstance(answer, ToolExecutionFailure):
        return None
    assert isinstance(answer, FileContent)
    return str(answer.data)


def copied(parent: Lease) -> Lease:
    child = parent.placement.copy()
    lease = child.acquire()
    child.freeze()
    return lease


def until(condition: object, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "did not come about"
        time.sleep(0.005)


# -- placements ---------------------------------------------------------------------------------------------------------


def test_an_unknown_backend_is_refused_at_once_with_the_known_names() -> None:
    with pytest.raises(BackendNotFound, match=r"'nowhere'.*local"):
        Placement("nowhere")


def test_a_string_spec_is_the_working_dir_and_anything_else_is_refused() -> None:
    assert Placement(NAME, "/tmp/x").spec == BackendSandboxSpec(working_dir="/tmp/x")
    assert Placement(NAME).spec is None
    with pytest.raises(UsageTypeError):
        Placement(NAME, 3)  # type: ignore[arg-type]


def test_changing_a_spec_later_changes_no_placement() -> None:
    spec = BackendSandboxSpec(working_dir="/a")
    placement = Placement(NAME, spec)
    spec.working_dir = "/b"
    assert placement.spec == BackendSandboxSpec(working_dir="/a")


def test_a_placement_opens_nothing_until_it_is_used(memory: MemoryBackend) -> None:
    lease = Placement(NAME).acquire()
    assert lease.placement.sandbox is None
    lease.release()
    assert memory.opened == 0


def test_an_open_sandbox_has_one_placement(memory: MemoryBackend) -> None:
    sandbox = memory.open()
    first = Placement.of_sandbox(sandbox)
    assert Placement.of_sandbox(sandbox) is first
    assert first.sandbox is sandbox
    lease = first.acquire()
    assert sandbox.refcount == 1
    lease.release()
    assert sandbox.closed
    with pytest.raises(SandboxClosed):
        first.acquire()
    with pytest.raises(UsageTypeError):
        Placement.of_sandbox("sandbox")  # type: ignore[arg-type]


def test_binding_a_sandbox_that_a_placement_opened_finds_that_placement(memory: MemoryBackend) -> None:
    lease = Placement(NAME).acquire()
    sandbox = lease.open_blocking()
    assert Placement.of_sandbox(sandbox) is lease.placement
    lease.release()


def test_a_placement_of_a_dropped_holder_is_made_anew(memory: MemoryBackend) -> None:
    with memory.open() as sandbox:
        gone = weakref.ref(Placement.of_sandbox(sandbox))
        gc.collect()
        assert gone() is None
        assert Placement.of_sandbox(sandbox).sandbox is sandbox


# -- one count ----------------------------------------------------------------------------------------------------------


def test_leases_and_explicit_holds_are_one_count(memory: MemoryBackend) -> None:
    placement = Placement(NAME)
    first, second = placement.acquire(), placement.acquire()
    sandbox = first.open_blocking()
    assert sandbox.refcount == 2
    sandbox.acquire()
    third = placement.acquire()
    assert sandbox.refcount == 4
    for let_go in (first.release, first.release, second.release, third.release):
        let_go()
    assert (sandbox.refcount, sandbox.closed) == (1, False)
    sandbox.release()
    assert sandbox.closed
    assert memory.closed == 1


def test_a_released_lease_says_what_to_do(memory: MemoryBackend) -> None:
    placement = Placement(NAME)
    kept, lease = placement.acquire(), placement.acquire()
    lease.release()
    assert lease.released
    for use in (lease.check, lease.open_blocking, lambda: lease.dispatch_blocking(Sleep(0))):
        with pytest.raises(SandboxClosed, match=r"session = session\.to"):
            use()
    assert kept.dispatch_blocking(Sleep(0)) is True
    kept.release()


def test_a_closed_placement_never_opens_again(memory: MemoryBackend) -> None:
    placement = Placement(NAME)
    lease = placement.acquire()
    lease.open_blocking()
    lease.release()
    with pytest.raises(SandboxClosed):
        placement.acquire()
    assert memory.opened == 1


def test_a_dropped_lease_is_released_by_garbage_collection(memory: MemoryBackend) -> None:
    placement = Placement(NAME)
    lease = placement.acquire()
    sandbox = lease.open_blocking()
    cycle: list[object] = [lease]
    cycle.append(cycle)
    del lease, cycle
    gc.collect()
    until(lambda: sandbox.closed)
    assert memory.closed == 1


def test_racing_releases_close_once(memory: MemoryBackend) -> None:
    for _ in range(20):
        placement = Placement(NAME)
        leases = [placement.acquire() for _ in range(8)]
        sandbox = leases[0].open_blocking()
        threads = [threading.Thread(target=lease.release) for lease in leases for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        until(lambda sandbox=sandbox: sandbox.closed)
        assert sandbox.refcount == 0
    assert memory.closed == memory.opened == 20


def test_release_on_the_engines_thread_does_not_wait(memory: MemoryBackend) -> None:
    lease = Placement(NAME).acquire()
    sandbox = lease.open_blocking()

    async def release() -> bool:
        lease.release()
        return sandbox.closed

    assert ports.engine().run(release()) is False
    until(lambda: sandbox.closed)


# -- opening ------------------------------------------------------------------------------------------------------------


def test_a_failed_open_is_raised_to_every_waiter_and_may_be_tried_again(memory: MemoryBackend) -> None:
    memory.open_delay_s, memory.open_failures = 0.05, 1
    placement = Placement(NAME)
    leases = [placement.acquire() for _ in range(5)]

    async def all_open() -> list[BackendSandbox | BaseException]:
        return await asyncio.gather(*(lease.open() for lease in leases), return_exceptions=True)

    first = ports.engine().run(all_open())
    assert all(isinstance(result, SandboxUnavailable) for result in first)
    second = ports.engine().run(all_open())
    assert {id(result) for result in second} == {id(placement.sandbox)}
    assert memory.opened == 1
    for lease in leases:
        lease.release()


def test_the_last_release_while_opening_closes_at_once(memory: MemoryBackend) -> None:
    memory.open_delay_s = 0.1
    lease = Placement(NAME).acquire()
    errors: list[BaseException] = []

    def opener() -> None:
        try:
            lease.open_blocking()
        except SandboxError as error:
            errors.append(error)

    thread = threading.Thread(target=opener)
    thread.start()
    assert memory.opening.wait(5)
    lease.release()
    thread.join(5)
    assert isinstance(errors[0], SandboxClosed)
    assert (memory.opened, memory.closed) == (1, 1)


def test_a_waiter_that_is_cancelled_leaves_the_others(memory: MemoryBackend) -> None:
    memory.open_delay_s = 0.1
    placement = Placement(NAME)
    first, second = placement.acquire(), placement.acquire()

    async def race() -> BackendSandbox:
        one, two = asyncio.create_task(first.open()), asyncio.create_task(second.open())
        await asyncio.sleep(0.02)
        one.cancel()
        return await two

    assert ports.engine().run(race()) is placement.sandbox
    first.release()
    second.release()


def test_blocking_on_the_engines_thread_is_refused(memory: MemoryBackend) -> None:
    lease = Placement(NAME).acquire()

    async def wrong() -> None:
        lease.dispatch_blocking(Sleep(0))

    with pytest.raises(WouldDeadlock):
        ports.engine().run(wrong())
    lease.release()


def test_a_sandbox_that_died_takes_no_more_calls_and_is_still_freed(memory: MemoryBackend) -> None:
    lease = Placement(NAME).acquire()
    with pytest.raises(SandboxBroken, match="outcome unknown"):
        lease.dispatch_blocking(Die())
    with pytest.raises(SandboxBroken, match="Place the session again"):
        lease.dispatch_blocking(Sleep(0, "never"))
    assert memory.notes == []
    lease.release()
    assert memory.closed == 1


def test_a_forked_child_cannot_call_in_its_parents_sandbox_and_says_so_at_once(memory: MemoryBackend) -> None:
    lease = Placement(NAME).acquire()
    sandbox = lease.open_blocking()
    child = os.fork()
    if child == 0:
        refused = 0
        for use in (lambda: sandbox.dispatch(Sleep(0)), lambda: lease.dispatch_blocking(Sleep(0)), lease.open_blocking):
            try:
                use()
            except SandboxClosed as error:
                refused += "forked" in str(error)
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert sandbox.dispatch(Sleep(0)) is True
    lease.release()


def test_nothing_has_changed_in_a_sandbox_that_was_never_used(memory: MemoryBackend) -> None:
    lease = Placement(NAME).acquire()
    assert ports.engine().run(lease.diff()) == WorkspaceDiff("")
    assert memory.opened == 0
    lease.open_blocking()
    with pytest.raises(SandboxError, match="cannot tell"):
        ports.engine().run(lease.diff())
    lease.release()


def test_close_all_closes_everything_and_says_so_to_later_users(memory: MemoryBackend) -> None:
    lease = Placement(NAME).acquire()
    held = lease.open_blocking()
    unheld = memory.open()
    child = copied(lease)
    until(lambda: memory.live_snapshots == 1)
    ports.engine().run(close_all(5.0))
    assert held.closed
    assert unheld.closed
    assert memory.live_snapshots == 0
    with pytest.raises(SandboxClosed):
        lease.dispatch_blocking(Sleep(0))
    lease.release()
    child.release()


# -- copies -------------------------------------------------------------------------------------------------------------


def test_a_copy_has_the_files_of_the_moment_of_the_freeze(memory: MemoryBackend) -> None:
    parent = Placement(NAME).acquire()
    write(parent, "f", "before")
    memory.snapshot_delay_s = 0.05
    start = time.perf_counter()
    child = copied(parent)
    assert time.perf_counter() - start < within(0.05)
    write(parent, "f", "after")
    assert memory.notes == ["snapshot"]
    assert (read(child, "f"), read(parent, "f")) == ("before", "after")
    assert memory.opened == 1
    parent.release()
    write(child, "f", "child")
    assert read(child, "f") == "child"
    child.release()
    assert memory.live_snapshots == 0


def test_calls_under_way_are_awaited_by_a_freeze_and_later_calls_wait_for_it(memory: MemoryBackend) -> None:
    parent = Placement(NAME).acquire()
    sandbox = parent.open_blocking()
    slow = sandbox.stream()
    under_way = slow.submit(Sleep(0.2, "slow"))
    time.sleep(0.05)
    child = copied(parent)
    parent.dispatch_blocking(Sleep(0, "later"))
    assert memory.notes == ["slow", "snapshot", "later"]
    assert under_way.result() is True
    parent.release()
    child.release()


@pytest.mark.slow
def test_a_freeze_waits_two_seconds_at_most_and_kills_nobody(memory: MemoryBackend) -> None:
    parent = Placement(NAME).acquire()
    sandbox = parent.open_blocking()
    under_way = sandbox.stream().submit(Sleep(3.0, "slow"))
    time.sleep(0.05)
    start = time.monotonic()
    child = copied(parent)
    child.open_blocking()
    assert 1.8 < time.monotonic() - start < within(2.7)
    assert under_way.result() is True
    assert memory.notes == ["snapshot", "slow"]
    parent.release()
    child.release()


def test_the_copy_of_an_unused_placement_opens_the_same_spec(memory: MemoryBackend) -> None:
    spec = BackendSandboxSpec(image="some-image")
    parent = Placement(NAME, spec).acquire()
    child = copied(parent)
    write(child, "f", "child")
    assert child.placement.spec == spec
    assert parent.placement.sandbox is None
    assert read(parent, "f") is None
    assert (memory.opened, memory.restored) == (2, 0)
    parent.release()
    child.release()


def test_the_copy_of_an_unused_placement_with_shared_files_is_taken_before_the_parents_first_call(
    memory: MemoryBackend,
) -> None:
    parent = Placement(NAME, "/shared").acquire()
    child = copied(parent)
    write(parent, "f", "parent")
    assert read(child, "f") is None
    assert memory.restored == 1
    assert memory.notes == ["snapshot"]
    parent.release()
    child.release()


def test_the_copy_of_an_unused_placement_with_shared_files_may_be_used_first(memory: MemoryBackend) -> None:
    parent = Placement(NAME, "/shared").acquire()
    child = copied(parent)
    write(child, "f", "child")
    assert memory.restored == 1
    assert read(parent, "f") is None
    parent.release()
    child.release()
    assert memory.opened == 1


def test_a_copy_of_a_copy_that_was_never_opened_has_its_files(memory: MemoryBackend) -> None:
    parent = Placement(NAME).acquire()
    write(parent, "f", "x")
    child = copied(parent)
    grandchild = copied(child)
    assert read(grandchild, "f") == "x"
    write(grandchild, "f", "y")
    assert (read(child, "f"), read(parent, "f")) == ("x", "x")
    for lease in (parent, child, grandchild):
        lease.release()
    assert memory.live_snapshots == 0


def test_a_copys_open_waits_for_its_freeze(memory: MemoryBackend) -> None:
    parent = Placement(NAME).acquire()
    write(parent, "f", "1")
    placement = parent.placement.copy()
    child = placement.acquire()
    future = []
    thread = threading.Thread(target=lambda: future.append(read(child, "f")))
    thread.start()
    time.sleep(0.05)
    write(parent, "f", "2")
    assert future == []
    placement.freeze()
    write(parent, "f", "3")
    thread.join(5)
    assert future == ["2"]
    parent.release()
    child.release()


def test_a_copy_holds_its_parent_only_until_it_is_frozen(memory: MemoryBackend) -> None:
    parent = Placement(NAME).acquire()
    sandbox = parent.open_blocking()
    placement = parent.placement.copy()
    child = placement.acquire()
    assert sandbox.refcount == 2
    parent.release()
    assert not sandbox.closed
    placement.freeze()
    until(lambda: sandbox.closed)
    child.release()


def test_a_copy_that_nobody_wants_any_more_frees_its_snapshot(memory: MemoryBackend) -> None:
    parent = Placement(NAME).acquire()
    parent.open_blocking()
    child = copied(parent)
    until(lambda: memory.live_snapshots == 1)
    child.release()
    assert memory.live_snapshots == 0
    dropped = copied(parent)
    until(lambda: memory.live_snapshots == 1)
    del dropped
    gc.collect()
    until(lambda: memory.live_snapshots == 0)
    with pytest.raises(SandboxClosed):
        child.placement.acquire()
    parent.release()
    assert memory.restored == 0


def test_a_copy_released_before_its_freeze_lets_its_parent_go(memory: MemoryBackend) -> None:
    parent = Placement(NAME).acquire()
    sandbox = parent.open_blocking()
    placement = parent.placement.copy()
    child = placement.acquire()
    child.release()
    assert sandbox.refcount == 1
    placement.freeze()
    parent.release()
    assert sandbox.closed
    assert memory.live_snapshots == 0


def test_freeze_is_once_and_for_copies(memory: MemoryBackend) -> None:
    parent = Placement(NAME).acquire()
    with pytest.raises(UsageError):
        parent.placement.freeze()
    placement = parent.placement.copy()
    placement.freeze()
    with pytest.raises(UsageError):
        placement.freeze()
    parent.release()
    closed = Placement(NAME).acquire()
    closed.open_blocking()
    closed.release()
    with pytest.raises(SandboxClosed):
        closed.placement.copy()


def test_a_freeze_that_fails_fails_the_copy_and_nobody_else(memory: MemoryBackend) -> None:
    parent = Placement(NAME).acquire()
    with pytest.raises(SandboxBroken):
        parent.dispatch_blocking(Die())
    child = copied(parent)
    with pytest.raises(SandboxBroken):
        child.open_blocking()
    child.release()
    parent.release()
    assert memory.closed == 1

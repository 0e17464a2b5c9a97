"""The cell: one result, once, the same for every reader."""

import asyncio
import gc
import logging
import threading
import time
import traceback

import pytest

from rath.core.cell import Cell, Failure, cancelled_failure, running_inside
from rath.errors import RunCancelled, WouldDeadlock


def failed(error, origin="s1"):
    cell = Cell()
    try:
        raise error
    except BaseException as caught:
        cell.fail(Failure(caught, origin, "summary of the run"))
    return cell


def test_a_cell_resolves_once():
    cell = Cell()
    assert cell.status == "pending"
    assert cell.complete(1)
    assert not cell.complete(2)
    assert not cell.fail(Failure(ValueError("late"), None, ""))
    assert not cell.cancel()
    assert cell.get() == 1
    assert cell.status == "completed"


def test_a_failed_cell_raises_the_same_object_at_every_read():
    error = ValueError("boom")
    cell = failed(error)
    for _ in range(3):
        with pytest.raises(ValueError, match="boom") as caught:
            cell.get()
        assert caught.value is error
    assert cell.exception() is error


def test_reads_do_not_pile_up_frames():
    cell = failed(ValueError("boom"))
    depths = []
    for _ in range(20):
        try:
            cell.get()
        except ValueError as error:
            depths.append(len(traceback.extract_tb(error.__traceback__)))
    assert len(set(depths)) == 1


def test_many_threads_get_one_value():
    cell, got = Cell(), []
    threads = [threading.Thread(target=lambda: got.append(cell.get(10))) for _ in range(32)]
    for thread in threads:
        thread.start()
    cell.complete("v")
    for thread in threads:
        thread.join()
    assert got == ["v"] * 32


def test_a_timeout_ends_the_wait_only():
    cell = Cell()
    with pytest.raises(TimeoutError):
        cell.get(timeout=0.01)
    assert cell.status == "pending"
    cell.complete(3)
    assert cell.get(timeout=0) == 3


def test_await_works_in_any_loop_and_a_cancelled_waiter_leaves_the_cell():
    cell = Cell()

    async def main():
        waiter = asyncio.ensure_future(_await(cell))
        await asyncio.sleep(0.01)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert cell.status == "pending"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(_await(cell), 0.01)
        threading.Timer(0.01, cell.complete, (7,)).start()
        return await cell

    assert asyncio.run(main()) == 7


async def _await(cell):
    return await cell


def test_waiting_for_the_own_run_is_refused():
    cell = Cell()
    with running_inside(cell), pytest.raises(WouldDeadlock, match="wait for itself"):
        cell.get()


def test_waiting_for_a_dependant_of_the_own_run_is_refused_at_any_depth():
    run = Cell()
    chain = run
    for _ in range(50_000):
        chain = Cell((chain,))
    with running_inside(run), pytest.raises(WouldDeadlock):
        chain.get()


def test_two_runs_whose_tools_wait_for_each_other_are_refused():
    one, two = Cell(), Cell()
    outcome = []

    def tool_of_one():
        with running_inside(one):
            two.get()

    thread = threading.Thread(target=tool_of_one)
    thread.start()
    deadline = time.monotonic() + 5
    while not one.waits and time.monotonic() < deadline:
        time.sleep(0.001)
    with running_inside(two):
        try:
            one.get()
        except WouldDeadlock as error:
            outcome.append(error)
    two.complete(None)
    thread.join()
    assert len(outcome) == 1


def test_waiting_for_an_unrelated_run_from_a_tool_is_allowed():
    run, other = Cell(), Cell()
    threading.Timer(0.01, other.complete, (1,)).start()
    with running_inside(run):
        assert other.get(5) == 1


def test_a_cascade_of_callbacks_is_flat():
    cells = [Cell() for _ in range(50_000)]
    for source, target in zip(cells, cells[1:], strict=False):
        source.on_done(lambda done, target=target: target.complete(done.peek() + 1))
    cells[0].complete(0)
    assert cells[-1].get() == 49_999


def test_an_unread_failure_is_reported_once_and_names_its_run(caplog):
    cell = failed(ValueError("nobody looks"))
    dependant = Cell()
    dependant.fail(cell.failure)
    with caplog.at_level(logging.ERROR, logger="rath.runtime"):
        del cell
        gc.collect()
        assert caplog.records == []
        del dependant
        gc.collect()
    assert [r.getMessage() for r in caplog.records] == [
        "a failed run was never read: summary of the run: ValueError: nobody looks"
    ]


@pytest.mark.parametrize("read", ["get", "exception", "dependant"])
def test_a_read_failure_is_not_reported(caplog, read):
    cell = failed(ValueError("seen"))
    dependant = Cell()
    dependant.fail(cell.failure)
    if read == "exception":
        assert cell.exception() is not None
    else:
        with pytest.raises(ValueError, match="seen"):
            (cell if read == "get" else dependant).get()
    with caplog.at_level(logging.ERROR, logger="rath.runtime"):
        del cell, dependant
        gc.collect()
    assert caplog.records == []


def test_looking_at_the_status_is_not_reading(caplog):
    cell = failed(ValueError("unread"))
    assert cell.done
    assert cell.status == "failed"
    with caplog.at_level(logging.ERROR, logger="rath.runtime"):
        del cell
        gc.collect()
    assert len(caplog.records) == 1


def test_a_cancelled_cell_raises_run_cancelled_and_is_never_reported(caplog):
    cell = Cell()
    cell.cancelled(cancelled_failure("s", "session s (op)", "no longer needed"))
    assert cell.status == "cancelled"
    with caplog.at_level(logging.ERROR, logger="rath.runtime"):
        other = Cell()
        other.cancelled(cancelled_failure("s", "session s (op)"))
        del other
        gc.collect()
    assert caplog.records == []
    with pytest.raises(RunCancelled, match="no longer needed"):
        cell.get()


def test_a_resolved_cell_lets_its_inputs_go():
    source = Cell()
    cell = Cell((source,))
    assert cell.inputs == (source,)
    cell.complete(1)
    assert cell.inputs == ()

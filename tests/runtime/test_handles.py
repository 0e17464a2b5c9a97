"""Semantics 2: handles and the engine."""

import asyncio
import gc
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref

import pytest

from rath.core.ports import engine
from rath.errors import ProviderError, RunCancelled, UsageTypeError, WouldDeadlock
from rath.flow.tool import tool
from rath.session import (
    ChunkTable,
    LineageKind,
    Session,
    as_completed,
    gather,
    operator,
    run_session_loop,
    user_text_chunk,
)
from rath.testing import ScriptedClient
from rath.testing.pace import within


def scripted(*replies, **options):
    return ScriptedClient(list(replies), **options).as_provider()


def calls(*names):
    return {"tool_calls": [{"name": name, "arguments": {}} for name in names]}


def loop(provider, user=None, **options):
    user = Session.from_user_message("go") if user is None else user
    return run_session_loop(user, Session.from_agent_prompt("a"), agent_provider=provider, **options)


def failing(message="boom"):
    return scripted({"error": {"status": 400, "message": message}})


class Gate:
    """An async tool that waits until it is opened."""

    def __init__(self):
        self.entered, self.leave = threading.Event(), threading.Event()
        gate = self

        @tool(name="gate")
        def wait() -> bool:
            gate.entered.set()
            return gate.leave.wait(20)

        self.tool = wait

    def loop(self, **options):
        return loop(scripted(calls("gate"), "done"), tools=[self.tool], **options)


@pytest.fixture
def gate():
    made = Gate()
    yield made
    made.leave.set()


def script(code, *, timeout=40, env=None, **options):
    """Run a script of its own process; returns (exit code, stdout, stderr)."""
    head = "from rath.session import *\nfrom rath.testing import ScriptedClient\nimport sys, time, os, threading\n"
    head += "def scripted(*replies, **o): return ScriptedClient(list(replies), **o).as_provider()\n"
    head += "def loop(provider, user=None, **o): return run_session_loop(user or Session.from_user_message('go'), Session.from_agent_prompt('a'), agent_provider=provider, **o)\n"
    done = subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(code)],
        capture_output=True, text=True, timeout=timeout, env={**os.environ, **(env or {})}, check=False, **options,
    )
    return done.returncode, done.stdout, done.stderr


# -- laziness ---------------------------------------------------------------------------------------------------------


def test_operators_on_pending_sessions_never_block_and_a_chain_of_1000_is_built_in_a_second():
    provider = scripted("answer", latency_s=30)
    began = time.monotonic()
    first = session = loop(provider)
    for _ in range(1_000):
        session = loop(provider, user=session.user("next"))
    built = time.monotonic() - began
    assert built < within(1.0)
    assert first.status in ("pending", "running")
    assert session.status == "pending"
    first.cancel()
    with pytest.raises(RunCancelled):
        session.synchronize(5)


def test_a_call_on_a_long_pending_chain_returns_in_a_millisecond(gate):
    session = gate.loop()
    for _ in range(500):
        session = session.user("x").fork()
    best = min(_timed(lambda: session.fork().user("y").merge(session).detach()) for _ in range(20))
    assert best < 1e-3
    gate.leave.set()
    assert len(session.chunk_table) == 504


def _timed(work):
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def test_a_derived_handle_is_pending_until_its_own_work_starts(gate):
    first = gate.loop()
    second = loop(scripted("x"), user=first)
    gate.entered.wait(5)
    assert (first.status, second.status, second.fork().status) == ("running", "pending", "pending")
    gate.leave.set()
    assert second.synchronize().status == "completed"
    assert first.status == "completed"


def test_lineage_and_placement_are_there_from_the_first_moment(gate):
    user = Session.from_user_message("u").to("local")
    out = gate.loop(user=user)
    merged = out.merge(out.fork())
    assert out.parent_session_ids[0] == user.id
    assert (out.sandbox_backend, merged.sandbox_backend) == ("local", "local")
    assert merged.lineage_kind is LineageKind.OP_MERGE
    assert not out.done


def test_done_may_be_read_or_called(gate):
    out = gate.loop()
    assert gate.entered.wait(10)
    assert not out.done
    assert out.done() is False
    gate.leave.set()
    out.synchronize()
    assert out.done
    assert out.done() is True
    assert repr(out.done) == "True"


# -- failure ----------------------------------------------------------------------------------------------------------


def test_a_failed_handle_raises_the_same_error_on_every_read():
    out = loop(failing())
    errors = []
    for read in (lambda: out.chunk_table, lambda: out.cumulative_usage, out.synchronize, lambda: out.digest):
        with pytest.raises(ProviderError) as caught:
            read()
        errors.append(caught.value)
    assert all(error is errors[0] for error in errors)
    assert out.exception() is errors[0]
    assert out.status == "failed"


def test_a_dependant_raises_the_root_error_itself_and_names_its_ancestor():
    root = loop(failing())
    leaf = loop(scripted("never"), user=root.fork().user("x").merge(Session.from_user_message("y")))
    with pytest.raises(ProviderError) as caught:
        leaf.synchronize()
    assert caught.value is root.exception()
    assert leaf.failed_ancestor == root.id
    assert root.failed_ancestor is None


def test_the_error_carries_one_note_with_session_operator_file_and_line():
    root = loop(failing())
    leaf = loop(scripted("never"), user=root)
    with pytest.raises(ProviderError) as caught:
        leaf.synchronize()
    (note,) = caught.value.__notes__
    assert str(root.id) in note
    assert "run_session_loop" in note
    assert f"{__file__}:" in note


def test_reads_do_not_pile_up_frames():
    out = loop(failing())
    depths = set()
    for _ in range(10):
        with pytest.raises(ProviderError) as caught:
            out.synchronize()
        depths.add(len(caught.traceback))
    assert len(depths) == 1


def test_the_rows_reached_so_far_stay_readable():
    out = loop(scripted(calls("t"), {"error": {"status": 400, "message": "x"}}), tools=[tool(name="t")(lambda: 1)])
    with pytest.raises(ProviderError):
        out.synchronize()
    assert [r.kind.value for r in out.partial] == ["user", "assistant", "tool_result"]


def test_errors_survive_pickling_with_fields_and_notes():
    out = loop(failing("pickled"))
    error = pickle.loads(pickle.dumps(out.exception() or _raised(out)))
    assert "pickled" in str(error)
    assert error.status == 400
    assert error.__notes__


def _raised(out):
    try:
        out.synchronize()
    except Exception as error:
        return error


# -- waiting ----------------------------------------------------------------------------------------------------------


def test_await_works_in_any_event_loop_and_exception_is_none_while_pending(gate):
    out = gate.loop()
    assert out.exception() is None

    async def main():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(_await(out), 0.02)
        gate.leave.set()
        assert (await out) is out
        return await gather(out, out.fork())

    first, second = asyncio.run(main())
    assert first is out
    assert second.done


async def _await(session):
    return await session


def test_a_timeout_stops_the_wait_only(gate):
    out = gate.loop()
    with pytest.raises(TimeoutError):
        out.synchronize(timeout=0.02)
    assert not out.done
    gate.leave.set()
    out.synchronize(5)


def test_gather_returns_in_order_and_the_first_failure_raises_while_others_go_on(gate):
    slow = gate.loop()
    good, bad = loop(scripted("good")), loop(failing())
    with pytest.raises(ProviderError):
        gather(good, slow, bad)
    assert not slow.done
    gate.leave.set()
    results = gather(good, slow, bad, return_exceptions=True)
    assert results[:2] == [good, slow]
    assert results[2] is bad.exception()
    with pytest.raises(UsageTypeError, match="unpack"):
        gather([good])


def test_as_completed_yields_handles_as_they_finish_failed_ones_too(gate):
    slow, bad = gate.loop(), loop(failing())
    order = []
    for session in as_completed([slow, bad]):
        order.append(session)
        gate.leave.set()
    assert order == [bad, slow]

    async def main():
        return [s async for s in as_completed([slow, bad])]

    assert set(asyncio.run(main())) == {slow, bad}
    bad.exception()


def test_it_works_in_a_running_loop_like_jupyters():
    async def cell():
        out = loop(scripted("answer"))
        assert out.chunk_table[-1].text == "answer"  # blocking in somebody's loop works: the engine has its own
        return gather(out, out.fork())[0] is out

    assert asyncio.run(cell())


def test_blocking_on_the_engines_own_thread_raises_and_says_to_await():
    other = loop(scripted("other", latency_s=within(0.2)))
    said = []

    @tool
    async def block() -> str:
        for read in (lambda: other.chunk_table, lambda: engine().run(_nothing()), lambda: list(gather(other)), lambda: list(as_completed([other]))):
            try:
                read()
            except WouldDeadlock as error:
                said.append(str(error))
        return (await other).chunk_table[-1].text

    out = loop(scripted(calls("block"), "done"), tools=[block])
    assert out.chunk_table[2].text == '"other"'
    assert len(said) == 4
    assert "await" in said[0]


async def _nothing():
    return None


@pytest.mark.parametrize("wait", ["self", "dependant", "await"])
def test_a_tool_that_waits_for_its_own_run_is_refused(wait):
    held = {}
    ready = threading.Event()

    @tool(name="t")
    def block() -> str:
        ready.wait(5)
        try:
            held["out" if wait == "self" else "leaf"].synchronize(10)
        except WouldDeadlock:
            return "refused"
        return "waited"

    @tool(name="t")
    async def wait_async() -> str:
        await engine().call(ready.wait, 5)
        try:
            await held["out"]
        except WouldDeadlock:
            return "refused"
        return "waited"

    held["out"] = loop(scripted(calls("t"), "done"), tools=[wait_async if wait == "await" else block])
    held["leaf"] = loop(scripted("x"), user=held["out"].fork())
    ready.set()
    assert held["out"].synchronize(20).chunk_table[2].text == '"refused"'


@pytest.mark.parametrize("wait", ["gather", "as_completed", "events"])
def test_an_async_tool_that_waits_for_its_own_run_in_any_way_is_refused(wait):
    held, ready = {}, threading.Event()

    @tool(name="t")
    async def own() -> str:
        await engine().call(ready.wait, 5)
        try:
            if wait == "gather":
                await gather(held["out"])
            elif wait == "as_completed":
                async for _ in as_completed([held["out"]]):
                    pass
            else:
                async for _ in held["out"].events():
                    pass
        except WouldDeadlock:
            return "refused"
        return "waited"

    held["out"] = loop(scripted(calls("t"), "done"), tools=[own])
    ready.set()
    assert held["out"].synchronize(10).chunk_table[2].text == '"refused"'


def test_iterating_events_on_the_engines_own_thread_is_refused(gate):
    other = gate.loop()

    @tool(name="t")
    async def block() -> str:
        try:
            for _ in other.events():
                pass
        except WouldDeadlock:
            return "refused"

    assert loop(scripted(calls("t"), "done"), tools=[block]).synchronize(10).chunk_table[2].text == '"refused"'


def test_two_tools_that_wait_for_each_others_runs_with_gather_are_refused():
    held, ready = {}, threading.Event()

    def waits_for(name):
        @tool(name="t")
        def wait() -> str:
            ready.wait(5)
            try:
                gather(held[name])
            except WouldDeadlock:
                return "refused"
            return "waited"

        return wait

    held["one"] = loop(scripted(calls("t"), "done"), tools=[waits_for("two")])
    held["two"] = loop(scripted(calls("t"), "done"), tools=[waits_for("one")])
    ready.set()
    gather(held["one"].synchronize(10), held["two"].synchronize(10))
    assert '"refused"' in {held["one"].chunk_table[2].text, held["two"].chunk_table[2].text}


@pytest.mark.slow
def test_a_time_limit_of_as_completed_is_for_the_wait_only(gate):
    async def main():
        fast = loop(scripted("x"))
        async for session in as_completed([fast], timeout=0.2):
            await asyncio.sleep(0.4)
            assert session is fast
        with pytest.raises(TimeoutError):
            async for _ in as_completed([gate.loop()], timeout=0.05):
                pass

    asyncio.run(main())


def test_polling_leaves_nothing_behind(gate):
    out = gate.loop()
    before = len(out._cell._callbacks)
    for _ in range(50):
        with pytest.raises(TimeoutError):
            next(iter(as_completed([out], timeout=0)))
    assert len(out._cell._callbacks) == before


@pytest.mark.slow
def test_nested_runs_do_not_deadlock_64_chains_each_eight_deep():
    def nested(depth):
        @tool(name="dive")
        def dive() -> str:
            return nested(depth - 1).chunk_table[-1].text

        if depth == 0:
            return loop(scripted("bottom"))
        return loop(scripted(calls("dive"), f"up {depth}"), tools=[dive])

    began = time.monotonic()
    chains = [nested(8) for _ in range(64)]
    gather(*chains)
    assert all(chain.chunk_table[-1].text == "up 8" for chain in chains)
    assert time.monotonic() - began < within(30)


def test_many_threads_may_call_and_read():
    texts = []

    def work(n):
        texts.append(loop(scripted(f"answer {n}")).user("x").fork().chunk_table[1].text)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(texts) == sorted(f"answer {n}" for n in range(32))


# -- cancelling -------------------------------------------------------------------------------------------------------


def test_cancel_stops_the_run_and_its_dependants_but_not_its_inputs(gate):
    first = gate.loop()
    second = loop(scripted("slow", latency_s=30), user=first)
    third = second.fork()
    bystander = first.fork()
    gate.leave.set()
    first.synchronize()
    while second.status != "running":
        time.sleep(0.002)
    assert second.cancel("not needed")
    with pytest.raises(RunCancelled, match="not needed"):
        second.synchronize(5)
    with pytest.raises(RunCancelled):
        third.synchronize(5)
    assert (second.status, third.status, first.status, bystander.synchronize().status) == (
        "cancelled", "cancelled", "completed", "completed",
    )
    assert not second.cancel()


def test_a_tool_that_swallows_the_cancellation_does_not_save_its_run():
    entered = threading.Event()

    @tool(name="t")
    async def stubborn() -> str:
        entered.set()
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            pass
        return "went on"

    out = loop(scripted(calls("t"), "asked again"), tools=[stubborn])
    entered.wait(5)
    out.cancel()
    with pytest.raises(RunCancelled):
        out.synchronize(5)
    assert out.status == "cancelled"


def test_a_run_may_be_cancelled_from_its_own_tool():
    held, ready = {}, threading.Event()

    @tool(name="t")
    async def stop() -> str:
        await engine().call(ready.wait, 5)
        held["out"].cancel()
        return "asked"

    held["out"] = loop(scripted(calls("t"), "never asked"), tools=[stop])
    ready.set()
    with pytest.raises(RunCancelled):
        held["out"].synchronize(5)


def test_a_second_cancel_does_not_cut_the_clean_up_short():
    started, ended = [], []

    def slow_to_stop(name):
        @tool(name=name, parallel_safe=True)
        async def work() -> None:
            try:
                started.append(name)
                await asyncio.sleep(30)
            finally:
                await asyncio.sleep(0.3)
                ended.append(name)

        return work

    out = loop(scripted(calls("a", "b")), tools=[slow_to_stop("a"), slow_to_stop("b")])
    assert _eventually(lambda: len(started) == 2)
    out.cancel()
    time.sleep(0.1)
    out.cancel()
    with pytest.raises(RunCancelled):
        out.synchronize(5)
    assert sorted(ended) == ["a", "b"]
    told = [type(e).__name__ for e in out.events()]
    assert told[-1] == "RunCancelled"


def test_cancelling_a_pending_fork_leaves_the_parent(gate):
    parent = gate.loop()
    fork = parent.fork()
    assert fork.cancel()
    assert fork.status == "cancelled"
    gate.leave.set()
    assert parent.synchronize().status == "completed"


def test_to_shares_the_cell_so_cancelling_one_cancels_both(gate):
    out = gate.loop()
    placed = out.to("local")
    assert placed.cancel()
    with pytest.raises(RunCancelled):
        out.synchronize(5)


def test_cancel_kills_what_the_run_started_in_the_sandbox(tmp_path):
    marker = f"31{os.getpid() % 10_000:04d}.5"
    user = Session.from_user_message("go").to("local", spec=str(tmp_path))
    out = loop(
        scripted({"tool_calls": [{"name": "run_shell_command", "arguments": {"cmd": f"sleep {marker} & sleep {marker}"}}]}), user=user
    )
    assert _eventually(lambda: _running(marker) >= 1)
    out.cancel()
    with pytest.raises(RunCancelled):
        out.synchronize(5)
    assert _eventually(lambda: _running(marker) == 0)
    assert [r.kind.value for r in out.partial] == ["user", "assistant", "tool_result"]


def _running(marker):
    found = subprocess.run(["pgrep", "-xfc", f"sleep {marker}"], capture_output=True, text=True, check=False)
    return int(found.stdout or 0)


def _eventually(check, seconds=5.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if check():
            return True
        time.sleep(0.01)
    return check()


def test_ctrl_c_while_waiting_stops_the_wait_not_the_run():
    code, out, err = script(
        """
        import signal
        s = loop(scripted("done", latency_s=1.0))
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        try:
            s.synchronize()
        except KeyboardInterrupt:
            print("interrupted", s.status)
        print(s.chunk_table[-1].text)
        """
    )
    assert (code, out.split("\n")[:2]) == (0, ["interrupted running", "done"]), err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(2)])
def test_the_engine_survives_whatever_user_code_raises(error):
    from rath.llm import Provider, register_chat_client

    class Raises:
        def __init__(self, provider):
            self.provider = provider

        def complete(self, req):
            raise error

        def complete_stream(self, req):
            raise error
            yield

    register_chat_client("raises", Raises)
    for options in ({}, {"on_event": lambda d: None}, {"middleware": [lambda runner: runner]}):
        with pytest.raises(type(error)):
            loop(Provider(provider_kind="raises"), **options).synchronize(5)

    async def fail():
        raise error

    with pytest.raises(type(error)):
        engine().run(fail())
    assert loop(scripted("alive")).chunk_table[-1].text == "alive"


# -- memory -----------------------------------------------------------------------------------------------------------


def test_dropping_the_last_handle_frees_its_rows_and_inputs():
    user = Session(ChunkTable((user_text_chunk("x"),)))
    source = weakref.ref(user)
    out = loop(scripted("done"), user=user)
    out.synchronize()
    del user
    assert _eventually(lambda: gc.collect() is not None and source() is None)
    handle, cell = weakref.ref(out), weakref.ref(out._cell)
    del out
    assert _eventually(lambda: gc.collect() is not None and handle() is None and cell() is None)


@pytest.mark.parametrize("end", ["tool raises", "timeout", "fails"])
def test_whatever_ended_a_run_its_sandbox_closes_with_its_last_holder(end):
    @tool(name="t")
    def raises(session: Session) -> None:
        raise ValueError("bad")

    @tool(name="t")
    async def forever(session: Session) -> None:
        await asyncio.sleep(30)

    gc.collect()
    gc.disable()
    try:
        user = Session.from_user_message("go").to("local")
        sandbox = user.require_sandbox()
        replies = {"fails": [calls("t"), {"error": {"status": 400, "message": "x"}}]}.get(end, [calls("t"), "done"])
        out = loop(
            scripted(*replies), user=user, tools=[forever if end == "timeout" else raises],
            timeout_s=0.2 if end == "timeout" else None,
        )
        error = None
        try:
            out.synchronize(5)
        except Exception as raised:
            error = raised
        assert (error is None) == (end == "tool raises")
        user.close_sandbox()
        out.close_sandbox()
        assert _eventually(lambda: sandbox.closed)
    finally:
        gc.enable()


def test_a_time_limit_does_not_keep_finished_runs(gate):
    waiting = gate.loop()
    cells = []
    for _ in range(5):
        out = loop(scripted("x"), timeout_s=3600).synchronize()
        cells.append(weakref.ref(out._cell))
    del out
    assert _eventually(lambda: gc.collect() is not None and not any(cell() for cell in cells))
    assert not waiting.done


def test_dropping_the_last_handle_of_a_pending_run_does_not_stop_it(gate):
    out = gate.loop()
    cell = weakref.ref(out._cell)
    gate.entered.wait(5)
    del out
    gc.collect()
    assert cell() is not None
    gate.leave.set()
    assert _eventually(lambda: gc.collect() is not None and cell() is None)


# -- the process ------------------------------------------------------------------------------------------------------


def test_a_failure_nobody_read_is_reported_exactly_once_naming_session_and_line():
    code, out, err = script(
        """
        import gc
        s = loop(scripted({"error": {"status": 400, "message": "unread trouble"}}))
        t = s.fork()
        while not (s.done and t.done): time.sleep(0.01)
        print(s.id)
        del s; gc.collect(); time.sleep(0.05); gc.collect()
        """
    )
    assert code == 0
    assert err.count("never read") == 1
    assert out.strip() in err
    assert "<string>:" in err
    assert "unread trouble" in err


def test_a_failure_that_a_dependant_read_is_not_reported():
    _, _, err = script(
        """
        s = loop(scripted({"error": {"status": 400, "message": "x"}}))
        t = s.fork()
        try: t.synchronize()
        except Exception: pass
        """
    )
    assert "never read" not in err


@pytest.mark.slow
def test_cancelled_handles_are_never_reported():
    _, _, err = script(
        """
        s = loop(scripted("x", latency_s=20)); t = s.fork()
        time.sleep(0.1)
        s.cancel(); time.sleep(0.2); print(s.status, t.status)
        """
    )
    assert err == ""


@pytest.mark.slow
def test_the_engine_drains_at_exit_and_says_so_from_the_second_second(tmp_path):
    code, _, err = script(
        """
        @operator
        async def slow(session):
            import asyncio
            await asyncio.sleep(2.6)
            open("done.txt", "w").write("finished")
            return session
        slow(Session.from_user_message("x"))
        """,
        cwd=tmp_path,
    )
    assert code == 0
    assert (tmp_path / "done.txt").read_text() == "finished"
    assert "waiting for 1 unfinished run" in err


@pytest.mark.slow
def test_synchronous_tools_of_a_draining_run_still_get_a_thread():
    code, out, err = script(
        """
        from rath.flow.tool import tool
        @tool
        def say() -> bool:
            print("tool ran", flush=True)
            return True
        time.sleep(0)
        s = loop(scripted({"tool_calls": [{"name": "say", "arguments": {}}]}, "done", latency_s=0.3), tools=[say])
        """
    )
    assert (code, out) == (0, "tool ran\n"), err


def test_after_the_engine_has_closed_nothing_hangs():
    code, out, err = script(
        """
        import atexit
        def late():
            try: loop(scripted("x")).synchronize()
            except RuntimeError as error: print(error)
        atexit.register(late)
        loop(scripted("early")).synchronize()
        """
    )
    assert code == 0
    assert "exiting" in out + err


@pytest.mark.slow
def test_a_drain_gives_up_after_rath_drain_s_and_names_what_it_abandons():
    began = time.monotonic()
    code, out, err = script(
        """
        s = loop(scripted("x", latency_s=60))
        print(s.id)
        """,
        env={"RATH_DRAIN_S": "0.3"},
    )
    assert code == 0
    assert time.monotonic() - began < within(15)
    assert "abandoned" in err
    assert out.strip() in err


@pytest.mark.slow
def test_ctrl_c_ends_the_drain():
    process = subprocess.Popen(
        [sys.executable, "-c", "from rath.session import *\nfrom rath.testing import ScriptedClient\n"
         "s = run_session_loop(Session.from_user_message('go'), Session.from_agent_prompt('a'),"
         " agent_provider=ScriptedClient(['x'], latency_s=60).as_provider())\nprint('up', flush=True)"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    assert process.stdout.readline() == "up\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=15)
    assert "abandoned" in err


def test_a_forked_child_has_a_fresh_engine():
    code, out, err = script(
        """
        assert loop(scripted("parent")).chunk_table[-1].text == "parent"
        pid = os.fork()
        if pid == 0:
            print(loop(scripted("child")).chunk_table[-1].text, flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
        print(loop(scripted("parent again")).chunk_table[-1].text)
        """
    )
    assert (code, out.split("\n")[:2]) == (0, ["child", "parent again"]), err


@pytest.mark.slow
def test_reading_a_run_of_the_parent_process_in_a_forked_child_raises_instead_of_hanging():
    code, out, err = script(
        """
        s = loop(scripted("x", latency_s=0.5))
        pid = os.fork()
        if pid == 0:
            try: s.synchronize(10)
            except Exception as e: print(type(e).__name__, "fork" in str(e), flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
        s.synchronize()
        """
    )
    assert (code, out) == (0, "WouldDeadlock True\n"), err


# -- operators of users -----------------------------------------------------------------------------------------------


@operator
def shout(session, suffix="!"):
    return Session(ChunkTable(tuple(user_text_chunk((r.text or "").upper() + suffix) for r in session.chunk_table)))


@operator(name="renamed")
async def answered(session):
    return await loop(scripted("inner answer"), user=session)


def test_a_users_operator_is_lazy_and_recorded(gate):
    source = gate.loop()
    out = shout(source, suffix="?")
    assert (out.lineage_operator, out.lineage_kind, out.parent_session_ids) == ("shout", LineageKind.OP_CUSTOM, (source.id,))
    assert out.status == "pending"
    gate.leave.set()
    assert out.chunk_table[-1].text == "DONE?"
    assert out.id != source.id


def test_an_async_operator_may_run_loops():
    out = answered(Session.from_user_message("q"))
    assert out.lineage_operator == "renamed"
    assert [r.text for r in out.chunk_table] == ["q", "inner answer"]


def test_an_operator_owns_the_tokens_of_the_runs_inside_it_once_each():
    usage = {"prompt_tokens": 6, "completion_tokens": 4, "total_tokens": 10}

    @operator
    def two_in_one(session):
        one = loop(scripted({"text": "a", "usage": usage}), user=session)
        two = loop(scripted({"text": "b", "usage": usage}), user=session.fork())
        return one.merge(two).merge(one).to("local")

    before = loop(scripted({"text": "before", "usage": usage}))
    assert two_in_one(before).cumulative_usage.total_tokens == 20
    assert shout(before).cumulative_usage is None


def test_a_wrong_operator_says_so():
    @operator
    def wrong(session):
        return "text"

    with pytest.raises(UsageTypeError, match="wrong.*Session"):
        wrong(Session.from_user_message("x")).synchronize()
    with pytest.raises(UsageTypeError):
        shout("no session")
    with pytest.raises(TypeError):
        shout()

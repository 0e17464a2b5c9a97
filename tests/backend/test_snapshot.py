"""Snapshots of workspaces: kept, restored any number of times, freed."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rath import Session, run_session_loop
from rath.backend import BackendSandboxSpec, BackendToolFilesRead, BackendToolFilesWrite, FileContent
from rath.backend.closing import tracked
from rath.core import ports
from rath.errors import SandboxClosed, SandboxError, UsageTypeError, UsageValueError, WouldDeadlock
from rath.flow.tool import tool
from rath.session import LineageKind
from rath.testing import ScriptedClient
from tests.backend.memory import MemoryBackend, fresh_memory


def user() -> Session:
    return Session.from_user_message("go")


def put(session: Session, path: str, text: str) -> None:
    session.require_sandbox().dispatch(BackendToolFilesWrite(path, text))


def text(session: Session, path: str) -> str | bytes:
    answer = session.require_sandbox().dispatch(BackendToolFilesRead(path))
    assert isinstance(answer, FileContent), answer
    return answer.data


@pytest.fixture
def memory() -> Iterator[MemoryBackend]:
    with fresh_memory() as backend:
        yield backend


def settle() -> None:
    """Until the engine has done what was asked of it so far."""

    async def nothing() -> None:
        pass

    for _ in range(3):
        ports.engine().run(nothing())


def test_a_snapshot_is_restored_any_number_of_times_each_with_files_of_its_own() -> None:
    with user().to("local") as session:
        put(session, "n", "one")
        with session.snapshot() as kept:
            put(session, "n", "two")
            first, second = session.restore(kept), session.restore(kept)
            with first, second:
                assert (text(first, "n"), text(second, "n"), text(session, "n")) == ("one", "one", "two")
                put(first, "n", "first")
                assert (text(first, "n"), text(second, "n"), text(session, "n")) == ("first", "one", "two")
            with session.restore(kept) as third:
                assert text(third, "n") == "one"


def test_the_lineage_of_a_restored_session_and_of_a_copy_names_the_layer() -> None:
    with user().to("local") as session, session.snapshot() as kept:
        restored = session.restore(kept)
        assert restored.lineage_kind is LineageKind.OP_FORK
        assert restored.lineage_operator == "Session.restore"
        assert restored.parent_session_ids == (session.id,)
        assert dict(restored.lineage_extras) == {"workspace_layer": kept.id}
        branch = session.fork(sandbox="copy")
        assert len(dict(branch.lineage_extras)["workspace_layer"]) == 16
        assert session.fork().lineage_extras == ()
        for one in (restored, branch):
            one.close_sandbox()


def test_a_snapshot_waits_for_the_run_that_makes_the_session() -> None:
    script = [{"tool_calls": [{"name": "write_workspace_file", "arguments": {"path": "made", "content": "by the run"}}]}, "done"]
    provider = ScriptedClient(script, latency_s=0.05).as_provider()
    with user().to("local") as start:
        out = run_session_loop(start, Session.from_agent_prompt("x"), agent_provider=provider)
        with out.snapshot() as kept:
            assert out.status == "completed"
            with start.restore(kept) as branch:
                assert text(branch, "made") == "by the run"
        out.close_sandbox()


def test_a_closed_snapshot_says_so_and_what_was_restored_lives_on() -> None:
    with user().to("local") as session:
        put(session, "n", "one")
        kept = session.snapshot()
        with session.restore(kept) as restored:
            assert text(restored, "n") == "one"
            kept.close()
            kept.close()
            assert "closed" in repr(kept)
            assert text(restored, "n") == "one"
            with pytest.raises(SandboxClosed, match="is closed"):
                session.restore(kept)


def test_nothing_is_left_of_snapshots_that_nobody_closed(memory: MemoryBackend) -> None:
    with user().to("memory-for-tests") as session:
        kept = session.snapshot()
        waiting = session.restore(kept)
        assert memory.live_snapshots == 1
        del kept
        gc.collect()
        settle()
        assert memory.live_snapshots == 1  # `waiting` still needs it
        waiting.close_sandbox()
        del waiting
        gc.collect()
        settle()
        assert memory.live_snapshots == 0


def test_a_restored_session_that_is_never_used_costs_nothing(memory: MemoryBackend) -> None:
    with user().to("memory-for-tests") as session, session.snapshot() as kept:
        before = memory.opened
        session.restore(kept).close_sandbox()
        assert (memory.opened, memory.restored, memory.live_snapshots) == (before, 0, 1)
    assert memory.live_snapshots == 0


def test_the_copy_of_a_restored_session_starts_with_its_files(memory: MemoryBackend) -> None:
    with user().to("memory-for-tests") as session:
        put(session, "n", "one")
        with session.snapshot() as kept:
            restored = session.restore(kept)
            branch = restored.fork(sandbox="copy")  # before either is used
            put(restored, "n", "restored")
            assert text(branch, "n") == "one"
            for one in (restored, branch):
                one.close_sandbox()
    assert memory.live_snapshots == 0


def test_only_a_snapshot_can_be_restored() -> None:
    with pytest.raises(UsageTypeError, match=r"session\.snapshot\(\)"):
        user().restore("layer-1")  # type: ignore[arg-type]
    with pytest.raises(SandboxError, match="place it first"):
        user().snapshot()


def test_local_works_in_a_copy_of_a_workspace_and_in_a_working_dir_itself(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("host")
    with user().to("local", spec=BackendSandboxSpec(workspace=tmp_path)) as copied:
        put(copied, "file", "changed")
        assert (tmp_path / "file").read_text() == "host"
        assert "-host" in copied.workspace_diff().text
    bound = BackendSandboxSpec(workspace=tmp_path, workspace_mode="bind")
    with user().to("local", spec=bound) as session:
        put(session, "file", "changed")
    assert (tmp_path / "file").read_text() == "changed"
    before = len(tracked())
    with pytest.raises(SandboxError, match="that is there"):
        user().to("local", spec=BackendSandboxSpec(workspace=tmp_path / "missing")).require_sandbox()
    assert len(tracked()) == before


# -- files in and out, whatever became of the session -----------------------------------------------------------------


def made_by(*script: object, latency_s: float = 0.0) -> tuple[Session, Session]:
    """A placed session, and what a run makes of it."""
    provider = ScriptedClient(list(script), latency_s=latency_s).as_provider()  # type: ignore[arg-type]
    start = user().to("local")
    return start, run_session_loop(start, Session.from_agent_prompt("x"), agent_provider=provider)


WRITE = {"tool_calls": [{"name": "write_workspace_file", "arguments": {"path": "made", "content": "by the run"}}]}


def test_the_workspace_of_a_failed_run_can_be_looked_at_copied_and_taken_out(tmp_path: Path) -> None:
    start, failed = made_by(WRITE, {"error": {"status": 400, "message": "no"}}, latency_s=0.02)
    failed.download("made", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "by the run"
    assert failed.status == "failed"
    assert failed.workspace_diff().added == ("made",)
    failed.upload(tmp_path / "out", "in")
    with failed.snapshot() as kept, start.restore(kept) as branch:
        assert text(branch, "in") == "by the run"
    assert isinstance(failed.exception(), Exception)
    failed.close_sandbox()
    start.close_sandbox()


def test_the_workspace_of_a_cancelled_run_can_be_looked_at() -> None:
    start, stopped = made_by(WRITE, "never", latency_s=5)
    start.require_sandbox()
    stopped.cancel()
    assert not stopped.workspace_diff()
    assert stopped.status == "cancelled"
    for one in (start, stopped):
        one.close_sandbox()


def test_in_an_event_loop_they_wait_and_on_the_engines_own_they_are_refused(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    session = user().to("local")
    uses = (
        lambda: session.upload(tmp_path / "f"),
        lambda: session.download("f", tmp_path / "g"),
        session.workspace_diff,
        lambda: session.snapshot().close(),
        session.require_sandbox,
    )

    async def cell_of_a_notebook() -> None:
        for use in uses:
            use()

    asyncio.run(cell_of_a_notebook())
    assert (tmp_path / "g").read_text() == "x"

    async def on_the_engine() -> None:
        for use in uses[:-1]:  # the sandbox is open: to get it waits for nothing
            with pytest.raises(WouldDeadlock):
                use()

    ports.engine().run(on_the_engine())
    session.close_sandbox()


def test_paths_are_text_or_paths_and_what_is_wrong_with_one_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a").write_text("x")
    with user().to("local") as session:
        session.upload("a").upload("~/a", Path("d/b")).upload(Path("a"), "c")
        session.download(Path("d/b"), "~/out").download(Path("d"))
        assert (tmp_path / "out").read_text() == (tmp_path / "d" / "b").read_text() == "x"
        for wrong in (lambda: session.upload(""), lambda: session.upload("missing"), lambda: session.upload("/")):
            with pytest.raises(UsageValueError):
                wrong()
        for wrong in (lambda: session.download("."), lambda: session.download("/"), lambda: session.download("c", "")):
            with pytest.raises(UsageValueError, match="host_path"):
                wrong()
        for other in (b"a", 3, None):
            with pytest.raises(UsageTypeError, match="path is a path"):
                session.upload(other)  # type: ignore[arg-type]
        with pytest.raises(SandboxError, match="missing"):
            session.download("missing")
        with pytest.raises(SandboxError, match="not empty"):
            session.download("d")
    for unplaced in (lambda: user().upload("a"), lambda: user().download("a"), lambda: user().workspace_diff()):
        with pytest.raises(SandboxError, match="place it first"):
            unplaced()


@pytest.mark.parametrize("how", ["a copy", "a copy of a copy"])
def test_a_tool_that_opens_a_copy_which_waits_for_its_own_run_is_refused(how: str) -> None:
    held: dict[str, Session] = {}
    ready = threading.Event()

    @tool(name="t")
    def block() -> str:
        ready.wait(5)
        try:
            held["copy"].require_sandbox()
        except WouldDeadlock:
            return "refused"
        return "opened"

    provider = ScriptedClient([{"tool_calls": [{"name": "t", "arguments": {}}]}, "done"]).as_provider()
    start = user().to("local")
    out = run_session_loop(start, Session.from_agent_prompt("x"), agent_provider=provider, tools=[block])
    held["copy"] = copy = out.fork(sandbox="copy")
    if how == "a copy of a copy":
        held["copy"] = copy.fork(sandbox="copy")
    ready.set()
    assert out.chunk_table[2].text == '"refused"'
    assert not held["copy"].workspace_diff()
    for one in (start, out, copy, held["copy"]):
        one.close_sandbox()


def test_a_snapshot_that_is_closed_while_it_is_restored_goes_when_that_is_done(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"{number}").write_text("x" * 4096)
    with user().to("local", spec=BackendSandboxSpec(workspace=tmp_path)) as session:
        kept = session.snapshot()
        restored = session.restore(kept)
        opening = threading.Thread(target=restored.require_sandbox)
        opening.start()
        while not kept._cloning and opening.is_alive():
            time.sleep(0)
        kept.close()
        opening.join()
        with restored:
            assert len(os.listdir(restored.require_sandbox().handle)) == 300


def test_a_restored_session_that_was_let_go_says_so(memory: MemoryBackend) -> None:
    with user().to("memory-for-tests") as session, session.snapshot() as kept:
        restored = session.restore(kept)
        placement = restored._lease.placement  # type: ignore[union-attr]
        restored.close_sandbox()
        with pytest.raises(SandboxClosed, match="restore"):
            placement.acquire()
        assert (memory.opened, memory.live_snapshots) == (1, 1)


def test_a_forked_process_cannot_use_what_its_parent_keeps_and_leaves_it_alone() -> None:
    with user().to("local") as session:
        put(session, "n", "one")
        with session.snapshot() as kept:
            restored, branch = session.restore(kept), session.fork(sandbox="copy")
            child = os.fork()
            if child == 0:
                refused = 0
                for one in (restored, branch):
                    try:
                        one.require_sandbox()
                    except SandboxClosed:
                        refused += 1
                    except BaseException:
                        refused += 100
                    one.close_sandbox()
                kept.close()
                os._exit(refused)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
            for one in (restored, branch, session):
                assert text(one, "n") == "one"
            restored.close_sandbox()
            branch.close_sandbox()

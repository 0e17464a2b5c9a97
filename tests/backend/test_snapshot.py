"""Snapshots of workspaces: kept, restored any number of times, freed."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from rath import Session, run_session_loop
from rath.backend import BackendSandboxSpec, BackendToolFilesRead, BackendToolFilesWrite, FileContent
from rath.backend.closing import tracked
from rath.core import ports
from rath.errors import SandboxClosed, SandboxError, UsageTypeError
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

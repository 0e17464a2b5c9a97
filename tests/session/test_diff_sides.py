"""``diff(a, b)``: what each side did, from lineage, calls and workspaces; waiting; logs."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest

import rath
from rath.backend.types import WorkspaceDiff
from rath.core.redact import register_secret
from rath.errors import PersistenceError, ProviderError, UsageTypeError
from rath.llm.pricing import register_price
from rath.llm.scripted import ScriptedClient
from rath.session import Session, SessionDiff, diff, load_session, run_session_loop
from rath.session.graph.diff_sides import changed_alone
from rath.session.persistence import session_file
from tests.session.test_diff import answer, calling, of, steps

AGENT = Session.from_agent_prompt("Help.")


def run(session: Session, *replies: object, persist: bool = False, model: str = "scripted-diff") -> Session:
    provider = ScriptedClient(list(replies)).as_provider(model=model)
    return run_session_loop(session, AGENT, agent_provider=provider, persist=persist)


def reply(text: str, tokens: int) -> dict[str, object]:
    return {"text": text, "usage": {"prompt_tokens": tokens, "completion_tokens": 0}}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPENRATH_HOME", str(tmp_path / ".openrath"))
    return tmp_path


def test_it_is_public() -> None:
    assert rath.diff is diff
    assert rath.session.SessionDiff is SessionDiff


# -- calls ----------------------------------------------------------------------------------------------------------------


def test_calls_are_counted_by_name_with_what_came_of_them() -> None:
    failed = json.dumps({"ok": False, "error_kind": "unknown_tool", "message": "", "detail": None})
    right = of(
        "a",
        *(calling("1"), answer("1", '{"exit_code": 0, "stdout": ""}')),
        *(calling("2"), answer("2", '{"exit_code": 3, "stdout": ""}')),
        *(calling("3"), answer("3", failed)),
        *(calling("4", "code"), answer("4", '{"text": "", "stdout": "", "stderr": "", "error": "NameError"}', "code")),
        *(calling("1", "read"), answer("1", "plain text", "read")),
        calling("5", "read"),
        *(calling("7", "twice"), calling("7", "twice")),
        answer("7", "fine", "twice"),
    )
    made = diff(of("a"), right).right
    assert [(call.row, call.name, call.outcome) for call in made.calls] == [
        (1, "run", "ok"),
        (3, "run", "nonzero"),
        (5, "run", "failed"),
        (7, "code", "nonzero"),
        (9, "read", "ok"),
        (11, "read", "unanswered"),
        (12, "twice", "ok"),
        (13, "twice", "unanswered"),
    ]
    assert made.calls_by_name == {
        "run": {"ok": 1, "nonzero": 1, "failed": 1},
        "code": {"nonzero": 1},
        "read": {"ok": 1, "unanswered": 1},
        "twice": {"ok": 1, "unanswered": 1},
    }


def test_a_call_is_shared_as_often_as_both_made_it() -> None:
    left = of("a", calling("1", "run", '{"x":1}'), calling("2", "run", '{"x":1}'), calling("3", "run", '{"x":2}'))
    right = of("b", calling("7", "run", '{"x":1}'), calling("8", "stop", '{"x":2}'))
    found = diff(left, right)
    assert [call.shared for call in found.left.calls] == [True, False, False]
    assert [call.shared for call in found.right.calls] == [True, False]


# -- tokens, cost, time -----------------------------------------------------------------------------------------------------


def test_each_side_has_the_usage_of_its_own_runs_and_the_fork_point_that_of_none() -> None:
    register_price("scripted-diff", input_usd_per_mtok=2, output_usd_per_mtok=0)
    start = run(Session.from_user_message("go"), reply("started", 1000))
    left = run(run(start.user("left"), reply("one", 10)).user("more"), reply("two", 20))
    right = run(start.user("right"), reply("three", 400))
    found = diff(left, right)
    assert found.fork_point == start.id
    assert (found.left.usage.total_tokens, found.right.usage.total_tokens) == (30, 400)
    assert (found.left.runs, found.right.runs) == (2, 1)
    assert found.right.cost_usd == pytest.approx(400 * 2 / 1e6)
    assert found.left.models == ("scripted-diff",)
    assert found.left.duration_s >= 0
    assert (found.left.cost_unknown, found.left.usage_unknown, found.left.duration_unknown) == (0, 0, 0)


def test_a_cost_without_a_price_is_unknown_and_not_0() -> None:
    start = Session.from_user_message("go")
    found = diff(run(start, reply("one", 10), model="no-price"), run(start, "two", model="no-price"))
    assert (found.left.cost_usd, found.left.cost_unknown) == (None, 1)
    assert (found.right.usage, found.right.usage_unknown) == (None, 1)


def test_a_session_and_what_continues_it_differ_by_what_came_after() -> None:
    start = run(Session.from_user_message("go"), reply("started", 1000))
    after = run(start.user("more"), reply("done", 5))
    found = diff(start, after)
    assert found.fork_point == start.id
    assert (found.left.runs, found.left.usage.total_tokens, found.right.usage.total_tokens) == (0, 0, 5)
    assert diff(after, start).left.usage.total_tokens == 5


def test_an_agent_that_both_asked_is_no_fork_point() -> None:
    found = diff(run(Session.from_user_message("a"), "x"), run(Session.from_user_message("b"), "x"))
    assert found.fork_point is None
    assert found.prefix_rows == 0
    assert steps(found)[-1] == ("equal", [1], [1])


# -- files ----------------------------------------------------------------------------------------------------------------


def shell(command: str) -> dict[str, object]:
    return {"tool_calls": [{"name": "run_shell_command", "arguments": {"cmd": command}}]}


def test_files_are_those_of_the_workspaces_and_what_both_changed_alike_is_told_apart() -> None:
    with Session.from_user_message("go").to("local") as base:
        start = run(base, shell("echo same > both.txt"), "ready").synchronize()
        left = run(start.fork(sandbox="copy").user("l"), shell("echo left > left.txt"), "done")
        right = run(start.fork(sandbox="copy").user("r"), shell("echo right > right.txt; echo x >> both.txt"), "done")
        found = diff(left, right)
        assert found.left.files.added == ("both.txt", "left.txt")
        assert found.left.files_alone == ("both.txt", "left.txt")
        assert not found.workspace_shared
        third = run(start.fork(sandbox="copy").user("t"), shell("echo left > left.txt; echo 3 > third.txt"), "done")
        assert diff(left, third).right.files_alone == ("third.txt",)
        assert diff(left, left).left.files_alone == ()
        assert diff(left, right, files=False).left.files_note == "unknown: not asked"
        for session in (left, right, third, start):
            session.close_sandbox()
    found = diff(left, right)
    assert (found.left.files, found.left.files_note) == (None, "unknown: its sandbox was released")
    assert found.left.files_alone is None


def test_a_binary_file_is_never_said_to_be_the_same_on_both_sides() -> None:
    text = "diff --git a/a.bin b/a.bin\nBinary files differ\ndiff --git a/t b/t\n--- a/t\n+++ b/t\n@@ -1 +1 @@\n-x\n+y\n"
    one = WorkspaceDiff(text, (), (), ("a.bin", "t"), ("a.bin",))
    assert changed_alone(one, one) == ("a.bin",)
    assert changed_alone(one, WorkspaceDiff("")) == ("a.bin", "t")
    assert changed_alone(one, None) is None


def test_names_that_git_quotes_are_compared_as_others_are() -> None:
    names = {r"q\"u\\o\te": 'q"u\\o\te', r"\303\251.txt": "é.txt", r"\377": "\udcff"}
    one, two = (
        WorkspaceDiff(
            "".join(f'diff --git "a/{name}" "b/{name}"\nnew file mode 100644\n+{word if name[0] == "q" else "same"}\n' for name in names),
            tuple(names.values()),
        )
        for word in ("one", "two")
    )
    assert changed_alone(one, two) == changed_alone(two, one) == ('q"u\\o\te',)


@pytest.mark.slow
def test_a_workspace_that_is_in_use_by_a_running_session_is_not_asked() -> None:
    with Session.from_user_message("go").to("local") as base:
        slow = run(base, shell("touch a.txt"), {"text": "late", "latency_s": 0.4})
        found = diff(slow, base, partial=True)
        assert found.left.files_note == "unknown: it is still running"
        slow.synchronize().close_sandbox()


def test_one_workspace_of_both_is_said_to_be_one() -> None:
    with Session.from_user_message("go").to("local") as base:
        left, right = run(base.fork(), shell("echo x > a.txt"), "done"), base.fork().user("r")
        found = diff(left, right)
        assert found.workspace_shared
        assert found.right.files.added == ("a.txt",)
        for session in (left, right):
            session.close_sandbox()


def test_no_sandbox_is_opened() -> None:
    base = Session.from_user_message("go").to("local")
    copy = base.fork(sandbox="copy")
    found = diff(base, copy)
    assert base.sandbox is None
    assert copy.sandbox is None
    assert found.left.files is not None
    assert not found.left.files
    assert (found.right.files, found.right.files_note) == (None, "unknown: its copy was never opened")
    assert diff(of("a"), of("a")).left.files_note == "no sandbox"


# -- waiting ----------------------------------------------------------------------------------------------------------------


def test_it_waits_for_its_inputs_as_any_read_does_and_gives_up_after_the_timeout() -> None:
    slow = run(Session.from_user_message("go"), {"text": "late", "latency_s": 0.3})
    with pytest.raises(TimeoutError):
        diff(slow, of("go"), timeout=0.01)
    before = diff(slow, of("go"), partial=True)
    assert before.left.status in ("pending", "running")
    after = diff(slow, of("go"), timeout=20)
    assert [*steps(after)] == [("delete", [1], [])]
    assert after.left.status == "completed"


def test_a_failed_side_raises_its_error_unless_its_rows_so_far_will_do() -> None:
    broken = run(Session.from_user_message("go"), {"error": {"status": 401, "message": "wrong key"}})
    with pytest.raises(ProviderError):
        diff(of("go"), broken)
    found = diff(of("go"), broken, partial=True)
    assert (found.same, found.right.status) == (True, "failed")


def test_displays_of_a_comparison_wait_for_nothing() -> None:
    found = diff(of("a"), of("b"))
    done = threading.Event()

    def show() -> None:
        str(found), found._repr_html_(), repr(found), found.to_dict()
        done.set()

    threading.Thread(target=show, daemon=True).start()
    assert done.wait(20)


# -- secrets ----------------------------------------------------------------------------------------------------------------


def test_rows_that_differ_in_a_secret_only_are_the_same_and_none_is_shown() -> None:
    one, two = f"secret-{uuid4().hex}", f"secret-{uuid4().hex}"
    register_secret(one)
    register_secret(two)
    found = diff(of("a", f"key {one}"), of("a", f"key {two}", calling("1", "run", json.dumps({"key": one}))))
    assert steps(found) == [("insert", [], [2])]
    assert found.prefix_rows == 2
    shown = "".join((str(found), found._repr_html_(), repr(found), json.dumps(found.to_dict(full=True)), repr(found.right.calls)))
    assert one not in shown
    assert two not in shown


# -- logs -----------------------------------------------------------------------------------------------------------------


def test_logs_are_compared_by_id_by_path_and_as_loaded(home: Path) -> None:
    register_price("scripted-diff", input_usd_per_mtok=2, output_usd_per_mtok=0)
    start = run(Session.from_user_message("go"), reply("started", 1000), persist=True)
    left = run(start.user("left"), reply("one", 10), persist=True)
    right = run(start.user("right"), reply("two", 20), persist=True)
    live = diff(left, right)
    for pair in (
        (left.id, str(right.id)),
        (session_file(left.id), str(session_file(right.id))),
        (load_session(left.id), load_session(right.id)),
        (left, right.id),
    ):
        found = diff(*pair)
        assert steps(found) == steps(live)
        assert (found.prefix_rows, found.fork_point) == (2, start.id)
        assert (found.left.usage.total_tokens, found.right.usage.total_tokens) == (10, 20)
        assert (found.right.cost_usd, found.right.status) == (pytest.approx(20 * 2 / 1e6), "completed")
        assert found.right.duration_s is not None
        assert found.right.files_note == "unknown: only its log is left"
    assert diff(start.id, right.id).left.usage.total_tokens == 0


def test_a_parent_without_a_log_is_no_run_of_which_nothing_is_known(home: Path) -> None:
    left = run(Session.from_user_message("l").fork(), reply("one", 10), persist=True)
    right = run(Session.from_user_message("r").fork(), reply("two", 20), persist=True)
    found = diff(left.synchronize().id, right.synchronize().id)
    assert (found.left.runs, found.left.usage_unknown, found.fork_point) == (1, 0, None)


def test_a_log_beside_it_that_goes_on_is_no_ancestor(home: Path) -> None:
    base = Session.from_user_message("go").user("on")
    first = run(base, reply("one", 10), persist=True).synchronize()
    second = run(base.fork(), reply("two", 20), persist=True).synchronize()
    assert load_session(second.id).header.prefix.session_id == first.id
    found = diff(first.id, second.id)
    assert found.fork_point == base.id
    assert found.left.usage.total_tokens == 10


def test_logs_are_compared_with_what_was_never_logged_and_with_all_that_they_descend_from(home: Path) -> None:
    start = run(Session.from_user_message("go"), reply("started", 1000))
    left = run(run(start.user("left"), reply("first", 500)).fork(), reply("second", 10), persist=True)
    right = run(start.user("right"), reply("two", 20), persist=True)
    line = [run(Session.from_user_message("go"), reply("0", 1), persist=True)]
    for number in range(40):
        line.append(run(line[-1], reply(str(number), 1), persist=True))
    beside = run(line[2], reply("beside", 7), persist=True)
    for a, b, fork, left_tokens, right_tokens in (
        (left, right, start, 510, 20),
        (line[-1], beside, line[2], 38, 7),
        (left, line[-1], None, 1510, 41),
    ):
        live, logged = diff(a, b), diff(a.id, b.id)
        assert live.fork_point == logged.fork_point == (fork and fork.id)
        for found in (live, logged):
            assert (found.left.usage.total_tokens, found.right.usage.total_tokens) == (left_tokens, right_tokens)
            assert found.left.usage_unknown == found.right.usage_unknown == 0
        assert (live.left.runs, live.right.runs) == (logged.left.runs, logged.right.runs)
        assert logged.left.duration_s == pytest.approx(live.left.duration_s, abs=0.5)


def test_a_cost_of_a_log_is_that_of_its_prices_or_unknown(home: Path) -> None:
    made = run(Session.from_user_message("go"), reply("one", 10), persist=True, model="priced-later")
    made.synchronize()
    assert diff(made.id, of("a")).left.cost_usd is None
    loaded = load_session(made.id)
    price = {"input_usd_per_mtok": 5, "output_usd_per_mtok": 1, "cached_input_usd_per_mtok": None}
    records = tuple(
        record | {"price": price} if record["record_type"] == "usage" else record for record in loaded.records
    )
    assert diff(replace(loaded, records=records), of("a")).left.cost_usd == pytest.approx(10 * 5 / 1e6)
    unpriced = (*records, {"record_type": "usage", "prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2})
    assert diff(replace(loaded, records=unpriced), of("a")).left.cost_usd is None


def test_a_session_and_its_own_log_are_the_same(home: Path) -> None:
    made = run(Session.from_user_message("go"), reply("started", 1000), persist=True)
    found = diff(made, made.id)
    assert (found.same, found.fork_point) == (True, made.id)


def test_what_is_no_session_and_no_log_is_refused(home: Path) -> None:
    with pytest.raises(PersistenceError):
        diff(of("a"), UUID(int=7))
    with pytest.raises(PersistenceError):
        diff(of("a"), home / "no-such.jsonl")
    with pytest.raises(UsageTypeError, match="compare sessions"):
        diff(of("a"), 7)

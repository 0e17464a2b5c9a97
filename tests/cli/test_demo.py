"""``rath demo``: what it shows really happened, and what it leaves can be used."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rath.cli.demo_agents import BRANCHES, OPENING, copy_project
from rath.cli.demo_story import TestRun
from rath.session.chunk import ChunkKind
from rath.session.persistence.reader import PersistedSession, load_session
from tests.cli.support import CONTROL, rath, rath_at_a_terminal, start_rath
from tests.display.support import assert_harmless


@dataclass(frozen=True)
class Played:
    """A demo that was run once for all tests of this module."""

    home: Path
    keep: Path
    told: dict[str, Any]

    def logs(self) -> list[PersistedSession]:
        return [load_session(Path(log).stem, path=Path(log)) for log in self.told["logs"]]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    home = tmp_path_factory.mktemp("demo")
    keep = home / "kept"
    ran = rath(home, "demo", "--json", "--speed", "4", "--keep", str(keep))
    assert (ran.code, ran.err) == (0, "")
    return Played(home, keep, ran.json)


def unittest_in(directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-B", "-m", "unittest"], cwd=directory, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_the_project_has_a_real_bug_and_the_fix_applies_to_it_and_mends_it(played: Played, tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(played.told["project"], project)
    before = unittest_in(project)
    assert before.returncode == 1
    assert "Ran 8 tests" in before.stderr
    assert "FAILED (failures=2)" in before.stderr
    subprocess.run(["git", "apply", "-p1", played.told["patch"]], cwd=project, check=True, capture_output=True)
    after = unittest_in(project)
    assert after.returncode == 0, after.stderr
    tests = Path("tests/test_spans.py")
    assert (project / tests).read_text() == (Path(played.told["project"]) / tests).read_text()


def test_patch_applies_it_too(played: Played, tmp_path: Path) -> None:
    if shutil.which("patch") is None:
        pytest.skip("there is no patch(1) here")
    project = tmp_path / "project"
    shutil.copytree(played.told["project"], project)
    subprocess.run(["patch", "-p1", "-i", played.told["patch"]], cwd=project, check=True, capture_output=True)
    assert unittest_in(project).returncode == 0


def test_one_branch_fixes_it_one_after_a_wrong_turn_and_one_fails(played: Played) -> None:
    branches = {branch["name"]: branch for branch in played.told["branches"]}
    assert played.told["before"] == {"ran": 8, "failed": 2}
    assert {name: branch["passed"] for name, branch in branches.items()} == {
        "read first": True,
        "quick edit": True,
        "outside in": False,
    }
    assert played.told["winner"] == "read first"
    assert branches["outside in"]["tests"] == {"ran": 8, "failed": 1}
    assert "did not fix it" in branches["outside in"]["says"]
    assert branches["read first"]["diff"] == branches["quick edit"]["diff"]
    assert branches["outside in"]["diff"] != branches["read first"]["diff"]


def test_every_tool_call_ran_and_the_wrong_turn_is_in_the_log(played: Played) -> None:
    _opening, reader, quick, outside, _findings = played.logs()
    for log in (reader, quick, outside):
        for row in log.chunk_table:
            if row.kind is ChunkKind.TOOL_RESULT:
                assert "error_kind" not in (row.text or "")
    results = [
        json.loads(row.text or "")
        for row in quick.chunk_table
        if row.kind is ChunkKind.TOOL_RESULT and "exit_code" in (row.text or "")
    ]
    said = [(result["exit_code"], re.findall(r"^FAIL: (\w+)", result["stderr"], re.MULTILINE)) for result in results]
    assert said == [
        (1, ["test_a_call_during_a_workshop_frees_nothing", "test_one_inside_another_is_swallowed"]),
        (1, ["test_overlapping_become_one", "test_touching_become_one"]),
        (0, []),
    ]


def test_all_logs_are_complete_and_tell_the_lineage(played: Played) -> None:
    logs = played.logs()
    assert [log.verdict for log in logs] == ["complete"] * 5
    assert [log.header.lineage_operator for log in logs] == ["run_session_loop"] * 4 + ["run_session_compress"]
    assert all(log.cumulative_usage is not None and log.cumulative_usage.total_tokens > 0 for log in logs)
    opening, *branches, findings = logs
    for branch in branches:
        assert branch.chunk_table.rows[: len(opening.chunk_table)] == opening.chunk_table.rows
    # No two calls of the merged transcript share an id, or no provider would take it.
    ids = [call["id"] for branch in branches for row in branch.chunk_table.rows[5:] for call in row.tool_calls]
    assert len(ids) == len(set(ids)) > 10
    assert findings.chunk_table[0].text == played.told["findings"]
    assert "read first (all 8 tests pass)" in played.told["findings"]
    assert "outside in (1 of 8 tests fails)" in played.told["findings"]


def test_branches_overlap_by_their_own_events(played: Played) -> None:
    seconds = [branch["seconds"] for branch in played.told["branches"]]
    assert played.told["sum_s"] == pytest.approx(sum(seconds), abs=0.01)
    assert max(seconds) - 0.01 <= played.told["wall_s"] < played.told["sum_s"] * 0.8


def test_the_page_is_whole_harmless_and_has_graph_transcripts_and_fix(played: Played) -> None:
    html = Path(played.told["page"]).read_text(encoding="utf-8")
    page = assert_harmless(html)
    assert html.count('class="rl" role="img"') == 1  # the signs of its legend are small drawings too
    assert page.tags.count("section") == 5
    for branch in played.told["branches"]:
        assert branch["log"] in page.text
        assert branch["says"] in page.text
    assert "+            merged[-1] = Span(merged[-1].start, max(merged[-1].end, span.end))" in page.text
    assert "scripted" in page.text
    assert "no isolation" in page.text
    assert_harmless(Path(played.told["graph"]).read_text(encoding="utf-8"))


@pytest.mark.slow
def test_nothing_is_left_in_the_temporary_directory(tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    ran = rath(tmp_path, "demo", "--speed", "100", env={"TMPDIR": str(temporary)})
    assert ran.code == 0, ran.err
    assert sorted(os.listdir(temporary)) == []
    _check_the_story(ran.out)
    assert CONTROL.search(ran.out.replace("\n", "")) is None
    [results] = (tmp_path / ".openrath" / "demo").iterdir()
    assert str(results / "index.html") in ran.out
    for path in re.findall(r"\S+\.(?:html|svg|patch|jsonl)\b", ran.out):
        assert Path(path).is_file()


def _check_the_story(shown: str) -> None:
    for words in (
        "The agents are scripted",
        "Every tool call is real",
        "no isolation",
        "✓ read first  all 8 tests pass",
        "✗ outside in  1 of 8 tests fails",
        "← taken",
        "(joins ",
        "-            merged[-1] = Span(merged[-1].start, span.end)",
        "one after the other: ",
        "rath sessions show ",
    ):
        assert words in shown, words


@pytest.mark.slow
def test_at_a_terminal_the_branches_are_a_live_table(tmp_path: Path) -> None:
    code, shown = rath_at_a_terminal(tmp_path, "demo", "--speed", "5")
    assert code == 0
    assert "\x1b[2K" in shown or "\x1b[1A" in shown  # it redraws
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert re.search(r"▸ +outside in +turn [2-6]", plain)
    assert re.search(r"✓ +outside in +turn 6", plain)


@pytest.mark.slow
def test_a_place_that_cannot_be_written_is_a_clear_error_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ran = rath(tmp_path, "demo", "--keep", str(tmp_path / "file" / "x"))
    assert (ran.code, ran.out) == (1, "")
    assert "--keep" in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.slow
def test_ctrl_c_gives_130_and_names_the_logs_so_far(tmp_path: Path) -> None:
    with start_rath(tmp_path, "demo", "--speed", "0.6") as process:
        assert process.stdout is not None
        while "[quick edit] turn 1" not in (line := process.stdout.readline()):
            assert line
        process.send_signal(2)
        _out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err
    logs = re.findall(r"\S+\.jsonl", err)
    assert len(logs) == 4
    verdicts = sorted(load_session(Path(log).stem, path=Path(log)).verdict for log in logs)
    assert verdicts == ["complete", "open", "open", "open"]


@pytest.mark.parametrize(
    ("tests", "passed", "said"),
    [
        (TestRun(8, 0, 0), True, "all 8 tests pass"),
        (TestRun(8, 2, 1), False, "2 of 8 tests fail"),
        (TestRun(0, 0, 5), False, "no test ran"),
        (TestRun(8, 0, 1), False, "ended with exit code 1"),
        (TestRun(8, 0, 0, ("tests/test_spans.py",)), False, "changed the tests (tests/test_spans.py), so they prove nothing"),
    ],
)
def test_only_the_projects_own_tests_can_say_that_it_is_mended(tests: TestRun, passed: bool, said: str) -> None:
    assert tests.passed is passed
    assert said in str(tests)


def test_every_scripted_edit_is_exact(tmp_path: Path) -> None:
    copy_project(tmp_path)
    before = (tmp_path / "freetime" / "spans.py").read_text()
    for agent in (OPENING, *BRANCHES):
        text = before
        path = Path(sys.modules["rath.cli.demo_agents"].__file__ or "").with_name("data") / "agents" / agent.script
        for reply in json.loads(path.read_text())["replies"]:
            for call in reply.get("tool_calls", ()) if isinstance(reply, dict) else ():
                if call["name"] == "edit_workspace_file":
                    assert text.count(call["arguments"]["old"]) == 1
                    text = text.replace(call["arguments"]["old"], call["arguments"]["new"])
        compile(text, agent.script, "exec")

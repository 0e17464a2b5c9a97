"""``--backend``: the demo and runs in sandboxes that isolate. No Docker engine is found here, so ``auto`` is bubblewrap."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rath.backend.bwrap import preflight
from rath.errors import SandboxUnavailable
from tests.cli.support import rath, write_script


@pytest.fixture(scope="module")
def bwrap_works() -> None:
    try:
        preflight.check()
    except SandboxUnavailable as error:
        if os.environ.get("RATH_REQUIRE_DOCKER") == "1":
            raise
        pytest.skip(str(error))


@pytest.fixture
def project() -> Iterator[Path]:
    """A directory that commands may work in when it is bound: of an ordinary user, and below no closed directory."""
    with tempfile.TemporaryDirectory(prefix="rath-test-") as name:
        top = Path(name)
        top.chmod(0o755)
        work = top / "work"
        work.mkdir()
        (work / "greeting.txt").write_text("hello\n")
        if os.geteuid() == 0:
            for path in (work, work / "greeting.txt"):
                os.chown(path, 20001, 20001)
        yield work


def script(home: Path) -> str:
    edit = {"name": "edit_workspace_file", "arguments": {"path": "greeting.txt", "old": "hello", "new": "good day"}}
    look = {"name": "run_shell_command", "arguments": {"cmd": "pwd; cat greeting.txt"}}
    return write_script(home / "script.json", {"tool_calls": [edit]}, {"tool_calls": [look]}, "Done.")


@pytest.mark.slow
@pytest.mark.usefixtures("bwrap_works")
def test_a_run_in_a_sandbox_works_in_the_workspace_itself(tmp_path: Path, project: Path) -> None:
    ran = rath(tmp_path, "run", "Go", "--model", script(tmp_path), "--workspace", str(project), "--backend", "auto")
    assert ran.code == 0, ran.out + ran.err
    assert "without isolation" not in ran.out
    assert "-hello\n+good day\n" in ran.out
    assert (project / "greeting.txt").read_text() == "good day\n"


@pytest.mark.slow
@pytest.mark.usefixtures("bwrap_works")
def test_branches_in_sandboxes_have_copies(tmp_path: Path, project: Path) -> None:
    ran = rath(
        tmp_path, "run", "Go", "--model", script(tmp_path), "--workspace", str(project), "--backend", "bwrap", "--branches", "2", "--json"
    )
    assert ran.code == 0, ran.err
    assert [branch["changed"]["modified"] for branch in ran.json["branches"]] == [["greeting.txt"]] * 2
    assert (project / "greeting.txt").read_text() == "hello\n"


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root has directories of root")
@pytest.mark.usefixtures("bwrap_works")
def test_a_directory_of_root_is_refused_with_the_remedy(tmp_path: Path) -> None:
    ran = rath(tmp_path, "run", "Go", "--model", script(tmp_path), "--workspace", str(tmp_path), "--backend", "bwrap")
    assert (ran.code, ran.out) == (2, "")
    assert "root owns it" in ran.err
    assert "chown" in ran.err


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "demo"])
def test_a_backend_that_does_not_work_is_an_error_before_anything_runs(command: str, tmp_path: Path) -> None:
    arguments = ["run", "Go", "--model", script(tmp_path)] if command == "run" else ["demo"]
    ran = rath(tmp_path, *arguments, "--backend", "auto", env={"PATH": str(tmp_path)})
    assert (ran.code, ran.out) == (1, "")
    assert "there is no Docker Engine" in ran.err
    assert "apt install bubblewrap" in ran.err
    assert not (tmp_path / ".openrath").exists()
    assert rath(tmp_path, *arguments, "--backend", "moon").code == 2


@pytest.mark.slow
@pytest.mark.usefixtures("bwrap_works")
def test_the_demo_plays_in_sandboxes(tmp_path: Path) -> None:
    ran = rath(tmp_path, "demo", "--json", "--speed", "20", "--keep", str(tmp_path / "kept"), "--backend", "auto")
    assert (ran.code, ran.err) == (0, "")
    assert ran.json["backend"] == "auto"
    assert {branch["name"]: branch["passed"] for branch in ran.json["branches"]} == {
        "read first": True,
        "quick edit": True,
        "outside in": False,
    }
    page = (tmp_path / "kept" / "index.html").read_text()
    assert "no isolation" not in page
    assert "sandboxes of the backend auto" in page

"""What changed in a workspace, checked by applying it with git."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from rath.backend import BackendSandboxSpec, BackendToolCommandRun, BackendToolFilesWrite, WorkspaceDiff, get
from rath.backend.host.diff import MAX_BYTES, MAX_MATCHED_LINES, Baseline, compare
from rath.backend.host.paths import Confined
from rath.backend.lease import Placement
from rath.core import ports
from rath.errors import SandboxError


def changes(tmp_path: Path, change: object) -> tuple[Path, Path, WorkspaceDiff]:
    """A copy of the start, the workspace after ``change``, and the diff between them."""
    work, start = tmp_path / "work", tmp_path / "start"
    shutil.copytree(work, start, symlinks=True)
    with get("local").open(BackendSandboxSpec(working_dir=str(work))) as sandbox:
        change(work)  # type: ignore[operator]
        return start, work, ports.engine().run(sandbox.diff())


def applied(start: Path, diff: WorkspaceDiff) -> None:
    run = subprocess.run(["git", "apply", "-"], input=diff.text.encode(), cwd=start, capture_output=True, check=False)
    assert run.returncode == 0, run.stderr.decode() + diff.text


def contents(top: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(top.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(top))] = ("link", os.readlink(path))
        elif path.is_file():
            found[str(path.relative_to(top))] = (path.read_bytes(), bool(path.stat().st_mode & 0o100))
    return found


needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


@needs_git
def test_git_can_apply_it(tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / "sub").mkdir(parents=True)
    (work / "edit").write_text("".join(f"line {n}\n" for n in range(50)))
    (work / "no_newline").write_text("one\ntwo")
    (work / "gone").write_text("x\n")
    (work / "empty").write_text("")
    (work / "mode").write_text("#!/bin/sh\n")
    (work / "sub" / "strange \"name\"\té").write_text("a\n")
    (work / "becomes_link").write_text("x\n")
    (work / "feed").write_text("a\x0cb\u2028c\n")
    os.symlink("edit", work / "link")

    def change(work: Path) -> None:
        lines = (work / "edit").read_text().splitlines(keepends=True)
        lines[3] = "changed\n"
        del lines[30]
        (work / "edit").write_text("".join(lines))
        (work / "no_newline").write_text("one\ntwo\nthree")
        (work / "gone").unlink()
        (work / "empty").write_text("now\n")
        (work / "mode").chmod(0o755)
        (work / "sub" / "strange \"name\"\té").write_text("b\n")
        (work / "new" / "deep").mkdir(parents=True)
        (work / "new" / "deep" / "file").write_text("1\n2\n")
        (work / "new" / "nothing").write_text("")
        (work / "becomes_link").unlink()
        os.symlink("mode", work / "becomes_link")
        (work / "feed").write_text("a\x0cb\u2028d\n")
        (work / "link").unlink()
        os.symlink("mode", work / "link")

    start, after, diff = changes(tmp_path, change)
    assert diff.added == ("new/deep/file", "new/nothing")
    assert diff.removed == ("gone",)
    assert "mode" in diff.modified
    assert diff.binary == ()
    applied(start, diff)
    assert contents(start) == contents(after)


@needs_git
@pytest.mark.parametrize("seed", range(8))
def test_git_can_apply_any_change_of_lines(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    work = tmp_path / "work"
    work.mkdir()
    size = MAX_MATCHED_LINES if seed % 2 else 40
    old = [f"{rng.randrange(9)}\n" for _ in range(size)]
    new = list(old)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(new))
        new[at : at + rng.randrange(3)] = [f"new {rng.random()}\n" for _ in range(rng.randrange(3))]
    (work / "f").write_text("".join(old) + rng.choice(["", "tail"]))
    text = "".join(new) + rng.choice(["", "tail"])
    start, after, diff = changes(tmp_path, lambda work: (work / "f").write_text(text))
    if diff:
        applied(start, diff)
    assert contents(start) == contents(after)


def test_what_is_not_text_is_named_and_not_shown(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "same").write_bytes(b"\0same")
    (work / "blob").write_bytes(b"\0one")

    def change(work: Path) -> None:
        (work / "blob").write_bytes(b"\0two")
        (work / "latin").write_bytes(b"caf\xe9\n")
        with open(work / "big", "wb") as file:
            file.truncate(10_000_000)

    _, _, diff = changes(tmp_path, change)
    assert (diff.added, diff.modified) == (("big", "latin"), ("blob",))
    assert diff.binary == ("big", "blob", "latin")
    assert "Binary files a/blob and b/blob differ" in diff.text
    assert len(diff.text) < 1000


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_git_applies_a_diff_but_for_its_binary_files(tmp_path: Path) -> None:
    """A section without a header line made git read the next file's header as a part of it, and refuse everything."""
    work, again = tmp_path / "work", tmp_path / "again"
    work.mkdir()
    for name in ("blob", "text"):
        (work / name).write_bytes(b"one\0\n" if name == "blob" else b"one\n")
    shutil.copytree(work, again)

    def change(work: Path) -> None:
        (work / "blob").write_bytes(b"two\0\n")
        (work / "text").write_text("two\n")

    _, _, diff = changes(tmp_path, change)
    assert diff.binary == ("blob",)
    applied = subprocess.run(["git", "apply", "--exclude=blob", "-"], input=diff.text.encode(), cwd=again, capture_output=True)
    assert applied.returncode == 0, applied.stderr
    assert ((again / "text").read_text(), (again / "blob").read_bytes()) == ("two\n", b"one\0\n")


def test_caches_and_version_control_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()

    def change(work: Path) -> None:
        for ignored in (".git", "__pycache__", ".venv", "node_modules", ".pytest_cache"):
            (work / "sub" / ignored).mkdir(parents=True)
            (work / "sub" / ignored / "file").write_text("x")
        (work / "module.pyc").write_text("x")

    assert not changes(tmp_path, change)[2]


def test_a_workspace_too_large_to_keep_says_so(tmp_path: Path) -> None:
    with open(tmp_path / "large", "wb") as file:
        file.truncate(MAX_BYTES + 1)
    with (
        get("local").open(BackendSandboxSpec(working_dir=str(tmp_path))) as sandbox,
        pytest.raises(SandboxError, match="64 MiB"),
    ):
        ports.engine().run(sandbox.diff())


def test_a_tree_too_deep_for_a_path_opens_and_says_why_it_has_no_diff_and_no_copy(tmp_path: Path) -> None:
    deep = "n=$(printf 'd%.0s' $(seq 200)); for i in $(seq 25); do mkdir $n; cd $n; done; echo x > f"
    lease = Placement("local", str(tmp_path)).acquire()
    lease.dispatch_blocking(BackendToolCommandRun(deep))
    again = Placement("local", str(tmp_path)).acquire()
    for held in (lease, again):
        assert held.dispatch_blocking(BackendToolFilesWrite("f", "x"))
        with pytest.raises(SandboxError, match="too long"):
            ports.engine().run(held.diff())
    copy = lease.placement.copy()
    child = copy.acquire()
    copy.freeze()
    with pytest.raises(SandboxError, match="cannot be copied.*too long"):
        child.open_blocking()
    for held in (lease, again, child):
        held.release()


def test_a_copys_diff_starts_where_its_parents_does(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("start\n")
    parent = Placement("local", str(tmp_path)).acquire()
    parent.dispatch_blocking(BackendToolFilesWrite("f", "parent\n"))
    copy = parent.placement.copy()
    child = copy.acquire()
    copy.freeze()
    child.dispatch_blocking(BackendToolCommandRun("echo child > g"))
    parent.release()
    diff = ports.engine().run(child.diff())
    assert (diff.added, diff.modified) == (("g",), ("f",))
    assert "-start\n+parent\n" in diff.text
    child.release()
    assert (tmp_path / "f").read_text() == "parent\n"
    assert sorted(os.listdir(tmp_path)) == ["f"]


def test_a_baseline_goes_with_its_last_holder(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    root = Confined(str(tmp_path))
    baseline = Baseline.of(root)
    assert baseline.path is not None
    second = baseline.share()
    baseline.drop()
    assert not compare(second, root)
    second.drop()
    assert not os.path.exists(baseline.path)
    root.close()

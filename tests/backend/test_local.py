"""The local backend: what is true of the host's processes and directories in particular."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from rath.backend import (
    BackendSandbox,
    BackendSandboxSpec,
    BackendToolCodeRun,
    BackendToolCommandRun,
    BackendToolFilesExists,
    BackendToolFilesRead,
    BackendToolFilesWrite,
    CodeResult,
    CommandResult,
    IsolationLevel,
    ToolExecutionFailure,
    get,
)
from rath.backend.lease import Placement
from rath.backend.local_output import CappedOutput
from rath.core import ports
from rath.errors import SandboxBroken, SandboxError, SandboxUnavailable, UsageTypeError, UsageValueError
from rath.testing.pace import within


@pytest.fixture
def sandbox() -> Iterator[BackendSandbox]:
    with get("local").open() as opened:
        yield opened


def run(sandbox: BackendSandbox, cmd: str | list[str], **more: object) -> CommandResult:
    result = sandbox.dispatch(BackendToolCommandRun(cmd, **more))  # type: ignore[arg-type]
    assert isinstance(result, CommandResult), result
    return result


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def gone(pids: list[int], seconds: float = 2.0) -> bool:
    end = time.monotonic() + seconds
    while any(map(alive, pids)):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


# -- the workspace ------------------------------------------------------------------------------------------------------


def test_it_says_that_it_is_no_isolation() -> None:
    can = get("local").capabilities()
    assert can.isolation is IsolationLevel.PROCESS
    assert can.max_sandboxes is None
    assert len(get("local").supported_calls()) == 6
    assert get("local").is_available()


def test_its_own_workspace_is_private_and_removed_at_the_close() -> None:
    with get("local").open() as sandbox:
        path = Path(sandbox.handle)
        assert path.name.startswith("rath-local-")
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        run(sandbox, "mkdir -p locked/deep; touch locked/deep/f; chmod 500 locked/deep locked")
    assert not path.exists()


@pytest.mark.slow
def test_a_directory_nested_too_deep_for_python_is_removed_too() -> None:
    with get("local").open() as sandbox:
        path = Path(sandbox.handle)
        deep = "import os\nfor _ in range(1500):\n    os.mkdir('d'); os.chdir('d')"
        assert run(sandbox, [sys.executable, "-c", deep]).exit_code == 0
    assert not path.exists()


def test_a_given_directory_is_made_if_missing_and_never_removed(tmp_path: Path) -> None:
    work = tmp_path / "deep" / "work"
    with get("local").open(BackendSandboxSpec(working_dir=str(work))) as sandbox:
        assert sandbox.handle == str(work)
        run(sandbox, "echo keep > file")
    assert (work / "file").read_text() == "keep\n"


def test_what_it_cannot_honour_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    local = get("local")
    for spec, name in (
        (BackendSandboxSpec(image="python:3.12"), "image"),
        (BackendSandboxSpec(entrypoint=["sh"]), "entrypoint"),
        (BackendSandboxSpec(timeout=timedelta(0)), "timeout"),
        (BackendSandboxSpec(working_dir=" "), "working_dir"),
    ):
        with pytest.raises(UsageValueError, match=name):
            local.open(spec)
    with pytest.raises(SandboxUnavailable, match="file"):
        local.open(BackendSandboxSpec(working_dir=str(tmp_path / "file")))
    with pytest.raises(UsageTypeError):
        local.dispatch(BackendSandbox(local, str(tmp_path)), BackendToolCommandRun("true"))


def test_a_workspace_that_is_removed_or_replaced_is_broken(tmp_path: Path) -> None:
    for replace in (False, True):
        work = tmp_path / f"work{replace}"
        sandbox = get("local").open(BackendSandboxSpec(working_dir=str(work)))
        work.rename(tmp_path / f"away{replace}")
        if replace:
            work.mkdir()
        for call in (BackendToolCommandRun("true"), BackendToolFilesWrite("f", "x"), BackendToolFilesExists("f")):
            with pytest.raises(SandboxBroken, match="Place the session again"):
                sandbox.dispatch(call)
        sandbox.release()
        assert sandbox.closed


# -- commands -----------------------------------------------------------------------------------------------------------


def test_a_commands_environment_is_four_variables_two_marks_and_what_was_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "AWS_SECRET_ACCESS_KEY", "PYTHONPATH", "LD_PRELOAD_X"):
        monkeypatch.setenv(name, "sk-secret")
    for name, value in (("LANG", "C.UTF-8"), ("TERM", "dumb"), ("HOME", "/tmp")):
        monkeypatch.setenv(name, value)
    with get("local").open(BackendSandboxSpec(env={"SPEC": "1"})) as sandbox:
        lines = run(sandbox, ["env"], env={"CALL": "2"}).stdout.decode().splitlines()
    found = dict(line.split("=", 1) for line in lines)
    marks = found.pop("RATH_CALL"), found.pop("RATH_SANDBOX")
    assert all(len(mark) == 32 for mark in marks)
    expected = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TERM")}
    assert found == {**expected, "SPEC": "1", "CALL": "2"}


@pytest.mark.parametrize(
    ("name", "tree"),
    [
        ("children", "sleep 60 & sleep 60 & wait"),
        ("nested shells", "sh -c 'sh -c \"sleep 60 & wait\" & wait' & wait"),
        ("pipeline", "sleep 60 | sleep 60 | cat"),
        ("deaf", "trap '' TERM HUP INT; sleep 60 & while :; do sleep 1; done"),
        ("setsid", "setsid sleep 60 & setsid sh -c 'setsid sleep 60 & wait' & wait"),
        ("stopped", "sleep 60 & kill -STOP $!; wait"),
        ("job control", "bash -c 'set -m; sleep 60 & sleep 60 & wait'"),
        ("orphans", "(sleep 60 &); (sleep 60 &); sleep 60"),
    ],
    ids=lambda value: value if " " not in value or len(value) < 14 else "",
)
@pytest.mark.parametrize(
    "how", ["timeout", pytest.param("cancel", marks=pytest.mark.slow), pytest.param("close", marks=pytest.mark.slow)]
)
def test_no_process_of_a_tree_is_left(name: str, tree: str, how: str) -> None:
    # Each process of the tree is told by a variable that nothing else has.
    mark = f"rath_kill_{os.getpid()}_{time.monotonic_ns()}"

    def marked() -> list[int]:
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError):
                    if mark.encode() in Path(f"/proc/{entry}/environ").read_bytes() and alive(int(entry)):
                        found.append(int(entry))
        return found

    sandbox = get("local").open()
    call = BackendToolCommandRun(tree, env={"MARK": mark}, timeout=0.3 if how == "timeout" else None)

    async def scene() -> None:
        task = asyncio.create_task(sandbox.perform(call))
        for _ in range(100):
            if len(marked()) >= 2 or task.done():
                break
            await asyncio.sleep(0.02)
        if how == "cancel":
            task.cancel()
        elif how == "close":
            await sandbox.shut()
        with contextlib.suppress(asyncio.CancelledError, SandboxError):
            result = await task
            assert isinstance(result, ToolExecutionFailure)

    ports.engine().run(scene())
    assert gone(marked()), marked()
    sandbox.release()


def test_what_a_command_left_in_the_background_goes_with_the_sandbox() -> None:
    with get("local").open() as sandbox:
        pids = [int(run(sandbox, f"sleep 60 {redirect} & echo $!").stdout) for redirect in ("", ">/dev/null 2>&1")]
        assert all(map(alive, pids))
    assert gone(pids)


def test_a_late_writer_in_the_background_neither_holds_nor_floods(sandbox: BackendSandbox) -> None:
    start = time.monotonic()
    result = run(sandbox, "yes & echo done")
    assert time.monotonic() - start < within(1)
    assert b"done\n" in result.stdout or result.truncated


def test_commands_use_no_thread_each(sandbox: BackendSandbox) -> None:
    run(sandbox, "true")
    before = threading.active_count()

    async def many() -> int:
        tasks = [asyncio.create_task(sandbox.perform(BackendToolCommandRun("sleep 0.3"))) for _ in range(20)]
        await asyncio.sleep(0.15)
        count = threading.active_count()
        await asyncio.gather(*tasks)
        return count

    assert ports.engine().run(many()) <= before


def test_commands_leave_no_descriptors_behind(sandbox: BackendSandbox) -> None:
    run(sandbox, "true")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(8):
        run(sandbox, "cat", stdin=b"x")
        sandbox.dispatch(BackendToolCodeRun("1"))
        sandbox.dispatch(BackendToolCommandRun("sleep 5", timeout=0.01))
        sandbox.dispatch(BackendToolCommandRun(["/nowhere"]))
        sandbox.dispatch(BackendToolFilesWrite("a/b", "x"))
        sandbox.dispatch(BackendToolFilesRead("../x"))
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_command_runs_in_the_directory_that_was_checked(sandbox: BackendSandbox) -> None:
    run(sandbox, "mkdir sub")
    assert run(sandbox, "pwd", cwd="sub").stdout.decode().strip() == f"{os.path.realpath(sandbox.handle)}/sub"
    assert run(sandbox, ["pwd"], cwd=f"{sandbox.handle}/sub").exit_code == 0


@pytest.mark.slow
def test_a_gigabyte_of_output_costs_less_than_100_megabytes() -> None:
    script = """
import resource
from rath.backend import BackendToolCommandRun, get
with get("local").open() as sandbox:
    sandbox.dispatch(BackendToolCommandRun("true"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = sandbox.dispatch(BackendToolCommandRun("head -c 1000000000 /dev/zero; head -c 1000000000 /dev/zero >&2"))
    assert (result.stdout_bytes, result.stderr_bytes, result.truncated) == (10**9, 10**9, True)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(out.stdout) < 100_000


def test_capped_output_keeps_head_and_tail_and_cuts_no_character() -> None:
    for size in range(20, 60):
        text = ("aé漢\U0001f600" * 20)[:size].encode()
        output = CappedOutput(keep=32)
        for byte in range(0, len(text), 7):
            output.feed(text[byte : byte + 7])
        value = output.value()
        assert output.total == len(text)
        assert output.truncated == (len(text) > 32)
        if not output.truncated:
            assert value == text
            continue
        head, marker, tail = value.decode().partition("\n[... ")
        missing, _, tail = tail.partition(" bytes are missing here ...]\n")
        assert marker
        assert text.startswith(head.encode())
        assert text.endswith(tail.encode())
        assert len(head.encode()) + int(missing.replace(",", "")) + len(tail.encode()) == len(text)


# -- code ---------------------------------------------------------------------------------------------------------------


def code(sandbox: BackendSandbox, text: str, language: str = "python") -> CodeResult:
    result = sandbox.dispatch(BackendToolCodeRun(text, language))
    assert isinstance(result, CodeResult), result
    return result


def test_code_has_the_value_of_its_last_expression(sandbox: BackendSandbox) -> None:
    assert code(sandbox, "x = 20\nprint('hi')\nx * 2 + 2") == CodeResult("42", b"hi\n", b"", None)
    assert code(sandbox, "x = 1").text is None
    assert code(sandbox, "None").text is None
    assert code(sandbox, "'\\ud800é'").text == "'\\ud800é'"
    assert code(sandbox, "from __future__ import annotations\nimport sys\nsys.argv, __name__").text == "(['-c'], '__main__')"
    assert code(sandbox, "").error is None


def test_a_traceback_shows_the_programs_lines_and_nothing_else(sandbox: BackendSandbox) -> None:
    error = code(sandbox, "def f():\n    return 1 / 0\n\nf()").error or ""
    assert "return 1 / 0" in error
    assert '"<code>", line 2, in f' in error
    assert "boot" not in error
    assert "SyntaxError" in (code(sandbox, "x = = 1").error or "")
    assert code(sandbox, "import sys; sys.exit(3)").error == "exit code 3"
    assert code(sandbox, "exit 4", "sh").error == "exit code 4"


def test_code_imports_from_the_workspace_and_may_be_long(sandbox: BackendSandbox) -> None:
    sandbox.dispatch(BackendToolFilesWrite("helper.py", "VALUE = 7"))
    assert code(sandbox, "import helper\nhelper.VALUE").text == "7"
    assert code(sandbox, f"x = {'x' * 1_000_000!r}\nlen(x)").text == "1000000"


# -- copies and disks ---------------------------------------------------------------------------------------------------


def test_a_copy_keeps_modes_times_and_links_and_leaves_out_what_is_no_file(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    parent = Placement("local", str(work)).acquire()
    run(
        parent.open_blocking(),
        "mkdir -p d/ro; echo x > d/ro/f; chmod 640 d/ro/f; chmod 550 d/ro; ln -s /etc/passwd out; ln -s missing broken; "
        "mkfifo pipe; touch -d '2001-02-03 04:05:06.789' d/old; printf '' > 'strange\nname'",
    )
    copy = parent.placement.copy()
    child = copy.acquire()
    copy.freeze()
    there = Path(child.open_blocking().handle)
    assert there != work
    assert stat.S_IMODE(there.stat().st_mode) == 0o700
    assert stat.S_IMODE((there / "d/ro").stat().st_mode) == 0o550
    assert stat.S_IMODE((there / "d/ro/f").stat().st_mode) == 0o640
    assert (there / "d/old").stat().st_mtime_ns == (work / "d/old").stat().st_mtime_ns
    assert os.readlink(there / "out") == "/etc/passwd"
    assert os.readlink(there / "broken") == "missing"
    assert sorted(os.listdir(there)) == ["broken", "d", "out", "strange\nname"]
    parent.release()
    child.release()
    assert not there.exists()
    assert work.exists()


def test_a_copy_of_an_unused_given_directory_shares_no_file_with_it(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("start")
    parent = Placement("local", str(tmp_path)).acquire()
    copy = parent.placement.copy()
    child = copy.acquire()
    copy.freeze()
    child.dispatch_blocking(BackendToolFilesWrite("f", "child"))
    assert (tmp_path / "f").read_text() == "start"
    parent.dispatch_blocking(BackendToolFilesWrite("f", "parent"))
    answer = child.dispatch_blocking(BackendToolFilesRead("f"))
    assert getattr(answer, "data", None) == "child"
    child.release()
    parent.release()
    assert (tmp_path / "f").read_text() == "parent"


def test_a_copy_is_taken_while_a_program_writes_for_ever(sandbox: BackendSandbox) -> None:
    pid = int(run(sandbox, "yes > endless & echo $!").stdout)
    placement = Placement.of_sandbox(sandbox)
    copy = placement.copy()
    child = copy.acquire()
    start = time.monotonic()
    copy.freeze()
    child.open_blocking()
    assert time.monotonic() - start < within(20)
    assert alive(pid)
    os.kill(pid, signal.SIGKILL)
    child.release()


def test_a_write_that_does_not_fit_is_a_failure_and_leaves_nothing(sandbox: BackendSandbox) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        answers = [sandbox.dispatch(BackendToolFilesWrite("f", b"x" * size)) for size in (100_000, 1_000_000)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)
    assert all(isinstance(answer, ToolExecutionFailure) and answer.kind == "os_error" for answer in answers)
    assert os.listdir(sandbox.handle) == []

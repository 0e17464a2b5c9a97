"""A backend over the guest server does what every backend has to do, and what only those with a guest can."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rath.backend import registry
from rath.backend.guest.backend import GuestSandbox, Start
from rath.backend.lease import Placement
from rath.backend.spec import BackendSandboxSpec
from rath.backend.types import (
    BackendSandbox,
    BackendToolCodeRun,
    BackendToolCommandRun,
    BackendToolFilesList,
    BackendToolFilesRead,
    BackendToolFilesWrite,
    CodeResult,
    CommandResult,
    FileContent,
    FileEntries,
    ToolExecutionFailure,
)
from rath.core import ports
from rath.errors import SandboxBroken, SandboxError, SandboxUnavailable, UsageValueError
from rath.testing.pace import within
from rath.testing.sandbox import SandboxConformance
from tests.backend.guest.plain import OneUserBackend, PlainGuestBackend, PlainGuestSandbox

NAME = PlainGuestBackend.name


@pytest.mark.slow
class TestGuest(SandboxConformance):
    backend_name = NAME
    kills_setsid = os.geteuid() == 0


@pytest.mark.slow
class TestGuestOfOneUser(SandboxConformance):
    """As under an unprivileged user without marks: what hides from a kill may escape it."""

    backend_name = OneUserBackend.name
    kills_setsid = False


@pytest.fixture
def sandbox() -> Iterator[PlainGuestSandbox]:
    with registry.get(NAME).open() as opened:
        assert isinstance(opened, PlainGuestSandbox)
        yield opened


def run(sandbox: BackendSandbox, cmd: str) -> bytes:
    result = sandbox.dispatch(BackendToolCommandRun(cmd))
    assert isinstance(result, CommandResult), result
    assert result.exit_code == 0, result
    return result.stdout


def code(sandbox: BackendSandbox, source: str, language: str = "python") -> CodeResult:
    result = sandbox.dispatch(BackendToolCodeRun(source, language))
    assert isinstance(result, CodeResult), result
    return result


# -- commands ---------------------------------------------------------------------------------------------------------


def test_commands_have_an_environment_of_their_own(sandbox: BackendSandbox) -> None:
    env = dict(line.split("=", 1) for line in run(sandbox, "env").decode().splitlines())
    assert env.pop("HOME") == sandbox.handle
    assert (env["LANG"], env["TERM"], env["USER"], env["GIT_CONFIG_VALUE_0"]) == ("C.UTF-8", "dumb", "sandbox", "*")
    assert not env.keys() & os.environ.keys() - {"PATH", "LANG", "TERM", "USER", "PWD", "SHLVL", "_", "OLDPWD"}


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_works_in_a_workspace_of_another_user(sandbox: BackendSandbox) -> None:
    run(sandbox, "git init -q .")
    os.chown(Path(sandbox.handle) / ".git", 0, 0) if os.geteuid() == 0 else None
    run(sandbox, "git status --short")


@pytest.mark.parametrize("env", [{"": "x"}, {"A=B": "x"}, {"A": "x\0"}, {"A": 1}, {"A": "\ud800"}, {"\udfff\ud800": ""}])
def test_a_variable_that_cannot_be_is_a_failure(sandbox: BackendSandbox, env: dict[str, str]) -> None:
    failure = sandbox.dispatch(BackendToolCommandRun("true", env=env))
    assert isinstance(failure, ToolExecutionFailure)
    assert failure.kind == "invalid_tool_arguments"
    with pytest.raises(UsageValueError, match="env"):
        sandbox.backend.open(BackendSandboxSpec(env=env))
    assert sandbox.backend.sandbox_count() == 1


def test_an_environment_that_is_too_large_opens_nothing_and_says_so(sandbox: BackendSandbox) -> None:
    with pytest.raises(SandboxUnavailable, match="the environment has 30.,... bytes, and may have 262,144"):
        sandbox.backend.open(BackendSandboxSpec(env={f"V{n}": "x" * 1000 for n in range(300)}))
    assert sandbox.backend.sandbox_count() == 1


def test_half_of_a_surrogate_pair_is_a_failure_wherever_it_is(sandbox: BackendSandbox) -> None:
    half = "\ud800"
    for call in (
        BackendToolCommandRun(half), BackendToolCommandRun("cat", stdin=half), BackendToolCommandRun("true", cwd=half),
        BackendToolCodeRun(half, language="sh"), BackendToolFilesRead(half), BackendToolFilesWrite("f", half),
    ):  # fmt: skip
        assert isinstance(sandbox.dispatch(call), ToolExecutionFailure), call
    assert run(sandbox, "echo still good") == b"still good\n"


@pytest.mark.parametrize("timeout", [1e9, 1e300, float("inf")])
def test_a_time_limit_beyond_all_clocks_is_none(sandbox: BackendSandbox, timeout: float) -> None:
    ran = sandbox.dispatch(BackendToolCommandRun("echo done", timeout=timeout))
    assert isinstance(ran, CommandResult)
    assert ran.stdout == b"done\n"


@pytest.mark.slow
def test_a_directory_with_too_many_entries_for_a_list_is_a_failure_and_breaks_nothing(sandbox: PlainGuestSandbox) -> None:
    many = Path(sandbox.handle) / "many"
    many.mkdir()
    for n in range(100_001):
        os.mknod(many / f"{n}")
    failure = sandbox.dispatch(BackendToolFilesList("many"))
    assert isinstance(failure, ToolExecutionFailure)
    assert (failure.kind, "ls | head" in failure.message) == ("file_too_large", True)
    (many / "0").unlink()
    listed = sandbox.dispatch(BackendToolFilesList("many"))
    assert isinstance(listed, FileEntries)
    assert [entry.name for entry in listed.entries] == sorted(str(n) for n in range(1, 100_001))


def test_more_arguments_than_a_request_holds_are_a_failure_that_says_what_to_do(sandbox: BackendSandbox) -> None:
    failure = sandbox.dispatch(BackendToolCommandRun(["echo", *["x" * 1000] * 300]))
    assert isinstance(failure, ToolExecutionFailure)
    assert (failure.kind, "stdin" in failure.message) == ("invalid_tool_arguments", True)
    assert run(sandbox, "echo still good") == b"still good\n"


def test_an_output_is_cut_between_characters(sandbox: BackendSandbox) -> None:
    result = sandbox.dispatch(BackendToolCommandRun(f"yes é漢 | head -c {12 << 20}"))
    assert isinstance(result, CommandResult)
    assert result.truncated
    assert result.stdout_bytes == 12 << 20
    text = result.stdout.decode().strip("\n")
    head, tail = text.split("\n[... ")
    missing, tail = tail.split(" bytes are missing here ...]\n")
    assert set(head + tail) == set("é漢\n")
    assert len(result.stdout) - len(f"\n[... {missing} bytes are missing here ...]\n") + int(missing.replace(",", "")) == 12 << 20


# -- code -------------------------------------------------------------------------------------------------------------


def test_python_keeps_its_state_and_a_script_has_none(sandbox: BackendSandbox) -> None:
    assert code(sandbox, "x = 20 + 1").text is None
    result = code(sandbox, "print('seen')\nx * 2")
    assert (result.text, result.stdout, result.error, result.restarted) == ("42", b"seen\n", None, False)
    fresh = code(sandbox, "print('seen')\nx", "python-script")
    assert "NameError" in (fresh.error or "")
    assert code(sandbox, "6 * 7", "python-script").text == "42"
    assert code(sandbox, "echo $((6 * 7))", "sh").stdout == b"42\n"
    assert "exit code 3" in (code(sandbox, "exit 3", "sh").error or "")


def test_an_error_in_python_costs_no_state(sandbox: BackendSandbox) -> None:
    code(sandbox, "x = 1")
    failed = code(sandbox, "def f():\n    raise ValueError('oh no')\nf()")
    assert "ValueError: oh no" in (failed.error or "")
    assert failed.text is None
    assert code(sandbox, "x").text == "1"


def test_code_runs_one_after_the_other_in_the_order_of_the_calls(sandbox: BackendSandbox) -> None:
    async def many() -> list[object]:
        calls = [BackendToolCodeRun(f"import time; time.sleep(0.02); seen = globals().get('seen', []) + [{n}]\nseen") for n in range(8)]
        return list(await asyncio.gather(*(sandbox.perform(call) for call in calls)))

    results = ports.engine().run(many())
    assert [result.text for result in results] == [str(list(range(n + 1))) for n in range(8)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("end", ["import os; os._exit(3)", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"])
def test_the_end_of_the_interpreter_is_told_and_the_next_call_says_that_it_is_new(sandbox: BackendSandbox, end: str) -> None:
    code(sandbox, "x = 1")
    ended = code(sandbox, f"print('last words', flush=True)\n{end}")
    assert ended.stdout == b"last words\n"
    assert f"exit code {3 if 'exit(3)' in end else 137}" in (ended.error or "")
    again = code(sandbox, "'x' in globals()")
    assert (again.text, again.restarted) == ("False", True)
    assert not code(sandbox, "1").restarted


def test_an_interpreter_that_dies_between_two_calls_is_started_again(sandbox: BackendSandbox) -> None:
    pid = int(code(sandbox, "import os; os.getpid()").text or 0)
    run(sandbox, f"kill -9 {pid}; while kill -0 {pid} 2>/dev/null; do sleep .01; done")
    again = code(sandbox, "6 * 7")
    assert (again.text, again.error, again.restarted) == ("42", None, True)


def test_a_timeout_of_code_costs_the_state_and_says_so(sandbox: BackendSandbox) -> None:
    code(sandbox, "x = 1")
    failure = sandbox.dispatch(BackendToolCodeRun("print('so far', flush=True)\nimport time\ntime.sleep(30)", timeout=0.3))
    assert isinstance(failure, ToolExecutionFailure)
    assert failure.kind == "timeout"
    assert "state of earlier calls is gone" in failure.message
    assert "so far" in (failure.detail or "")
    assert code(sandbox, "1").restarted


@pytest.mark.slow
def test_cancelled_code_is_killed_and_the_next_call_says_that_the_interpreter_is_new(sandbox: BackendSandbox) -> None:
    async def cancel() -> None:
        call = BackendToolCodeRun("import time\nopen('begun', 'w').close()\ntime.sleep(1)\nopen('survived', 'w').close()")
        task = asyncio.create_task(sandbox.perform(call))
        for _ in range(1_000):
            if os.path.exists(os.path.join(sandbox.handle, "begun")):
                break
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    ports.engine().run(cancel())
    assert code(sandbox, "1").restarted
    time.sleep(1)
    assert not os.path.exists(os.path.join(sandbox.handle, "survived"))


def test_a_python_that_is_not_there_is_a_failure_each_time() -> None:
    class Without(PlainGuestBackend):
        async def _launch(self, spec: BackendSandboxSpec, start: Start) -> GuestSandbox:
            sandbox = await super()._launch(spec, start)
            sandbox.interpreter._python = "/no/python"
            return sandbox

    with Without().open() as sandbox:
        for _ in range(2):
            failure = sandbox.dispatch(BackendToolCodeRun("1"))
            assert isinstance(failure, ToolExecutionFailure)
            assert "/no/python" in failure.message
        assert run(sandbox, "echo still good") == b"still good\n"


def test_code_that_forges_answers_hurts_only_itself(sandbox: BackendSandbox) -> None:
    forge = "import os\nfor fd in range(3, 300):\n    try: os.write(fd, bytes([0, 0, 0, 3]) + b'lie')\n    except OSError: pass"
    result = sandbox.dispatch(BackendToolCodeRun(forge, timeout=5))
    assert isinstance(result, (CodeResult, ToolExecutionFailure))
    assert run(sandbox, "echo still good") == b"still good\n"


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_file_of_64_mib_is_read_and_a_larger_one_is_refused(sandbox: BackendSandbox) -> None:
    run(sandbox, f"truncate -s {64 << 20} fits; truncate -s {(64 << 20) + 1} large")
    fits = sandbox.dispatch(BackendToolFilesRead("fits", encoding=None))
    assert isinstance(fits, FileContent)
    assert len(fits.data) == 64 << 20
    failure = sandbox.dispatch(BackendToolFilesRead("large"))
    assert isinstance(failure, ToolExecutionFailure)
    assert failure.kind == "file_too_large"


@pytest.mark.slow
def test_a_list_of_many_names_is_whole(sandbox: BackendSandbox) -> None:
    from rath.backend.types import BackendToolFilesList, FileEntries

    run(sandbox, "mkdir d; cd d; seq 5000 | sed 's/$/-a-rather-long-name-for-a-file-that-is-only-one-of-many/' | xargs touch")
    listed = sandbox.dispatch(BackendToolFilesList("d"))
    assert isinstance(listed, FileEntries)
    assert len(listed.entries) == 5_000


# -- changes ----------------------------------------------------------------------------------------------------------


CHANGES = """
    printf 'a\\nb\\nchanged' > edit; rm gone; chmod +x mode; rm becomes_link; ln -s edit becomes_link; rm link; ln -s mode link
    mkdir -p new/deep; printf '1\\n2\\n' > new/deep/file; : > new/nothing; printf '\\0two' > blob; printf 'caf\\351' > latin
    truncate -s 10000000 big; printf x >> same_size; mkdir -p .git sub/node_modules __pycache__; echo x > .git/x
    echo x > sub/node_modules/x; echo x > m.pyc; ln -s nowhere dangling; ln edit second_name; touch -d @0 untouched
    printf 'y' | dd of=large conv=notrunc status=none; ln -s new to_dir; ln link second_link
"""


def start_of(top: Path) -> None:
    for name, content in {
        "edit": "a\nb\nc", "gone": "x\n", "mode": "#!/bin/sh\n", "becomes_link": "x\n", "untouched": "same\n", "é \"q\"\t": "x"
    }.items():  # fmt: skip
        (top / name).write_text(content)
    (top / "blob").write_bytes(b"\0one")
    (top / "same_size").write_bytes(b"")
    (top / "large").write_bytes(bytes(5_000_000))
    (top / "large_untouched").write_bytes(bytes(5_000_000))
    os.symlink("edit", top / "link")


def test_the_diff_is_the_same_as_the_local_backends(tmp_path: Path) -> None:
    start_of(tmp_path)
    diffs = []
    for name in (NAME, "local"):
        with registry.get(name).open(BackendSandboxSpec(workspace=tmp_path)) as sandbox:
            assert not ports.engine().run(sandbox.diff())
            run(sandbox, CHANGES)
            diffs.append(ports.engine().run(sandbox.diff()))
    assert diffs[0].modified == ("becomes_link", "blob", "edit", "large", "link", "mode", "same_size")
    assert diffs[0] == diffs[1]


def test_only_what_differs_is_fetched(tmp_path: Path) -> None:
    for n in range(40):
        (tmp_path / f"f{n}").write_bytes(os.urandom(500_000))
    with registry.get(NAME).open(BackendSandboxSpec(workspace=tmp_path)) as sandbox:
        run(sandbox, "echo small > new")
        assert isinstance(sandbox, PlainGuestSandbox)
        before = Path(f"/proc/{sandbox.server_pid}/io").read_text()
        assert ports.engine().run(sandbox.diff()).added == ("new",)
        after = Path(f"/proc/{sandbox.server_pid}/io").read_text()
    written = [int(text.split("wchar: ")[1].split()[0]) for text in (before, after)]
    assert written[1] - written[0] < 100_000


def test_a_copys_diff_starts_where_its_parents_does(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("start\n")
    parent = Placement(NAME, BackendSandboxSpec(workspace=tmp_path)).acquire()
    parent.dispatch_blocking(BackendToolFilesWrite("f", "parent\n"))
    copy = parent.placement.copy()
    child = copy.acquire()
    copy.freeze()
    child.dispatch_blocking(BackendToolCommandRun("echo child > g"))
    parent.release()
    diff = ports.engine().run(child.diff())
    assert (diff.added, diff.modified) == (("g",), ("f",))
    child.release()
    assert (tmp_path / "f").read_text() == "start\n"


def test_a_workspace_too_large_to_keep_has_no_diff_and_says_why(tmp_path: Path) -> None:
    with open(tmp_path / "large", "wb") as file:
        file.truncate((64 << 20) + 1)
    with registry.get(NAME).open(BackendSandboxSpec(workspace=tmp_path)) as sandbox:
        with pytest.raises(SandboxError, match="64 MiB"):
            ports.engine().run(sandbox.diff())


# -- the end ----------------------------------------------------------------------------------------------------------


def test_a_guest_that_dies_breaks_the_sandbox_at_once(sandbox: PlainGuestSandbox) -> None:
    async def kill_under_it() -> None:
        task = asyncio.create_task(sandbox.perform(BackendToolCommandRun("sleep 30")))
        await asyncio.sleep(0.2)
        os.kill(sandbox.server_pid, signal.SIGKILL)
        with pytest.raises(SandboxBroken, match="outcome"):
            await task

    start = time.monotonic()
    ports.engine().run(kill_under_it())
    assert time.monotonic() - start < within(2)
    with pytest.raises(SandboxBroken, match="broke earlier"):
        sandbox.dispatch(BackendToolCommandRun("true"))


def test_a_guest_that_dies_while_nobody_calls_breaks_the_sandbox_too(sandbox: PlainGuestSandbox) -> None:
    os.kill(sandbox.server_pid, signal.SIGKILL)
    sandbox.process.wait()
    time.sleep(0.1)
    with pytest.raises(SandboxBroken, match="broke earlier"):
        sandbox.dispatch(BackendToolCommandRun("true"))


@pytest.mark.slow
def test_a_guest_that_stands_still_breaks_the_sandbox_after_the_time_limit(sandbox: PlainGuestSandbox) -> None:
    server = Path(f"/proc/{sandbox.server_pid}")
    os.kill(sandbox.server_pid, signal.SIGSTOP)
    start = time.monotonic()
    with pytest.raises(SandboxBroken, match="in time"):
        sandbox.dispatch(BackendToolCommandRun("true", timeout=0.1))
    assert time.monotonic() - start < within(3)
    sandbox.process.wait(5)
    assert not server.exists()


def failing(where: Callable[[GuestSandbox], None]) -> type[PlainGuestBackend]:
    """A backend whose sandboxes fail after the launch."""

    class Failing(PlainGuestBackend):
        stopped: list[PlainGuestSandbox] = []  # noqa: RUF012 - one a class

        async def _ready(self, sandbox: GuestSandbox, said: dict[str, str]) -> None:
            where(sandbox)

        async def _stop(self, sandbox: GuestSandbox) -> None:
            await super()._stop(sandbox)
            assert isinstance(sandbox, PlainGuestSandbox)
            self.stopped.append(sandbox)

    return Failing


def test_nothing_is_left_of_a_sandbox_that_could_not_be_opened(tmp_path: Path) -> None:
    def fail(_sandbox: GuestSandbox) -> None:
        raise SandboxError("not today")

    backend = failing(fail)()
    with pytest.raises(SandboxError, match="not today"):
        backend.open(BackendSandboxSpec(workspace=tmp_path))
    (stopped,) = backend.stopped  # type: ignore[attr-defined]
    assert stopped.process.returncode == 0
    assert not os.path.exists(stopped.top)
    assert backend.sandbox_count() == 0


def test_a_guest_that_dies_while_it_opens_is_unavailable_and_gone() -> None:
    class Short(PlainGuestBackend):
        async def _launch(self, spec: BackendSandboxSpec, start: Start) -> GuestSandbox:
            sandbox = await super()._launch(spec, start)
            assert isinstance(sandbox, PlainGuestSandbox)
            os.kill(sandbox.server_pid, signal.SIGKILL)
            return sandbox

    backend = Short()
    with pytest.raises(SandboxUnavailable, match="could not be opened"):
        backend.open()
    assert backend.sandbox_count() == 0


@pytest.mark.slow
def test_64_commands_at_once_need_no_thread_and_no_task_each(sandbox: BackendSandbox) -> None:
    async def many() -> int:
        tasks = [asyncio.ensure_future(sandbox.perform(BackendToolCommandRun("sleep 0.3"))) for _ in range(64)]
        await asyncio.sleep(0.2)
        extra = len(asyncio.all_tasks()) - len(tasks)
        await asyncio.gather(*tasks)
        return extra

    assert ports.engine().run(many()) <= 2


OWNER = """
import os, signal, time
from rath.backend import registry
from tests.backend.guest.plain import PlainGuestBackend
sandbox = registry.get(PlainGuestBackend.name).open()
if os.fork() == 0:  # as a worker of multiprocessing, which outlives its parent
    os.closerange(1, 3)
    time.sleep(20)
    os._exit(0)
print(sandbox.process.pid, sandbox.top, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_guest_ends_with_its_owner_although_a_forked_child_lives_on() -> None:
    owner = subprocess.run([sys.executable, "-c", OWNER], capture_output=True, text=True, check=False, timeout=20)
    pid, top = owner.stdout.split()
    try:
        end = time.monotonic() + 3
        while os.path.exists(f"/proc/{pid}") and not _is_zombie(pid):
            assert time.monotonic() < end, "it lives on"
            time.sleep(0.01)
    finally:
        shutil.rmtree(top)


def _is_zombie(pid: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True

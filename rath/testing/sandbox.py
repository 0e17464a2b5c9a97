"""What every sandbox backend has to do, as tests: derive a class, name the backend, run pytest.

::

    class TestMyBackend(SandboxConformance):
        backend_name = "mine"

The tests need ``sh`` and the usual small tools (``cat head sleep printf mkfifo ln``) in the sandbox, and nothing else of it:
whether a process survived is seen by what it writes.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest

from rath.backend import registry
from rath.backend.lease import Lease, Placement
from rath.backend.types import (
    Backend,
    BackendSandbox,
    BackendSandboxSpec,
    BackendTool,
    BackendToolCodeRun,
    BackendToolCommandRun,
    BackendToolFilesExists,
    BackendToolFilesList,
    BackendToolFilesRead,
    BackendToolFilesWrite,
    CodeResult,
    CommandResult,
    FileContent,
    FileEntries,
    FileWriteResult,
    ToolExecutionFailure,
    ToolResult,
)
from rath.core import ports
from rath.errors import SandboxClosed, SandboxError
from rath.testing.pace import within

__all__ = ["SandboxConformance"]

T = TypeVar("T")

HOSTILE_PATHS = (
    "..",
    "../outside.txt",
    "sub/../../outside.txt",
    "/etc/passwd",
    "/proc/self/root/etc/passwd",
    "to_proc/etc/passwd",
    "to_root/etc/passwd",
    "to_above/outside.txt",
    "to_passwd",
    "dangling_outside",
    "dangling_outside/x",
)


class _Unheard(BackendTool):
    """A call that no backend knows."""


def on_engine(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine where backends run."""
    return ports.engine().run(work)


class SandboxConformance:
    """The suite. Set :attr:`backend_name`; override :meth:`make_spec` where the backend needs a spec."""

    backend_name: ClassVar[str]
    """The registered name."""
    kills_setsid: ClassVar[bool] = True
    """Whether a timeout kills descendants that left the command's session."""
    copies: ClassVar[bool] = True
    """Whether the backend can copy a workspace."""
    diffs: ClassVar[bool] = True
    """Whether the backend can tell what changed."""
    transfers: ClassVar[bool] = True
    """Whether the backend copies directories in and out."""

    def make_spec(self) -> BackendSandboxSpec:
        """The spec that sandboxes are opened with."""
        return BackendSandboxSpec()

    @pytest.fixture
    def backend(self) -> Backend:
        return registry.get(self.backend_name)

    @pytest.fixture
    def sandbox(self, backend: Backend) -> Iterator[BackendSandbox]:
        with backend.open(self.make_spec()) as opened:
            yield opened

    def run(self, sandbox: BackendSandbox, cmd: Any, **more: Any) -> CommandResult:
        """A command that ends by itself."""
        result = sandbox.dispatch(BackendToolCommandRun(cmd, **more))
        assert isinstance(result, CommandResult), result
        return result

    def fail(self, result: ToolResult | bool, *kinds: str) -> ToolExecutionFailure:
        """The failure that a call ended with."""
        assert isinstance(result, ToolExecutionFailure), result
        assert not kinds or result.kind in kinds, result
        assert result.message
        return result

    def write(self, sandbox: BackendSandbox, path: str, data: bytes | str) -> None:
        result = sandbox.dispatch(BackendToolFilesWrite(path, data))
        assert isinstance(result, FileWriteResult), result

    def read(self, sandbox: BackendSandbox, path: str) -> bytes:
        result = sandbox.dispatch(BackendToolFilesRead(path, encoding=None))
        assert isinstance(result, FileContent), result
        assert isinstance(result.data, bytes)
        return result.data

    def there(self, sandbox: BackendSandbox, path: str) -> bool:
        answer = sandbox.dispatch(BackendToolFilesExists(path))
        assert isinstance(answer, bool), answer
        return answer

    async def appears(self, sandbox: BackendSandbox, path: str) -> None:
        for _ in range(1000):
            if await sandbox.perform(BackendToolFilesExists(path)) is True:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{path} did not appear")

    # -- commands -----------------------------------------------------------------------------------------------------

    def test_a_command_answers_with_exit_code_and_both_outputs(self, sandbox: BackendSandbox) -> None:
        result = self.run(sandbox, "echo out; echo err >&2; exit 7")
        assert (result.exit_code, result.stdout, result.stderr) == (7, b"out\n", b"err\n")
        assert result.elapsed_ms >= 0

    def test_a_line_goes_through_the_shell_and_a_list_does_not(self, sandbox: BackendSandbox) -> None:
        assert self.run(sandbox, "echo a; echo $((1 + 2)) | cat").stdout == b"a\n3\n"
        assert self.run(sandbox, ["echo", "$HOME; `id` *"]).stdout == b"$HOME; `id` *\n"

    def test_a_program_that_is_not_there_is_a_failure(self, sandbox: BackendSandbox) -> None:
        self.fail(sandbox.dispatch(BackendToolCommandRun(["/no/such/program"])))

    def test_death_by_signal_is_128_plus_its_number(self, sandbox: BackendSandbox) -> None:
        assert self.run(sandbox, "kill -9 $$").exit_code == 137

    @pytest.mark.parametrize("cmd", ["", []])
    def test_an_empty_command_does_no_harm(self, sandbox: BackendSandbox, cmd: Any) -> None:
        result = sandbox.dispatch(BackendToolCommandRun(cmd))
        assert isinstance(result, (CommandResult, ToolExecutionFailure))

    def test_a_nul_character_in_a_command_is_a_failure(self, sandbox: BackendSandbox) -> None:
        self.fail(sandbox.dispatch(BackendToolCommandRun(["echo", "a\0b"])))

    def test_call_env_wins_over_spec_env(self, backend: Backend) -> None:
        spec = replace(self.make_spec(), env={"A": "spec", "B": "spec"})
        with backend.open(spec) as sandbox:
            assert self.run(sandbox, "echo $A $B $C", env={"B": "call", "C": "é"}).stdout == "spec call é\n".encode()

    def test_nothing_secret_of_the_host_reaches_a_command(
        self, sandbox: BackendSandbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CONFORMANCE_API_KEY", "sk-conformance")
        assert b"sk-conformance" not in self.run(sandbox, "env").stdout

    def test_cwd_is_a_directory_of_the_workspace(self, sandbox: BackendSandbox) -> None:
        self.write(sandbox, "sub/deep/file", "here")
        assert self.run(sandbox, "cat file", cwd="sub/deep").stdout == b"here"
        self.fail(sandbox.dispatch(BackendToolCommandRun("pwd", cwd="missing")))
        for outside in ("..", "/etc", "sub/../.."):
            self.fail(sandbox.dispatch(BackendToolCommandRun("pwd", cwd=outside)), "path_outside_workspace")

    def test_stdin_is_what_was_given_or_empty(self, sandbox: BackendSandbox) -> None:
        assert self.run(sandbox, "cat", stdin=b"\x00\xffdata").stdout == b"\x00\xffdata"
        assert self.run(sandbox, "cat").stdout == b""
        assert self.run(sandbox, "wc -c", stdin=b"x" * 1_000_000).stdout.strip() == b"1000000"
        assert self.run(sandbox, "exit 3", stdin=b"x" * 1_000_000).exit_code == 3

    # -- time ---------------------------------------------------------------------------------------------------------

    def test_a_timeout_ends_the_whole_tree_and_keeps_the_output_so_far(self, sandbox: BackendSandbox) -> None:
        inner = "sh -c '(sleep .8; touch survivor2) & wait'"
        tree = f"(sleep .8; touch survivor1) & {inner} & echo so far; wait; touch survivor3"
        start = time.monotonic()
        failure = self.fail(sandbox.dispatch(BackendToolCommandRun(tree, timeout=0.4)), "timeout")
        assert time.monotonic() - start < within(2.4)
        assert "0.4" in failure.message
        assert "so far" in (failure.detail or "")
        time.sleep(0.6)
        assert not [n for n in (1, 2, 3) if self.there(sandbox, f"survivor{n}")]
        assert self.run(sandbox, "echo still good").stdout == b"still good\n"

    def test_a_timeout_ends_what_left_the_session_too(self, sandbox: BackendSandbox) -> None:
        if not self.kills_setsid:
            pytest.skip("this backend says that it cannot")
        self.fail(sandbox.dispatch(BackendToolCommandRun("setsid sh -c 'sleep .8; touch survivor'", timeout=0.4)), "timeout")
        time.sleep(0.6)
        assert not self.there(sandbox, "survivor")

    def test_a_timeout_ends_what_ignores_being_asked(self, sandbox: BackendSandbox) -> None:
        start = time.monotonic()
        deaf = BackendToolCommandRun("trap '' TERM INT HUP; sleep 30; sleep 30", timeout=0.3)
        self.fail(sandbox.dispatch(deaf), "timeout")
        assert time.monotonic() - start < within(2.3)

    def test_the_specs_timeout_is_the_default(self, backend: Backend) -> None:
        spec = replace(self.make_spec(), timeout=timedelta(seconds=0.3))
        with backend.open(spec) as sandbox:
            self.fail(sandbox.dispatch(BackendToolCommandRun("sleep 30")), "timeout")
            assert self.run(sandbox, "sleep 0.4; echo done", timeout=20).stdout == b"done\n"

    def test_a_timeout_that_is_none_is_a_failure(self, sandbox: BackendSandbox) -> None:
        self.fail(sandbox.dispatch(BackendToolCommandRun("true", timeout=0)), "invalid_tool_arguments")

    def test_a_background_process_does_not_hold_its_call(self, sandbox: BackendSandbox) -> None:
        start = time.monotonic()
        assert self.run(sandbox, "sleep 20 & echo started").stdout == b"started\n"
        assert time.monotonic() - start < within(2)

    def test_a_cancelled_call_ends_its_tree(self, sandbox: BackendSandbox) -> None:
        async def cancel() -> None:
            task = asyncio.create_task(
                sandbox.perform(BackendToolCommandRun("touch begun; (sleep 0.6; touch survivor) & wait"))
            )
            await self.appears(sandbox, "begun")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        on_engine(cancel())
        time.sleep(0.7)
        assert not self.there(sandbox, "survivor")
        assert self.run(sandbox, "echo still good").stdout == b"still good\n"

    def test_calls_of_one_sandbox_overlap(self, sandbox: BackendSandbox) -> None:
        async def sleepers() -> None:
            await asyncio.gather(*(sandbox.perform(BackendToolCommandRun("sleep 0.5")) for _ in range(20)))

        start = time.monotonic()
        on_engine(sleepers())
        assert time.monotonic() - start < within(5)  # one after the other: 10

    # -- output -------------------------------------------------------------------------------------------------------

    def test_a_flood_keeps_head_and_tail_and_is_counted_exactly(self, sandbox: BackendSandbox) -> None:
        result = self.run(sandbox, "echo first; head -c 20000000 /dev/zero; echo; echo last; echo small >&2")
        assert result.truncated
        assert result.stdout_bytes == 20_000_000 + len("first\n\nlast\n")
        assert (result.stderr, result.stderr_bytes) == (b"small\n", 6)
        assert result.stdout.startswith(b"first\n")
        assert result.stdout.endswith(b"\nlast\n")
        assert b"missing" in result.stdout
        assert len(result.stdout) < 5_000_000

    def test_output_below_the_cap_is_whole(self, sandbox: BackendSandbox) -> None:
        result = self.run(sandbox, "head -c 200000 /dev/zero")
        assert not result.truncated
        assert result.stdout == bytes(200_000)

    # -- code ---------------------------------------------------------------------------------------------------------

    def test_code_answers_with_output_and_error(self, sandbox: BackendSandbox) -> None:
        result = sandbox.dispatch(BackendToolCodeRun("print('hello')\nopen('made.txt', 'w').write('x')"))
        assert isinstance(result, CodeResult), result
        assert (result.stdout, result.error) == (b"hello\n", None)
        assert self.there(sandbox, "made.txt")
        broken = sandbox.dispatch(BackendToolCodeRun("x = 1\nraise ValueError('oh no')"))
        assert isinstance(broken, CodeResult)
        assert "ValueError: oh no" in (broken.error or "")

    def test_code_can_time_out(self, sandbox: BackendSandbox) -> None:
        failure = self.fail(
            sandbox.dispatch(BackendToolCodeRun("print('so far')\nimport time\ntime.sleep(30)", timeout=0.7)), "timeout"
        )
        assert "so far" in (failure.detail or "")

    def test_a_language_nobody_knows_is_a_failure(self, sandbox: BackendSandbox) -> None:
        self.fail(sandbox.dispatch(BackendToolCodeRun("x", language="klingon")), "unsupported_tool")

    def test_a_call_nobody_knows_is_a_failure(self, sandbox: BackendSandbox) -> None:
        self.fail(sandbox.dispatch(_Unheard()), "unsupported_tool")

    # -- files --------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("data", ["", "text\n", "é漢\U0001f600", b"\x00\xff\r\n", b"x" * 3_000_000])
    def test_what_is_written_is_what_is_read(self, sandbox: BackendSandbox, data: bytes | str) -> None:
        raw = data.encode() if isinstance(data, str) else data
        written = sandbox.dispatch(BackendToolFilesWrite("a/b/file", data))
        assert written == FileWriteResult(len(raw))
        assert self.read(sandbox, "a/b/file") == raw
        if isinstance(data, str):
            assert sandbox.dispatch(BackendToolFilesRead("a/b/file")) == FileContent(data)
        assert self.run(sandbox, "wc -c < a/b/file").stdout.strip() == str(len(raw)).encode()

    @pytest.mark.parametrize("name", ["new\nline", " space ", "-rf", "quote'\"", "caf\udce9", "é", "a\\b", "*"])
    def test_strange_names_are_only_names(self, sandbox: BackendSandbox, name: str) -> None:
        self.write(sandbox, f"dir/{name}", name.encode("utf-8", "surrogateescape"))
        listed = sandbox.dispatch(BackendToolFilesList("dir"))
        assert isinstance(listed, FileEntries)
        assert [entry.name for entry in listed.entries] == [name]
        assert self.read(sandbox, listed.entries[0].path) == name.encode("utf-8", "surrogateescape")
        assert self.there(sandbox, f"dir/{name}")

    def test_a_write_sets_the_mode_and_replaces_what_was_there(self, sandbox: BackendSandbox) -> None:
        assert sandbox.dispatch(BackendToolFilesWrite("run.sh", "#!/bin/sh\necho ran\n", mode=0o755)) == FileWriteResult(19)
        assert self.run(sandbox, ["./run.sh"]).stdout == b"ran\n"
        self.write(sandbox, "run.sh", "short")
        assert self.read(sandbox, "run.sh") == b"short"

    def test_a_list_is_sorted_and_its_paths_can_be_passed_back(self, sandbox: BackendSandbox) -> None:
        for name in ("c", "a", "b/inner"):
            self.write(sandbox, f"top/{name}", name)
        listed = sandbox.dispatch(BackendToolFilesList("top"))
        assert isinstance(listed, FileEntries)
        assert [(e.name, e.is_dir) for e in listed.entries] == [("a", False), ("b", True), ("c", False)]
        below = sandbox.dispatch(BackendToolFilesList(listed.entries[1].path))
        assert isinstance(below, FileEntries)
        assert self.read(sandbox, below.entries[0].path) == b"b/inner"
        whole = sandbox.dispatch(BackendToolFilesList("."))
        assert isinstance(whole, FileEntries)
        assert "top" in [entry.name for entry in whole.entries]

    def test_what_is_missing_or_of_another_kind_is_a_failure(self, sandbox: BackendSandbox) -> None:
        self.write(sandbox, "dir/file", "x")
        self.fail(sandbox.dispatch(BackendToolFilesRead("missing")), "file_not_found")
        self.fail(sandbox.dispatch(BackendToolFilesList("missing")), "file_not_found")
        self.fail(sandbox.dispatch(BackendToolFilesRead("dir")), "is_directory")
        self.fail(sandbox.dispatch(BackendToolFilesWrite("dir", "x")), "is_directory")
        self.fail(sandbox.dispatch(BackendToolFilesList("dir/file")), "not_a_directory")
        self.fail(sandbox.dispatch(BackendToolFilesRead("a\0b")), "invalid_tool_arguments")
        assert not self.there(sandbox, "missing")
        assert self.there(sandbox, "dir")
        assert self.there(sandbox, "dir/file")

    def test_text_in_another_encoding_is_a_failure_that_says_so(self, sandbox: BackendSandbox) -> None:
        self.write(sandbox, "latin", b"caf\xe9")
        self.fail(sandbox.dispatch(BackendToolFilesRead("latin")), "decode_error")
        assert sandbox.dispatch(BackendToolFilesRead("latin", encoding="latin-1")) == FileContent("café")
        self.fail(sandbox.dispatch(BackendToolFilesRead("latin", encoding="no-such")), "invalid_tool_arguments")

    def test_a_pipe_is_not_waited_for(self, sandbox: BackendSandbox) -> None:
        self.run(sandbox, "mkfifo pipe")
        self.fail(sandbox.dispatch(BackendToolFilesRead("pipe")), "not_a_file")
        self.fail(sandbox.dispatch(BackendToolFilesWrite("pipe", "x")), "not_a_file")

    def hostile(self, sandbox: BackendSandbox) -> None:
        self.run(
            sandbox,
            "mkdir sub; ln -s / to_root; ln -s /proc/self/root to_proc; ln -s .. to_above; ln -s /etc/passwd to_passwd; "
            "ln -s ../outside.txt dangling_outside",
        )

    @pytest.mark.parametrize("path", HOSTILE_PATHS)
    def test_no_path_leads_out(self, sandbox: BackendSandbox, path: str) -> None:
        self.hostile(sandbox)
        for call in (
            BackendToolFilesRead(path),
            BackendToolFilesWrite(path, "escaped"),
            BackendToolFilesList(path),
            BackendToolFilesExists(path),
        ):
            self.fail(sandbox.dispatch(call), "path_outside_workspace")
        assert self.run(sandbox, "test -e ../outside.txt").exit_code == 1

    def test_a_swap_during_the_call_does_not_lead_out(self, sandbox: BackendSandbox) -> None:
        outside = self.run(sandbox, "mktemp -d /tmp/outside-XXXXXX").stdout.decode().strip()
        self.run(sandbox, f"echo secret > {outside}/file; mkdir dir; echo inside > dir/file; ln -s {outside} evil")
        swap = "while [ ! -e stop ]; do mv -T dir aside; mv -T evil dir; mv -T dir evil; mv -T aside dir; done"
        swapping = sandbox.stream().submit(BackendToolCommandRun(swap, timeout=30))
        end = time.monotonic() + 1.0
        seen = 0
        while time.monotonic() < end:
            read = sandbox.dispatch(BackendToolFilesRead("dir/file"))
            assert not isinstance(read, FileContent) or read.data in ("inside\n", "tool"), read
            sandbox.dispatch(BackendToolFilesWrite("dir/file", "tool"))
            sandbox.dispatch(BackendToolFilesWrite("dir/made/below", "tool"))
            listed = sandbox.dispatch(BackendToolFilesList("dir"))
            assert not isinstance(listed, FileEntries) or {e.name for e in listed.entries} <= {"file", "made"} | {
                e.name for e in listed.entries if e.name.startswith(".rath-")
            }
            seen += isinstance(read, FileContent)
        self.write(sandbox, "stop", "")
        swapping.result(30)
        assert seen, "the race was never run"
        assert self.run(sandbox, f"cat {outside}/file; ls {outside}").stdout == b"secret\nfile\n"
        self.run(sandbox, f"rm -rf {outside}")

    def test_a_write_to_a_hard_link_leaves_the_other_name_alone(self, sandbox: BackendSandbox) -> None:
        self.run(sandbox, "mkdir a b; echo before > a/file; ln a/file b/file")
        self.write(sandbox, "b/file", "after")
        assert self.read(sandbox, "a/file") == b"before\n"

    def test_links_in_a_circle_are_a_failure(self, sandbox: BackendSandbox) -> None:
        self.run(sandbox, "ln -s b a; ln -s a b")
        self.fail(sandbox.dispatch(BackendToolFilesRead("a")), "os_error")
        self.fail(sandbox.dispatch(BackendToolFilesWrite("a/x", "")), "os_error")

    def test_links_inside_are_followed(self, sandbox: BackendSandbox) -> None:
        self.write(sandbox, "real/file", "x")
        self.run(sandbox, "ln -s real link; ln -s real/file to_file; ln -s ../real/new real/to_new")
        assert self.read(sandbox, "link/file") == b"x"
        self.write(sandbox, "to_file", "y")
        assert self.read(sandbox, "real/file") == b"y"
        self.write(sandbox, "real/to_new", "z")
        assert self.read(sandbox, "real/new") == b"z"
        assert self.read(sandbox, "real/../to_file") == b"y"
        listed = sandbox.dispatch(BackendToolFilesList("."))
        assert isinstance(listed, FileEntries)
        assert {e.name: e.is_dir for e in listed.entries} == {"link": True, "real": True, "to_file": False}

    # -- files of the host --------------------------------------------------------------------------------------------

    def make_tree(self, top: Path) -> Path:
        """A directory with something of everything."""
        if not self.transfers:
            pytest.skip("this backend says that it cannot")
        (top / "deep" / "empty").mkdir(parents=True)
        (top / "deep" / "text é\n.txt").write_text("one\ntwo\n")
        (top / "blob").write_bytes(os.urandom(300_000) + bytes(100_000))
        (top / "none").touch()
        (top / "tool").write_text("#!/bin/sh\necho ran\n")
        (top / "tool").chmod(0o755)
        (top / "link").symlink_to("deep/text")
        os.mkfifo(top / "pipe")
        return top

    def tree(self, top: Path) -> dict[str, object]:
        """What is in a directory, for comparison."""
        found: dict[str, object] = {}
        for path in top.rglob("*"):
            name = str(path.relative_to(top))
            if path.is_symlink():
                found[name] = os.readlink(path)
            elif path.is_file():
                found[name] = (path.read_bytes(), path.stat().st_mode & 0o777, int(path.stat().st_mtime))
            elif path.is_dir():
                found[name] = None
        return found

    def test_a_directory_goes_in_and_comes_out_the_same(self, sandbox: BackendSandbox, tmp_path: Path) -> None:
        source = self.make_tree(tmp_path / "source")
        on_engine(sandbox.upload(str(source), "in"))
        assert self.run(sandbox, "./tool; cat deep/*.txt", cwd="in").stdout == b"ran\none\ntwo\n"
        on_engine(sandbox.download("in", str(tmp_path / "out")))
        assert self.tree(tmp_path / "out") == self.tree(source)
        self.run(sandbox, "echo changed > in/none; rm in/blob")
        on_engine(sandbox.upload(str(source), "in"))
        (tmp_path / "again").mkdir()
        on_engine(sandbox.download("in", str(tmp_path / "again")))
        assert self.tree(tmp_path / "again") == self.tree(source)
        with pytest.raises(SandboxError, match="not empty"):
            on_engine(sandbox.download("in", str(tmp_path / "again")))

    def test_a_file_goes_in_and_comes_out_the_same(self, sandbox: BackendSandbox, tmp_path: Path) -> None:
        source = self.make_tree(tmp_path / "source")
        on_engine(sandbox.upload(str(source / "tool"), "new/place/tool"))
        assert self.run(sandbox, "new/place/tool").stdout == b"ran\n"
        (tmp_path / "tool").write_text("before")
        on_engine(sandbox.download("new/place/tool", str(tmp_path / "tool")))
        assert (tmp_path / "tool").read_text() == "#!/bin/sh\necho ran\n"
        assert (tmp_path / "tool").stat().st_mode & 0o777 == 0o755

    def test_what_is_not_there_or_no_file_is_no_transfer(self, sandbox: BackendSandbox, tmp_path: Path) -> None:
        source = self.make_tree(tmp_path / "source")
        self.run(sandbox, "mkfifo pipe")
        before = set(tmp_path.iterdir())
        for path in ("missing", "pipe"):
            with pytest.raises(SandboxError, match=path):
                on_engine(sandbox.download(path, str(tmp_path / "out")))
        for wrong in (tmp_path / "missing", source / "pipe"):
            with pytest.raises(SandboxError, match=wrong.name):
                on_engine(sandbox.upload(str(wrong), "in"))
        assert not (tmp_path / "out").exists()
        assert set(tmp_path.iterdir()) == before

    @pytest.mark.parametrize("path", HOSTILE_PATHS)
    def test_no_transfer_leads_out(self, sandbox: BackendSandbox, tmp_path: Path, path: str) -> None:
        source = self.make_tree(tmp_path / "source")
        self.hostile(sandbox)
        with pytest.raises(SandboxError):
            on_engine(sandbox.download(path, str(tmp_path / "out")))
        assert not (tmp_path / "out").exists()
        for what in (source, source / "tool"):
            with pytest.raises(SandboxError):
                on_engine(sandbox.upload(str(what), f"{path}/below" if path != ".." else "../below"))
        assert self.run(sandbox, "ls -d ../below ../outside.txt /below").exit_code != 0

    # -- holding ------------------------------------------------------------------------------------------------------

    def test_64_racing_openers_open_one_sandbox(self, backend: Backend) -> None:
        before = backend.sandbox_count()
        placement = Placement(self.backend_name, self.make_spec())
        leases = [placement.acquire() for _ in range(64)]
        opened: list[BackendSandbox] = []
        start = threading.Barrier(64)

        def open_one(lease: Lease) -> None:
            start.wait()
            opened.append(lease.open_blocking())

        threads = [threading.Thread(target=open_one, args=(lease,)) for lease in leases]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(opened) == 64
        assert len({id(sandbox) for sandbox in opened}) == 1
        assert opened[0].refcount == 64
        assert backend.sandbox_count() == before + 1
        for lease in leases:
            lease.release()
        assert opened[0].closed
        assert backend.sandbox_count() == before

    def test_the_last_release_closes_and_closed_is_for_good(self, backend: Backend) -> None:
        sandbox = backend.open(self.make_spec())
        assert sandbox.refcount == 0
        with sandbox, sandbox:
            assert sandbox.refcount == 2
        assert sandbox.closed
        for use in (sandbox.acquire, lambda: sandbox.dispatch(BackendToolCommandRun("true"))):
            with pytest.raises(SandboxClosed, match="place the session again"):
                use()
        backend.close(sandbox)
        sandbox.release()

    def test_close_ends_what_still_runs(self, backend: Backend) -> None:
        sandbox = backend.open(self.make_spec())
        call = BackendToolCommandRun("touch begun; sleep 60")

        async def close_under_it() -> None:
            task = asyncio.create_task(sandbox.perform(call))
            await self.appears(sandbox, "begun")
            await sandbox.shut()
            with pytest.raises(SandboxClosed):
                await task

        start = time.monotonic()
        on_engine(close_under_it())
        assert time.monotonic() - start < within(10)
        assert sandbox.closed

    # -- copies and changes -------------------------------------------------------------------------------------------

    def _copied(self, parent: Placement) -> Lease:
        if not self.copies:
            if parent.sandbox is not None:
                parent.sandbox.backend.close(parent.sandbox)
            pytest.skip("this backend says that it cannot")
        child = parent.copy()
        lease = child.acquire()
        child.freeze()
        return lease

    def test_a_copy_and_its_parent_go_their_own_ways(self, backend: Backend) -> None:
        parent = Placement(self.backend_name, self.make_spec()).acquire()
        sandbox = parent.open_blocking()
        self.run(sandbox, "mkdir d; ln -s d l; echo before > d/file")
        sandbox.dispatch(BackendToolFilesWrite("tool", "#!/bin/sh\necho ran\n", mode=0o755))
        lease = self._copied(parent.placement)
        parent.dispatch_blocking(BackendToolFilesWrite("d/file", "parent"))
        parent.dispatch_blocking(BackendToolFilesWrite("only_parent", "x"))
        child = lease.open_blocking()
        assert self.read(child, "d/file") == b"before\n"
        assert self.read(child, "l/file") == b"before\n"
        assert self.run(child, ["./tool"]).stdout == b"ran\n"
        assert not self.there(child, "only_parent")
        self.write(child, "d/file", "child")
        assert self.read(sandbox, "d/file") == b"parent"
        parent.release()
        assert sandbox.closed
        assert self.read(child, "d/file") == b"child"
        lease.release()
        assert child.closed

    def test_the_copy_of_an_unused_placement_is_its_own(self, backend: Backend) -> None:
        parent = Placement(self.backend_name, self.make_spec()).acquire()
        lease = self._copied(parent.placement)
        self.write(lease.open_blocking(), "child", "x")
        assert not self.there(parent.open_blocking(), "child")
        self.write(parent.open_blocking(), "parent", "x")
        assert not self.there(lease.open_blocking(), "parent")
        lease.release()
        parent.release()

    def test_a_freeze_is_quick_and_comes_before_any_later_call(self, backend: Backend) -> None:
        parent = Placement(self.backend_name, self.make_spec()).acquire()
        self.write(parent.open_blocking(), "n", "0")
        leases = []
        for n in range(1, 6):
            leases.append(self._copied(parent.placement))
            parent.dispatch_blocking(BackendToolFilesWrite("n", str(n)))
        assert [self.read(lease.open_blocking(), "n") for lease in leases] == [b"0", b"1", b"2", b"3", b"4"]
        for lease in [*leases, parent]:
            lease.release()

    def test_the_diff_names_what_changed(self, sandbox: BackendSandbox) -> None:
        if not self.diffs:
            pytest.skip("this backend says that it cannot")
        assert not on_engine(sandbox.diff())
        self.write(sandbox, "sub/new.txt", "one\ntwo\n")
        self.write(sandbox, "blob", os.urandom(8) + b"\0")
        diff = on_engine(sandbox.diff())
        assert diff
        assert (diff.added, diff.removed, diff.modified) == (("blob", "sub/new.txt"), (), ())
        assert diff.binary == ("blob",)
        assert "+++ b/sub/new.txt" in str(diff)
        assert "+two" in diff.text

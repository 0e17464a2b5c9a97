"""How commands end when somebody ends them, and what they say when they cannot begin."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rath.session.chunk import user_text_chunk
from rath.session.persistence.reader import load_session
from rath.session.persistence.writer import SessionWriter
from rath.session.session import Session
from tests.cli.support import Ran, command, environment, rath, start_rath, write_script
from tests.persistence.samples import rechained, records, write_sample

RathHere = Callable[..., Ran]


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


@pytest.fixture
def slow(tmp_path: Path) -> list[str]:
    """Arguments of a run whose tool writes its pid and sleeps."""
    (tmp_path / "my work").mkdir()
    model = write_script(
        tmp_path / "s.json",
        {"tool_calls": [call("run_shell_command", cmd="echo $$ > pid; exec sleep 300")]},
        "Never said.",
    )
    return ["run", "Go", "--model", model, "--workspace", "my work", "--backend", "local"]


def _pid(file: Path) -> int:
    deadline = time.monotonic() + 20
    while not (file.exists() and file.read_text().strip()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return int(file.read_text())


def _is_gone(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_run_that_is_terminated_kills_its_tool_and_leaves_an_open_log(
    tmp_path: Path, slow: list[str], number: int, code: int
) -> None:
    process = start_rath(tmp_path, *slow)
    pid = _pid(tmp_path / "my work" / "pid")
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert "cancelled" in out
    assert _is_gone(pid)
    [log] = (tmp_path / ".openrath" / "sessions").glob("*.jsonl")
    assert load_session(log.stem, path=log).verdict == "open"


@pytest.mark.slow
def test_a_terminated_run_of_branches_leaves_no_copies_and_no_children(tmp_path: Path, slow: list[str]) -> None:
    (tmp_path / "tmp").mkdir()
    slow[3] = write_script(tmp_path / "b.json", {"tool_calls": [call("run_shell_command", cmd=f"echo $$ > {tmp_path}/pid; exec sleep 300")]})
    process = start_rath(tmp_path, *slow, "--branches", "2", "--json", env={"TMPDIR": str(tmp_path / "tmp")})
    pid = _pid(tmp_path / "pid")
    process.send_signal(signal.SIGTERM)
    _out, err = process.communicate(timeout=20)
    assert process.returncode == 143, err
    assert _is_gone(pid)
    assert os.listdir(tmp_path / "tmp") == []


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_demo_that_is_terminated_leaves_nothing_behind(tmp_path: Path, number: int, code: int) -> None:
    (tmp_path / "tmp").mkdir()
    with start_rath(tmp_path, "demo", "--speed", "0.6", env={"TMPDIR": str(tmp_path / "tmp")}) as process:
        assert process.stdout is not None
        while "[quick edit] turn 1" not in (line := process.stdout.readline()):
            assert line
        process.send_signal(number)
        _out, err = process.communicate(timeout=20)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert len(re.findall(r"\S+\.jsonl", err)) == 4
    assert os.listdir(tmp_path / "tmp") == []


@pytest.mark.slow
@pytest.mark.parametrize("arguments", ["sessions list", "sessions list --json", "doctor", "--help", "sessions show 0 --full"])
def test_a_reader_that_left_is_exit_code_141(tmp_path: Path, arguments: str) -> None:
    path = tmp_path / ".openrath" / "sessions" / "x.jsonl"
    path.parent.mkdir(parents=True)
    session = write_sample(path)
    path.rename(path.with_name(f"{session.id}.jsonl"))
    words = [str(session.id) if word == "0" else word for word in arguments.split()]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        command(words), cwd=tmp_path, env=environment(tmp_path), stdout=write, stderr=subprocess.PIPE, timeout=40, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.slow
def test_a_run_whose_reader_left_is_stopped_with_its_children(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    model = write_script(
        tmp_path / "s.json",
        {"tool_calls": [call("run_shell_command", cmd="echo 1")], "latency_s": 0.5},
        {"tool_calls": [call("run_shell_command", cmd="echo $$ > pid; exec sleep 300")]},
    )
    process = start_rath(tmp_path, "run", "Go", "--model", model, "--workspace", "work", "--backend", "local")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(20) == 141
    assert process.stderr.read() == ""
    process.stderr.close()
    pid = tmp_path / "work" / "pid"
    assert not pid.exists() or _is_gone(int(pid.read_text()))


# -- what is said -------------------------------------------------------------------------------------------------------


def test_a_workspace_with_a_space_is_quoted_in_the_line_to_copy(tmp_path: Path, rath_here: RathHere) -> None:
    workspace = tmp_path / "my work"
    workspace.mkdir()
    (workspace / "a.txt").write_text("old\n")
    model = write_script(
        tmp_path / "s.json", {"tool_calls": [call("edit_workspace_file", path="a.txt", old="old", new="new")]}, "Done."
    )
    ran = rath_here("run", "Go", "--model", model, "--workspace", "my work", "--backend", "local", "--branches", "2")
    assert ran.code == 0, ran.err
    patch = re.findall(r"patch  (\S+\.patch)", ran.out)[0]
    line = ran.out.partition("to use one: ")[2].splitlines()[0].replace("PATCH", shlex.quote(patch))
    subprocess.run(["sh", "-c", line], check=True, capture_output=True)
    assert (workspace / "a.txt").read_text() == "new\n"


def test_everything_that_is_missing_is_said_at_once_with_a_line_that_works(tmp_path: Path, rath_here: RathHere) -> None:
    ran = rath_here("run", "Say it's fine")
    assert (ran.code, ran.out) == (2, "")
    first = ran.err.splitlines()[0]
    assert "--backend local" in first
    assert "(`local` is this machine itself: commands run as you, without isolation; `auto` is docker, else bwrap)" in first
    assert "--model openai:NAME" in first
    line = first.partition("For example: ")[2].removesuffix(" (with OPENAI_API_KEY set)")
    words = shlex.split(line)
    assert words[-6:] == ["run", "Say it's fine", "--backend", "local", "--model", "openai:gpt-5.5"]
    assert "--backend" not in rath_here("run", "Go", "--backend", "local").err.partition("For example")[0]
    assert "which model" not in rath_here("run", "Go", "--model", "openai:x").err


@pytest.mark.slow
def test_the_demos_hint_is_a_command_that_runs_from_where_it_was_started(tmp_path: Path) -> None:
    script = tmp_path / "my env" / "bin" / "rath"
    script.parent.mkdir(parents=True)
    script.write_text(f"#!{sys.executable}\nimport sys\nfrom rath.cli.main import main\nsys.exit(main())\n")
    script.chmod(0o700)
    path = os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if not (Path(p) / "rath").exists())
    env = environment(tmp_path, {"PATH": path})
    done = subprocess.run([script, "demo", "--speed", "50"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    hint = done.stdout.splitlines()[-1].partition("Look at one: ")[2]
    assert hint.startswith("'my env/bin/rath' sessions show ")
    subprocess.run(["sh", "-c", hint], cwd=tmp_path, env=env, check=True, capture_output=True)
    env["PATH"] = f"{script.parent}{os.pathsep}{path}"
    done = subprocess.run(["rath", "run", "Go"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert "For example: rath run Go" in done.stderr


def test_a_log_without_a_trailer_says_whether_somebody_writes_it(tmp_path: Path, rath_here: RathHere) -> None:
    path = tmp_path / "a.jsonl"
    with SessionWriter(Session.from_user_message("go"), path=path) as writer:
        assert f"the log is being written by pid {os.getpid()}" in rath_here("sessions", "show", str(path)).out
        writer.abandon()
    said = rath_here("sessions", "show", str(path)).out
    assert "the log has no trailer: its run failed, was cancelled, or its process died" in said


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((signal.SIGHUP, 129), (signal.SIGINT, 130)))],
)
def test_a_command_that_is_interrupted_says_so_and_exits_by_the_signal(tmp_path: Path, number: int, code: int) -> None:
    path = tmp_path / "a.jsonl"
    with SessionWriter(Session.from_user_message("go"), path=path) as writer:
        writer.write_chunk(0, user_text_chunk("go"))
        following = start_rath(tmp_path, "sessions", "tail", "-f", str(path))
        assert following.stdout is not None
        assert following.stdout.readline() == "[0] user\n"
        following.send_signal(number)
        assert following.communicate(timeout=20)[1] == "interrupted\n"
        assert following.returncode == code
        writer.abandon()


@pytest.mark.slow
def test_a_stream_that_is_closed_is_no_trouble(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *command(["sessions", "list"])],
        cwd=tmp_path,
        env=environment(tmp_path),
        stderr=subprocess.PIPE,
        text=True,
        timeout=40,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_one_hostile_log_does_not_keep_others_from_being_listed_or_itself_from_being_shown(tmp_path: Path) -> None:
    directory = tmp_path / ".openrath" / "sessions"
    directory.mkdir(parents=True)
    good = write_sample(directory / "good.jsonl")
    bad = write_sample(directory / "bad.jsonl")
    edited = [record for record in records(directory / "bad.jsonl") if record["record_type"] != "trailer"]
    edited[0]["created_at"] = "0001-01-01T00:00:00+00:00"
    for record in edited:
        if record["record_type"] == "usage":
            record["total_tokens"] = int("9" * 4300)
    rechained(directory / "bad.jsonl", edited)
    env = {"TZ": "EST+5"}
    ran = rath(tmp_path, "sessions", "list", env=env)
    assert ran.code == 0, ran.err
    assert "0001-01-01 00:00:00" in ran.out
    assert str(good.id)[:8] in ran.out
    for extra in ((), ("--json",)):
        ran = rath(tmp_path, "sessions", "show", str(directory / "bad.jsonl"), *extra, env=env)
        assert (ran.code, ran.err) == (0, "")
        assert str(bad.id) in ran.out


@pytest.mark.slow
def test_an_account_of_no_directory_is_told_in_one_line(tmp_path: Path) -> None:
    code = (
        "import os, pwd, sys\n"
        "def nobody(_): raise KeyError\n"
        "pwd.getpwuid = nobody\n"
        "from rath.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    env = environment(tmp_path)
    for name in ("HOME", "OPENRATH_HOME"):
        env.pop(name, None)
    for arguments in (["sessions", "list"], ["doctor"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
        said = [line for line in (done.stderr + done.stdout).splitlines() if re.search(r"(?i)home directory|\bHOME\b", line)]
        assert said

"""The command line as a whole: version, help, completion, missing packages, exit codes, sessions, doctor."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import rath as package
from rath.cli.main import main
from rath.llm.scripted import ScriptedClient
from rath.session.loop import run_session_loop
from rath.session.primitives import create_system_session, create_user_session
from rath.testing.pace import within
from tests.cli.support import CONTROL, Ran, environment, rath
from tests.display.support import HOSTILE

RathHere = Callable[..., Ran]


def test_the_version_is_one_line(tmp_path: Path) -> None:
    ran = rath(tmp_path, "--version")
    assert (ran.code, ran.out, ran.err) == (0, f"rath {package.__version__}\n", "")


def test_help_names_every_command(tmp_path: Path) -> None:
    ran = rath(tmp_path, "--help")
    assert ran.code == 0
    for name in ("run", "demo", "sessions", "doctor", "--debug", "--install-completion"):
        assert name in ran.out


@pytest.mark.parametrize("command", ["run", "demo", "doctor", "sessions", "sessions list", "sessions show"])
def test_every_command_has_a_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0
    assert f"Usage: rath {command}" in capsys.readouterr().out


def test_nothing_at_all_shows_the_help_and_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) in (0, 2)
    said = capsys.readouterr()
    assert "Usage: rath" in said.out + said.err


def test_an_unknown_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fly"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert "rath --help" in said.err


def test_the_librarys_logger_is_left_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("rath")
    before = (logger.level, logger.propagate, list(logger.handlers))
    assert main(["--version"]) == 0
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


def test_shells_can_complete_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv[0] = 'rath'; from rath.cli.main import main; sys.exit(main())"],
        env=environment(tmp_path, {"_RATH_COMPLETE": "complete_bash", "COMP_WORDS": "rath se", "COMP_CWORD": "1"}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "sessions" in done.stdout


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_its_packages_one_line_says_what_to_install(tmp_path: Path, missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from rath.cli.main import main; sys.exit(main(['--version']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(tmp_path), check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"rath: the command line needs the package {missing!r}: pip install 'rath[cli]'"]


def test_the_command_line_starts_without_any_sdk(tmp_path: Path) -> None:
    code = (
        "import sys; from rath.cli.main import main; main(['--version']); "
        "print(sorted({'openai', 'anthropic', 'docker', 'networkx', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(tmp_path), check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    _a_log(tmp_path, "x\n" * 200_000)
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m rath sessions show 0 --full 2>err.txt | head -n 1; cat err.txt"],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stdout
    assert "BrokenPipe" not in done.stdout


# -- sessions -----------------------------------------------------------------------------------------------------------


def _a_log(home: Path, text: str, *, session_id: str = "0" * 32, operator: str | None = None) -> Path:
    """An open log of schema 1, which has no hashes and so can be written by hand: one row."""
    directory = home / ".openrath" / "sessions"
    directory.mkdir(parents=True, exist_ok=True)
    dashed = f"{session_id[:8]}-{session_id[8:12]}-{session_id[12:16]}-{session_id[16:20]}-{session_id[20:]}"
    header = {
        "record_type": "header",
        "schema_version": 1,
        "id": dashed,
        "created_at": "2026-01-02T03:04:05+00:00",
        "parentsession_ids": [],
        "lineage_operator": operator or "run_session_loop",
        "lineage_kind": "op_session_loop",
        "lineage_extras": [],
        "sandbox_backend": None,
        "sandbox_spec": None,
        "sandbox_handle_id": None,
    }
    row = {"record_type": "chunk", "index": 0, "kind": "user", "payload": {"content": text}}
    path = directory / f"{dashed}.jsonl"
    path.write_text(json.dumps(header) + "\n" + json.dumps(row) + "\n")
    return path


def _a_real_log(home: Path) -> Path:
    script = ScriptedClient(
        [{"text": "Look:", "tool_calls": [{"name": "run_shell_command", "arguments": {"cmd": "seq 100"}}]}, "Done."]
    )
    start = create_user_session("Count.").to("local")
    path = home / ".openrath" / "sessions" / "real.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    run = run_session_loop(
        start, create_system_session("Be."), agent_provider=script.as_provider(), persist_path=path
    ).synchronize(20)
    named = path.with_name(f"{run.id}.jsonl")
    path.rename(named)
    run.close_sandbox()
    start.close_sandbox()
    return named


def test_sessions_are_listed_newest_first(tmp_path: Path, rath_here: RathHere) -> None:
    old, new = _a_log(tmp_path, "x"), _a_real_log(tmp_path)
    ran = rath_here("sessions", "list")
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert [line[:8] for line in lines] == ["id      ", new.stem[:8], old.stem[:8]]
    assert lines[1].endswith("complete")
    assert lines[2].endswith("open")
    listed = rath_here("sessions", "list", "--json").json
    assert [entry["id"] for entry in listed] == [new.stem, old.stem]
    assert [(entry["rows"], entry["closed"]) for entry in listed] == [(4, True), (1, False)]
    assert [entry["path"] for entry in listed] == [str(new), str(old)]
    assert len(rath_here("sessions", "list", "-n", "1", "--json").json) == 1
    assert "1 more" in rath_here("sessions", "list", "-n", "1").out


def test_no_sessions_is_no_error(rath_here: RathHere) -> None:
    ran = rath_here("sessions", "list")
    assert ran.code == 0
    assert "no session logs" in ran.out
    assert rath_here("sessions", "list", "--json").json == []


def test_a_session_is_shown_by_id_by_its_beginning_and_by_path(tmp_path: Path, rath_here: RathHere) -> None:
    log = _a_real_log(tmp_path)
    shown = [rath_here("sessions", "show", which) for which in (log.stem, log.stem[:6].upper(), str(log))]
    assert [ran.code for ran in shown] == [0, 0, 0]
    assert shown[0].out == shown[1].out == shown[2].out
    text = shown[0].out
    assert "→ run_shell_command seq 100" in text
    assert "✓ exit 0" in text
    assert "more lines (--full)" in text
    assert "\n    100\n" not in text
    assert "\n    100\n" in rath_here("sessions", "show", log.stem, "--full").out
    as_json = rath_here("sessions", "show", log.stem, "--json").json
    assert as_json["verdict"] == "complete"
    assert [row["kind"] for row in as_json["rows"]] == ["user", "assistant", "tool_result", "assistant"]


def test_an_ambiguous_or_unknown_id_says_what_there_is(tmp_path: Path, rath_here: RathHere) -> None:
    _a_log(tmp_path, "x", session_id="ab" + "0" * 30)
    _a_log(tmp_path, "y", session_id="ab" + "1" * 30)
    ambiguous = rath_here("sessions", "show", "ab")
    assert ambiguous.code == 2
    assert "ab000000-" in ambiguous.err
    assert "ab111111-" in ambiguous.err
    assert rath_here("sessions", "show", "ab0").code == 0
    unknown = rath_here("sessions", "show", "ffff")
    assert unknown.code == 1
    assert "rath sessions list" in unknown.err


@pytest.mark.parametrize("nonsense", ["../../etc/passwd", "not-an-id", "", "\x1b[2J", "x" * 5000])
def test_what_cannot_be_an_id_is_refused(
    nonsense: str, rath_here: RathHere
) -> None:
    ran = rath_here("sessions", "show", nonsense)
    assert ran.code in (1, 2)
    assert ran.err.startswith("error: ")
    assert CONTROL.search(ran.err.replace("\n", "")) is None
    assert len(ran.err) < 500


def test_an_open_log_is_shown_and_said_to_be_open(tmp_path: Path, rath_here: RathHere) -> None:
    log = _a_log(tmp_path, "half done")
    ran = rath_here("sessions", "show", log.stem)
    assert ran.code == 0
    assert "half done" in ran.out
    assert "its run failed, was cancelled, or its process died" in ran.out
    assert rath_here("sessions", "show", log.stem, "--json").json["closed"] is False


def test_a_damaged_log_is_refused_with_the_place(tmp_path: Path, rath_here: RathHere) -> None:
    log = _a_real_log(tmp_path)
    lines = log.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"a", b"b", 1)
    log.write_bytes(b"".join(lines))
    ran = rath_here("sessions", "show", log.stem)
    assert ran.code == 1
    assert "line 3" in ran.err


def test_a_hostile_log_cannot_drive_the_terminal(tmp_path: Path, rath_here: RathHere) -> None:
    text = HOSTILE.replace("\ud800", "")
    log = _a_log(tmp_path, text, operator=text)
    for arguments in (["list"], ["show", log.stem], ["list", "--json"], ["show", log.stem, "--json"]):
        ran = rath_here("sessions", *arguments)
        assert ran.code == 0, ran.err
        assert CONTROL.search(ran.out.replace("\n", "")) is None
        assert "\u202e" not in ran.out


# -- doctor -------------------------------------------------------------------------------------------------------------


def test_the_doctor_finds_that_the_core_works_without_docker_or_keys(tmp_path: Path) -> None:
    ran = rath(tmp_path, "doctor")
    assert ran.code == 0, ran.out + ran.err
    assert "rath works here" in ran.out
    assert "✓ a run" in ran.out
    assert "· docker" in ran.out
    assert f"there is no Docker Engine at {tmp_path}/no-engine.sock" in ran.out
    assert "OPENAI_API_KEY is not set" in ran.out
    checks = {check["name"]: check for check in rath(tmp_path, "doctor", "--json").json["checks"]}
    assert checks["Python"]["level"] == "ok"
    assert checks["docker"]["level"] == "note"
    assert str(tmp_path / ".openrath") in checks["data"]["found"]
    assert not (tmp_path / ".openrath").exists()  # a doctor leaves nothing behind


@pytest.mark.slow
def test_the_doctor_opens_a_sandbox_by_bubblewrap_or_says_what_is_missing(tmp_path: Path) -> None:
    fake = tmp_path / "bin"
    fake.mkdir()
    checks = {check["name"]: check for check in rath(tmp_path, "doctor", "--json", env={"PATH": str(fake)}).json["checks"]}
    assert checks["bwrap"]["level"] == "note"
    assert "apt install bubblewrap" in checks["bwrap"]["remedy"]
    (fake / "bwrap").write_text("#!/bin/sh\nPATH=/usr/bin:/bin\ncase $1 in --version) echo bubblewrap 0.8.0;; *) echo 'no namespaces' >&2; exit 1;; esac\n")
    (fake / "bwrap").chmod(0o755)
    checks = {check["name"]: check for check in rath(tmp_path, "doctor", "--json", env={"PATH": str(fake)}).json["checks"]}
    assert checks["bwrap"]["level"] == "note"
    assert "bwrap does not work here" in checks["bwrap"]["remedy"]


def test_the_doctor_never_shows_a_key(rath_here: RathHere, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "sk-proj-0123456789abcdef"
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "RATH_MODEL"):
        monkeypatch.setenv(name, secret)
    ran, as_json = rath_here("doctor"), rath_here("doctor", "--json")
    assert (ran.code, as_json.code) == (0, 0)
    assert "OPENAI_API_KEY is set" in ran.out
    assert secret not in ran.out + ran.err + as_json.out + as_json.err


@pytest.mark.slow
def test_an_engine_that_never_answers_costs_the_doctor_two_seconds(
    rath_here: RathHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        ran = rath_here("doctor", "--json")
        elapsed = time.monotonic() - began
    assert ran.code == 0
    assert elapsed < within(5)  # two for the engine; the rest on a busy machine
    assert next(check for check in ran.json["checks"] if check["name"] == "docker")["level"] == "note"


def test_the_doctor_says_how_to_mend_a_data_directory_that_cannot_be_written(
    tmp_path: Path, rath_here: RathHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OPENRATH_HOME", str(tmp_path / "file" / "x"))
    ran = rath_here("doctor")
    assert ran.code == 1
    assert "✗ data" in ran.out
    assert "set OPENRATH_HOME" in ran.out
    assert "does not work here yet" in ran.out


@pytest.mark.slow
def test_a_wheel_has_the_demos_project_and_scripts(tmp_path: Path) -> None:
    root = Path(package.__file__).parent.parent
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=root,
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    [wheel] = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    data = root / "rath" / "cli" / "data"
    shipped = {str(path.relative_to(root)) for path in data.rglob("*") if path.is_file() and "__pycache__" not in str(path)}
    assert len(shipped) >= 9
    assert shipped <= names



"""``rath sandbox``: what is open is listed, what is dead is removed, and a shell is a shell."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from rath.backend.bwrap import preflight
from rath.backend.docker.labels import OWNER, SANDBOX
from rath.backend.docker.where import endpoint
from rath.errors import SandboxUnavailable
from tests.cli.support import CONTROL, Ran, command, environment, rath

IMAGE = "rath-test:base"
ENGINE = endpoint()

# An owner with one sandbox of a backend whose sandboxes are known by their records alone.
RECORDS = """
import asyncio, sys, time
from rath.backend.owner import SandboxRecord, owner
record = SandboxRecord(sys.argv[1], owner().id, "bwrap", "1234", workspace="/home/me/\\x1b[31mproject")
log = owner().opened(record)
async def note():
    log.note("BackendToolCommandRun", "pytest -q \\x1b]0;x\\x07", 1, 1234.5)
    log.note("BackendToolFilesRead", "a.py", None, 0.7)
    log.flush()
asyncio.run(note())
print("open", flush=True)
for line in sys.stdin:
    if line == "call\\n":
        async def more():
            log.note("BackendToolCommandRun", "true", 0, 2)
            log.flush()
        asyncio.run(more())
    else:
        owner().closed(sys.argv[1])
    print("done", flush=True)
"""

SESSION = """
import sys
from rath import Session
from rath.backend import BackendSandboxSpec, BackendToolCommandRun
session = Session.from_user_message("x").to("docker", spec=BackendSandboxSpec(image=sys.argv[1]))
sandbox = session.require_sandbox()
sandbox.dispatch(BackendToolCommandRun(["sh", "-c", "echo here > file"]))
print("open", flush=True)
sys.stdin.readline()
session.close_sandbox()
"""

# What an engine's crash leaves of an owner: a container and a network that nothing ends.
LEFT = """
import sys, time
from rath.backend.docker.engine import engine
from rath.backend.docker.labels import labels
from rath.backend.owner import owner
marks = labels(owner(), sys.argv[1])
client = engine().client()
client.create_network("rath-test-" + sys.argv[1], "bridge", internal=True, labels=marks)
made = client.create_container_from_config({"Image": sys.argv[2], "Entrypoint": ["sleep", "600"], "Labels": marks})
client.start(made["Id"])
print("open", flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def program(
    home: Path, source: str, *arguments: str, engine: str = "unix:///nowhere", **more: str
) -> Iterator[subprocess.Popen[str]]:
    """A process with a state directory of its own in ``home``, which has opened what it opens."""
    process = subprocess.Popen(
        [sys.executable, "-c", source, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=environment(home, {"XDG_RUNTIME_DIR": str(home), "DOCKER_HOST": engine, **more}),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def tell(process: subprocess.Popen[str], what: str) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(what + "\n")
    process.stdin.flush()
    assert process.stdout.readline() == "done\n"


@pytest.fixture
def sandbox(tmp_path: Path, rath_here: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """``rath sandbox ...`` without an engine, with the state directory in ``tmp_path``."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return lambda *arguments: rath_here("sandbox", *arguments)


# -- without an engine ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ps", "reap", "logs", "shell"])
def test_each_has_a_help(name: str, sandbox: Callable[..., Ran]) -> None:
    ran = sandbox(name, "--help")
    assert ran.code == 0
    assert f"Usage: rath sandbox {name}" in ran.out


def test_without_an_engine_the_list_says_so_and_is_no_error(sandbox: Callable[..., Ran]) -> None:
    ran = sandbox("ps")
    assert ran.code == 0
    assert "no open sandboxes" in ran.out
    assert "the Docker Engine was not asked" in ran.err
    told = sandbox("ps", "--json").json
    assert told["sandboxes"] == []
    assert told["engine"]["answers"] is False
    assert "no-engine.sock" in told["engine"]["problem"]


def test_without_an_engine_nothing_can_be_reaped_and_that_is_an_error(sandbox: Callable[..., Ran]) -> None:
    ran = sandbox("reap")
    assert ran.code == 1
    assert "nothing of it was removed" in ran.err
    as_json = sandbox("reap", "--json", "--dry-run")
    assert as_json.code == 1
    assert (as_json.json["dry_run"], as_json.json["removed"]) == (True, [])
    assert "no-engine.sock" in as_json.json["problem"]


def test_an_open_sandbox_is_listed_with_its_owner_and_its_last_call(tmp_path: Path, sandbox: Callable[..., Ran]) -> None:
    name = "ab" * 8
    with program(tmp_path, RECORDS, name) as process:
        [one] = sandbox("ps", "--json").json["sandboxes"]
        assert (one["id"], one["backend"], one["state"]) == (name, "bwrap", "running")
        assert (one["owner_pid"], one["owner_alive"]) == (process.pid, True)
        assert one["last_call"] == "FilesRead a.py"
        assert 0 <= one["last_call_s"] < 30
        text = sandbox("ps").out
        assert f"{name}  bwrap    running" in text
        assert CONTROL.search(text.replace("\n", "")) is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        [one] = sandbox("ps", "--json").json["sandboxes"]
        assert (one["state"], one["owner_alive"]) == ("orphaned", False)
        assert "rath sandbox reap" in sandbox("ps").out


def test_the_calls_of_a_sandbox_are_shown_by_the_beginning_of_its_id(tmp_path: Path, sandbox: Callable[..., Ran]) -> None:
    with program(tmp_path, RECORDS, "ab" * 8), program(tmp_path, RECORDS, "ac" * 8):
        ran = sandbox("logs", "ab")
        assert ran.code == 0
        first, second = ran.out.splitlines()
        assert "✗ 1 CommandRun pytest -q" in first
        assert "1.2 s" in first
        assert "· FilesRead a.py" in second
        assert CONTROL.search(ran.out.replace("\n", "")) is None
        assert len(sandbox("logs", "ab", "-n", "1").out.splitlines()) == 1
        ambiguous = sandbox("logs", "a")
        assert ambiguous.code == 2
        assert "ab" * 8 in ambiguous.err
        unknown = sandbox("logs", "ff")
        assert unknown.code == 1
        assert "rath sandbox ps" in unknown.err
        assert sandbox("logs", "../x").code == 2


@pytest.mark.slow
def test_following_the_calls_ends_when_the_sandbox_closes(tmp_path: Path) -> None:
    name = "cd" * 8
    with program(tmp_path, RECORDS, name) as process:
        following = subprocess.Popen(
            command(["sandbox", "logs", name, "-f"]), stdout=subprocess.PIPE, text=True, cwd=tmp_path,
            env=environment(tmp_path, {"XDG_RUNTIME_DIR": str(tmp_path)}),
        )  # fmt: skip
        assert following.stdout is not None
        try:
            assert "pytest" in following.stdout.readline()
            assert "a.py" in following.stdout.readline()
            tell(process, "call")
            assert "✓ CommandRun true" in following.stdout.readline()
            tell(process, "close")
            assert following.wait(10) == 0
        finally:
            following.kill()
            following.communicate()


def test_nothing_can_enter_a_sandbox_that_has_no_container(tmp_path: Path, sandbox: Callable[..., Ran]) -> None:
    with program(tmp_path, RECORDS, "ef" * 8):
        ran = sandbox("shell", "ef")
    assert ran.code == 1
    assert "bwrap" in ran.err
    assert "session.require_sandbox()" in ran.err


@pytest.mark.slow
def test_the_tab_key_completes_ids(tmp_path: Path) -> None:
    with program(tmp_path, RECORDS, "ab" * 8), program(tmp_path, RECORDS, "cd" * 8):
        done = subprocess.run(
            [sys.executable, "-c", "import sys; sys.argv[0] = 'rath'; from rath.cli.main import main; sys.exit(main())"],
            env=environment(
                tmp_path,
                {
                    "XDG_RUNTIME_DIR": str(tmp_path), "_RATH_COMPLETE": "complete_bash",
                    "COMP_WORDS": "rath sandbox logs a", "COMP_CWORD": "3",
                },
            ),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.stdout.split() == ["ab" * 8]


# -- bubblewrap -------------------------------------------------------------------------------------------------------

BWRAP = """
import sys
from rath import Session
from rath.backend import BackendToolCommandRun
session = Session.from_user_message("x").to("bwrap")
sandbox = session.require_sandbox()
sandbox.dispatch(BackendToolCommandRun("echo in bwrap; exit 3"))
print("open", flush=True)
sys.stdin.readline()
session.close_sandbox()
print("done", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def works() -> None:
    try:
        preflight.check()
    except SandboxUnavailable as error:
        if os.environ.get("RATH_REQUIRE_DOCKER"):
            raise
        pytest.skip(str(error))


@pytest.fixture
def temporary() -> Iterator[Path]:
    """For ``TMPDIR``: a directory that every user may enter, as those of pytest are not."""
    with tempfile.TemporaryDirectory(prefix="rath-test-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.mark.slow
def test_a_session_in_bwrap_is_listed_with_its_calls_and_gone_when_it_closes(tmp_path: Path, works: None) -> None:
    env = {"XDG_RUNTIME_DIR": str(tmp_path)}
    with program(tmp_path, BWRAP) as process:
        time.sleep(0.5)  # calls are written a few times a second
        [one] = rath(tmp_path, "sandbox", "ps", "--json", env=env).json["sandboxes"]
        assert (one["backend"], one["state"], one["owner_pid"]) == ("bwrap", "running", process.pid)
        assert one["last_call"] == "CommandRun echo in bwrap; exit 3"
        assert "✗ 3 CommandRun echo in bwrap" in rath(tmp_path, "sandbox", "logs", one["id"], env=env).out
        tell(process, "close")
        assert rath(tmp_path, "sandbox", "ps", "--json", env=env).json["sandboxes"] == []
        process.communicate("\n")
    assert os.listdir(tmp_path / "rath" / "owners") == []  # who ended in order is not heard of any more


@pytest.mark.slow
def test_reap_says_when_a_dead_owners_directory_goes_and_then_removes_it(tmp_path: Path, temporary: Path, works: None) -> None:
    env = {"XDG_RUNTIME_DIR": str(tmp_path), "TMPDIR": str(temporary)}
    with program(tmp_path, BWRAP, TMPDIR=str(temporary)) as process:
        assert rath(tmp_path, "sandbox", "reap", "--json", env=env).json["directories"] == []  # its owner lives
        process.send_signal(signal.SIGKILL)
        process.wait()
    [left] = temporary.glob("rath-*.own")
    [young] = rath(tmp_path, "sandbox", "reap", "--json", env=env).json["directories"]
    assert (young["path"], young["fate"], "goes when it is 60 s old" in young["why"]) == (str(left), "kept", True)
    assert rath(tmp_path, "sandbox", "ps", "--json", env=env).json["sandboxes"] == []
    os.utime(left, (0, 0))
    assert f"would remove directory {left}" in rath(tmp_path, "sandbox", "reap", "--dry-run", env=env).out
    assert left.is_dir()
    ran = rath(tmp_path, "sandbox", "reap", env=env)
    assert f"removed directory {left}" in ran.out
    assert ran.code == 1  # no engine could be asked
    assert not left.exists()


# -- with an engine ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    client = None
    try:
        client = docker.APIClient(base_url=ENGINE, version="auto")
        client.inspect_image(IMAGE)
    except (docker.errors.DockerException, OSError) as error:
        if client is not None:
            client.close()
        if os.environ.get("RATH_REQUIRE_DOCKER"):
            raise
        pytest.skip(f"no Docker Engine with {IMAGE}: {error}")
    yield client
    client.close()


def with_engine(home: Path) -> dict[str, str]:
    return {"XDG_RUNTIME_DIR": str(home), "DOCKER_HOST": ENGINE}


@pytest.mark.docker
@pytest.mark.slow
def test_a_session_in_docker_is_listed_entered_and_gone(tmp_path: Path, client: Any) -> None:
    env = with_engine(tmp_path)
    with program(tmp_path, SESSION, IMAGE, engine=ENGINE) as process:
        time.sleep(0.5)  # calls are written a few times a second
        listed = rath(tmp_path, "sandbox", "ps", "--json", env=env).json
        [one] = [each for each in listed["sandboxes"] if each["owner_pid"] == process.pid]
        assert (one["backend"], one["state"], one["image"]) == ("docker", "running", IMAGE)
        assert one["uid"] > 0
        assert "echo here" in rath(tmp_path, "sandbox", "logs", one["id"], env=env).out
        by_container = rath(tmp_path, "sandbox", "logs", one["container"][:12], env=env)
        assert by_container.code == 0

        refused = rath(tmp_path, "sandbox", "shell", one["id"], env=env)
        assert refused.code == 2
        assert "needs a terminal" in refused.err
        code, screen = in_a_shell(
            tmp_path, one["id"], env,
            ("id -u; pwd; cat file; stty size\r", str(one["uid"])), ("\x03", "$"), ("RESIZE", ""), ("stty size\r", "50 170"),
            ("exit 7\r", ""),
        )  # fmt: skip
        assert "/workspace" in screen
        assert "here" in screen
        assert "30 100" in screen
        assert code == 7
        assert client.inspect_container(one["container"])["State"]["Running"] is True

        kept = rath(tmp_path, "sandbox", "reap", "--json", env=env).json
        assert one["container"] in [each["id"] for each in kept["kept"]]
        process.communicate("\n", timeout=30)
        assert process.returncode == 0
        listed = rath(tmp_path, "sandbox", "ps", "--json", env=env).json
        assert one["id"] not in [each["id"] for each in listed["sandboxes"]]


@pytest.mark.docker
@pytest.mark.slow
def test_a_shell_whose_container_dies_gives_the_terminal_back(tmp_path: Path, client: Any) -> None:
    env = with_engine(tmp_path)
    with program(tmp_path, SESSION, IMAGE, engine=ENGINE) as process:
        listed = rath(tmp_path, "sandbox", "ps", "--json", env=env).json
        [one] = [each for each in listed["sandboxes"] if each["owner_pid"] == process.pid]
        script = (("stty -echo\r", "$"), ("KILL", ""))
        code, screen = in_a_shell(tmp_path, one["id"], env, *script, kill=lambda: client.kill(one["container"]))
    assert code == 1
    assert "is gone: its owner closed it, or it died" in " ".join(screen.split())


def in_a_shell(
    home: Path, name: str, env: dict[str, str], *script: tuple[str, str], kill: Callable[[], object] = lambda: None
) -> tuple[int, str]:
    """Type each line at ``rath sandbox shell`` and wait for its answer; the exit code and all that was shown."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    before = termios.tcgetattr(slave)
    process = subprocess.Popen(
        command(["sandbox", "shell", name]), cwd=home, env=environment(home, env), stdin=slave, stdout=slave, stderr=slave
    )
    shown = ""

    def until(expected: Callable[[str], bool]) -> None:
        nonlocal shown
        deadline, begin = time.monotonic() + 20, len(shown)
        while not expected(shown[begin:]):
            assert time.monotonic() < deadline, shown
            if select.select([master], [], [], 0.1)[0]:
                shown += os.read(master, 65536).decode()

    try:
        until(lambda text: "$" in text.partition("as it is")[2])
        for typed, answer in script:
            if typed == "RESIZE":
                fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 170, 0, 0))
                process.send_signal(signal.SIGWINCH)
                time.sleep(0.5)
                continue
            if typed == "KILL":
                kill()
                continue
            os.write(master, typed.encode())
            if answer:
                until(lambda text, answer=answer: answer in text and text.rstrip().endswith("$"))  # type: ignore[misc]
        code = process.wait(20)
        assert termios.tcgetattr(slave) == before
        while select.select([master], [], [], 0.1)[0]:
            shown += os.read(master, 65536).decode()
        return code, shown
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(slave)


@pytest.mark.docker
@pytest.mark.slow
def test_what_a_dead_owner_left_is_removed_and_what_nobody_can_judge_is_kept(tmp_path: Path, client: Any) -> None:
    env, name, foreign = with_engine(tmp_path), os.urandom(8).hex(), os.urandom(8).hex()
    stranger = client.create_container_from_config(
        {"Image": IMAGE, "Entrypoint": ["true"], "Labels": {OWNER: foreign, SANDBOX: foreign}}
    )["Id"]
    try:
        with program(tmp_path, LEFT, name, IMAGE, engine=ENGINE) as process:
            mine = lambda ran, group: [one["kind"] for one in ran.json[group] if one["sandbox"] == name]  # noqa: E731
            assert mine(rath(tmp_path, "sandbox", "reap", "--json", env=env), "kept") == ["container", "network"]
            process.kill()
            process.wait()
            listed = rath(tmp_path, "sandbox", "ps", "--json", env=env).json
            assert [one["state"] for one in listed["sandboxes"] if one["id"] == name] == ["orphaned"]
            assert [one["state"] for one in listed["sandboxes"] if one["id"] == foreign] == ["not judgeable"]
            assert [one["kind"] for one in listed["leftovers"] if one["sandbox"] == name] == ["network"]
            refused = rath(tmp_path, "sandbox", "shell", name, env=env)
            assert refused.code == 1
            assert "orphaned" in refused.err

            dry = rath(tmp_path, "sandbox", "reap", "--dry-run", env=env)
            assert f"would remove container {client.containers(filters=label(name))[0]['Id'][:12]}" in dry.out
            assert len(client.networks(filters=label(name))) == 1
            done = rath(tmp_path, "sandbox", "reap", "--json", env=env)
            assert done.code == 0
            assert mine(done, "removed") == ["container", "network"]
            assert stranger in [one["id"] for one in done.json["kept"]]
            assert client.containers(all=True, filters=label(name)) == []
            assert client.networks(filters=label(name)) == []
            assert "nothing was left behind" in rath(tmp_path, "sandbox", "reap", env=env).out
    finally:
        client.remove_container(stranger, force=True)
        for one in client.containers(all=True, filters=label(name)):
            client.remove_container(one["Id"], force=True)
        for one in client.networks(filters=label(name)):
            client.remove_network(one["Id"])


def label(name: str) -> dict[str, str]:
    return {"label": f"{SANDBOX}={name}"}

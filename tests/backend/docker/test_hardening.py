"""A sandbox's walls, seen from inside: what commands are, and what they cannot reach, use up or become."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rath.backend import registry
from rath.backend.calls import BackendToolCommandRun, BackendToolFilesWrite, CommandResult, ToolExecutionFailure
from rath.backend.docker.engine import DockerEngine
from rath.backend.types import BackendSandbox, BackendSandboxSpec
from rath.errors import UsageValueError
from tests.backend.docker.conftest import BASE, NO_PYTHON

pytestmark = pytest.mark.docker


def run(sandbox: BackendSandbox, cmd: str, **more: object) -> CommandResult:
    result = sandbox.dispatch(BackendToolCommandRun(cmd, **more))  # type: ignore[arg-type]
    assert isinstance(result, CommandResult), result
    return result


def out(sandbox: BackendSandbox, cmd: str) -> str:
    return run(sandbox, cmd).stdout.decode().strip()


def opened(**spec: object) -> BackendSandbox:
    return registry.get("docker").open(BackendSandboxSpec(**{"image": BASE, **spec}))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def shared(docker_engine: DockerEngine) -> Iterator[BackendSandbox]:
    with opened() as sandbox:
        yield sandbox


@pytest.fixture(params=[BASE, pytest.param(NO_PYTHON, marks=pytest.mark.slow)])
def sandbox(request: pytest.FixtureRequest, docker_engine: DockerEngine) -> Iterator[BackendSandbox]:
    with opened(image=request.param) as fresh:
        yield fresh


def test_commands_are_nobody_and_can_become_nobody_else(sandbox: BackendSandbox) -> None:
    status = dict(line.split(":\t", 1) for line in out(sandbox, "cat /proc/self/status").splitlines() if ":\t" in line)
    assert set(status["Uid"].split()) == set(status["Gid"].split())
    assert 20_000 <= int(status["Uid"].split()[0]) < 60_000
    assert (status["CapInh"], status["CapPrm"], status["CapEff"], status["CapAmb"]) == ("0" * 16,) * 4
    # What even a file with capabilities could give; no_new_privs keeps that from happening.
    assert int(status["CapBnd"], 16) & ~0b11100001 == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"


def test_only_the_workspace_and_tmp_can_be_written_to(sandbox: BackendSandbox) -> None:
    writable = out(sandbox, "for d in / /etc /usr /bin /var /root /opt /workspace /tmp; do touch $d/x 2>/dev/null && echo $d; done; true")
    assert writable.split() == ["/workspace", "/tmp"]
    assert out(sandbox, "stat -c '%u %g' /workspace") == out(sandbox, 'echo "$(id -u) $(id -g)"')
    assert run(sandbox, "mount -o remount,rw / || mount -t tmpfs none /mnt").exit_code != 0


def test_tmp_has_a_size(sandbox: BackendSandbox) -> None:
    assert out(sandbox, "df -k /tmp | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2") == str(256 * 1024)


def test_there_is_no_network_but_the_loopback(sandbox: BackendSandbox) -> None:
    assert out(sandbox, "ls /sys/class/net").split() == ["lo"]


def test_nothing_of_the_host_is_there(sandbox: BackendSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-host")
    assert "sk-of-the-host" not in out(sandbox, "env; cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n'")
    assert out(sandbox, "ls /var/run/docker.sock /run/docker.sock 2>/dev/null; hostname || cat /etc/hostname").split() == ["sandbox"]
    assert out(sandbox, "echo $HOME") == "/workspace"


def test_devices_are_the_harmless_ones(sandbox: BackendSandbox) -> None:
    harmless = {"core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty",
                "urandom", "zero"}  # fmt: skip
    assert set(out(sandbox, "ls /dev").split()) <= harmless
    assert run(sandbox, "mknod /tmp/disk b 8 0").exit_code != 0


def test_the_first_process_is_out_of_reach(sandbox: BackendSandbox) -> None:
    run(sandbox, "for signal in KILL STOP TERM INT HUP USR1; do kill -$signal 1; done")
    for attack in ("cat /proc/1/environ", "ls /proc/1/fd", "echo x > /proc/1/fd/1", "cat /proc/1/mem"):
        assert run(sandbox, attack).exit_code != 0, attack
    assert out(sandbox, "echo still good") == "still good"


@pytest.mark.slow
def test_processes_are_limited_and_a_fork_bomb_ends_with_its_call(docker_engine: DockerEngine) -> None:
    with opened(pids=40) as sandbox:
        result = run(sandbox, "for i in $(seq 60); do sleep 20 & done; wait", timeout=10)
        assert b"fork" in result.stderr.lower() or result.exit_code != 0
        run(sandbox, "kill -9 -1")
        bomb = sandbox.dispatch(BackendToolCommandRun("b() { b | b & }; b; sleep 30", timeout=2))
        assert isinstance(bomb, (ToolExecutionFailure, CommandResult))
        assert out(sandbox, "echo still good") == "still good"


@pytest.mark.slow
def test_running_out_of_memory_ends_the_command_and_not_the_sandbox(docker_engine: DockerEngine) -> None:
    with opened(memory="128m") as sandbox:
        hog = run(sandbox, "python3 -c 'x = bytearray(400 << 20); print(len(x))'")
        assert hog.exit_code == 137
        assert hog.oom_killed
        assert not run(sandbox, "kill -9 $$").oom_killed
        assert out(sandbox, "echo still good") == "still good"


def test_limits_are_what_the_spec_says(docker_engine: DockerEngine) -> None:
    with opened(memory="300m", pids=50, cpus=0.5, tmp="8m", disk="16m", user="1234:4321") as sandbox:
        found = docker_engine.ask_blocking("look", lambda client: client.inspect_container(sandbox.made.container))["HostConfig"]  # type: ignore[attr-defined]
        assert (found["Memory"], found["MemorySwap"], found["PidsLimit"], found["NanoCpus"]) == (300 << 20, 300 << 20, 50, 500_000_000)
        assert out(sandbox, "id -u; id -g").split() == ["1234", "4321"]
        sizes = out(sandbox, "df -k /tmp /workspace | tail -n 2 | tr -s ' ' | cut -d ' ' -f 2").split()
        assert sizes == [str(8 * 1024), str(16 * 1024)]
        assert run(sandbox, "head -c 20000000 /dev/zero > big").exit_code != 0
        assert out(sandbox, "rm big; printf '#!/bin/sh\\necho runs' > x; chmod +x x; ./x") == "runs"


def test_mounts_are_read_only(docker_engine: DockerEngine, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(0o777)
    (data / "file").write_text("given")
    with opened(mounts={"/data": data, "/etc/motd2": data / "file"}) as sandbox:
        assert out(sandbox, "cat /data/file /etc/motd2") == "givengiven"
        assert run(sandbox, "touch /data/x || rm -f /data/file").exit_code != 0
    assert sorted(path.name for path in data.iterdir()) == ["file"]


def test_a_bound_workspace_is_worked_in_as_its_owner(docker_engine: DockerEngine, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "there").write_text("here")
    spec = BackendSandboxSpec(image=BASE, workspace=work, workspace_mode="bind")
    if work.stat().st_uid == 0:
        with pytest.raises(UsageValueError, match="chown"):
            registry.get("docker").open(spec)
        spec = replace(spec, user="1000:1000")
        work.chmod(0o777)
    with registry.get("docker").open(spec) as sandbox:
        assert out(sandbox, "cat there; echo made > new") == "here"
        sandbox.dispatch(BackendToolFilesWrite("by_rath", "x"))
    assert (work / "new").read_text() == "made\n"
    assert (work / "by_rath").exists()
    assert (work / "there").stat().st_uid == work.stat().st_uid

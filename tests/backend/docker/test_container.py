"""What a container is created with follows from the spec; what must not be is refused before any engine is asked."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from rath.backend.docker.container import Identity, identity, options, workspace_of
from rath.backend.spec import BackendSandboxSpec
from rath.errors import UsageValueError

WHO = Identity(20_001, 20_001)


def host_config(spec: BackendSandboxSpec) -> dict[str, object]:
    made: dict[str, object] = options(spec, "image", ["sh"], workspace_of(spec, WHO), {"rath.owner": "me"})["HostConfig"]
    return made


def test_every_sandbox_is_hardened_whatever_its_spec_says() -> None:
    for spec in (BackendSandboxSpec(), BackendSandboxSpec(memory="1g", pids=9, network="bridge", gpus="all", runtime="runsc")):
        made = host_config(spec)
        assert made["CapDrop"] == ["ALL"]
        assert set(made["CapAdd"]) == {"CHOWN", "KILL", "SETGID", "SETUID"}  # type: ignore[call-overload]
        assert made["SecurityOpt"] == ["no-new-privileges"]
        assert made["ReadonlyRootfs"] is True
        assert made["AutoRemove"] is True
        assert made["LogConfig"] == {"Type": "none"}
        assert made["Memory"] == made["MemorySwap"]
        assert made["PidsLimit"]
        assert made["NanoCpus"]


def test_a_workspace_of_a_size_must_fit_into_the_memory() -> None:
    assert "size=1048576," in str(workspace_of(BackendSandboxSpec(disk="1m"), WHO)["Tmpfs"])
    with pytest.raises(UsageValueError, match="Raise memory, lower disk"):
        workspace_of(BackendSandboxSpec(disk="3g"), WHO)


@pytest.mark.parametrize("user", ["0", "root", "0:0", "1000:0", "1000:x", "-1", "1000:1000:1", "4294967295", "1000:4294967295", ""])
def test_commands_never_run_as_root(user: str) -> None:
    with pytest.raises(UsageValueError, match="uid"):
        identity(BackendSandboxSpec(user=user))


def test_sandboxes_get_users_of_their_own() -> None:
    users = {identity(BackendSandboxSpec()).uid for _ in range(50)}
    assert len(users) > 40
    assert all(20_000 <= uid < 60_000 for uid in users)
    assert identity(BackendSandboxSpec(user="1234")) == Identity(1234, 1234)


def test_the_engines_socket_is_never_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "engine.sock"))
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/engine.sock")
        (tmp_path / "link").symlink_to(tmp_path / "engine.sock")
        for source in (tmp_path / "engine.sock", tmp_path / "link", tmp_path, tmp_path.parent, Path("/")):
            with pytest.raises(UsageValueError):
                host_config(BackendSandboxSpec(mounts={"/data": source}))
        with pytest.raises(UsageValueError, match="socket"):
            workspace_of(BackendSandboxSpec(workspace=tmp_path, workspace_mode="bind"), WHO)
    (tmp_path / "beside").mkdir()
    assert "beside" in str(host_config(BackendSandboxSpec(mounts={"/data": tmp_path / "beside"})))


@pytest.mark.parametrize(
    "target",
    ["/", "//", "/proc", "//proc", "/./proc/sys", "/proc/sys", "/sys/fs", "/dev/null", "/tmp", "/workspace", "/workspace/",
     "/workspace/data", "//workspace/./data"],
)
def test_mounts_do_not_hide_what_is_the_sandboxs_own(tmp_path: Path, target: str) -> None:
    with pytest.raises(UsageValueError, match="choose another place"):
        host_config(BackendSandboxSpec(mounts={target: tmp_path}))


def test_the_hosts_processes_and_devices_are_never_mounted(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/proc/self")
    for source in ("/", "//", "/proc", "/proc/1/root", "/sys", "/dev/shm", "/tmp/../proc", str(tmp_path / "link")):
        with pytest.raises(UsageValueError, match="host"):
            host_config(BackendSandboxSpec(mounts={"/data": source}))
    with pytest.raises(UsageValueError, match="host"):
        workspace_of(BackendSandboxSpec(workspace="/proc", workspace_mode="bind"), WHO)


@pytest.mark.parametrize("cpus", [1e-12, 0.001, float("inf"), float("nan")])
def test_a_number_of_processors_that_the_engine_takes_for_no_limit_is_refused(cpus: float) -> None:
    with pytest.raises(UsageValueError, match="cpus"):
        host_config(BackendSandboxSpec(cpus=cpus))


def test_what_is_not_there_cannot_be_mounted(tmp_path: Path) -> None:
    with pytest.raises(UsageValueError, match="there is no"):
        host_config(BackendSandboxSpec(mounts={"/data": tmp_path / "missing"}))
    with pytest.raises(UsageValueError, match="make it first"):
        workspace_of(BackendSandboxSpec(workspace=tmp_path / "missing", workspace_mode="bind"), WHO)


@pytest.mark.parametrize("gpus", [0, -2, "some", True])
def test_gpus_are_a_number_or_all(gpus: int | str) -> None:
    with pytest.raises(UsageValueError, match="GPUs"):
        host_config(BackendSandboxSpec(gpus=gpus))

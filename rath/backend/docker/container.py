"""What a container is created with: the limits and the hardening of a sandbox, as the engine's API has them.

PID 1 is the guest, container-root over an empty capability set but for four: SETUID and SETGID to run commands as another
user, KILL to end them, CHOWN to give that user the workspace, which the engine makes for root (without it git refuses to
work in "/workspace": the directory is somebody else's). Commands have none, and cannot get any: no_new_privs.
"""

from __future__ import annotations

import os
import random
import stat
from dataclasses import dataclass
from typing import Any

from rath.backend.docker import where
from rath.backend.host.sockets import refuse_engine
from rath.backend.spec import BackendSandboxSpec, host_workspace, parse_bytes, parse_user
from rath.errors import UsageValueError

__all__ = ["SPEC_FIELDS", "WORKSPACE", "Identity", "identity", "new_identity", "options", "workspace_of"]

WORKSPACE = "/workspace"
SPEC_FIELDS = frozenset(
    {
        "cpus", "disk", "env", "gpus", "idle_timeout", "image", "memory", "mounts", "network", "pids", "pool", "runtime",
        "timeout", "tmp", "user", "working_dir", "workspace", "workspace_mode",
    }
)  # fmt: skip
CAPABILITIES = ("CHOWN", "KILL", "SETGID", "SETUID")
MEMORY_BYTES = 2 << 30
TMP_BYTES = 256 << 20
PIDS = 256
CPUS = 2
# Above what distributions give to people and services, below what they give to mapped users.
UIDS = range(20_000, 60_000)
_SYSTEM = ("/proc", "/sys", "/dev")
MIN_CPUS = 0.01


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom the commands of a sandbox run as."""

    uid: int
    gid: int


def new_identity() -> Identity:
    """A user of the sandbox's own, so that limits that the kernel counts by user are its own too."""
    uid = random.choice(UIDS)
    return Identity(uid, uid)


def identity(spec: BackendSandboxSpec, *, rootless: bool = False) -> Identity:
    """Whom commands run as: whom the spec says, the owner of a directory that is bound, or somebody new.

    Raises:
        UsageValueError: that would be root, or nobody can tell.
    """
    if spec.user is not None:
        return Identity(*parse_user(spec.user))
    if spec.workspace_mode != "bind":
        return new_identity()
    path = _bound(spec)
    if rootless:
        raise UsageValueError(
            f"workspace_mode='bind' of {path}: this engine maps users, so the directory's owner is somebody else in the "
            "sandbox. Say whom commands run as (user='uid:gid', a user in the sandbox that may write there), or use "
            "workspace_mode='copy' and session.download(...)"
        )
    if not where.is_local():
        raise UsageValueError(
            f"workspace_mode='bind' of {path}: the engine is elsewhere; say whom commands run as: user='uid:gid'"
        )
    owner = os.stat(path)
    if owner.st_uid == 0:
        raise UsageValueError(
            f"workspace_mode='bind' of {path}: root owns it, and commands never run as root. Give it to another user "
            f"(chown -R 1000:1000 {path}), or say whom commands run as: user='uid:gid'"
        )
    return Identity(owner.st_uid, owner.st_gid or owner.st_uid)


def _bound(spec: BackendSandboxSpec) -> str:
    path = host_workspace(spec)
    assert path is not None, "the spec was checked: a bind names its directory"
    path = _real(path, "workspace")
    if where.is_local() and not os.path.isdir(path):
        raise UsageValueError(f"workspace_mode='bind': there is no directory {path}: make it first")
    _refuse_source(path, "workspace")
    return path


def _real(path: str, field: str) -> str:
    try:
        return os.path.realpath(path)
    except OSError as error:  # a link that this user may not follow
        raise UsageValueError(f"{field}: it cannot be seen where {path} of the host leads ({error.strerror})") from error


def _refuse_source(path: str, field: str) -> None:
    """Raise for what would give the sandbox the host: an engine's socket, or by ``/proc/PID/root`` any file."""
    if path == "/" or _is_in(path, *_SYSTEM):
        raise UsageValueError(f"{field}: {path} shows the host's processes and devices: name a directory of files")
    named = where.socket_path()
    refuse_engine(path, field, *((named,) if named else ()))


# -- mounts -----------------------------------------------------------------------------------------------------------


def workspace_of(spec: BackendSandboxSpec, who: Identity) -> dict[str, Any]:
    """The part of ``HostConfig`` that brings the workspace: a volume that goes with the container, a tmpfs, or a bind.

    Raises:
        UsageValueError: it cannot be as the spec says.
    """
    if spec.workspace_mode == "bind":
        if spec.disk is not None:
            raise UsageValueError("disk limits a workspace of the sandbox's own, and this one is bound: leave disk out")
        return {"Mounts": [_bind(_bound(spec), WORKSPACE, read_only=False)]}
    if spec.disk is None:
        # Anonymous: AutoRemove takes it along.
        return {"Mounts": [{"Type": "volume", "Target": WORKSPACE}]}
    size, memory = parse_bytes(spec.disk, "disk"), _memory(spec)
    if size > memory:
        raise UsageValueError(
            f"disk={spec.disk!r} is more than memory={memory}: a workspace of limited size is in memory and counts there. "
            "Raise memory, lower disk, or leave disk out: then the workspace is on the engine's disk, without a limit"
        )
    return {"Tmpfs": {WORKSPACE: f"rw,exec,nosuid,nodev,size={size},mode=0755,uid={who.uid},gid={who.gid}"}}


def _bind(source: str, target: str, *, read_only: bool) -> dict[str, Any]:
    alone = {"Propagation": "rprivate"}
    return {"Type": "bind", "Source": source, "Target": target, "ReadOnly": read_only, "BindOptions": alone}


def _extra_mounts(spec: BackendSandboxSpec) -> list[dict[str, Any]]:
    mounts = []
    for target, named in (spec.mounts or {}).items():
        source = _real(os.path.expanduser(os.fspath(named)), "mounts")
        place = "/" + os.path.normpath(target).lstrip("/")
        # Below the workspace it would be hidden by what is mounted there later, and copied with it.
        if place in ("/", "/tmp") or _is_in(place, *_SYSTEM, WORKSPACE):
            raise UsageValueError(f"mounts: {target} is the sandbox's own: choose another place, such as /data")
        if where.is_local():
            if not os.path.exists(source):
                raise UsageValueError(f"mounts: there is no {source} to mount at {target}")
            if not stat.S_ISREG(os.stat(source).st_mode) and not os.path.isdir(source):
                raise UsageValueError(f"mounts: {source} is neither a file nor a directory")
        _refuse_source(source, "mounts")
        mounts.append(_bind(source, place, read_only=True))
    return mounts


def _is_in(path: str, *places: str) -> bool:
    return any(path == place or path.startswith(place + "/") for place in places)


# -- all of it --------------------------------------------------------------------------------------------------------


def _memory(spec: BackendSandboxSpec) -> int:
    return MEMORY_BYTES if spec.memory is None else parse_bytes(spec.memory, "memory")


def _nano_cpus(cpus: float | None) -> int:
    if cpus is None:
        cpus = min(CPUS, os.cpu_count() or 1)
    if not MIN_CPUS <= cpus <= 1e6:  # to the engine, less than a billionth is no limit
        raise UsageValueError(f"cpus={cpus!r}: a sandbox has {MIN_CPUS} processors or more")
    return int(cpus * 1e9)


def options(
    spec: BackendSandboxSpec,
    image: str,
    command: list[str],
    workspace: dict[str, Any],
    labels: dict[str, str],
    *,
    network: str = "none",
    dns: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The body of the engine's "create a container".

    Args:
        workspace: what :func:`workspace_of` gives, or another part of ``HostConfig`` with ``Mounts`` or ``Tmpfs``.
        network: the engine's network mode; ``dns``: name servers other than the engine's.
    """
    memory = _memory(spec)
    mounts = [*workspace.get("Mounts", ()), *_extra_mounts(spec)]
    for mount in mounts:
        if mount["Type"] == "volume":  # for what an engine that crashed left behind
            mount["VolumeOptions"] = {"Labels": {**mount.get("VolumeOptions", {}).get("Labels", {}), **labels}}
    tmp = TMP_BYTES if spec.tmp is None else parse_bytes(spec.tmp, "tmp")
    host: dict[str, Any] = {
        "AutoRemove": True,
        "CapAdd": list(CAPABILITIES),
        "CapDrop": ["ALL"],
        "Init": False,
        "IpcMode": "private",
        # With the default driver, 100 MiB of output left a log of 402 MiB.
        "LogConfig": {"Type": "none"},
        "Memory": memory,
        "MemorySwap": memory,
        "Mounts": mounts,
        "NanoCpus": _nano_cpus(spec.cpus),
        "NetworkMode": network,
        "PidsLimit": spec.pids or PIDS,
        "ReadonlyRootfs": True,
        "SecurityOpt": ["no-new-privileges"],
        "Tmpfs": {"/tmp": f"rw,exec,nosuid,nodev,size={tmp},mode=1777", **workspace.get("Tmpfs", {})},
        "Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}],
    }
    if dns:
        host["Dns"] = list(dns)
        # They are there to know no name: should they not even say so, a program would wait 10 s for each.
        host["DnsOptions"] = ["timeout:1", "attempts:1"]
    if spec.runtime is not None:
        host["Runtime"] = spec.runtime
    if spec.gpus is not None:
        host["DeviceRequests"] = [_gpus(spec.gpus)]
    return {
        "Image": image, "Entrypoint": command, "Cmd": [], "User": "0:0", "WorkingDir": "/", "Hostname": "sandbox",
        "Labels": labels, "OpenStdin": True, "StdinOnce": True, "AttachStdin": True, "AttachStdout": True,
        "AttachStderr": True, "Tty": False, "StopTimeout": 0, "StopSignal": "SIGKILL", "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": host,
    }  # fmt: skip


def _gpus(wanted: int | str) -> dict[str, Any]:
    count = -1 if wanted == "all" else wanted
    if isinstance(count, bool) or not isinstance(count, int) or count == 0 or count < -1:
        raise UsageValueError(f"gpus={wanted!r}: a number of GPUs, or 'all'")
    return {"Driver": "", "Count": count, "Capabilities": [["gpu"]]}

"""What ``bwrap`` is called with: the namespaces, the files and the capabilities of a sandbox.

A sandbox sees: ``/usr`` and what points into it, a few files of ``/etc`` that programs need and nobody keeps secrets in,
its own ``/proc``, ``/dev`` and ``/tmp``, and its workspace. Nothing else of the host: no home, ``/var``, ``/run``, ``/sys``.
Everything but the workspace, ``/tmp`` and ``/dev/shm`` is read-only.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field

from rath.backend.host.sockets import refuse_engine
from rath.backend.spec import BackendSandboxSpec
from rath.errors import UsageValueError

__all__ = ["TMP_BYTES", "WORKSPACE", "Plan", "Python", "arguments", "extra_mounts", "generated_files"]

WORKSPACE = "/workspace"
TMP_BYTES = 256 << 20
SHM_BYTES = 64 << 20
_INTO_USR = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_ETC = (
    "alternatives", "ca-certificates", "crypto-policies", "debian_version", "fonts", "java", "ld.so.cache", "ld.so.conf",
    "ld.so.conf.d", "localtime", "magic", "mime.types", "openssl", "os-release", "perl", "pki/ca-trust", "pki/tls/cert.pem",
    "pki/tls/certs", "pki/tls/openssl.cnf", "protocols", "rpc", "services", "ssl/cert.pem", "ssl/certs", "ssl/openssl.cnf",
    "terminfo", "timezone",
)  # fmt: skip
# Of the whole machine: names of keys, addresses of timers, and memory.
_MASKED = ("/proc/kcore", "/proc/key-users", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug", "/proc/timer_list")
_OWN = ("/", "/dev", "/etc", "/proc", "/sys", "/tmp", "/usr", WORKSPACE)


@dataclass(frozen=True, slots=True)
class Python:
    """The interpreter that runs the guest. ``prefix``: a directory to show for it, where it is not below ``/usr``."""

    path: str
    prefix: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A sandbox to be.

    Args:
        workspace: the host's directory that becomes ``/workspace``.
        uid: whom everything runs as, as seen inside.
        mounts: files and directories of the host to show read-only, by their place inside.
        tmp_bytes: the size of ``/tmp``; ``None`` where this ``bwrap`` cannot limit it.
    """

    workspace: str
    python: Python
    uid: int
    gid: int
    tmp_bytes: int | None = TMP_BYTES
    mounts: Mapping[str, str] = field(default_factory=dict)


def generated_files(plan: Plan) -> dict[str, bytes]:
    """The files of ``/etc`` that are the sandbox's own."""
    users = (
        "root:x:0:0:root:/:/usr/sbin/nologin",
        f"sandbox:x:{plan.uid}:{plan.gid}:sandbox:{WORKSPACE}:/bin/sh",
        "nobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
    )
    return {
        "/etc/passwd": "\n".join(users).encode(),
        "/etc/group": f"root:x:0:\nsandbox:x:{plan.gid}:\nnogroup:x:65534:\n".encode(),
        "/etc/hosts": b"127.0.0.1 localhost sandbox\n::1 localhost\n",
        "/etc/hostname": b"sandbox\n",
        "/etc/nsswitch.conf": b"passwd: files\ngroup: files\nhosts: files\n",
    }


def arguments(plan: Plan, files: Mapping[str, int], seccomp: int) -> list[str]:
    """The options for ``bwrap``, up to the command.

    Args:
        files: descriptors to read the :func:`generated_files` from, by path.
        seccomp: a descriptor to read the seccomp program from.
    """
    options = [
        "--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try",
        "--uid", str(plan.uid), "--gid", str(plan.gid), "--hostname", "sandbox",
        # For the guest's unshare(CLONE_NEWUTS), which marks the processes of a call. It clears its ambient set, so that
        # commands have none; the seccomp program leaves nothing else of what this capability could do.
        "--cap-drop", "ALL", "--cap-add", "CAP_SYS_ADMIN",
        "--die-with-parent", "--as-pid-1", "--clearenv", "--seccomp", str(seccomp),
        "--proc", "/proc", "--dev", "/dev",
    ]  # fmt: skip
    options += _system()
    for path, descriptor in files.items():
        options += ["--perms", "0444", "--file", str(descriptor), path]
    options += _tmpfs("/tmp", plan.tmp_bytes)
    options += _tmpfs("/dev/shm", None if plan.tmp_bytes is None else SHM_BYTES)
    if plan.python.prefix is not None:
        options += ["--ro-bind", plan.python.prefix, plan.python.prefix]
    for inside, outside in sorted(plan.mounts.items()):
        options += ["--ro-bind", outside, inside]
    options += ["--bind", plan.workspace, WORKSPACE]
    for path in _MASKED:
        if os.path.exists(path):
            options += ["--ro-bind", "/dev/null", path]
    return [*options, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/"]


def _system() -> list[str]:
    options = ["--ro-bind", "/usr", "/usr"]
    for name in _INTO_USR:
        path = f"/{name}"
        if os.path.islink(path):
            options += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            options += ["--ro-bind", path, path]
    for name in _ETC:
        options += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    return [*options, "--dir", "/run", "--dir", "/var", "--symlink", "/run", "/var/run", "--symlink", "/tmp", "/var/tmp"]


def _tmpfs(path: str, size_bytes: int | None) -> list[str]:
    size = [] if size_bytes is None else ["--size", str(size_bytes)]
    return ["--perms", "1777", *size, "--tmpfs", path]


def extra_mounts(spec: BackendSandboxSpec) -> dict[str, str]:
    """The host's files and directories that the spec wants shown, by their place inside.

    Raises:
        UsageValueError: one is not there, or its place is the sandbox's own.
    """
    found = {}
    for named, source in (spec.mounts or {}).items():
        inside = "/" + os.path.normpath(named).lstrip("/")  # normpath keeps two slashes at the beginning
        outside = os.path.realpath(os.path.expanduser(os.fspath(source)))
        if inside in _OWN or inside.startswith(("/dev/", "/etc/", "/proc/", "/sys/", "/usr/", f"{WORKSPACE}/")):
            raise UsageValueError(f"mounts: {inside} is the sandbox's own: choose another place, such as /data")
        try:
            mode = os.stat(outside).st_mode
        except OSError as error:
            raise UsageValueError(f"mounts: {outside} cannot be shown at {inside}: {error.strerror}") from error
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise UsageValueError(f"mounts: {outside} is neither a file nor a directory")
        refuse_engine(outside, "mounts")
        found[inside] = outside
    return found

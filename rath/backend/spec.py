"""How to open a sandbox: the fields, and reading their values. What a backend cannot honour it refuses, never ignores."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta

from rath.errors import UsageTypeError, UsageValueError

__all__ = [
    "BackendSandboxSpec",
    "host_workspace",
    "parse_bytes",
    "parse_endpoints",
    "parse_user",
    "refuse_unsupported",
    "timeout_of",
]

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = re.compile(r"\s*(\d{1,18}(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?\s*", re.IGNORECASE)
_USER = re.compile(r"([0-9]{1,10})(?::([0-9]{1,10}))?")
_MAX_BYTES = 2**63 - 1
_MAX_PIDS = 1 << 22  # of Linux; for processors a number that any machine is far from, and clocks can take
_MAX_CPUS = 1 << 16
_NO_USER = 2**32 - 1  # what chown and setresuid take for "leave it"
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?")


@dataclass
class BackendSandboxSpec:
    """How to open a sandbox; ``None`` leaves a field to the backend. A backend refuses the fields that it cannot honour.

    Sizes are bytes, or text such as ``"512m"`` and ``"2g"`` (powers of 1,024).

    Args:
        image: what the file system starts as, for backends that have images.
        entrypoint: the sandbox's own main program, for backends that have one.
        env: environment variables of every command.
        timeout: how long a call may take that does not say so itself.
        working_dir: a directory of the host as the workspace: ``local`` works in it, sandboxes that isolate get a copy.
        workspace: the same, with ``workspace_mode`` deciding; by default the workspace starts empty.
        workspace_mode: ``"copy"``: the host's files are never touched; ``"bind"``: the directory itself is worked in.
        user: whom commands run as, ``"uid"`` or ``"uid:gid"``; never 0. By default an unprivileged user of their own.
        network: ``"none"`` (the default of sandboxes that isolate), ``"bridge"``, or the ``"host:port"`` pairs that may be
            reached, and nothing else.
        memory: what everything in the sandbox may use, tmpfs included.
        cpus: processors, as in ``1.5``.
        pids: how many processes and threads may be there at once.
        disk: the size of the workspace.
        tmp: the size of ``/tmp``.
        idle_timeout: after so long without a call the workspace is frozen and the rest stopped; the next call restores it.
            By default 30 minutes in a notebook, and never elsewhere; a duration of zero: never.
        gpus: a number, or ``"all"``.
        mounts: directories or files of the host by their place in the sandbox; read-only.
        pool: how many sandboxes of this spec to keep warm, so that the next open takes milliseconds. What the image's name
            means is then asked once a minute, not at each open.
        runtime: the container runtime, such as ``"runsc"`` (gVisor).
    """

    image: str | None = None
    entrypoint: Sequence[str] | None = None
    env: Mapping[str, str] | None = None
    timeout: timedelta | None = None
    working_dir: str | None = None
    workspace: str | os.PathLike[str] | None = None
    workspace_mode: str = "copy"
    user: str | None = None
    network: str | Sequence[str] | None = None
    memory: int | str | None = None
    cpus: float | None = None
    pids: int | None = None
    disk: int | str | None = None
    tmp: int | str | None = None
    idle_timeout: timedelta | None = None
    gpus: int | str | None = None
    mounts: Mapping[str, str | os.PathLike[str]] | None = None
    pool: int = 0
    runtime: str | None = None


_DEFAULTS = BackendSandboxSpec()


def refuse_unsupported(spec: BackendSandboxSpec | None, backend: str, supported: frozenset[str]) -> BackendSandboxSpec:
    """``spec``, or the default one; its values are in order as far as any backend can tell.

    Raises:
        UsageValueError: a field is set that ``backend`` does not support, or has a value that it cannot have.
    """
    if spec is None:
        return BackendSandboxSpec()
    for field in fields(spec):
        value = getattr(spec, field.name)
        if field.name not in supported and value != getattr(_DEFAULTS, field.name):
            raise UsageValueError(
                f"the {backend} backend cannot honour {field.name}={value!r}: leave it out, or choose another backend. "
                f"{backend} honours: {', '.join(sorted(supported))}"
            )
    _check_values(spec)
    return spec


# What else could only be noticed far from here, by an error that does not name the field.
_TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "image": (str, "the name of an image"),
    "runtime": (str, "the name of a container runtime, such as 'runsc'"),
    "env": (Mapping, "a dict of names and values"),
    "timeout": (timedelta, "a duration: datetime.timedelta(seconds=...)"),
    "idle_timeout": (timedelta, "a duration: datetime.timedelta(minutes=...)"),
    "working_dir": ((str, os.PathLike), "a path"),
    "workspace": ((str, os.PathLike), "a path"),
    "cpus": ((int, float), "a number of processors, such as 1.5"),
    "pids": (int, "a number of processes"),
    "network": ((str, Sequence), "'none', 'bridge', or a list of 'host:port'"),
    "mounts": (Mapping, "a dict of paths: {place in the sandbox: path of the host}"),
    "pool": (int, "a number of sandboxes to keep warm, 0 for none"),
}


def _check_types(spec: BackendSandboxSpec) -> None:
    for name, (kind, what) in _TYPES.items():
        value = getattr(spec, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
            raise UsageTypeError(f"{name}={value!r} is {what}; not {type(value).__name__}")
    if spec.pool is None:
        raise UsageTypeError("pool is a number of sandboxes to keep warm, 0 for none; not None")
    for inside, outside in (spec.mounts or {}).items():
        if not isinstance(inside, str):
            raise UsageTypeError(f"mounts: the place in the sandbox is a str, such as '/data'; not {inside!r}")
        if not isinstance(outside, (str, os.PathLike)) or not isinstance(os.fspath(outside), str):
            raise UsageTypeError(f"mounts: what to show at {inside} is a path of the host; not {outside!r}")
    for name, value in (spec.env or {}).items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise UsageValueError(f"env: {name!r}={value!r}: names and values are strings")


def _check_values(spec: BackendSandboxSpec) -> None:
    _check_types(spec)
    if spec.timeout is not None and spec.timeout.total_seconds() <= 0:
        raise UsageValueError(f"timeout={spec.timeout!r}: a call needs more than no time")
    if spec.idle_timeout is not None and spec.idle_timeout.total_seconds() < 0:
        raise UsageValueError(f"idle_timeout={spec.idle_timeout!r} is negative; zero means never")
    for name in ("working_dir", "workspace"):
        value = getattr(spec, name)
        if value is not None and not os.fspath(value).strip():
            raise UsageValueError(f'{name} is empty: name a directory ("." is the current one), or leave it out')
        if value is not None and "\0" in os.fspath(value):
            raise UsageValueError(f"{name}={value!r}: a path cannot contain a NUL character")
    if spec.workspace is not None and spec.working_dir is not None:
        raise UsageValueError("working_dir and workspace both name the workspace: give one of them")
    if spec.workspace_mode not in ("copy", "bind"):
        raise UsageValueError(f"workspace_mode={spec.workspace_mode!r}: one of 'copy', 'bind'")
    if spec.workspace_mode == "bind" and host_workspace(spec) is None:
        raise UsageValueError("workspace_mode='bind' needs the directory to bind: workspace=...")
    for name in ("memory", "disk", "tmp"):
        value = getattr(spec, name)
        if value is not None:
            parse_bytes(value, name)
    for name in ("image", "runtime"):
        if getattr(spec, name) == "":
            raise UsageValueError(f"{name} is empty: name one, or leave it out")
    if spec.cpus is not None and not 0 < spec.cpus <= _MAX_CPUS:
        what = "needs more than no processor" if not spec.cpus > 0 else f"has at most {_MAX_CPUS:,} processors"
        raise UsageValueError(f"cpus={spec.cpus!r}: a sandbox {what}")
    if spec.pids is not None and not 1 <= spec.pids <= _MAX_PIDS:
        what = "needs at least one process" if spec.pids < 1 else f"has at most {_MAX_PIDS:,} processes, as the kernel has"
        raise UsageValueError(f"pids={spec.pids!r}: a sandbox {what}")
    for name, value in (spec.env or {}).items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise UsageValueError(f"env: {name!r} cannot be a variable, or its value has a NUL character")
    if spec.pool < 0:
        raise UsageValueError(f"pool={spec.pool!r} is a number of sandboxes to keep warm, 0 for none")
    if spec.network is not None and spec.network not in ("none", "bridge"):
        parse_endpoints(spec.network)
    for inside, outside in (spec.mounts or {}).items():
        if not os.fspath(outside).strip() or "\0" in os.fspath(outside):
            raise UsageValueError(f"mounts: {os.fspath(outside)!r}, to be shown at {inside}, is no path of the host")
        if not inside.startswith("/") or "\0" in inside or ".." in inside.split("/"):
            raise UsageValueError(f"mounts: {inside!r} is no absolute path in the sandbox")


def timeout_of(spec: BackendSandboxSpec) -> float | None:
    """The default time limit of a call, in seconds."""
    return None if spec.timeout is None else spec.timeout.total_seconds()


def host_workspace(spec: BackendSandboxSpec) -> str | None:
    """The absolute path of the host's directory that the workspace is or starts as, if there is one."""
    named = spec.workspace if spec.workspace is not None else spec.working_dir
    return None if named is None else os.path.abspath(os.path.expanduser(os.fspath(named)))


def parse_user(named: str) -> tuple[int, int]:
    """The numbers of a user and its group; alone, a user's number is its group's too.

    Raises:
        UsageValueError: they are none, or root's.
    """
    match = _USER.fullmatch(named) if isinstance(named, str) else None
    if match is None or not all(0 < int(number) < _NO_USER for number in match.groups(match[1])):
        raise UsageValueError(f"user={named!r}: 'uid' or 'uid:gid', as numbers; never 0")
    return int(match[1]), int(match[2] or match[1])


def parse_bytes(value: int | str, name: str) -> int:
    """A size in bytes, from a number or text such as ``"512m"``.

    Raises:
        UsageValueError: it is not a size above 0.
    """
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise UsageTypeError(f"{name} is a number of bytes, or text such as '512m'; not {type(value).__name__}")
    if isinstance(value, int):
        size = value
    else:
        match = _SIZE.fullmatch(value)
        if match is None:
            raise UsageValueError(f"{name}={value!r} is no size: give bytes, or text such as '512m' or '2g'")
        size = int(float(match[1]) * _UNITS[match[2].lower()])
    if size <= 0:
        raise UsageValueError(f"{name}={value!r}: a size is more than nothing")
    if size > _MAX_BYTES:
        raise UsageValueError(f"{name}={value!r}: at most {_MAX_BYTES:,} bytes, as the kernel counts them")
    return size


def parse_endpoints(network: str | Sequence[str]) -> tuple[tuple[str, int], ...]:
    """The ``(host, port)`` pairs of an allow-list.

    Raises:
        UsageValueError: one of them is not ``host:port``.
    """
    if isinstance(network, str):
        raise UsageValueError(f"network={network!r}: one of 'none', 'bridge', or a list of 'host:port'")
    found = []
    for one in network:
        host, _, port = one.rpartition(":") if isinstance(one, str) else ("", "", "")
        if _HOST.fullmatch(host) is None or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
            raise UsageValueError(f"network: {one!r} is not 'host:port', such as 'pypi.org:443'")
        found.append((host.lower(), int(port)))
    if not found:
        raise UsageValueError("network is an empty list: say 'none' for no network")
    return tuple(found)

"""Where the Docker Engine is, and what to do if it does not answer. Reads files and environment; asks no network."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import socket
from pathlib import Path

__all__ = ["answers", "endpoint", "is_local", "remedy", "socket_path"]

_UNIX = "unix://"
_SYSTEM = "/var/run/docker.sock"


def endpoint() -> str:
    """The engine's address: ``DOCKER_HOST``, else the current context's, else the first usual socket that is there."""
    named = os.environ.get("DOCKER_HOST")
    if named:
        return named
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return _of_context()
    return _UNIX + next((path for path in _usual() if os.path.exists(path)), _SYSTEM)


def _of_context() -> str:
    """What ``docker context use`` chose. Raises if that is nothing, or the default."""
    home = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    name = os.environ.get("DOCKER_CONTEXT") or json.loads((home / "config.json").read_bytes())["currentContext"]
    meta = home / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest() / "meta.json"
    return str(json.loads(meta.read_bytes())["Endpoints"]["docker"]["Host"])


def _usual() -> list[str]:
    """The system's engine, a rootless one, and Docker Desktop's."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    rootless = [os.path.join(runtime, "docker.sock")] if runtime else []
    return [_SYSTEM, *rootless, os.path.expanduser("~/.docker/run/docker.sock")]


def socket_path() -> str | None:
    """The path of the engine's socket, if it has one on this machine."""
    address = endpoint()
    return address.removeprefix(_UNIX) if address.startswith(_UNIX) else None


def is_local() -> bool:
    """Whether the engine is reached by a socket of this machine, so that its paths are most likely this machine's."""
    return socket_path() is not None


def answers() -> bool:
    """Whether something listens at the engine's socket, in microseconds. Of an engine elsewhere: ``True``, unasked."""
    path = socket_path()
    return path is None or _knock(path) is None


def _knock(path: str) -> OSError | None:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:
            return None  # its queue is full: it is there, and busy
        except OSError as error:
            return error
    return None


def remedy() -> str:
    """Why the engine cannot be reached, as far as this machine can tell, and what to do."""
    path = socket_path()
    if path is None:
        return (
            f"the Docker Engine at {endpoint()} (DOCKER_HOST, or docker's context) does not answer: "
            "check the address, and that it runs"
        )
    error = _knock(path)
    if error is None:
        return f"the Docker Engine listens at {path} but does not answer as it should: see `docker version`"
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            f"this user may not use the Docker Engine at {path}: add it to the docker group "
            "(sudo usermod -aG docker $USER), then log in again"
        )
    if error.errno == errno.ECONNREFUSED:
        return f"the Docker Engine does not run (nobody listens at {path}): start it (sudo systemctl start docker)"
    return (
        f"there is no Docker Engine at {path} ({error.strerror}): install it (https://docs.docker.com/engine/install), "
        "start it, or name one in DOCKER_HOST"
    )

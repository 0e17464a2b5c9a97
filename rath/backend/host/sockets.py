"""The sockets of container engines, which no sandbox may be shown: who can reach one of them owns the host."""

from __future__ import annotations

import os

from rath.errors import UsageValueError

__all__ = ["refuse_engine"]

_ENGINE_SOCKETS = (
    "/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock", "/run/podman/podman.sock",
    "/run/crio/crio.sock",
)  # fmt: skip


def refuse_engine(path: str, field: str, *named: str) -> None:
    """Raise ``UsageValueError`` if ``path``, which a spec's ``field`` names, is an engine's socket or a directory with one.

    A read-only mount is no help: it keeps nobody from connecting.

    Args:
        path: without symbolic links.
        named: more sockets than the usual ones.
    """
    rootless = os.environ.get("XDG_RUNTIME_DIR")
    own = () if not rootless else (f"{rootless}/docker.sock", f"{rootless}/podman/podman.sock")
    for socket in {os.path.realpath(one) for one in (*_ENGINE_SOCKETS, *own, *named)}:
        if socket == path or (os.path.exists(socket) and socket.startswith(path.rstrip("/") + "/")):
            raise UsageValueError(
                f"{field}: {path} holds the engine's socket {socket}, which would give the sandbox the whole machine. "
                "Name a directory without it"
            )

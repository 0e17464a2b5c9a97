"""Whether a Docker engine answers. The one module of the command line that loads the docker package."""

from __future__ import annotations

import os
import socket
import threading

import docker

__all__ = ["PATIENCE_S", "ping"]

PATIENCE_S = 2.0
_USUAL = "unix:///var/run/docker.sock"


def ping() -> tuple[bool, str]:
    """Ask the engine that the environment names; whether it answered within 2 s, and its version or what went wrong."""
    found: list[tuple[bool, str]] = []
    # In a thread, because a name server or a half-dead socket does not care for the client's timeout.
    asking = threading.Thread(target=lambda: found.append(_ask()), name="rath-docker-ping", daemon=True)
    asking.start()
    asking.join(PATIENCE_S + 0.5)
    return found[0] if found else (False, f"no answer within {PATIENCE_S:g} s")


def _ask() -> tuple[bool, str]:
    host = os.environ.get("DOCKER_HOST") or _USUAL
    if host.startswith("unix://"):
        # Asked first, because the client's own error for a socket that is not there does not name it.
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(PATIENCE_S)
                probe.connect(host.removeprefix("unix://"))
        except OSError as error:
            return False, f"{host}: {error.strerror or error}"
    try:
        # With a version given, making a client asks nothing yet: one that fails while it is made leaks its socket.
        client = docker.from_env(timeout=PATIENCE_S, version="1.44")
        try:
            return True, f"engine {client.api.version(api_version=False).get('Version', '?')}"
        finally:
            client.close()
    except Exception as error:  # docker, requests and urllib3 each raise their own
        return False, str(error) or type(error).__name__

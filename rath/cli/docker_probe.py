"""Whether a Docker engine answers. The one module of the command line that loads the docker package."""

from __future__ import annotations

import threading

import docker

__all__ = ["PATIENCE_S", "ping"]

PATIENCE_S = 2.0


def ping() -> tuple[bool, str]:
    """Ask the engine that the environment names; whether it answered within 2 s, and its version or what went wrong."""
    found: list[tuple[bool, str]] = []
    # In a thread, because a name server or a half-dead socket does not care for the client's timeout.
    asking = threading.Thread(target=lambda: found.append(_ask()), name="rath-docker-ping", daemon=True)
    asking.start()
    asking.join(PATIENCE_S + 0.5)
    return found[0] if found else (False, f"no answer within {PATIENCE_S:g} s")


def _ask() -> tuple[bool, str]:
    try:
        client = docker.from_env(timeout=PATIENCE_S)
        try:
            return True, f"engine {client.version().get('Version', '?')}"
        finally:
            client.close()
    except Exception as error:  # docker, requests and urllib3 each raise their own
        return False, str(error) or type(error).__name__

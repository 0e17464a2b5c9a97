"""Whether a Docker engine answers. The one module of the command line that loads the docker package."""

from __future__ import annotations

import contextlib
import os
import socket
import threading

import docker

from rath.backend.docker import where
from rath.backend.docker.backend import DEFAULT_IMAGE, IMAGE_VARIABLE

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


def _image(host: str, version: str) -> str:
    """Whether the image that sandboxes have by default is there, as words to go on with."""
    name = os.environ.get(IMAGE_VARIABLE) or DEFAULT_IMAGE
    with contextlib.closing(_client(host, version)) as client:
        try:
            client.inspect_image(name)
        except docker.errors.APIError:
            return f"the first sandbox pulls the image {name}"
    return f"the image {name} is there"


def _client(host: str, version: str) -> docker.APIClient:
    settings = {**docker.utils.kwargs_from_env(), "base_url": host}
    return docker.APIClient(timeout=PATIENCE_S, version=version, **settings)


def _ask() -> tuple[bool, str]:
    host = where.endpoint()
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
        with contextlib.closing(_client(host, "1.44")) as client:
            said = client.version(api_version=False)
        return True, f"engine {said.get('Version', '?')} at {host}; {_image(host, said['ApiVersion'])}"
    except Exception as error:  # docker, requests and urllib3 each raise their own
        return False, str(error) or type(error).__name__

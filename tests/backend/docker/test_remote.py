"""An engine behind TCP, or TLS: the same sandbox, without anything that only a local engine can do."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rath.backend.docker import where
from rath.backend.docker.engine import DockerEngine
from tests.backend.docker.conftest import BASE, NO_PYTHON

pytestmark = [pytest.mark.docker, pytest.mark.slow]

USE = """
import sys, time
from rath.backend import registry
from rath.backend.docker.sweep import everything
from rath.backend.docker.engine import engine
from rath.backend.owner import owner
from rath.backend.types import BackendSandboxSpec, BackendToolCommandRun, BackendToolFilesRead, BackendToolFilesWrite
backend = registry.get("docker")
sandbox = backend.open(BackendSandboxSpec(image=sys.argv[1]))
data = bytes(range(256)) * 4000
assert sandbox.dispatch(BackendToolFilesWrite("file", data)).bytes_written == len(data)
assert sandbox.dispatch(BackendToolFilesRead("file", encoding=None)).data == data
done = sandbox.dispatch(BackendToolCommandRun("wc -c; ls -l file; mount | grep workspace", stdin=data))
assert done.stdout.split()[0] == b"1024000", done
for _ in range(20):
    assert sandbox.dispatch(BackendToolCommandRun("echo hi")).stdout == b"hi\\n"
backend.close(sandbox)
time.sleep(0.5)
assert everything(engine(), owner().id) == []
print("good")
"""


def serve(listening: socket.socket, target: str, wrap: ssl.SSLContext | None) -> None:
    """Pass connections on to a unix socket, until the listening one is closed."""
    with contextlib.suppress(OSError):
        while True:
            client, _ = listening.accept()
            threading.Thread(target=relay, args=(client, target, wrap), daemon=True).start()


def relay(client: socket.socket, target: str, wrap: ssl.SSLContext | None) -> None:
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        near = stack.enter_context(client if wrap is None else wrap.wrap_socket(client, server_side=True))
        far = stack.enter_context(socket.socket(socket.AF_UNIX))
        far.connect(target)
        ends = {near: far, far: near}
        while ends:
            waiting = [near] if near in ends and wrap is not None and near.pending() else select.select(list(ends), [], [])[0]  # type: ignore[attr-defined]
            for one in waiting:
                data = one.recv(65536)
                if data:
                    ends[one].sendall(data)
                elif one is far or wrap is not None:
                    return
                else:
                    ends.pop(one).shutdown(socket.SHUT_WR)


@pytest.fixture
def listening(docker_engine: DockerEngine) -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def use(image: str, **environment: str) -> None:
    # `requests` prefers these to what docker's own settings say.
    ours = {name: value for name, value in os.environ.items() if name not in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")}
    done = subprocess.run(
        [sys.executable, "-c", USE, image], env={**ours, **environment}, capture_output=True, text=True, timeout=50
    )
    assert done.stdout == "good\n", done.stderr


@pytest.mark.parametrize("image", [BASE, NO_PYTHON])
def test_an_engine_behind_tcp(listening: socket.socket, image: str) -> None:
    path = where.socket_path()
    assert path is not None
    threading.Thread(target=serve, args=(listening, path, None), daemon=True).start()
    use(image, DOCKER_HOST=f"tcp://127.0.0.1:{listening.getsockname()[1]}")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes the certificates")
@pytest.mark.parametrize("image", [BASE, NO_PYTHON])
def test_an_engine_behind_tls(listening: socket.socket, tmp_path: Path, image: str) -> None:
    path = where.socket_path()
    assert path is not None
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    shutil.copy(tmp_path / "cert.pem", tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    threading.Thread(target=serve, args=(listening, path, context), daemon=True).start()
    use(
        image,
        DOCKER_HOST=f"tcp://127.0.0.1:{listening.getsockname()[1]}",
        DOCKER_TLS_VERIFY="1",
        DOCKER_CERT_PATH=str(tmp_path),
    )

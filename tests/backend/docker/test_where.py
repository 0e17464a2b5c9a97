"""Where the engine is: found without asking anybody, and if it is not there, the user hears what to do."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rath.backend import registry
from rath.backend.docker import where
from rath.backend.docker.engine import DockerEngine
from rath.core import ports
from rath.errors import SandboxUnavailable
from rath.testing.pace import within


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / ".docker"))


def context(home: Path, name: str, host: str) -> None:
    meta = home / ".docker" / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest()
    meta.mkdir(parents=True)
    (meta / "meta.json").write_text(json.dumps({"Name": name, "Endpoints": {"docker": {"Host": host}}}))
    (home / ".docker" / "config.json").write_text(json.dumps({"currentContext": name}))


def test_docker_host_comes_before_the_context_and_that_before_the_usual_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert where.endpoint() == "unix:///var/run/docker.sock"
    context(tmp_path, "colima", "unix:///home/me/.colima/docker.sock")
    assert where.endpoint() == "unix:///home/me/.colima/docker.sock"
    monkeypatch.setenv("DOCKER_HOST", "tcp://build:2376")
    assert where.endpoint() == "tcp://build:2376"
    assert not where.is_local()


def test_a_broken_configuration_of_dockers_is_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker" / "config.json").write_text('{"currentContext": 5')
    assert where.endpoint() == "unix:///var/run/docker.sock"


def test_whether_it_is_available_is_known_in_microseconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = registry.get_class("docker")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "engine.sock"))
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/engine.sock")
        assert not backend.is_available()  # nobody listens
        listening.listen(0)
        assert backend.is_available()
        took_s = []
        for _ in range(50):  # after the first, its queue is full: it is busy, and there
            begun = time.perf_counter()
            assert backend.is_available()
            took_s.append(time.perf_counter() - begun)
    assert min(took_s) < within(0.001)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nowhere.sock")
    assert not backend.is_available()
    monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.1:2376")  # never answers, and is not asked
    assert backend.is_available()


def test_the_error_says_what_is_wrong_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def error() -> str:
        with pytest.raises(SandboxUnavailable) as caught:
            DockerEngine().ask_blocking("start a container", lambda client: client.version())
        return str(caught.value)

    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nowhere.sock")
    assert "nowhere.sock" in error()
    assert "install it" in error()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "dead.sock"))
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/dead.sock")
        assert "systemctl start docker" in error()
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    assert "tcp://127.0.0.1:1" in error()


@pytest.mark.slow
def test_who_asks_an_engine_that_hangs_hears_of_it_in_seconds_however_many_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "engine.sock"))
        listening.listen(20)  # and never answers
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/engine.sock")
        engine = DockerEngine()

        async def ask_all() -> list[object]:
            asked = (engine.ask("look", lambda client: client.version()) for _ in range(5))
            return await asyncio.gather(*asked, return_exceptions=True)

        begun = time.monotonic()
        answers = ports.engine().run(ask_all())
    assert time.monotonic() - begun < within(20)
    assert all(isinstance(one, SandboxUnavailable) and "does not answer as it should" in str(one) for one in answers), answers


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_who_may_not_use_the_engine_hears_of_the_group(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom rath.backend.docker import where\n"
        "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "print(where.answers(), where.remedy())\n"
    )
    with socket.socket(socket.AF_UNIX) as listening:
        path = "/tmp/rath-test-engine.sock"
        listening.bind(path)
        try:
            os.chmod(path, 0o600)
            listening.listen()
            environment = {**os.environ, "DOCKER_HOST": f"unix://{path}"}
            done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        finally:
            os.unlink(path)
    assert done.stdout.startswith("False")
    assert "usermod -aG docker" in done.stdout

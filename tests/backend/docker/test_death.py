"""However a sandbox or its owner dies: nothing is left, and whoever waits hears of it at once, and is told the truth."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rath import Session, run_session_loop
from rath.backend import owner as owners
from rath.backend import registry
from rath.backend.calls import BackendToolCommandRun, BackendToolFilesExists, CommandResult
from rath.backend.docker.engine import DockerEngine
from rath.backend.docker.sweep import everything
from rath.backend.types import BackendSandbox, BackendSandboxSpec
from rath.core import ports
from rath.errors import SandboxBroken, SandboxUnavailable
from rath.testing import ScriptedClient
from rath.testing.pace import within
from tests.backend.docker.conftest import BASE, NO_PYTHON

pytestmark = pytest.mark.docker
GONE_S = 3.0

HOLD = """
import sys
from rath.backend import registry
from rath.backend.owner import owner
from rath.backend.types import BackendSandboxSpec, BackendToolCommandRun
sandbox = registry.get("docker").open(BackendSandboxSpec(image=sys.argv[1], **eval(sys.argv[2])))
sandbox.dispatch(BackendToolCommandRun("setsid sleep 1000 & (setsid setsid sleep 1000 &); touch x"))
print(owner().id, flush=True)
"""


def holder(image: str, spec: str = "{}", then: str = "input()") -> tuple[subprocess.Popen[str], str]:
    """Another process that has a sandbox, and its owner's name."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD + then, image, spec], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def left_after(engine: DockerEngine, owner: str, seconds: float) -> list[str]:
    """What is left of an owner's things when it had so long."""
    until = time.monotonic() + seconds
    while (left := [one.kind for one in everything(engine, owner)]) and time.monotonic() < until:
        time.sleep(0.02)
    return left


def end(process: subprocess.Popen[str]) -> None:
    with process:
        process.kill()


@pytest.fixture
def sandbox(docker_engine: DockerEngine) -> Iterator[BackendSandbox]:
    with registry.get("docker").open(BackendSandboxSpec(image=BASE)) as opened:
        yield opened


@pytest.mark.slow
@pytest.mark.parametrize(
    ("image", "spec"),
    [(BASE, "{}"), (BASE, "{'network': 'bridge'}"), (BASE, "{'pool': 2}"), (BASE, "{'network': ['pypi.org:443']}"), (NO_PYTHON, "{}")],
)
def test_an_owner_killed_with_sigkill_leaves_nothing(docker_engine: DockerEngine, image: str, spec: str) -> None:
    process, name = holder(image, spec)
    assert {one.kind for one in everything(docker_engine, name)} >= {"container"}
    end(process)
    assert left_after(docker_engine, name, GONE_S) == []


@pytest.mark.slow
def test_an_owner_that_ends_without_closing_leaves_nothing(docker_engine: DockerEngine) -> None:
    process, name = holder(BASE, then="")
    with process:
        assert process.wait(30) == 0
    assert left_after(docker_engine, name, GONE_S) == []


@pytest.mark.slow
def test_a_forked_child_does_not_keep_its_parents_sandbox_alive(docker_engine: DockerEngine) -> None:
    fork = """
import os, time
child = os.fork()
if not child:
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
input()
"""
    process, name = holder(BASE, then=fork)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        end(process)
        assert left_after(docker_engine, name, GONE_S) == []
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.slow
def test_the_parent_of_a_fork_goes_on_with_its_sandbox_and_the_child_can_have_its_own(docker_engine: DockerEngine) -> None:
    fork = """
import os
from rath.backend.types import CommandResult
child = os.fork()
if not child:
    own = registry.get("docker").open(BackendSandboxSpec(image=sys.argv[1]))
    good = isinstance(own.dispatch(BackendToolCommandRun("test ! -e x")), CommandResult)
    own.backend.close(own)
    os._exit(0 if good else 1)
print(os.waitpid(child, 0)[1], sandbox.dispatch(BackendToolCommandRun("test -e x")).exit_code, flush=True)
sandbox.backend.close(sandbox)
"""
    process, name = holder(BASE, then=fork)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline().split() == ["0", "0"]
    assert left_after(docker_engine, name, GONE_S) == []


@pytest.mark.parametrize("image", [BASE, pytest.param(NO_PYTHON, marks=pytest.mark.slow)])
def test_a_container_removed_under_a_call_breaks_the_sandbox_at_once(docker_engine: DockerEngine, image: str) -> None:
    backend = registry.get("docker")
    sandbox = backend.open(BackendSandboxSpec(image=image))
    container = sandbox.container.id if image == NO_PYTHON else sandbox.made.container  # type: ignore[attr-defined]

    async def remove_under_it() -> float:
        task = asyncio.ensure_future(sandbox.perform(BackendToolCommandRun("touch begun; sleep 60")))
        while await sandbox.perform(BackendToolFilesExists("begun")) is not True:  # noqa: ASYNC110 - it is in a container
            await asyncio.sleep(0.01)
        removing = asyncio.ensure_future(
            ports.engine().call(
                docker_engine.ask_blocking, "remove it", lambda client: client.remove_container(container, force=True)
            )
        )
        begun = time.monotonic()
        with pytest.raises(SandboxBroken, match="unknown"):
            await task
        took_s = time.monotonic() - begun
        await removing
        return took_s

    assert ports.engine().run(remove_under_it()) < within(2)
    with pytest.raises(SandboxBroken, match="Place the session again"):
        sandbox.dispatch(BackendToolCommandRun("true"))
    begun = time.monotonic()
    backend.close(sandbox)
    assert time.monotonic() - begun < within(2)
    with backend.open(BackendSandboxSpec(image=image)) as another:
        assert isinstance(another.dispatch(BackendToolCommandRun("true")), CommandResult)


@pytest.mark.slow
def test_a_container_that_is_stopped_under_an_upload_breaks_the_sandbox_at_once(docker_engine: DockerEngine) -> None:
    """Without a guest: the engine does not end the stream of an exec whose input it has not got rid of."""
    sandbox: Any = registry.get("docker").open(BackendSandboxSpec(image=NO_PYTHON))

    async def stop_under_it() -> float:
        call = BackendToolCommandRun("touch begun; cat > /dev/null; sleep 60", stdin=bytes(50 << 20))
        task = asyncio.ensure_future(sandbox.perform(call))
        while await sandbox.perform(BackendToolFilesExists("begun")) is not True:  # noqa: ASYNC110 - it is in a container
            await asyncio.sleep(0.01)
        container = sandbox.container.id
        await ports.engine().call(docker_engine.ask_blocking, "stop it", lambda client: client.stop(container, timeout=0))
        begun = time.monotonic()
        with pytest.raises(SandboxBroken, match="unknown"):
            await task
        return time.monotonic() - begun

    assert ports.engine().run(stop_under_it()) < within(2)
    sandbox.backend.close(sandbox)


@pytest.mark.slow
def test_a_dead_sandbox_fails_the_run_and_the_model_hears_nothing_of_it(docker_engine: DockerEngine) -> None:
    session = Session.from_user_message("work").to("docker", spec=BackendSandboxSpec(image=BASE))
    sandbox = session.require_sandbox()
    client = ScriptedClient(
        [
            {"tool_calls": [{"name": "run_shell_command", "arguments": {"cmd": "touch begun; sleep 60"}}]},
            "The model was told.",
        ],
        record=True,
    )
    run = run_session_loop(session, Session.from_agent_prompt("Work."), agent_provider=client.as_provider())
    container = sandbox.made.container  # type: ignore[attr-defined]
    while sandbox.dispatch(BackendToolFilesExists("begun")) is not True:
        time.sleep(0.01)
    docker_engine.ask_blocking("remove it", lambda client: client.remove_container(container, force=True))
    with pytest.raises(SandboxBroken):
        run.synchronize(20)
    assert len(client.requests) == 1
    with pytest.raises(SandboxBroken):
        sandbox.dispatch(BackendToolFilesExists("begun"))


@pytest.mark.slow
def test_many_sandboxes_can_be_opened_at_once(docker_engine: DockerEngine) -> None:
    backend = registry.get("docker")

    async def open_all() -> list[BackendSandbox]:
        return list(await asyncio.gather(*(backend.open_in_loop(BackendSandboxSpec(image=BASE)) for _ in range(20))))

    opened = ports.engine().run(open_all())
    assert len({sandbox.handle for sandbox in opened}) == 20

    async def use_and_close() -> list[bytes]:
        results = await asyncio.gather(*(one.perform(BackendToolCommandRun("id -u; ls")) for one in opened))
        await asyncio.gather(*(one.shut() for one in opened))
        return [result.stdout for result in results if isinstance(result, CommandResult)]

    assert len(set(ports.engine().run(use_and_close()))) > 15


def test_a_guest_that_cannot_start_is_told_with_its_last_words(docker_engine: DockerEngine, tmp_path: Path) -> None:
    broken = tmp_path / "python3"
    broken.write_text("#!/bin/sh\necho this Python is broken >&2; exit 3\n")
    broken.chmod(0o755)
    with pytest.raises(SandboxUnavailable, match="this Python is broken"):
        registry.get("docker").open(BackendSandboxSpec(image=BASE, mounts={"/usr/bin/python3": broken}))


@pytest.mark.slow
@pytest.mark.parametrize("image", [BASE, NO_PYTHON])
def test_an_open_that_is_cancelled_at_any_moment_leaves_nothing(docker_engine: DockerEngine, image: str) -> None:
    backend = registry.get("docker")
    with backend.open(BackendSandboxSpec(image=image)):  # what is done once is done

        async def cancel_after(seconds: float) -> None:
            opening = asyncio.ensure_future(backend.open_in_loop(BackendSandboxSpec(image=image)))
            await asyncio.sleep(seconds)
            opening.cancel()
            try:
                await (await opening).shut()
            except asyncio.CancelledError:
                return

        for n in range(30):
            ports.engine().run(cancel_after(n * 0.004))
            assert len([one for one in everything(docker_engine, owners.owner().id) if one.kind == "container"]) == 1, n


@pytest.mark.slow
def test_a_container_that_was_made_and_never_started_goes_with_its_owner(docker_engine: DockerEngine) -> None:
    make = """
from rath.backend.docker.container import options
from rath.backend.docker.engine import engine
from rath.backend.docker.labels import labels
body = options(BackendSandboxSpec(), sys.argv[1], ["sh"], {}, labels(owner(), "0123456789abcdef"))
engine().ask_blocking("make", lambda client: client.create_container_from_config(body))
print("made", flush=True)
input()
"""
    process, name = holder(NO_PYTHON, then=make)
    assert process.stdout is not None
    assert process.stdout.readline() == "made\n"
    end(process)
    assert left_after(docker_engine, name, 2 * GONE_S) == []


def test_an_open_sandbox_is_on_record_until_it_closes(sandbox: BackendSandbox) -> None:
    record = next(one for one in owners.sandboxes() if one.handle.startswith(sandbox.handle))
    assert (record.backend, record.image, record.pid) == ("docker", BASE, os.getpid())
    assert owners.alive(record.owner) is True
    sandbox.dispatch(BackendToolCommandRun("exit 7"))
    sandbox.journal._log.flush()  # type: ignore[attr-defined]
    noted = owners.calls(record.id)[-1]
    assert (noted["text"], noted["exit"]) == ("exit 7", 7)
    sandbox.backend.close(sandbox)
    assert record not in owners.sandboxes()

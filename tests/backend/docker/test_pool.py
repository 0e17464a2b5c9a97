"""A warm pool: opens take milliseconds, each container serves one sandbox, and none outlives the pool."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import pytest

from rath.backend import registry
from rath.backend.calls import BackendToolCommandRun, CommandResult
from rath.backend.docker.engine import DockerEngine
from rath.backend.docker.pool import Pool
from rath.backend.docker.sweep import everything
from rath.backend.owner import owner
from rath.backend.types import BackendSandbox, BackendSandboxSpec
from rath.core import ports
from rath.errors import SandboxUnavailable, UsageValueError
from rath.testing.pace import within
from tests.backend.docker.conftest import BASE, NO_PYTHON


@dataclass(eq=False)
class Thing:
    number: int
    is_fit: bool = True
    discarded: bool = False

    async def discard(self) -> None:
        self.discarded = True


class Maker:
    """Makes things, one after the other, and remembers them."""

    def __init__(self) -> None:
        self.made: list[Thing] = []
        self.busy = 0
        self.most_at_once = 0

    async def __call__(self) -> Thing:
        self.busy += 1
        self.most_at_once = max(self.most_at_once, self.busy)
        await asyncio.sleep(0.01)
        self.busy -= 1
        thing = Thing(len(self.made))
        self.made.append(thing)
        return thing


async def filled(pool: Pool[Thing], size: int) -> None:
    for _ in range(500):
        if pool.ready == size:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{pool.ready} are ready, not {size}")


def test_a_pool_is_filled_one_at_a_time_and_gives_each_thing_once() -> None:
    async def work() -> None:
        maker = Maker()
        pool = Pool(maker, 3)
        assert pool.take() is None
        await filled(pool, 3)
        taken = [pool.take() for _ in range(3)]
        assert taken == maker.made
        assert pool.take() is None
        await filled(pool, 3)
        assert maker.most_at_once == 1
        await pool.shut()
        assert [thing.discarded for thing in maker.made] == [False] * 3 + [True] * 3

    ports.engine().run(work())


def test_what_died_in_the_pool_is_not_given_out() -> None:
    async def work() -> None:
        maker = Maker()
        pool = Pool(maker, 2)
        await filled(pool, 2)
        maker.made[0].is_fit = False
        assert pool.take() is maker.made[1]
        await filled(pool, 2)
        assert maker.made[0].discarded
        await pool.shut()

    ports.engine().run(work())


def test_a_pool_that_nobody_uses_closes() -> None:
    async def work() -> None:
        maker = Maker()
        pool = Pool(maker, 1, idle_s=0.5)
        await filled(pool, 1)
        assert pool.take() is not None
        await filled(pool, 1)
        await asyncio.sleep(0.8)
        assert pool.is_closed
        assert [thing.discarded for thing in maker.made] == [False, True]

    ports.engine().run(work())


def test_a_maker_that_fails_does_not_fail_who_takes() -> None:
    async def fail() -> Thing:
        raise SandboxUnavailable("no engine")

    async def work() -> None:
        pool = Pool(fail, 1)
        await asyncio.sleep(0.3)
        assert pool.take() is None
        await pool.shut()

    ports.engine().run(work())


def run(sandbox: BackendSandbox, cmd: str) -> str:
    result = sandbox.dispatch(BackendToolCommandRun(cmd))
    assert isinstance(result, CommandResult), result
    return result.stdout.decode().strip()


@pytest.mark.docker
@pytest.mark.slow
def test_a_warm_sandbox_is_as_good_as_a_fresh_one_and_there_at_once(docker_engine: DockerEngine) -> None:
    backend = registry.get("docker")
    spec = BackendSandboxSpec(image=BASE, pool=2, env={"WHO": "first"})
    with backend.open(spec) as cold:
        _until_waiting(docker_engine, 3)
        begun = time.monotonic()
        warm = backend.open(BackendSandboxSpec(image=BASE, pool=2, env={"WHO": "second"}))
        assert run(warm, "echo $WHO; touch x; ls -A") == "second\nx"
        assert time.monotonic() - begun < within(0.15), "it was not warm: a cold one takes more than 0.25 s"
        assert run(cold, "echo $WHO; ls -A") == "first"
        assert run(warm, "id -u") != run(cold, "id -u")
        backend.close(warm)
        _until_waiting(docker_engine, 3)
    ports.engine().run(_close_pools(backend))


@pytest.mark.docker
@pytest.mark.slow
def test_a_pool_is_refused_where_there_can_be_none(docker_engine: DockerEngine, tmp_path: object) -> None:
    backend = registry.get("docker")
    with pytest.raises(UsageValueError, match="pool"):
        backend.open(BackendSandboxSpec(image=NO_PYTHON, pool=1))
    with pytest.raises(UsageValueError, match="pool"):
        backend.open(BackendSandboxSpec(image=BASE, pool=1, workspace=str(tmp_path), workspace_mode="bind", user="1000"))


def _until_waiting(engine: DockerEngine, count: int) -> None:
    until = time.monotonic() + 20
    while len([one for one in everything(engine, owner().id) if one.kind == "container"]) < count and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.5)  # created and started; its guest takes a moment to say hello


async def _close_pools(backend: object) -> None:
    await backend.close_pools()  # type: ignore[attr-defined]

"""Sandboxes beside the host's own processes and beside ``docker exec`` through docker-py, in one run.

    python tests/bench/bench_sandbox.py [--quick] [IMAGE]

Prints milliseconds and the ratio to the reference next to it. Ratios are what counts: absolute times on a shared machine
are not comparable between runs. Rows for ``bwrap`` are there where it works.
"""

from __future__ import annotations

import asyncio
import logging
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable

import docker

from rath.backend import BackendSandboxSpec, BackendToolCommandRun, BackendToolFilesRead, BackendToolFilesWrite, registry
from rath.backend.types import BackendSandbox, CommandResult
from rath.core.ports import engine
from rath.errors import BackendNotFound
from rath.session import Session

logging.getLogger("rath").setLevel(logging.ERROR)
TRUE = BackendToolCommandRun(["/bin/true"])
AT_ONCE = 64


def row(what: str, ms: float, *references: tuple[str, float]) -> None:
    beside = "".join(f", {name} {other:9.2f} (ratio {ms / other:6.3f})" for name, other in references)
    print(f"{what:46} {ms:9.2f} ms{beside}", flush=True)


def typical(work: Callable[[], Awaitable[object]], times: int) -> float:
    """The median of ``times`` runs of ``work()`` on the engine's loop, in milliseconds; after one that does not count."""

    async def measure() -> list[float]:
        await work()
        costs = []
        for _ in range(times):
            began = time.perf_counter()
            await work()
            costs.append(time.perf_counter() - began)
        return costs

    return statistics.median(engine().run(measure())) * 1e3


def ran(result: object) -> None:
    assert isinstance(result, CommandResult), result
    assert result.exit_code == 0, result


async def of_host() -> None:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec("/bin/true", stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe)
    await process.communicate()


async def many(work: Callable[[], Awaitable[object]], count: int) -> None:
    await asyncio.gather(*(work() for _ in range(count)))


def commands(name: str, sandbox: BackendSandbox, quick: bool, exec_ms: float | None) -> None:
    async def one() -> None:
        ran(await sandbox.perform(TRUE))

    times = 50 if quick else 300
    host = typical(of_host, times)
    others = [("host", host)] + ([] if exec_ms is None else [("docker-py exec_run", exec_ms)])
    row(f"{name}: true", typical(one, times), *others)
    count = 3 if quick else 15
    host = typical(lambda: many(of_host, AT_ONCE), count) / AT_ONCE
    row(f"{name}: true, {AT_ONCE} at once, each", typical(lambda: many(one, AT_ONCE), count) / AT_ONCE, ("host", host))


def files(name: str, sandbox: BackendSandbox, quick: bool) -> None:
    times = 50 if quick else 300
    data = b"x" * 1024
    row(f"{name}: write 1 kB", typical(lambda: sandbox.perform(BackendToolFilesWrite("kilo", data)), times))
    row(f"{name}: read 1 kB", typical(lambda: sandbox.perform(BackendToolFilesRead("kilo", None)), times))


def resident_mb() -> float:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024


def reset_peak() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def output(name: str, sandbox: BackendSandbox, quick: bool) -> None:
    size_mb = 200 if quick else 2048
    flood = BackendToolCommandRun(f"head -c {size_mb << 20} /dev/zero")
    reset_peak()
    before = resident_mb()
    began = time.perf_counter()
    result = sandbox.dispatch(flood)
    took_s = time.perf_counter() - began
    ran(result)
    assert isinstance(result, CommandResult)
    assert result.stdout_bytes == size_mb << 20
    print(f"{name}: {size_mb} MiB of output: {took_s:.2f} s, +{resident_mb() - before:.1f} MiB at most on the host", flush=True)


def opening(name: str, spec: BackendSandboxSpec, quick: bool) -> None:
    backend = registry.get(name)
    costs = []
    for _ in range(3 if quick else 10):
        began = time.perf_counter()
        sandbox = backend.open(spec)
        ran(sandbox.dispatch(TRUE))
        costs.append((time.perf_counter() - began) * 1e3)
        backend.close(sandbox)
    row(f"{name}: open cold, with the first command", statistics.median(costs))


def pooled(spec: BackendSandboxSpec, quick: bool) -> None:
    backend = registry.get("docker")
    backend.close(backend.open(spec))
    costs = []
    for _ in range(3 if quick else 10):
        time.sleep(1.0)  # the pool fills again
        began = time.perf_counter()
        sandbox = backend.open(spec)
        ran(sandbox.dispatch(TRUE))
        costs.append((time.perf_counter() - began) * 1e3)
        backend.close(sandbox)
    row("docker: open warm, with the first command", statistics.median(costs))


def forks(name: str, how: str, spec: BackendSandboxSpec, sizes_mb: list[int], times: int) -> None:
    for size_mb in sizes_mb:
        with Session.from_user_message("go").to(name, spec=spec) as session:
            fill = f"for i in $(seq 10); do head -c {(size_mb << 20) // 10} /dev/urandom > part$i; done"
            ran(session.require_sandbox().dispatch(BackendToolCommandRun(fill, timeout=120)))
            costs = []
            for step in range(times):
                session.require_sandbox().dispatch(BackendToolFilesWrite("changed", str(step)))
                time.sleep(1.0)  # the pool fills again
                began = time.perf_counter()
                branch = session.fork(sandbox="copy")
                ran(branch.require_sandbox().dispatch(TRUE))
                costs.append((time.perf_counter() - began) * 1e3)
                branch.close_sandbox()
            row(f"{name}: fork {size_mb} MB and run, {how}", statistics.median(costs))


def exec_run(image: str, quick: bool) -> float:
    """What ``docker exec`` through docker-py takes for ``true``, in milliseconds."""
    client = docker.from_env()
    container = client.containers.run(image, ["sleep", "600"], detach=True, auto_remove=True, labels={"rath-bench": "1"})
    try:
        costs = []
        for _ in range(5 if quick else 20):
            began = time.perf_counter()
            assert container.exec_run(["/bin/true"]).exit_code == 0
            costs.append((time.perf_counter() - began) * 1e3)
        return statistics.median(costs)
    finally:
        container.kill()
        client.close()


def of_docker(image: str, quick: bool) -> None:
    spec = BackendSandboxSpec(image=image)
    exec_ms = exec_run(image, quick)
    with registry.get("docker").open(spec) as sandbox:
        commands("docker", sandbox, quick, exec_ms)
        files("docker", sandbox, quick)
        output("docker", sandbox, quick)
    opening("docker", spec, quick)
    warm = BackendSandboxSpec(image=image, pool=2)
    pooled(warm, quick)
    sizes_mb = [10, 50] if quick else [10, 500]
    forks("docker", "frozen in place, warm", warm, sizes_mb, 3 if quick else 7)
    in_memory = BackendSandboxSpec(image=image, pool=2, disk="1g", memory="2g")
    forks("docker", "copied by the guest, warm", in_memory, sizes_mb, 1 if quick else 3)


def of_bwrap(quick: bool) -> None:
    spec = BackendSandboxSpec()
    with registry.get("bwrap").open(spec) as sandbox:
        commands("bwrap", sandbox, quick, None)
        files("bwrap", sandbox, quick)
        output("bwrap", sandbox, quick)
    opening("bwrap", spec, quick)
    forks("bwrap", "copied", spec, [10, 50] if quick else [10, 500], 1 if quick else 3)


def works(name: str) -> bool:
    try:
        return registry.get(name).is_available()
    except BackendNotFound:
        return False


if __name__ == "__main__":
    quick = "--quick" in sys.argv
    image = next((word for word in sys.argv[1:] if not word.startswith("-")), os.environ.get("RATH_SANDBOX_IMAGE", "rath-test:base"))
    print(f"load average: {os.getloadavg()[0]:.2f}, processors: {os.cpu_count()}")
    for name, work in (("docker", lambda: of_docker(image, quick)), ("bwrap", lambda: of_bwrap(quick))):
        if works(name):
            work()
        else:
            print(f"{name}: not here")

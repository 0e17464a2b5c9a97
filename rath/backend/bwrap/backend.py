"""The ``bwrap`` backend: sandboxes without an engine, made by bubblewrap, with the guest as their first process.

A sandbox is a process of this user's in user, mount, process, network, IPC, UTS and cgroup namespaces of its own, under a
seccomp program and Landlock, with limits on processes and descriptors. The kernel is the host's. No memory limit unless
the machine can set one (see :mod:`rath.backend.bwrap.limits`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import re
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from rath.backend.bwrap import preflight
from rath.backend.bwrap.arguments import TMP_BYTES, WORKSPACE, Plan, extra_mounts
from rath.backend.bwrap.limits import Group, Limits, Scope, holder
from rath.backend.bwrap.process import PROCESSES, Running, User, stand_in, start
from rath.backend.bwrap.sweep import sweep_once
from rath.backend.bwrap.workspace import Frozen, Place, bound, copied, copied_from, empty
from rath.backend.calls import BackendTool, Capabilities, CommandResult, IsolationLevel, ToolResult, WorkspaceDiff
from rath.backend.closing import ending
from rath.backend.guest.backend import BASE_ENV, HELLO_S, GuestBackend, GuestSandbox, Start
from rath.backend.guest.channel import Channel, GuestConfig
from rath.backend.guest.inflight import Reply
from rath.backend.guest.snapshot import GuestSnapshot, Kept
from rath.backend.host.diff import compare
from rath.backend.owner import SandboxRecord
from rath.backend.spec import BackendSandboxSpec, host_workspace, parse_bytes, parse_user
from rath.backend.types import BackendSandbox
from rath.core import ports
from rath.errors import SandboxBroken, SandboxUnavailable, UsageValueError

__all__ = ["BwrapBackend", "BwrapSandbox"]

SPEC_FIELDS = frozenset(
    {
        "cpus", "env", "memory", "mounts", "network", "pids", "timeout", "tmp", "user", "working_dir", "workspace",
        "workspace_mode",
    }
)  # fmt: skip
INSIDE = 20_000
"""The number of the sandbox's user as commands see it, whoever it is on the host."""
EXIT_S = 1.0
_KILLED = 128 + 9


@dataclass(eq=False, kw_only=True)
class BwrapSandbox(GuestSandbox):
    """A sandbox of this backend; ``handle`` is a name of ours."""

    running: Running
    place: Place
    held: Group | Scope | None = None
    begun: bool = False
    kills: int = 0


class BwrapBackend(GuestBackend):
    """Sandboxes by bubblewrap.

    ``working_dir`` and ``workspace`` are copied; ``workspace_mode="bind"`` works in the directory itself. ``user``: the
    number that commands see themselves run as; for a root who binds a directory, the host's user too. ``network`` can only
    be ``"none"``. ``tmp`` is 256 MiB, ``pids`` 256, unless the spec says otherwise. ``memory`` and ``cpus`` are honoured for
    root, and where the user's systemd makes scopes with limits; elsewhere opening says that it cannot.
    """

    name: ClassVar[str] = "bwrap"

    @classmethod
    def capabilities(cls) -> Capabilities:
        return Capabilities(
            isolation=IsolationLevel.CONTAINER,
            supports_command=True,
            supports_filesystem=True,
            supports_code_interpreter=True,
            cold_start_ms_p50=60,
            supports_copy=True,
            kills_exactly=True,
            keeps_state=True,
            spec_fields=SPEC_FIELDS,
        )

    @classmethod
    def is_available(cls) -> bool:
        return preflight.is_likely()

    async def _acheck(self) -> None:
        await ports.engine().call(preflight.check)

    # -- start and stop -----------------------------------------------------------------------------------------------

    async def _launch(self, spec: BackendSandboxSpec, start: Start) -> GuestSandbox:
        wanted = _Wanted.of(spec)
        sweep_once()
        ready = await ports.engine().call(preflight.check)
        if spec.tmp is not None and not ready.sized:
            raise UsageValueError(
                f"tmp={spec.tmp!r}: bubblewrap {ready.version} cannot limit the size of /tmp, as 0.7 can: leave it out"
            )
        place = await _made(lambda stop: _place(start, wanted.user, stop))
        try:
            return await self._start(spec, wanted, ready, place)
        except BaseException:
            await ports.engine().call(place.give_back)
            raise

    async def _start(self, spec: BackendSandboxSpec, wanted: _Wanted, ready: preflight.Ready, place: Place) -> GuestSandbox:
        name = f"bwrap-{secrets.token_hex(8)}"
        inside = wanted.user or User(INSIDE, INSIDE)
        tmp = wanted.tmp_bytes if ready.sized else None
        plan = Plan(place.root.real_path, ready.python, inside.uid, inside.gid, tmp, wanted.mounts)
        limits = Limits.of(spec)
        held = None if limits is None else await ports.engine().call(holder, name, limits)
        try:
            return await self._started(spec, ready, plan, place, held, name)
        except BaseException:
            if held is not None:
                await ports.engine().call(held.remove)
            raise

    async def _started(
        self,
        spec: BackendSandboxSpec,
        ready: preflight.Ready,
        plan: Plan,
        place: Place,
        held: Group | Scope | None,
        name: str,
    ) -> GuestSandbox:
        try:
            running = start(
                ready.bwrap, plan, ready.guest, compiled=True, who=place.who, processes=_processes(spec, place.who),
                prefix=() if held is None else held.prefix, enter=_alone if held is None else held.enter,
            )  # fmt: skip
        except OSError as error:
            raise SandboxUnavailable(f"{ready.bwrap} could not be started: {error}") from error
        channel = Channel(name)
        channel.on_distrust = running.kill
        try:
            await asyncio.get_running_loop().create_connection(lambda: channel, sock=running.connection)
            try:
                await channel.hello(HELLO_S)
            except (SandboxBroken, SandboxUnavailable) as error:
                await running.ended(EXIT_S)
                raise SandboxUnavailable(f"bwrap could not open a sandbox: {running.said() or error}") from error
            if held is not None:
                held.check(running.process.pid)
        except BaseException:
            channel.close()  # first: a descriptor that is closed while the loop still watches it makes its next owner deaf
            running.finish()
            raise
        prefix = ready.python.prefix
        env = None if prefix is None else {"PATH": f"{prefix}/bin:{BASE_ENV['PATH']}"}
        config = GuestConfig(WORKSPACE, env=env, mode="same", mark="uts")
        return BwrapSandbox(
            self, name, spec, channel=channel, config=config, workspace_ready=True, python=ready.python.path,
            running=running, place=place, held=held,
        )  # fmt: skip

    async def _ready(self, sandbox: GuestSandbox, said: dict[str, str]) -> None:
        if said.get("mark") != "uts":
            raise SandboxUnavailable(
                "the guest could not mark what its calls start by UTS namespaces, so it could not end a call for sure. "
                "Use the docker backend here"
            )
        mine = self._mine(sandbox)
        # bwrap goes by the path, where another sandbox that works around it may have put a link meanwhile.
        here = os.fstat(mine.place.root.fd)
        if (said.get("workspace_dev"), said.get("workspace_ino")) != (str(here.st_dev), str(here.st_ino)):
            raise SandboxUnavailable(
                f"the sandbox did not get the workspace {mine.place.root.path}: something else was put in its place while "
                "it was opened. Try again when nobody changes the directories above it"
            )
        mine.begun = True

    def _record(self, sandbox: GuestSandbox) -> SandboxRecord:
        workspace = None if sandbox.spec is None else host_workspace(sandbox.spec)
        pid = self._mine(sandbox).running.process.pid
        return SandboxRecord(sandbox.handle.removeprefix("bwrap-"), "", self.name, str(pid), workspace=workspace)

    async def _stop(self, sandbox: GuestSandbox) -> None:
        mine = self._mine(sandbox)

        def tidy() -> None:
            if mine.held is not None:
                mine.held.remove()
            (mine.place.remove if mine.begun else mine.place.give_back)()

        patient = False
        try:
            # The guest saw the connection end, and goes by itself; one that does not gets no longer than this.
            await mine.running.ended(EXIT_S)
            patient = not ending()
        finally:  # also where the engine ends, and cancels what is under way
            mine.running.finish()
            if patient:
                await ports.engine().call(tidy)
            else:
                tidy()

    def _mine(self, sandbox: BackendSandbox) -> BwrapSandbox:
        found = self._own(sandbox)
        assert isinstance(found, BwrapSandbox)
        return found

    # -- calls --------------------------------------------------------------------------------------------------------

    async def _adispatch(self, sandbox: BackendSandbox, call: BackendTool) -> ToolResult | bool:
        result = await super()._adispatch(sandbox, call)
        mine = self._mine(sandbox)
        if mine.held is not None and isinstance(result, CommandResult) and result.exit_code == _KILLED:
            # The guest cannot see the control group that it is in.
            before, mine.kills = mine.kills, mine.held.kills()
            return replace(result, oom_killed=mine.kills > before)
        return result

    # -- files, from the host's side ----------------------------------------------------------------------------------

    async def _freeze(self, sandbox: GuestSandbox, layer: str) -> Kept | None:
        mine = self._mine(sandbox)

        def copy(stop: Callable[[], bool]) -> Place:
            with mine.place.used() as root:
                return copied(root, stand_in(), stop)

        await sandbox.channel.ask(_nothing, "hold")
        try:
            place = await _made(copy)
        finally:
            await asyncio.shield(sandbox.channel.ask(_nothing, "release"))
        place.root.close()
        assert place.top is not None
        return Frozen(place.top)

    async def _arestore(self, spec: BackendSandboxSpec | None, snapshot: object) -> BackendSandbox:
        if isinstance(snapshot, GuestSnapshot) and isinstance(snapshot.kept, Frozen):
            snapshot.kept.sole = snapshot.sole
        return await super()._arestore(spec, snapshot)

    async def _adiff(self, sandbox: BackendSandbox) -> WorkspaceDiff:
        mine = self._mine(sandbox)

        def look() -> WorkspaceDiff:
            with mine.place.used() as root:
                return compare(mine.baseline, root)

        return await ports.engine().call(look)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a spec says, read."""

    user: User | None
    tmp_bytes: int
    mounts: dict[str, str]

    @classmethod
    def of(cls, spec: BackendSandboxSpec) -> _Wanted:
        if spec.network not in (None, "none"):
            raise UsageValueError(
                f"network={spec.network!r}: sandboxes of the bwrap backend have no network at all. Leave it out, or use the "
                "docker backend"
            )
        tmp = TMP_BYTES if spec.tmp is None else parse_bytes(spec.tmp, "tmp")
        return cls(None if spec.user is None else User(*parse_user(spec.user)), tmp, extra_mounts(spec))


def _place(start: Start, user: User | None, stop: Callable[[], bool]) -> Place:
    """The workspace on the host, with the files that it starts with. Blocks."""
    if start.kind == "bind" and start.path is not None:
        return bound(start.path, user)
    if start.kind == "copy" and start.path is not None:
        return copied_from(start.path, stand_in(), stop)
    if isinstance(start.kept, Frozen):
        return start.kept.place(stand_in(), stop)
    return empty(stand_in())


def _processes(spec: BackendSandboxSpec, who: User | None) -> int:
    """The limit on processes. Before Linux 5.14 the kernel counts all of the host's user, not those of the sandbox."""
    wanted = spec.pids or PROCESSES
    release = tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2])
    if release >= (5, 14):
        return wanted
    return wanted + _threads_of(os.geteuid() if who is None else who.uid)


def _threads_of(uid: int) -> int:
    total = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):  # it ended meanwhile
                if os.stat(f"/proc/{name}").st_uid == uid:
                    total += len(os.listdir(f"/proc/{name}/task"))
    return total


async def _made(function: Callable[[Callable[[], bool]], Place]) -> Place:
    """A place that ``function`` makes in a thread. A caller who is cancelled meanwhile stops it, and nothing is left."""
    stop = threading.Event()
    work = asyncio.ensure_future(ports.engine().call(function, stop.is_set))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        stop.set()
        work.add_done_callback(_drop)
        raise


def _drop(work: asyncio.Future[Place]) -> None:
    """Remove a place that was made for nobody."""
    if not work.cancelled() and work.exception() is None:
        place = work.result()
        ports.engine().start(lambda: ports.engine().call(place.give_back))


def _alone(_pid: int) -> None:
    """No control group to enter."""


def _nothing(_reply: Reply) -> None:
    """The answer says nothing but that it is done."""

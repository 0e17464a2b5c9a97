"""The ``docker`` backend: a container a sandbox, with a guest server as its first process.

Images without ``python3`` are served in exec mode (:mod:`rath.backend.docker.exec_mode`): slower, with less to promise,
and ``sandbox.capabilities()`` says so.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, replace
from typing import ClassVar

from rath.backend.calls import (
    BackendTool,
    Capabilities,
    IsolationLevel,
    ToolResult,
    WorkspaceDiff,
)
from rath.backend.docker import where
from rath.backend.docker.container import SPEC_FIELDS, WORKSPACE, Identity
from rath.backend.docker.engine import IMAGE_S, Image, engine
from rath.backend.docker.exec_sandbox import ExecSandbox, open_exec
from rath.backend.docker.launch import Launched, NoPython, remove, undo
from rath.backend.docker.parked import ParkableSandbox, ParkingBackend
from rath.backend.docker.slots import Elsewhere, FrozenWorkspace, SlotPlace, slots
from rath.backend.docker.sweep import sweep
from rath.backend.docker.warm import Pools, whom
from rath.backend.guest.backend import GuestSandbox, Start
from rath.backend.guest.channel import GuestConfig
from rath.backend.guest.snapshot import Kept
from rath.backend.host.diff import Baseline
from rath.backend.journal import note
from rath.backend.owner import SandboxRecord, owner
from rath.backend.spec import BackendSandboxSpec, host_workspace
from rath.backend.types import BackendSandbox
from rath.core import ports
from rath.errors import SandboxError, SandboxUnavailable

__all__ = ["DEFAULT_IMAGE", "IMAGE_VARIABLE", "DockerBackend", "DockerSandbox"]

DEFAULT_IMAGE = "python:3.12-slim"
IMAGE_VARIABLE = "RATH_SANDBOX_IMAGE"
POOLED_IMAGE_S = 60.0


@dataclass(eq=False, kw_only=True)
class DockerSandbox(ParkableSandbox):
    """A sandbox of this backend; ``handle`` is the start of its container's id."""

    made: Launched
    who: Identity
    can: Capabilities

    def capabilities(self) -> Capabilities:
        return self.can


class DockerBackend(ParkingBackend):
    """Containers of the Docker Engine that ``DOCKER_HOST`` or docker's context names.

    The image is the spec's, else ``RATH_SANDBOX_IMAGE``, else ``python:3.12-slim``.
    """

    name: ClassVar[str] = "docker"

    def __init__(self) -> None:
        self._swept_by = 0
        self._pools = Pools()
        self._without_python: set[str] = set()

    @classmethod
    def capabilities(cls) -> Capabilities:
        return Capabilities(
            isolation=IsolationLevel.CONTAINER,
            supports_command=True,
            supports_filesystem=True,
            supports_code_interpreter=True,
            cold_start_ms_p50=300,
            supports_copy=True,
            kills_exactly=True,
            keeps_state=True,
            spec_fields=SPEC_FIELDS,
        )

    @classmethod
    def is_available(cls) -> bool:
        return where.answers()

    async def _acheck(self) -> None:
        if not where.answers():
            raise SandboxUnavailable(where.remedy())
        await engine().ask("answer", lambda client: client.ping())

    # -- open ---------------------------------------------------------------------------------------------------------

    async def _aopen(self, spec: BackendSandboxSpec | None = None) -> BackendSandbox:
        checked = self._check_spec(spec)
        self._sweep_once()
        image = await _image(checked)
        if image.id not in self._without_python:
            try:
                return await super()._aopen(checked)
            except NoPython:
                self._without_python.add(image.id)
        return await open_exec(self, checked, image, await whom(checked))

    async def close_pools(self) -> None:
        """End every container that is kept warm. Pools begin anew with the next open that asks for one."""
        await self._pools.close()

    def _sweep_once(self) -> None:
        """Remove what dead owners left: once a process, in the background."""
        if self._swept_by != os.getpid():
            self._swept_by = os.getpid()
            ports.engine().start(_sweep_quietly)

    async def _launch(self, spec: BackendSandboxSpec, start: Start) -> GuestSandbox:
        # A copy of a workspace that is bound has one of its own.
        own = replace(spec, workspace=None, working_dir=None, workspace_mode="copy")
        place_spec = own if start.kind == "snapshot" else spec
        # Frozen files belong to whom they belonged to, and giving them to somebody else would be a copy.
        if isinstance(start.kept, FrozenWorkspace):
            who, image = start.kept.identity, start.kept.image
        else:
            who, image = await whom(place_spec), await _image(spec)
        made, who = await self._pools.obtain(place_spec, image, start, who)
        place = made.place
        try:
            filled = await place.fill(start, who)
        except BaseException:
            made.channel.close()
            await undo(made.engine, made.container, made.place, made.network, started=True)
            raise
        made.channel.on_distrust = lambda: ports.engine().start(lambda: _kill(made))
        env = {**made.image.variables, **(made.network.env if made.network is not None else {})}
        return DockerSandbox(
            self,
            made.container[:12],
            spec,
            channel=made.channel,
            config=GuestConfig(WORKSPACE, who.uid, who.gid, env, mode="switch", mark="groups"),
            workspace_ready=filled,
            made=made,
            who=who,
            can=self.capabilities(),
        )

    async def _begin(
        self, spec: BackendSandboxSpec, start: Start, baseline: Baseline | asyncio.Future[Baseline]
    ) -> GuestSandbox:
        try:
            return await super()._begin(spec, start, baseline)
        except Elsewhere as error:
            slots(owner().id).give_up(error)
            return await super()._begin(spec, start, baseline)

    async def _ready(self, sandbox: GuestSandbox, said: dict[str, str]) -> None:
        assert isinstance(sandbox, DockerSandbox)
        made = sandbox.made
        if isinstance(made.place, SlotPlace):
            slots(owner().id).check_seen(made.place, said)
        sandbox.can = replace(sandbox.can, kills_exactly=said.get("mark") == "groups")

    def _record(self, sandbox: GuestSandbox) -> SandboxRecord:
        assert isinstance(sandbox, DockerSandbox)
        made = sandbox.made
        return SandboxRecord(
            made.id,
            owner().id,
            self.name,
            made.container,
            made.image.name,
            workspace=None if sandbox.spec is None else host_workspace(sandbox.spec),
            uid=sandbox.who.uid,
        )

    async def _freeze(self, sandbox: GuestSandbox, layer: str) -> Kept | None:
        assert isinstance(sandbox, DockerSandbox)
        place = sandbox.made.place
        # A call that still runs has its directory in what would be frozen: it could not write there any more.
        if not isinstance(place, SlotPlace) or sandbox.gate.running:
            return None
        return await place.freeze(sandbox.made.image)

    # -- calls --------------------------------------------------------------------------------------------------------

    async def _adispatch(self, sandbox: BackendSandbox, call: BackendTool) -> ToolResult | bool:
        if not isinstance(sandbox, ExecSandbox):
            return await super()._adispatch(sandbox, call)
        begun = time.monotonic()
        result: ToolResult | bool | None = None
        try:
            result = await sandbox.container.answer(call, self.name)
            return result
        finally:
            if sandbox.log is not None:
                note(sandbox.log, call, result, begun)

    async def _adiff(self, sandbox: BackendSandbox) -> WorkspaceDiff:
        if isinstance(sandbox, ExecSandbox):
            sandbox.refuse("tell what changed")
        return await super()._adiff(sandbox)

    async def _asnapshot(self, sandbox: BackendSandbox, layer: str) -> object:
        if isinstance(sandbox, ExecSandbox):
            sandbox.refuse("copy its workspace")
        return await super()._asnapshot(sandbox, layer)

    async def _aupload(self, sandbox: BackendSandbox, host_path: str, path: str) -> None:
        if isinstance(sandbox, ExecSandbox):
            sandbox.refuse("take directories from the host")
        await super()._aupload(sandbox, host_path, path)

    async def _adownload(self, sandbox: BackendSandbox, path: str, host_path: str) -> None:
        if isinstance(sandbox, ExecSandbox):
            sandbox.refuse("give directories to the host")
        await super()._adownload(sandbox, path, host_path)

    # -- close --------------------------------------------------------------------------------------------------------

    async def _aclose(self, sandbox: BackendSandbox) -> None:
        if isinstance(sandbox, ExecSandbox):
            await sandbox.end()
        else:
            await super()._aclose(sandbox)

    async def _stop(self, sandbox: GuestSandbox) -> None:
        assert isinstance(sandbox, DockerSandbox)
        made = sandbox.made
        await remove(made.engine, made.container, made.place, made.network)


async def _kill(made: Launched) -> None:
    """End a container whose guest cannot be believed: it may not go by itself."""
    await made.engine.remove(made.container)


async def _sweep_quietly() -> None:
    try:
        await sweep(engine())
    except SandboxError:
        return  # whoever opens a sandbox, or reaps, hears of it


async def _image(spec: BackendSandboxSpec) -> Image:
    """What the spec's image is now; with a pool, what it was within the last minute: asking takes longer than the rest."""
    name = spec.image or os.environ.get(IMAGE_VARIABLE) or DEFAULT_IMAGE
    return await engine().image(name, remembered_s=POOLED_IMAGE_S if spec.pool else IMAGE_S)

"""Opening and closing sandboxes in exec mode."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NoReturn

from rath.backend.calls import Capabilities
from rath.backend.docker.container import WORKSPACE, Identity
from rath.backend.docker.engine import EngineRefusal, Image, engine
from rath.backend.docker.exec_mode import ExecContainer
from rath.backend.docker.keeper import kept_owner
from rath.backend.docker.labels import labels
from rath.backend.docker.launch import create, new_sandbox_id, remove, undo
from rath.backend.docker.place import EnginePlace
from rath.backend.guest.backend import BASE_ENV
from rath.backend.owner import CallLog, SandboxRecord, owner
from rath.backend.spec import BackendSandboxSpec, host_workspace, timeout_of
from rath.backend.types import Backend, BackendSandbox
from rath.errors import SandboxError, SandboxUnavailable, UsageValueError

__all__ = ["ExecSandbox", "open_exec"]

READY_S = 20.0


@dataclass(eq=False, kw_only=True)
class ExecSandbox(BackendSandbox):
    """A sandbox whose image has no Python: every call is an exec of the engine."""

    container: ExecContainer
    id: str
    place: EnginePlace
    image: str
    log: CallLog | None = field(init=False, default=None)

    def capabilities(self) -> Capabilities:
        return replace(self.backend.capabilities(), supports_copy=False, kills_exactly=False, keeps_state=False)

    def refuse(self, what: str) -> NoReturn:
        """Raise for what this sandbox cannot do."""
        raise SandboxError(f"sandbox {self.handle} cannot {what}: its image {self.image!r} has no python3. Use one that has")

    async def end(self) -> None:
        """Close it."""
        if self.log is not None:
            self.log.close()
        self.container.end()
        await remove(engine(), self.container.id, self.place, None)
        owner().closed(self.id)


async def open_exec(backend: Backend, spec: BackendSandboxSpec, image: Image, who: Identity) -> ExecSandbox:
    """A sandbox of an image that has ``sh`` but no ``python3``; nothing is left of it where this raises.

    Raises:
        UsageValueError: the spec asks for what needs Python in the image.
        SandboxUnavailable: it does not start.
    """
    if host_workspace(spec) is not None and spec.workspace_mode == "copy":
        raise UsageValueError(
            f"the image {image.name!r} has no python3, so the workspace cannot be copied into it: use an image that has it, "
            "or workspace_mode='bind'"
        )
    if spec.network is not None and not isinstance(spec.network, str):
        raise UsageValueError(f"the image {image.name!r} has no python3, which an allow-listed network needs: use another")
    if spec.pool:
        raise UsageValueError(f"the image {image.name!r} has no python3, so none can be kept warm: leave out pool")
    sandbox, place = new_sandbox_id(), EnginePlace.of(spec, who)
    mine = await kept_owner()
    command = ExecContainer.command(who, give=place.owner is not None)
    container = await create(engine(), spec, image, command, place, labels(mine, sandbox, who.uid), None, sandbox)
    env = {**BASE_ENV, "HOME": WORKSPACE, **image.variables, **(spec.env or {})}
    running = ExecContainer(engine(), container, who, env, timeout_of(spec))
    try:
        await running.begin(READY_S)
    except BaseException as error:
        running.end()
        await undo(engine(), container, place, None, started=running.started)
        if isinstance(error, (EngineRefusal, TimeoutError)):
            raise SandboxUnavailable(f"a sandbox of image {image.name!r} (no python3) does not start: {error}") from error
        raise
    made = ExecSandbox(backend, container[:12], spec, container=running, id=sandbox, place=place, image=image.name)
    running.closed.add_done_callback(lambda _: None if made._closing else made.broke("its container ended"))
    record = SandboxRecord(sandbox, mine.id, backend.name, container, image.name, host_workspace(spec), uid=who.uid)
    made.log = mine.opened(record)
    return made

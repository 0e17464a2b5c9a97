"""A backend for tests: the guest server in a PID namespace of its own, over a socket pair. It isolates nothing else."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from typing import ClassVar

from rath.backend import guest, registry
from rath.backend.guest.backend import GuestBackend, GuestSandbox, Start
from rath.backend.guest.channel import Channel
from rath.backend.guest.config import GuestConfig
from rath.backend.spec import BackendSandboxSpec
from rath.backend.types import Capabilities, IsolationLevel
from rath.core import ports
from tests.backend.guest.client import own_namespace, server_of

SERVER = os.path.join(os.path.dirname(guest.__file__), "server.py")
PYTHON = shutil.which("python3", path="/usr/local/bin:/usr/bin") or sys.executable
"""One that the other user may run."""
USER = 20_017
"""Whom commands run as where the tests run as root."""


class PlainGuestSandbox(GuestSandbox):
    """A sandbox of :class:`PlainGuestBackend`; ``handle`` is its workspace."""

    process: subprocess.Popen[bytes]
    top: str

    @property
    def server_pid(self) -> int:
        """The guest server, whose parent ``process`` is."""
        return server_of(self.process.pid)


@registry.register("plain-guest-for-tests")
class PlainGuestBackend(GuestBackend):
    """The guest server of this machine's own Python, in a temporary directory."""

    switches: ClassVar[bool] = True
    """Whether commands run as another user where the tests run as root."""

    @classmethod
    def capabilities(cls) -> Capabilities:
        return Capabilities(
            isolation=IsolationLevel.PROCESS,
            supports_command=True,
            supports_filesystem=True,
            supports_code_interpreter=True,
            supports_copy=True,
            keeps_state=True,
            spec_fields=frozenset({"env", "timeout", "workspace", "working_dir"}),
        )

    async def _launch(self, spec: BackendSandboxSpec, start: Start) -> GuestSandbox:
        top, workspace, near, process = _start()
        near.setblocking(False)
        _, channel = await asyncio.get_running_loop().create_connection(lambda: Channel(workspace), sock=near)
        channel.on_distrust = lambda: os.kill(server_of(process.pid), signal.SIGKILL)
        root = self.switches and os.geteuid() == 0
        config = GuestConfig(
            workspace,
            uid=USER if root else None,
            gid=USER if root else None,
            mode="switch" if root else "same",
            mark="groups" if root else "none",
        )
        sandbox = PlainGuestSandbox(
            self, workspace, spec, channel=channel, config=config, python=PYTHON, workspace_ready=start.kind == "empty"
        )
        sandbox.process, sandbox.top = process, top
        return sandbox

    async def _stop(self, sandbox: GuestSandbox) -> None:
        assert isinstance(sandbox, PlainGuestSandbox)
        await ports.engine().call(sandbox.process.wait)
        await ports.engine().call(shutil.rmtree, sandbox.top)


@registry.register("plain-guest-of-one-user-for-tests")
class OneUserBackend(PlainGuestBackend):
    """The same with one user for server and commands."""

    switches = False


def _start() -> tuple[str, str, socket.socket, subprocess.Popen[bytes]]:
    top = tempfile.mkdtemp(prefix="rath-plain-")
    os.chmod(top, 0o755)
    workspace = os.path.join(top, "workspace")
    os.mkdir(workspace)
    near, far = socket.socketpair()
    with open(SERVER, encoding="utf-8") as file, far:
        command = [*(own_namespace() or ()), sys.executable, "-I", "-S", "-u", "-c", file.read(), workspace]
        return top, workspace, near, subprocess.Popen(command, stdin=far, stdout=far, env={}, cwd=workspace)

"""The Docker Engine, asked by the ``docker`` package: the one module that imports it.

For what happens once a container; what happens once a call goes through the guest. Every request runs in a tool thread
and has a time limit. Errors come out as rath's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakSet

import docker

from rath.backend.closing import ending
from rath.backend.docker import where
from rath.core import ports
from rath.errors import SandboxError, SandboxUnavailable

__all__ = ["GOING", "IMAGE_S", "DockerEngine", "EngineRefusal", "Image", "NotThere", "engine"]

T = TypeVar("T")
ANSWER_S = 60.0
HELLO_S = 10.0
REMOVE_AGAIN_S = 0.2
PULL_S = 600.0
IMAGE_S = 1.0
GOING = "already in progress"
"""What the engine says when somebody else removes the same thing just now."""
# Openings come in bursts, and each holds a connection while its container starts.
CONNECTIONS = 64


class EngineRefusal(SandboxError):
    """The engine said no; the message is its own."""


class NotThere(EngineRefusal):
    """The engine knows no such container, image, network or volume."""


@dataclass(frozen=True, slots=True)
class Image:
    """What matters of an image: its content's id, its own variables, and its name as it was asked for."""

    id: str
    name: str
    variables: Mapping[str, str]


class DockerEngine:
    """The engine that the environment names."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._client: Any = None
        self._info: dict[str, Any] | None = None
        self._images: dict[str, tuple[float, Image]] = {}

    async def ask(self, purpose: str, request: Callable[[Any], T]) -> T:
        """``request(client)`` in a tool thread, ``client`` being a ``docker.APIClient``.

        Args:
            purpose: what it is for, in words that go into errors: "start a container".

        Raises:
            SandboxUnavailable: no engine answers; the message says what to do.
            NotThere: what it is about does not exist.
            EngineRefusal: the engine refused it.
        """
        if ending():
            # This blocks the loop, which closes connections a turn after it was told to: without that turn a container whose
            # end is awaited here never hears of it (measured: 3 s a sandbox at the interpreter's exit, instead of 0.1).
            await asyncio.sleep(0)
            return self.ask_blocking(purpose, request)
        return await ports.engine().call(self.ask_blocking, purpose, request)

    async def make(self, purpose: str, request: Callable[[Any], T], undo: Callable[[Any, T], object]) -> T:
        """:meth:`ask` for something that stays, and is undone if the caller is cancelled meanwhile.

        What the engine was asked for it makes, whoever has stopped waiting: nobody else would know of it.

        Args:
            undo: called with the client and what was made, in a tool thread.
        """
        making = asyncio.ensure_future(self.ask(purpose, request))
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            await asyncio.shield(self._unmake(making, undo))
            raise

    async def _unmake(self, making: asyncio.Future[T], undo: Callable[[Any, T], object]) -> None:
        with contextlib.suppress(SandboxError):
            made = await making
            await self.ask("undo what nobody waits for", lambda client: undo(client, made))

    def ask_blocking(self, purpose: str, request: Callable[[Any], T]) -> T:
        """:meth:`ask`, for callers on ordinary threads."""
        if not where.answers():  # 20 µs; docker-py leaks the socket that it cannot connect
            raise SandboxUnavailable(f"could not {purpose}: {where.remedy()}")
        try:
            return request(self.client())
        except docker.errors.NotFound as error:
            raise NotThere(f"the Docker Engine could not {purpose}: {_said(error)}") from error
        except docker.errors.APIError as error:
            raise EngineRefusal(f"the Docker Engine could not {purpose}: {_said(error)}") from error
        except (docker.errors.DockerException, OSError) as error:  # what requests and urllib3 raise are OSErrors
            raise SandboxUnavailable(f"could not {purpose}: {where.remedy()} [{_short(error)}]") from error

    def client(self) -> Any:
        """The one client of this process, made when first asked for. Blocks."""
        client = self._client
        if client is None:
            # Not under the lock: many who wait for an engine that hangs would wait one after the other.
            client = _new_client(ANSWER_S)
            with self._lock:
                if self._client is not None:
                    client.close()
                client = self._client = self._client or client
        return client

    async def info(self) -> dict[str, Any]:
        """What ``docker info`` shows, asked once."""
        if self._info is None:
            found: dict[str, Any] = await self.ask("describe itself", lambda client: client.info())
            self._info = found
        return self._info

    async def is_rootless(self) -> bool:
        """Whether the engine runs without root, or maps users: then the host's user ids are others in its containers."""
        options = (await self.info()).get("SecurityOptions") or ()
        return any(option.startswith(("name=rootless", "name=userns")) for option in options)

    # -- images -------------------------------------------------------------------------------------------------------

    async def image(self, name: str, remembered_s: float = IMAGE_S) -> Image:
        """An image, pulled if it is missing. A name that is given to another image is noticed after ``remembered_s``.

        Raises:
            SandboxUnavailable: it is not there and cannot be pulled.
        """
        known = self._images.get(name)
        if known is not None and time.monotonic() - known[0] < remembered_s:
            return known[1]
        try:
            found = await self.ask(f"look at image {name!r}", lambda client: client.inspect_image(name))
        except NotThere:
            await ports.engine().call(self._pull, name)
            found = await self.ask(f"look at image {name!r}", lambda client: client.inspect_image(name))
        env = (found.get("Config") or {}).get("Env") or ()
        image = Image(found["Id"], name, dict(one.split("=", 1) for one in env if "=" in one))
        self._images[name] = time.monotonic(), image
        return image

    def _pull(self, name: str) -> None:
        repository, tag = docker.utils.parse_repository_tag(name)
        try:
            client = _new_client(PULL_S)
            try:
                for step in client.pull(repository, tag=tag or "latest", stream=True, decode=True):
                    if "error" in step:
                        raise SandboxUnavailable(_no_image(name, str(step["error"])))
            finally:
                client.close()
        except (docker.errors.DockerException, OSError) as error:
            raise SandboxUnavailable(_no_image(name, _short(error))) from error

    # -- containers -----------------------------------------------------------------------------------------------------

    async def start(self, container: str) -> None:
        """Start a container. If the caller is cancelled meanwhile: waits, so that it runs, or not, when this raises."""
        await self.make("start a container", lambda client: client.start(container), lambda _client, _none: None)

    async def remove(self, container: str) -> None:
        """Have a container removed with its volume, whatever runs in it. Of one that is gone, or going: nothing.

        Raises:
            EngineRefusal: it cannot be removed.
        """
        tries = 5
        while True:
            try:
                await self.ask("remove a container", lambda client: client.remove_container(container, force=True, v=True))
            except NotThere:
                return
            except EngineRefusal as error:
                if GOING in str(error):
                    return
                # While it starts, or ends by itself, the engine may stumble over files that come or go ("not empty").
                tries -= 1
                if not tries:
                    raise
                await asyncio.sleep(REMOVE_AGAIN_S)
            else:
                return

    async def gone(self, container: str, timeout_s: float) -> bool:
        """Wait until a container is removed; whether it is."""
        try:
            await self.ask(
                "wait for a container's end", lambda client: client.wait(container, timeout=timeout_s, condition="removed")
            )
        except NotThere:
            return True
        except SandboxUnavailable:  # it took longer, or the engine is gone
            return False
        return True

    # -- streams ------------------------------------------------------------------------------------------------------

    async def attach(self, container: str) -> socket.socket:
        """The container's stdin, stdout and stderr as one socket, non-blocking. Ask before it starts: else some is lost."""
        params = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
        return await self.make(
            "attach to a container",
            lambda client: _own_socket(client.attach_socket(container, params=params)),
            lambda _, sock: sock.close(),
        )

    async def exec_stream(self, container: str, command: list[str], *, user: str, env: list[str]) -> socket.socket:
        """Start a command in a running container: its three streams as one socket, non-blocking."""

        def begin(client: Any) -> socket.socket:
            made = client.exec_create(container, command, stdin=True, stdout=True, stderr=True, user=user, environment=env)
            return _own_socket(client.exec_start(made["Id"], socket=True))

        return await self.ask("run a command", begin)

    # -- a terminal, for the command line: on ordinary threads --------------------------------------------------------

    def open_terminal(
        self, container: str, command: list[str], *, user: str, env: dict[str, str], cwd: str
    ) -> tuple[str, socket.socket]:
        """Start a command with a terminal of its own in a running container: its name, and the terminal as a socket."""

        def begin(client: Any) -> tuple[str, socket.socket]:
            made = client.exec_create(container, command, stdin=True, tty=True, user=user, environment=env, workdir=cwd)
            return made["Id"], _own_socket(client.exec_start(made["Id"], tty=True, socket=True))

        return self.ask_blocking("open a shell", begin)

    def resize_terminal(self, running: str, lines: int, columns: int) -> None:
        """Tell a terminal its size."""
        self.ask_blocking("resize a terminal", lambda client: client.exec_resize(running, height=lines, width=columns))

    def terminal_exit(self, running: str) -> int | None:
        """The exit code of a command that ended; ``None`` if the engine does not know it."""
        found = self.ask_blocking("look at a shell", lambda client: client.exec_inspect(running)["ExitCode"])
        return None if found is None else int(found)


# -- the client -------------------------------------------------------------------------------------------------------


def _new_client(timeout_s: float) -> Any:
    settings = {**docker.utils.kwargs_from_env(), "base_url": where.endpoint(), "timeout": timeout_s}
    # With a version given, making a client asks nothing yet: one that fails while it is made leaks its socket.
    asking = docker.APIClient(version="1.41", **{**settings, "timeout": min(timeout_s, HELLO_S)})
    try:
        version = asking.version(api_version=False)["ApiVersion"]
    finally:
        asking.close()
    return docker.APIClient(version=version, max_pool_size=CONNECTIONS, **settings)


def _own_socket(borrowed: Any) -> socket.socket:
    """A plain socket of our own from what docker-py hands out, which it closes when its response is collected."""
    raw = getattr(borrowed, "_sock", borrowed)
    if isinstance(raw, socket.socket) and not isinstance(raw, ssl.SSLSocket):
        own = raw.dup()
        response = getattr(borrowed, "_response", None)
        if response is not None:
            response.close()  # first: it flushes what it reads from
        borrowed.close()
    else:
        own = _pumped(raw, borrowed)
    own.setblocking(False)
    _sockets.add(own)
    return own


def _pumped(remote: Any, keep: Any) -> socket.socket:
    """One end of a socket pair for a stream that asyncio cannot take as it is: TLS, ssh."""
    ours, theirs = socket.socketpair()
    remote.settimeout(None)
    threading.Thread(target=_pump, args=(remote, theirs, keep), name="rath-docker-stream", daemon=True).start()
    return ours


def _pump(remote: Any, near: socket.socket, _keep: Any) -> None:
    # One thread for both directions: a TLS connection must not be read and written at once.
    waiting = getattr(remote, "pending", lambda: 0)
    try:
        while True:
            readable = [remote] if waiting() else select.select([remote, near], [], [])[0]
            if near in readable:
                data = near.recv(65536)
                if not data:
                    return
                remote.sendall(data)
            if remote in readable:
                data = remote.recv(65536)
                if not data:
                    return
                near.sendall(data)
    except OSError:
        return  # either end is gone: the other learns of it by the close
    finally:
        near.close()
        # A close alone does nothing while docker-py's response still refers to the connection.
        with contextlib.suppress(OSError):
            remote.shutdown(socket.SHUT_RDWR)
        remote.close()


def _said(error: Any) -> str:
    return str(error.explanation or error).strip()


def _short(error: BaseException) -> str:
    return str(error).strip()[:300] or type(error).__name__


def _no_image(name: str, reason: str) -> str:
    return (
        f"the image {name!r} is not on this machine and could not be pulled ({reason}). Try `docker pull {name}`, build it, "
        "or name another: BackendSandboxSpec(image=...) or RATH_SANDBOX_IMAGE"
    )


_engine = DockerEngine()
_sockets: WeakSet[socket.socket] = WeakSet()


def engine() -> DockerEngine:
    """The process's adapter."""
    return _engine


def _reset_in_child() -> None:
    """A forked child shares its parent's connections: it must not speak on them.

    With a copy of a stream in a child, the container would not see its owner's death. The copies are closed behind asyncio's
    back: its selector is shared with the parent, which would lose the stream too.
    """
    global _engine
    _engine = DockerEngine()
    for own in list(_sockets):
        own.close()
    _sockets.clear()


os.register_at_fork(after_in_child=_reset_in_child)

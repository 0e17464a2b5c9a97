"""Who owns what outlives a process, and whether that owner still lives.

A process that opens sandboxes makes itself an *owner*: a random name, and a file that it keeps locked. Everything that it
makes elsewhere (containers, networks, mounts, directories) carries the name. A lock that is free means that its process
is gone, however it ended: the kernel frees it at once, and no process id can be mistaken for another's. ::

    STATE/owners/OWNER/lock            held by flock as long as the process lives
    STATE/owners/OWNER/owner.json      pid, boot, machine, command line
    STATE/owners/OWNER/things          there if anything outside of this directory may carry its name
    STATE/sandboxes/SANDBOX.json       what is open: backend, image, handle, owner, ...
    STATE/sandboxes/SANDBOX.calls      one line of JSON a call; 1 MiB at most

``STATE`` is the user's own: ``$XDG_RUNTIME_DIR/rath``, ``/run/rath`` for root, else ``$TMPDIR/rath-UID``. Records are for
``rath sandbox ps`` and ``logs``: failing to write one never breaks a call.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rath.core.redact import redact_text
from rath.errors import SandboxUnavailable

__all__ = [
    "CallLog",
    "Owner",
    "SandboxRecord",
    "alive",
    "boot_id",
    "calls",
    "forget_idle_owners",
    "forget_owner",
    "machine_id",
    "owner",
    "owners",
    "sandboxes",
    "state_directory",
]

_NAME = re.compile(r"[0-9a-f]{16}")
TEXT_LENGTH = 200
LOG_BYTES = 1 << 20
FLUSH_S = 0.25
FLUSH_CALLS = 256
_THINGS = "things"
_CUT_SHORT_S = 60.0


# -- places -----------------------------------------------------------------------------------------------------------


def state_directory() -> Path:
    """The user's directory for what lives as long as processes do; made if it is missing.

    Raises:
        SandboxUnavailable: there is none that only this user can write to.
    """
    reasons = []
    for path in _candidates():
        try:
            path.mkdir(mode=0o700, parents=False, exist_ok=True)
            found = path.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
                raise PermissionError("it is not a directory that only this user can write to")
            for name in ("owners", "sandboxes"):
                (path / name).mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            reasons.append(f"{path}: {error.strerror or error}")
            continue
        return path
    raise SandboxUnavailable(
        f"there is no place for rath's locks ({'; '.join(reasons)}): set TMPDIR to a directory of your own"
    )


def _candidates() -> list[Path]:
    uid = os.geteuid()
    found = []
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    # After `sudo -E` it is somebody else's.
    if runtime and os.path.isdir(runtime) and os.stat(runtime).st_uid == uid:
        found.append(Path(runtime, "rath"))
    if uid == 0:
        found.append(Path("/run/rath"))
    return [*found, Path(tempfile.gettempdir(), f"rath-{uid}")]


def _read_line(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def boot_id() -> str:
    """The kernel's name for this run of the machine; ``""`` where it has none."""
    return _read_line("/proc/sys/kernel/random/boot_id")


def machine_id() -> str:
    """The machine's name for itself; ``""`` where it has none."""
    return _read_line("/etc/machine-id")


# -- owners -----------------------------------------------------------------------------------------------------------


class Owner:
    """This process as the owner of what it makes. Its lock is held until the process ends.

    Args:
        state: where, as :func:`state_directory` gives it.
    """

    def __init__(self, state: Path) -> None:
        self.id = secrets.token_hex(8)
        self.state = state
        self.pid = os.getpid()
        self.directory = state / "owners" / self.id
        self.has_things = False
        self.open: set[str] = set()
        # Nobody may see the file before it is locked: it would look like a dead owner's.
        hidden = state / "owners" / f".{self.id}"
        hidden.mkdir(mode=0o700)
        self._lock = os.open(hidden / "lock", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        about = {"pid": self.pid, "boot": boot_id(), "machine": machine_id(), "command": sys.argv, "started": time.time()}
        (hidden / "owner.json").write_text(json.dumps(about, default=str))
        hidden.rename(self.directory)

    def opened(self, record: SandboxRecord) -> CallLog:
        """Note a sandbox as open; where to note its calls."""
        self.open.add(record.id)
        path = self.state / "sandboxes" / f"{record.id}.json"
        with contextlib.suppress(OSError):
            temporary = path.with_name(f".{record.id}")
            temporary.write_text(json.dumps(asdict(record)))
            temporary.rename(path)
        return CallLog(path.with_suffix(".calls"))

    def closed(self, sandbox: str) -> None:
        """Note a sandbox as closed: its record goes."""
        self.open.discard(sandbox)
        _forget_sandbox(self.state, sandbox)

    def names_things(self) -> None:
        """From now on something elsewhere may carry its name: who removes what is noted here has to look for that first."""
        if not self.has_things:
            (self.directory / _THINGS).touch(mode=0o600)
            self.has_things = True

    def drop(self) -> None:
        """Let go of the lock without removing anything: the process is a child that its owner forked."""
        with contextlib.suppress(OSError):
            os.close(self._lock)


_lock = threading.Lock()
_owner: Owner | None = None


def owner(*, names_things: bool = True) -> Owner:
    """This process's owner, made when first asked for.

    Args:
        names_things: whether its name is for more than records.

    Raises:
        SandboxUnavailable: there is no place for its lock.
    """
    global _owner
    with _lock:
        try:
            if _owner is None:
                _owner = Owner(state_directory())
            if names_things:
                _owner.names_things()
        except OSError as error:
            raise SandboxUnavailable(f"rath's lock {error.filename} cannot be made: {error.strerror}") from error
        return _owner


def alive(owner_id: str) -> bool | None:
    """Whether the process that owns ``owner_id`` lives; ``None`` if this machine and user cannot tell."""
    if _NAME.fullmatch(owner_id) is None:
        return None
    try:
        fd = os.open(state_directory() / "owners" / owner_id / "lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        # Shared, so that two who ask at once do not take each other for the owner.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def owners() -> dict[str, dict[str, Any]]:
    """What is known of this user's owners, dead ones included, by their names."""
    found = {}
    for entry in (state_directory() / "owners").iterdir():
        if _NAME.fullmatch(entry.name):
            with contextlib.suppress(OSError, ValueError):
                found[entry.name] = json.loads((entry / "owner.json").read_bytes())
    return found


def forget_owner(owner_id: str) -> None:
    """Remove what is noted of a dead owner and its sandboxes. For who has removed everything that carried its name."""
    state = state_directory()
    for record in sandboxes():
        if record.owner == owner_id:
            _forget_sandbox(state, record.id)
    if alive(owner_id) is False:
        shutil.rmtree(state / "owners" / owner_id, ignore_errors=True)


def forget_idle_owners() -> None:
    """Remove what is noted of dead owners whose names nothing else carries, and notes that were cut short by a death."""
    state = state_directory()
    for name in owners():
        if alive(name) is False and not (state / "owners" / name / _THINGS).exists():
            forget_owner(name)
    for path in (*(state / "owners").glob(".*"), *(state / "sandboxes").iterdir()):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime < _CUT_SHORT_S:
                continue
            if path.parent.name == "owners":
                shutil.rmtree(path)
            elif path.name.startswith(".") or not path.with_suffix(".json").exists():
                path.unlink()


@atexit.register
def _forget_own() -> None:
    """A process that ends in order, and of which nothing is left, is not heard of any more."""
    if _owner is not None and not _owner.has_things and not _owner.open:
        _owner.drop()
        shutil.rmtree(_owner.directory, ignore_errors=True)


# -- sandboxes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SandboxRecord:
    """An open sandbox, as ``rath sandbox ps`` shows it. ``handle`` is its backend's: a container's id, a process's id."""

    id: str
    owner: str
    backend: str
    handle: str
    image: str | None = None
    workspace: str | None = None
    layer: str | None = None
    uid: int | None = None
    pid: int = field(default_factory=os.getpid)
    created: float = field(default_factory=time.time)


def sandboxes() -> list[SandboxRecord]:
    """This user's open sandboxes, the oldest first; those of dead owners too, until something sweeps them."""
    found = []
    for path in (state_directory() / "sandboxes").glob("*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError):
            found.append(SandboxRecord(**json.loads(path.read_bytes())))
    return sorted(found, key=lambda record: record.created)


def calls(sandbox: str, last: int = 1000) -> list[dict[str, Any]]:
    """The last calls of an open sandbox, the oldest first: ``time kind text exit ms``."""
    if _NAME.fullmatch(sandbox) is None:
        return []
    try:
        lines = (state_directory() / "sandboxes" / f"{sandbox}.calls").read_bytes().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines[-last:]:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def _forget_sandbox(state: Path, sandbox: str) -> None:
    if _NAME.fullmatch(sandbox):
        for suffix in (".json", ".calls"):
            with contextlib.suppress(OSError):
                (state / "sandboxes" / f"{sandbox}{suffix}").unlink()


class CallLog:
    """The calls of one sandbox, in a file. Noting one takes about a microsecond; they are written a few times a second."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: list[tuple[float, str, str, int | None, float]] = []
        self._due: asyncio.TimerHandle | None = None
        self._closed = False

    def note(self, kind: str, text: str, exit_code: int | None, elapsed_ms: float) -> None:
        """Note a call that ended. On the engine's loop. After :meth:`close`: nothing."""
        if self._closed:
            return
        # Cut for good after the redaction only: a secret that is cut in two would not be found.
        self._waiting.append((time.time(), kind, text[:4096], exit_code, elapsed_ms))
        if len(self._waiting) >= FLUSH_CALLS:
            self.flush()
        elif self._due is None:
            self._due = asyncio.get_running_loop().call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        """Write what is waiting. Never raises for a file that cannot be written."""
        if self._due is not None:
            self._due.cancel()
            self._due = None
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        lines = [
            json.dumps({"time": at, "kind": kind, "text": redact_text(text)[:TEXT_LENGTH], "exit": code, "ms": round(ms, 2)})
            for at, kind, text, code, ms in waiting
        ]
        with contextlib.suppress(OSError):
            with open(self._path, "ab") as file:
                file.write(("\n".join(lines) + "\n").encode())
                too_long = file.tell() > LOG_BYTES
            if too_long:
                self._halve()

    def close(self) -> None:
        """Write what is waiting, and nothing after that."""
        self.flush()
        self._closed = True

    def _halve(self) -> None:
        """Keep the later half."""
        content = self._path.read_bytes()[-LOG_BYTES // 2 :]
        temporary = self._path.with_name(f".{self._path.name}")
        temporary.write_bytes(content[content.find(b"\n") + 1 :])
        temporary.rename(self._path)


def _reset_in_child() -> None:
    """A forked child owns nothing yet. Its copy of the lock would keep its parent alive for ever."""
    global _lock, _owner
    _lock = threading.Lock()
    if _owner is not None:
        _owner.drop()
    _owner = None


os.register_at_fork(after_in_child=_reset_in_child)

"""Whether ``bwrap`` works here, found out by running it; and if not, why not and what to do.

Whether a user may make namespaces depends on the kernel's settings, on security modules, and on the container that all
this may run in: only trying tells. Where the trial does not show every fence in place, no sandbox is opened.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from rath.backend.bwrap import seccomp
from rath.backend.bwrap.arguments import TMP_BYTES, Plan, Python
from rath.backend.bwrap.process import stand_in, start
from rath.backend.host.own import own_directory, remove_own
from rath.errors import SandboxUnavailable

__all__ = ["Ready", "check", "is_likely"]

_PATIENCE_S = 10.0
_ANSWER_BYTES = 65536
_OLDEST = (0, 5)  # --perms
_SIZED = (0, 7)  # --size
_INSTALL = "install it: `apt install bubblewrap`, `dnf install bubblewrap`, `pacman -S bubblewrap` or `apk add bubblewrap`"
_UNPRIVILEGED = Path("/proc/sys/kernel/unprivileged_userns_clone")
_NAMESPACES = Path("/proc/sys/user/max_user_namespaces")
_APPARMOR = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
_CONTAINERS = (Path("/.dockerenv"), Path("/run/.containerenv"))

# Runs inside, with the guest's text as GUEST. Says what is amiss; or that nothing is, and then the guest, compiled.
_GOOD = "ready"
_TRIAL = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
status = {name: value.strip() for name, _, value in (line.partition(":") for line in open("/proc/self/status"))}
wrong = []
if sys.version_info < (3, 8):
    wrong.append("its Python is %d.%d; 3.8 is needed" % sys.version_info[:2])
if os.getpid() != 1:
    wrong.append("it has no process namespace of its own")
if os.getuid() == 0:
    wrong.append("it runs as root")
if status.get("NoNewPrivs") != "1" or status.get("Seccomp") != "2":
    wrong.append("the seccomp program was not loaded")
if libc.unshare(0x04000000) != 0:
    wrong.append("the guest lacks CAP_SYS_ADMIN in its user namespace")
if libc.unshare(0x10000000) == 0:
    wrong.append("user namespaces can be made in it")
if os.access("/usr", os.W_OK) or os.access("/", os.W_OK) or not os.access("/workspace", os.W_OK):
    wrong.append("what is writable in it is not what should be")
print("; ".join(wrong) or "ready", flush=True)
if not wrong:
    import marshal
    os.write(1, marshal.dumps(compile(GUEST, "guest", "exec")))
"""


@dataclass(frozen=True, slots=True)
class Ready:
    """A ``bwrap`` that works here.

    Args:
        sized: whether it can limit the size of a tmpfs.
        guest: the guest server, compiled by ``python`` itself: that takes 20 ms, once instead of in each sandbox.
    """

    bwrap: str
    version: str
    sized: bool
    python: Python
    guest: bytes = field(repr=False)


_lock = threading.Lock()
_known: dict[str, Ready] = {}


def is_likely() -> bool:
    """Whether there is a ``bwrap``, and no setting that is known to keep it from working. Microseconds; runs nothing."""
    return (
        sys.platform == "linux"
        and platform.machine() in seccomp.MACHINES
        and shutil.which("bwrap") is not None
        and _obstacle() is None
    )


def check() -> Ready:
    """The ``bwrap`` of this machine, tried once in this process, which takes some 40 ms. Blocks.

    Raises:
        SandboxUnavailable: there is none, or it does not hold what it has to; the message says what to do.
    """
    bwrap = shutil.which("bwrap")
    with _lock:
        known = None if bwrap is None else _known.get(bwrap)
        if known is None:
            known = _try(bwrap)
            _known[known.bwrap] = known
        return known


def _try(bwrap: str | None) -> Ready:
    if sys.platform != "linux":
        raise SandboxUnavailable("the bwrap backend needs Linux: use the docker backend here")
    if platform.machine() not in seccomp.MACHINES:
        raise SandboxUnavailable(
            f"the bwrap backend has no list of system calls for {platform.machine()}, only for "
            f"{' and '.join(seccomp.MACHINES)}: use the docker backend here"
        )
    if bwrap is None:
        raise SandboxUnavailable(f"there is no bwrap (bubblewrap) on the PATH: {_INSTALL}")
    version = _version(bwrap)
    numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
    if numbers < _OLDEST:
        raise SandboxUnavailable(f"{bwrap} is bubblewrap {version}, and 0.5 or later is needed: {_INSTALL}")
    said = []
    for python in _pythons():
        answer, guest = _run(bwrap, python, numbers >= _SIZED)
        if answer == _GOOD:
            return Ready(bwrap, version, numbers >= _SIZED, python, guest)
        said.append(f"with {python.path}: {answer}")
    if not said:
        raise SandboxUnavailable(
            "the bwrap backend needs a python3 for the sandbox, and there is none in /usr/bin, in /usr/local/bin or in "
            f"{sys.base_prefix}: `apt install python3`"
        )
    raise SandboxUnavailable(_explained(bwrap, said))


def _version(bwrap: str) -> str:
    try:
        said = subprocess.run([bwrap, "--version"], capture_output=True, text=True, timeout=_PATIENCE_S, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise SandboxUnavailable(f"{bwrap} cannot be run ({error}): {_INSTALL}") from error
    return said.split()[-1] if said.split() else "0"


def _pythons() -> Iterator[Python]:
    """The interpreters that could run the guest: the system's, then ours, whose directory is then shown in the sandbox."""
    for path in ("/usr/bin/python3", "/usr/local/bin/python3"):
        if os.access(path, os.X_OK):
            yield Python(path)
    prefix = os.path.realpath(sys.base_prefix)
    if prefix not in ("/", "/usr") and not prefix.startswith("/usr/"):
        path = os.path.join(prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
        if os.access(path, os.X_OK):
            yield Python(path, prefix)


def _run(bwrap: str, python: Python, sized: bool) -> tuple[str, bytes]:
    """What the trial said, and the guest as it compiled it."""
    guest = resources.files("rath.backend.guest").joinpath("server.py").read_text(encoding="utf-8")
    who = stand_in()
    directory = own_directory()
    try:
        if who is not None:
            os.chown(directory, who.uid, who.gid)
        plan = Plan(directory, python, 20_000, 20_000, TMP_BYTES if sized else None)
        try:
            running = start(bwrap, plan, f"GUEST = {guest!r}\n{_TRIAL}".encode(), who=who)
        except (OSError, subprocess.SubprocessError) as error:
            return f"{bwrap} cannot be started: {error}", b""
        try:
            answer, _, compiled = _all_of(running.connection).partition(b"\n")
            running.kill()
            running.process.wait()
            problem = running.said()
        finally:
            running.finish()
    finally:
        remove_own(directory)
    return answer.decode("utf-8", "replace") or problem or f"exit code {running.process.returncode}", compiled


def _all_of(connection: socket.socket) -> bytes:
    """What is sent until the other end closes, or is silent too long."""
    connection.settimeout(_PATIENCE_S)
    data = b""
    with contextlib.suppress(OSError):
        while more := connection.recv(_ANSWER_BYTES):
            data += more
    return data


# -- why not ----------------------------------------------------------------------------------------------------------


def _obstacle() -> str | None:
    """A setting of this machine that keeps ``bwrap`` from working for us, and what to do about it."""
    if _setting(_NAMESPACES) == "0":
        return (
            "this machine allows no user namespaces (user.max_user_namespaces is 0): "
            "`sudo sysctl user.max_user_namespaces=15000`, and the same in /etc/sysctl.d to keep it"
        )
    # For root this holds as well: it never runs bwrap as itself.
    if _setting(_UNPRIVILEGED) == "0":
        return (
            "this machine keeps user namespaces from ordinary users: `sudo sysctl kernel.unprivileged_userns_clone=1`, and "
            "the same in /etc/sysctl.d to keep it"
        )
    return None


def _explained(bwrap: str, said: list[str]) -> str:
    what = f"bwrap does not work here ({'; '.join(said)[:600]}): "
    obstacle = _obstacle()
    if obstacle is not None:
        return what + obstacle
    if _setting(_APPARMOR) == "1":
        return what + (
            "AppArmor keeps user namespaces from programs without a profile, as Ubuntu does since 23.10. Give bwrap one: "
            "`sudo apt install apparmor-profiles && sudo ln -s /usr/share/apparmor/extra-profiles/bwrap-userns-restrict "
            "/etc/apparmor.d/ && sudo systemctl reload apparmor`; or, for all programs: "
            "`sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0`"
        )
    if f"Can't find source path {tempfile.gettempdir()}" in said[0]:  # as root, it runs as an ordinary user
        return what + f"set TMPDIR to a directory that every user may enter, as {tempfile.gettempdir()} is not"
    if any(mark.exists() for mark in _CONTAINERS):
        return what + (
            "this looks like a container, whose own profile may forbid namespaces. Start it with `--security-opt "
            "seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined`, or use the "
            "docker backend with the engine's address in DOCKER_HOST"
        )
    if os.stat(bwrap).st_mode & 0o4000:
        return what + f"{bwrap} is set-uid root, and then cannot give the guest what it needs: `sudo chmod u-s {bwrap}`"
    return what + "check that this user may make user namespaces: `unshare --user true`"


def _setting(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _reset_in_child() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_reset_in_child)

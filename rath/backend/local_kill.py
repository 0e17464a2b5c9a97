"""Killing what the ``local`` backend started: every process of a command, or of a sandbox.

Each command leads a session of its own, and carries two random variables in its environment, ``RATH_CALL`` and
``RATH_SANDBOX``, which its descendants inherit. A kill stops every process that belongs to the session, descends from
the leader, or carries the variable, until a look at all processes finds nobody new: a stopped process cannot fork away.
Then it kills them all. A timeout and a cancellation kill one call's processes; the close kills the sandbox's, among
them what calls that have ended left in the background.

Out of reach are: a process that left the session, lost its parent (forked twice) *and* was started with an environment
without the variable; and processes of another user or that the kernel hides from us (set-user-id programs). Without
``/proc`` only the process group is killed. ``local`` is the host itself, not a container.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
from collections.abc import Callable, Collection, Iterator

__all__ = ["Group", "ProcessGroups"]

_ROUNDS = 100


class Group:
    """A command's process group, from its start until nobody is left in it."""

    __slots__ = ("closed", "leader", "leader_alive", "mark")

    def __init__(self, leader: int, mark: str) -> None:
        self.leader = leader
        self.mark = mark
        self.leader_alive = True
        self.closed = False  # killed because its sandbox closed

    def empty(self) -> bool:
        """Whether nobody is left, or the number belongs to somebody else by now."""
        if self.leader_alive:
            return False
        try:
            # While members live, the kernel gives their group's number to no process. So where there is a process with
            # that number, and our leader is gone, the group had emptied before.
            os.kill(self.leader, 0)
            return True
        except ProcessLookupError:
            pass
        except PermissionError:
            return True
        try:
            os.killpg(self.leader, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False

    def kill(self) -> None:
        """Kill the leader, its group, every descendant that can be found, and who carries the call's mark."""
        _kill(() if self.empty() else (self.leader,), self.mark)


class ProcessGroups:
    """The groups of one sandbox in which somebody may be left: running commands, and what they left in the background."""

    def __init__(self) -> None:
        self._groups: set[Group] = set()
        self._mark = f"RATH_SANDBOX={secrets.token_hex(16)}"
        self._used = False
        self._killed: set[int] = set()

    def marks(self) -> tuple[str, str]:
        """The sandbox's variable, and a new one for a call, as ``NAME=value``."""
        return self._mark, f"RATH_CALL={secrets.token_hex(16)}"

    def add(self, leader: int, mark: str) -> Group:
        """A command has started, with ``mark`` in its environment."""
        for old in [group for group in self._groups if group.empty()]:
            self._groups.discard(old)
        group = Group(leader, mark)
        self._groups.add(group)
        self._used = True
        return group

    def leader_ended(self, group: Group) -> None:
        """A command's leader has ended; others of its group may go on."""
        group.leader_alive = False
        if group.empty():
            self._groups.discard(group)

    def kill_all(self) -> None:
        """The sandbox closes."""
        if not self._used:
            return
        for group in self._groups:
            group.closed = True
        self._killed |= _kill([group.leader for group in self._groups if not group.empty()], self._mark)

    @property
    def empty(self) -> bool:
        """Whether nobody is left alive. Where no init reaps them, the dead stay as zombies."""
        left = [group for group in self._groups if not group.empty()]
        if not left and not self._killed:
            return True
        alive = [(pid, session) for pid, _, session, state in _processes() if state not in "ZX"]
        self._killed &= {pid for pid, _ in alive}
        sessions = {session for _, session in alive}
        return not self._killed and not any(group.leader in sessions for group in left)


def _kill(leaders: Collection[int], mark: str) -> set[int]:
    """Kill the groups of ``leaders`` and who belongs to them or carries ``mark``; returns who was found."""
    for leader in leaders:
        _send(os.killpg, leader, signal.SIGSTOP)
    found: set[int] = set()
    for _ in range(_ROUNDS):
        new = _family(set(leaders), os.fsencode(mark)) - found
        if not new:
            break
        found |= new
        for pid in new:
            _send(os.kill, pid, signal.SIGSTOP)
    for leader in leaders:
        _send(os.killpg, leader, signal.SIGKILL)
    for pid in found:
        _send(os.kill, pid, signal.SIGKILL)
    return found


def _send(how: Callable[[int, int], None], target: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        how(target, number)


def _family(leaders: set[int], mark: bytes) -> set[int]:
    """The members of the leaders' sessions, who carries the mark, and the descendants of all of them."""
    children: dict[int, list[int]] = {}
    found: set[int] = set()
    for pid, parent, session, state in _processes():
        children.setdefault(parent, []).append(pid)
        if pid not in leaders and state not in "ZX" and (session in leaders or _carries(pid, mark)):
            found.add(pid)
    todo = [*leaders, *found]
    while todo:
        for child in children.get(todo.pop(), ()):
            if child not in found and child not in leaders:
                found.add(child)
                todo.append(child)
    return found


def _carries(pid: int, mark: bytes) -> bool:
    """Whether a process of this user was started with ``mark`` in its environment."""
    try:
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:
            return os.fstat(file.fileno()).st_uid == os.geteuid() and mark in file.read()
    except OSError:
        return False


def _processes() -> Iterator[tuple[int, int, int, str]]:
    """Process, parent, session and state of every process, by ``/proc``; nothing where there is none."""
    try:
        names = os.listdir("/proc")
    except OSError:
        return
    for name in names:
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                # After the name, which may hold anything: state, parent, group, session.
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        yield int(name), int(fields[1]), int(fields[3]), fields[0].decode()

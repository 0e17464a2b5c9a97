"""The guest server: what runs a sandbox's commands and touches its files, from the inside.

This file is the program of the sandbox's first process: ``python3 -I -S -u -c SOURCE``. It imports nothing that Debian's
``python3-minimal`` lacks, nothing of rath, and works on Python 3.8 and later.

**Conversation.** Frames on fd 0 and fd 1: ``>IIB`` payload length, call, kind, then the payload. The host makes a call
with a RUN frame under a number of its choice, and the call ends with exactly one DONE or FAIL. Call 0 is the connection
itself. Field lists are byte strings, each behind its length (u32); numbers in them are decimal digits. Streams obey
credit, both ways: a sender has a window of bytes (``IN_WINDOW`` towards us, ``OUT_WINDOW`` towards the host), and gets
more by CREDIT frames. The end of fd 0 means that the owner is gone: everything is killed, and the server with it.
A frame that makes no sense is the host's fault, and ends the sandbox too (exit 3): a wrong guess would be worse.

**One thread, one loop, nothing that blocks.** A call is an object; the loop hands it readable descriptors, dead
children, timers, frames. Large work on trees is done by a forked child (:class:`Job`) behind pipes. Frames of different
calls take turns, at most 64 KiB each, and each turn of the loop reads at most one buffer of each pipe: one command that
floods costs the others milliseconds.

**Two users.** The server is the sandbox's root, without most capabilities; commands are somebody else, who cannot read
its descriptors (a reply could be forged), trace it, or signal it. A child that becomes another user between fork and exec
costs a real fork; so the *server* becomes the command's user around a vfork (``setresuid(uid, uid, 0)``: the saved 0 is
the way back, and exec erases it in the child), and around every look at a file. In those moments commands may signal it,
which the first process of a PID namespace does not feel (not even SIGKILL), and make it slow; not trace it: 0 is saved.
Where there is one user only (mode "same", bubblewrap), the server is not dumpable instead, which closes ``/proc/1`` to
the others, and hands no capability on.

**First process of a PID namespace, or nothing.** Anywhere else the server refuses to begin: what it signals (also
everybody at once) is then in its own sandbox, and its end is everybody's end, by the kernel's doing.

**Marks.** To end a call is to end all that it started, and nothing else: also what left the session, forked twice and
cleared its environment. Each call gets a mark that its descendants inherit and cannot put off: a supplementary group of
its own ("groups"), or a UTS namespace of its own ("uts"). A kill stops everyone with the mark until a look at all
processes finds nobody new and nobody was born meanwhile, then kills them all, and the call ends when nobody with the
mark is left. Where neither works ("none"), the session and the descendants of the call's first process have to do.

**The end of a command** is the end of its first process, with what its pipes hold then. Who still holds the pipes is a
background process: it lives on, and what it writes is read and dropped, so that it neither blocks nor dies of it.

**Paths** are resolved here, a descriptor and a component at a time, links by hand: what a hostile program swaps in
between, it cannot make us leave the workspace. The workspace itself is looked up anew for each call: the host may mount
another one over it.

Archives (export, import): records of ``>BIQqQII`` kind, mode, size, mtime_ns, length of all data, lengths of path and
link; then path, link, and for a file segments: ``>QQ`` offset and length, then the bytes; the last has offset 2**64-1 and
length 0. What no segment covers is a hole. Kinds: 0 end, 1 directory, 2 file, 3 symbolic link, 4 hard link (link: the path
of an earlier record). Paths are relative; a directory comes before what is in it. An exported file (not directory) is
one record under its own name. A manifest has the same records with data length 0, and behind a file's path the 32 bytes
of its SHA-256 instead of segments.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import stat
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from heapq import heapify, heappop, heappush

TYPE_CHECKING = False  # what typing has; importing it would cost every start 4 ms
if TYPE_CHECKING:
    import ctypes
    import types
    from typing import TypeVar

    T = TypeVar("T")

HEADER = struct.Struct(">IIB")
U32 = struct.Struct(">I")
RECORD = struct.Struct(">BIQqQII")
SEGMENT = struct.Struct(">QQ")
LAST_SEGMENT = SEGMENT.pack(2**64 - 1, 0)

CONFIG, RUN, DATA_IN, END, KILL, CREDIT_IN = 1, 2, 3, 4, 5, 6
HELLO, DATA, OUT, ERR, VALUE, READY, CREDIT, DONE, FAIL, LOG = 16, 17, 18, 19, 20, 21, 22, 23, 24, 25

MAX_PAYLOAD = 262_144
CHUNK = 65_536
IN_WINDOW = 262_144
OUT_WINDOW = 1 << 20
MAX_PIPE = 1 << 20  # what a pipe holds at most, for a user who may not raise it
MAX_CELL_BYTES = 16 << 20
MAX_ANSWER_BYTES = 16 << 20
KEEP = 4 << 20
KEPT_BY_ALL = 32 << 20  # of output, by all commands together: we share their memory limit
KEPT_THEN = 8192  # of each half of an output, when there is more than that
KEPT_MODE = 0o644

NICENESS = 19
STOP_S = 0.1
CROWD = 32  # processes: from here on a look at all of them takes so long that they are stopped for it at once
GONE_S = 1.5
LINGER_S = 0.1
LIST_S = 0.02
MAX_LINKS = 40
MAX_STEPS = 5000  # components on the way, with those of links: 50 ms
MAX_PATH = 65_536
MAX_RACES = 100

O_PATH = getattr(os, "O_PATH", os.O_RDONLY)
SPOT = O_PATH | os.O_DIRECTORY | os.O_CLOEXEC  # a directory as a place: needs no permission to read it
NEXT = SPOT | os.O_NOFOLLOW
# Without O_NONBLOCK, opening a FIFO that nobody writes to would never return.
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

PR_SET_DUMPABLE, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 4, 47, 4
PR_SET_SECUREBITS, SECBIT_NOROOT_LOCKED = 28, 3
CLONE_NEWUTS = 0x04000000

KINDS = {
    errno.ENOENT: "file_not_found",
    errno.EISDIR: "is_directory",
    errno.ENOTDIR: "not_a_directory",
    errno.ENXIO: "not_a_file",
}


class Refused(Exception):
    """A call that ends with FAIL."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


class ProtocolError(Exception):
    """The host sent what it must not send."""


class OwnerGone(Exception):
    """Nobody is at the other end."""


# -- frames -----------------------------------------------------------------------------------------------------------


def pack(fields: Iterable[bytes]) -> bytes:
    """A field list."""
    return b"".join([U32.pack(len(field)) + field for field in fields])


def unpack(payload: bytes) -> list[bytes]:
    """The fields of a list."""
    fields = []
    at = 0
    while at < len(payload):
        if at + 4 > len(payload):
            raise ProtocolError("a field list ends within a length")
        (size,) = U32.unpack_from(payload, at)
        at += 4 + size
        if at > len(payload):
            raise ProtocolError("a field list ends within a field")
        fields.append(payload[at - size : at])
    return fields


def number(field: bytes, base: int = 10) -> int:
    """A number that the host sent."""
    try:
        return int(field, base)
    except ValueError:
        raise ProtocolError(f"{field!r} is not a number") from None


def seconds(field: bytes) -> float | None:
    """A time in milliseconds, or no limit."""
    return min(number(field), 10**12) / 1000 if field else None


def text(value: object) -> bytes:
    """A number or text as a field."""
    return str(value).encode("utf-8", "backslashreplace")


def shown(path: bytes) -> str:
    """A path in a message, which has to fit into a frame."""
    return repr(os.fsdecode(path if len(path) <= 512 else path[:256] + b"[...]" + path[-256:]))


def refusal(error: OSError, what: bytes) -> Refused:
    """What an operating system error becomes."""
    return Refused(KINDS.get(error.errno or 0, "os_error"), f"{error.strerror or error}: {shown(what)}")


class Outbox:
    """Frames on their way to the host; calls take turns.

    A call that makes its frames from a source registers ``refills[call]``, which is called when its queue has run empty.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.refills: dict[int, Callable[[], None]] = {}
        self._queues: dict[int, deque[bytes]] = {}
        self._turns: deque[int] = deque()
        self._partial = memoryview(b"")

    def put(self, call: int, kind: int, payload: bytes = b"") -> None:
        """Queue a frame."""
        frame = HEADER.pack(len(payload), call, kind) + payload
        queue = self._queues.get(call)
        if queue is None:
            self._queues[call] = deque((frame,))
            self._turns.append(call)
        else:
            queue.append(frame)

    def chunks(self, call: int, kind: int, data: bytes) -> None:
        """Queue data as frames of at most 64 KiB."""
        for at in range(0, len(data), CHUNK):
            self.put(call, kind, data[at : at + CHUNK])

    def waiting(self, call: int) -> bool:
        """Whether frames of a call are still queued."""
        return call in self._queues

    def _batch(self) -> bytes:
        parts = []
        size = 0
        while self._turns and size < CHUNK:
            call = self._turns.popleft()
            queue = self._queues[call]
            frame = queue.popleft()
            parts.append(frame)
            size += len(frame)
            if queue:
                self._turns.append(call)
                continue
            del self._queues[call]
            refill = self.refills.get(call)
            if refill is not None:
                refill()
        return b"".join(parts)

    def flush(self) -> bool:
        """Write for a while; returns whether something is left."""
        for _ in range(8):
            if not self._partial:
                self._partial = memoryview(self._batch())
                if not self._partial:
                    return False
            try:
                self._partial = self._partial[os.write(self.fd, self._partial) :]
            except BlockingIOError:
                return True
            except OSError as error:
                raise OwnerGone(str(error)) from None
        return bool(self._partial or self._turns)


# -- paths ------------------------------------------------------------------------------------------------------------


def outside(path: bytes) -> Refused:
    """The refusal of a path that leads out."""
    return Refused(
        "path_outside_workspace",
        f"{shown(path)} leads out of the workspace. Use a path relative to it; links that lead out are not followed",
    )


def link_at(directory: int, name: bytes) -> bytes | None:
    """Where the link ``name`` leads; ``None`` if it is none, or not there."""
    try:
        return os.readlink(name, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):
            return None
        raise


class Workspace:
    """The directory that paths are relative to, and cannot leave."""

    def __init__(self, path: bytes) -> None:
        self.path = path
        self.tops = {top.rstrip(b"/") for top in (path, os.path.realpath(path))}

    def below(self, path: bytes) -> bytes | None:
        """An absolute path relative to the workspace, as text; ``None``: not in it."""
        for top in self.tops:
            if path == top or path.startswith(top + b"/"):
                return path[len(top) :].lstrip(b"/")
        return None

    def relative(self, path: bytes) -> bytes:
        """``path`` relative to the workspace, checked as text."""
        if b"\0" in path:
            raise Refused("invalid_tool_arguments", "a path cannot contain a NUL character")
        if not path.startswith(b"/"):
            return path
        below = self.below(path)
        if below is None:
            raise outside(path)
        return below

    def locate(self, path: bytes, follow: bool = True, create: bool = False) -> tuple[int, bytes]:
        """A descriptor of the directory that ``path`` ends in, and the name there; ``.`` is the directory itself.

        Args:
            follow: a link at the end is followed; else it is what is meant.
            create: make missing directories on the way.
        """
        todo = _parts(self.relative(path))
        stack = [os.open(self.path, SPOT)]
        links = steps = 0
        try:
            while todo:
                part = todo.pop()
                steps += 1
                if steps > MAX_STEPS or links > MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                if part == b".":
                    continue
                if part == b"..":
                    if len(stack) == 1:
                        raise outside(path)
                    os.close(stack.pop())
                    continue
                link = self._step(stack, part, create) if todo else link_at(stack[-1], part) if follow else None
                if link is not None:
                    links += 1
                    if link.startswith(b"/"):
                        below = self.below(link)
                        if below is None:
                            raise outside(path)
                        while len(stack) > 1:
                            os.close(stack.pop())
                        link = below
                    todo += _parts(link)
                elif not todo:
                    return stack.pop(), part
            return stack.pop(), b"."
        finally:
            for fd in stack:
                os.close(fd)

    def _step(self, stack: list[int], part: bytes, create: bool) -> bytes | None:
        """Enter a directory; or where the link in its place leads."""
        for _ in range(MAX_RACES):
            try:
                stack.append(os.open(part, NEXT, dir_fd=stack[-1]))
                return None
            except OSError as error:
                if error.errno == errno.ENOENT and create:
                    make_directory(part, stack[-1])
                elif error.errno in (errno.ENOTDIR, errno.ELOOP):
                    link = link_at(stack[-1], part)
                    if link is not None:
                        return link
                    status = os.stat(part, dir_fd=stack[-1], follow_symlinks=False)
                    if not stat.S_ISDIR(status.st_mode) and not stat.S_ISLNK(status.st_mode):
                        raise
                else:
                    raise
        raise OSError(errno.EAGAIN, "it changes all the time")

    def reach(self, path: bytes, use: Callable[[int, bytes], T]) -> T:
        """What ``use`` makes of the directory that ``path`` ends in and the name there; ``use`` follows no link.

        Again, if the name became a link since we looked.
        """
        for _ in range(MAX_RACES):
            directory, name = self.locate(path)
            try:
                return use(directory, name)
            except OSError:
                if link_at(directory, name) is None:
                    raise
            finally:
                os.close(directory)
        raise OSError(errno.EAGAIN, "it changes all the time")

    def open(self, path: bytes, flags: int) -> int:
        """A descriptor of what ``path`` leads to. Creates nothing."""
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC
        return self.reach(path, lambda directory, name: os.open(name, flags, dir_fd=directory))

    def directory(self, path: bytes) -> int:
        """A descriptor of a directory, as a place."""
        return self.open(path, NEXT)


def _parts(path: bytes) -> list[bytes]:
    """The components in reverse; a trailing slash means a directory, as ``.`` does."""
    parts = [part for part in path.split(b"/") if part]
    if path.endswith(b"/"):
        parts.append(b".")
    return parts[::-1]


def make_directory(name: bytes, directory: int) -> None:
    """Make a directory, unless it is there."""
    try:
        os.mkdir(name, 0o777, dir_fd=directory)
    except FileExistsError:
        pass


def regular(directory: int, name: bytes, path: bytes) -> int:
    """A descriptor of a regular file for reading. Looks before it opens: opening a pipe is felt at its other end."""
    check_regular(os.stat(name, dir_fd=directory, follow_symlinks=False), path)
    fd = os.open(name, READ, dir_fd=directory)
    try:
        check_regular(os.fstat(fd), path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_regular(status: os.stat_result, path: bytes) -> None:
    """Refuse what is no regular file; a link is left to the caller's open."""
    if stat.S_ISDIR(status.st_mode):
        raise Refused("is_directory", f"{shown(path)} is a directory: list it instead")
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISLNK(status.st_mode):
        raise Refused("not_a_file", f"{shown(path)} is not a regular file")


# -- processes: marks and kills ---------------------------------------------------------------------------------------


def slurp(path: str) -> bytes:
    """A file of ``/proc``; empty if it is gone or not for us."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, 1 << 20)
    except OSError:
        return b""
    finally:
        os.close(fd)


def pids() -> list[int]:
    """Every process but this one, which is the first of its namespace."""
    return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if pid != 1]


def newest() -> bytes:
    """The process that was born last; as long as it is the same, nobody was."""
    return slurp("/proc/loadavg").rpartition(b" ")[2]


def send(pid: int, sig: int) -> None:
    """Signal a process, or all (-1), that may be gone."""
    try:
        os.kill(pid, sig)
    except ProcessLookupError:
        pass


def family() -> Iterator[tuple[int, int, int]]:
    """Process, parent and session of everyone alive."""
    for pid in pids():
        rest = slurp(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        # A zombie with threads is one whose first thread has ended: the others run, and may fork.
        if rest and (rest[0] not in (b"Z", b"X") or int(rest[17]) > 1):
            yield pid, int(rest[1]), int(rest[3])


def descend(found: set[int], everyone: list[tuple[int, int, int]]) -> set[int]:
    """``found`` and all descendants."""
    children: dict[int, list[int]] = {}
    for pid, parent, _ in everyone:
        children.setdefault(parent, []).append(pid)
    todo = list(found)
    while todo:
        for child in children.get(todo.pop(), ()):
            if child not in found:
                found.add(child)
                todo.append(child)
    return found


class Marks:
    """What the processes of a call carry. The kind "none": nothing; all there is are the session and the descendants."""

    kind = "none"

    def next(self) -> bytes:
        """A new mark; what is started now carries it."""
        return b""

    def carriers(self, mark: bytes, leader: int) -> set[int]:
        """Who carries a mark, and is alive. ``leader``: the first of them."""
        alive = list(family())
        return descend({pid for pid, _, session in alive if leader in (pid, session)}, alive)


class GroupMarks(Marks):
    """The kind "groups": a supplementary group for each call. Only the capability SETGID can put it off."""

    kind = "groups"

    def __init__(self) -> None:
        # A sandbox has all numbers for itself. In a user namespace there may be no large ones, and they come around:
        # then those that are still in use are left out.
        self._first, self._span, self._count = 1_000_000_000, 3_000_000_000, 0
        try:
            os.setgroups([self._first])
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._first, self._span = 40_000, 20_000
            os.setgroups([self._first])
        if b"%d" % self._first not in self._groups_of(1):
            raise OSError(errno.ENOTSUP, "/proc does not tell the groups of a process")
        self._taken: set[bytes] = set()

    def next(self) -> bytes:
        while True:
            self._count += 1
            if self._count == self._span:
                self._count = 0
                self._taken = {group for pid in pids() for group in self._groups_of(pid)}
            mark = b"%d" % (self._first + self._count)
            if mark not in self._taken:
                os.setgroups([int(mark)])
                return mark

    def carriers(self, mark: bytes, leader: int) -> set[int]:
        return {pid for pid in pids() if mark in self._groups_of(pid)}

    @staticmethod
    def _groups_of(pid: int) -> list[bytes]:
        """The supplementary groups of a process that is alive, as :func:`family` has it."""
        status, _, rest = slurp(f"/proc/{pid}/status").partition(b"\nGroups:")
        if (b"\nState:\tZ" in status or b"\nState:\tX" in status) and b"\nThreads:\t1\n" in rest:
            return []
        return rest.partition(b"\n")[0].split()


class UtsMarks(Marks):
    """The kind "uts": a UTS namespace for each call. Only the capability SYS_ADMIN can leave it.

    A process that hides its namespace (by being undumpable, where we lack SYS_PTRACE) counts as belonging to every call.
    """

    kind = "uts"

    def __init__(self) -> None:
        self._libc = libc()
        before = os.readlink(b"/proc/self/ns/uts")
        if self.next() == before:
            raise OSError(errno.EPERM, "a new UTS namespace has the old one's name")

    def next(self) -> bytes:
        if self._libc.unshare(CLONE_NEWUTS):
            raise OSError(errno.EPERM, "no new UTS namespace can be made")
        return os.readlink(b"/proc/self/ns/uts")

    def carriers(self, mark: bytes, leader: int) -> set[int]:
        return {pid for pid, _, _ in family() if self._namespace(pid) in (mark, b"")}

    @staticmethod
    def _namespace(pid: int) -> bytes | None:
        try:
            for thread in [str(pid), *os.listdir(f"/proc/{pid}/task")]:  # the first one may have ended before the others
                try:
                    return os.readlink(b"/proc/%d/task/%s/ns/uts" % (pid, thread.encode()))
                except FileNotFoundError:
                    continue
        except PermissionError:
            return b""
        except OSError:
            pass
        return None


def libc() -> ctypes.CDLL:
    """The C library. The one use of ctypes, which small Pythons lack."""
    import ctypes  # noqa: PLC0415

    return ctypes.CDLL(None, use_errno=True)


def step_back(which: int, who: int) -> None:
    """Have others leave us the processor when we need it: we share its limits, and a fork bomb is 200 against one."""
    try:
        os.setpriority(which, who, NICENESS)
    except OSError:  # it has ended already
        pass


def stop_and_kill(carriers: Callable[[], set[int]], held: bool) -> None:
    """Kill everyone that ``carriers`` finds, and those that they fork meanwhile.

    A look at all processes misses one that is always about to be another: its parent ends when it has forked. So only
    a look during which nobody was born tells that nobody is left; in a busy sandbox everybody is stopped for one.

    In a crowded sandbox they are stopped before anything else. Where each session has the same share of the processor
    (autogroups), however nice, 255 that spin left us so little of it that these 20 ms of work took 1 to 3 s.

    Args:
        held: everything is stopped already, and has to stay so.
    """
    found: set[int] = set()
    frozen = len(pids()) > CROWD
    if frozen:
        send(-1, signal.SIGSTOP)  # atomic: no fork gets away from it
    begun = time.monotonic()
    while True:  # once at least, whoever had the processor meanwhile
        last = newest()
        new = carriers() - found
        found |= new
        for pid in new:
            send(pid, signal.SIGSTOP)
        if not new and newest() == last:
            for pid in found:
                send(pid, signal.SIGKILL)
            if newest() == last:  # nobody was let go on, and forked, before the end
                break
        elif time.monotonic() > begun + STOP_S:
            send(-1, signal.SIGSTOP)
            frozen = True
        if time.monotonic() > begun + 4 * STOP_S:
            break
    for pid in found:
        send(pid, signal.SIGKILL)
    if frozen and not held:
        send(-1, signal.SIGCONT)


class User:
    """Who commands are. Switching costs a system call each way."""

    def __init__(self, uid: int | None) -> None:
        self.uid = uid
        self._own = os.geteuid()

    def become(self) -> None:
        """Until :meth:`back`, be the user, but for the way back."""
        if self.uid is not None:
            os.setresuid(self.uid, self.uid, self._own)

    def back(self) -> None:
        """Be the server again."""
        if self.uid is not None:
            os.setresuid(self._own, self._own, self._own)

    def become_for_good(self) -> None:
        """In a child: there is no way back."""
        if self.uid is not None:
            os.setresuid(self.uid, self.uid, self.uid)

    def __enter__(self) -> None:
        if self.uid is not None:
            os.seteuid(self.uid)

    def __exit__(self, *_: object) -> None:
        if self.uid is not None:
            os.seteuid(self._own)


# -- pipes ------------------------------------------------------------------------------------------------------------


class Capture:
    """What comes out of a pipe: head and tail are kept, everything is counted.

    Args:
        told: called when something has come, or the end (``fd`` is -1 then); what it waits for is never cut.
    """

    def __init__(self, server: Server, fd: int, head: int, tail: int, told: Callable[[], None] | None = None) -> None:
        self._server = server
        self._told = told
        self.fd = fd
        self.head = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_size = 0
        self.start(head, tail)
        os.set_blocking(fd, False)
        server.watch(fd, self._ready, select.EPOLLIN)

    def start(self, head: int, tail: int) -> None:
        """Begin anew."""
        self._server.kept -= len(self.head) + self._tail_size
        self.head.clear()
        self._tail.clear()
        self._tail_size = 0
        self.total = 0
        self.dropping = False
        self._head_limit = head
        self._tail_limit = tail

    def _ready(self, _events: int) -> None:
        self._read()
        if self._told is not None:
            self._told()

    def _read(self) -> int:
        try:
            data = os.read(self.fd, CHUNK)
        except BlockingIOError:
            return 0
        except OSError:
            data = b""
        if not data:
            self.close()
        elif not self.dropping:
            self._add(data)
        return len(data)

    def _add(self, data: bytes) -> None:
        self.total += len(data)
        kept = len(self.head) + self._tail_size
        room = self._head_limit - len(self.head)
        if room > 0:
            self.head += data[:room]
            data = data[room:]
        if data and self._tail_limit:
            tail = self._tail
            if tail and len(tail[-1]) + len(data) <= 8192:  # a program that writes single bytes must not cost 50 each
                tail[-1] += data
            else:
                tail.append(data)
            self._tail_size += len(data)
        if self._server.kept > KEPT_BY_ALL and self._told is None:
            self._head_limit = min(self._head_limit, KEPT_THEN)
            self._tail_limit = min(self._tail_limit, KEPT_THEN)
            del self.head[self._head_limit :]
        while self._tail and self._tail_size - len(self._tail[0]) >= self._tail_limit:
            self._tail_size -= len(self._tail.popleft())
        self._server.kept += len(self.head) + self._tail_size - kept

    def drain(self) -> None:
        """Read what the pipe holds now, which is bounded even if somebody goes on writing."""
        left = MAX_PIPE
        while left > 0 and self.fd >= 0:
            size = self._read()
            if not size:
                return
            left -= size

    def tail(self) -> bytes:
        """The end of it, without what the head has."""
        return b"".join(self._tail)[-self._tail_limit :] if self._tail_limit else b""

    def drop(self) -> None:
        """From now on read for the writers' sake only."""
        self.start(0, 0)
        self.dropping = True

    def close(self) -> None:
        """Idempotent."""
        if self.fd >= 0:
            self._server.unwatch(self.fd)
            os.close(self.fd)
            self.fd = -1


class Feed:
    """A pipe that a program reads from: written as it takes it.

    Args:
        consumed: told how many bytes are out of the way: written, or dropped because nobody reads any more.
    """

    def __init__(self, server: Server, fd: int, consumed: Callable[[int], None]) -> None:
        self._server = server
        self.fd = fd
        self._consumed = consumed
        self._chunks: deque[memoryview] = deque()
        self._ended = False
        self._watched = False
        os.set_blocking(fd, False)

    def write(self, data: bytes) -> None:
        """Queue data."""
        if self.fd < 0:
            self._consumed(len(data))
            return
        self._chunks.append(memoryview(data))
        if not self._watched:
            self._flush()

    def end(self) -> None:
        """Nothing comes after what is queued."""
        self._ended = True
        if not self._chunks:
            self.close()

    def _ready(self, _events: int) -> None:
        self._flush()

    def _flush(self) -> None:
        done = 0
        try:
            while self._chunks:
                size = os.write(self.fd, self._chunks[0][:MAX_PIPE])
                done += size
                if size == len(self._chunks[0]):
                    self._chunks.popleft()
                else:
                    self._chunks[0] = self._chunks[0][size:]
        except BlockingIOError:
            if not self._watched:
                self._watched = True
                self._server.watch(self.fd, self._ready, select.EPOLLOUT)
        except OSError:  # nobody reads any more
            done += self._unsent()
            self.close()
        else:
            if self._watched:
                self._watched = False
                self._server.unwatch(self.fd)
            if self._ended:
                self.close()
        if done:
            self._consumed(done)

    def _unsent(self) -> int:
        size = sum(map(len, self._chunks))
        self._chunks.clear()
        return size

    def close(self) -> None:
        """Idempotent."""
        if self.fd >= 0:
            if self._watched:
                self._server.unwatch(self.fd)
            os.close(self.fd)
            self.fd = -1
            self._chunks.clear()


class Pipes:
    """The pipes of a child that is being started: their far ends are closed at the end of the block, and all on failure."""

    def __init__(self) -> None:
        self._near: list[int] = []
        self._far: list[int] = []

    def outgoing(self) -> tuple[int, int]:
        """A pipe that the child writes to: our end, its end."""
        return self._new(0)

    def incoming(self) -> tuple[int, int]:
        """A pipe that the child reads from: our end, its end."""
        return self._new(1)

    def _new(self, near: int) -> tuple[int, int]:
        ends = os.pipe()
        self._near.append(ends[near])
        self._far.append(ends[1 - near])
        return ends[near], ends[1 - near]

    def __enter__(self) -> Pipes:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for fd in self._far if kind is None else self._far + self._near:
            os.close(fd)


# -- calls ------------------------------------------------------------------------------------------------------------


class Call:
    """Something that the host asked for and that is not done in one step."""

    window = 0  # how many bytes of input the host may send; a call without input takes none

    def __init__(self, server: Server, number: int) -> None:
        self.server = server
        self.number = number
        self.over = False
        self._owed = 0
        server.calls[number] = self

    def data(self, chunk: bytes) -> None:
        """A piece of input."""
        raise ProtocolError("input for a call that takes none")

    def end(self) -> None:
        """The end of the input."""
        raise ProtocolError("an end of input for a call that takes none")

    def kill(self) -> None:
        """The host does not want it any more. Each kind ends in its own way."""

    def credit(self, size: int) -> None:
        """The host takes more output."""

    def consumed(self, size: int) -> None:
        """Input is out of the way."""
        self._owed += size
        if self._owed >= CHUNK and not self.over:
            self.window += self._owed
            self.server.outbox.put(self.number, CREDIT, U32.pack(self._owed))
            self._owed = 0

    def done(self, *fields: object) -> None:
        """End well."""
        self._close()
        self.server.outbox.put(self.number, DONE, pack([f if isinstance(f, bytes) else text(f) for f in fields]))

    def fail(self, why: Refused) -> None:
        """End with a failure."""
        self._close()
        self.server.outbox.put(self.number, FAIL, pack([text(why.kind), text(why.message)]))

    def _close(self) -> None:
        assert not self.over
        self.over = True
        self.server.calls.pop(self.number, None)
        self.server.outbox.refills.pop(self.number, None)


ENDED = Refused("os_error", "the call was ended by its caller")


class Process(Call):
    """A call with a process of its own, that may start others."""

    def __init__(self, server: Server, number: int) -> None:
        super().__init__(server, number)
        self.stdin: Feed | None = None
        self.flags = ""
        self.status: int | None = None
        self.started = time.monotonic()
        self.elapsed_s = 0.0
        self.oom_before = server.oom.count()
        self.dying = False
        self._mark = b""
        self._leader = 0
        self._pause = 0.001
        self._give_up = 0.0

    def adopt(self, mark: bytes, pid: int) -> None:
        """The process has started."""
        self._mark = mark
        self._leader = pid
        self.server.children[pid] = self

    def data(self, chunk: bytes) -> None:
        if self.stdin is None:
            super().data(chunk)
        else:
            self.stdin.write(chunk)

    def end(self) -> None:
        if self.stdin is None:
            super().end()
        else:
            self.stdin.end()

    def exited(self, status: int) -> None:
        """The process has ended; those that it has started may live on."""
        self.status = status
        self.elapsed_s = time.monotonic() - self.started
        if self.over:
            return
        if self.dying:
            self._check()
        else:
            self.finish()

    def destroy(self, flag: str) -> None:
        """End the process and everything that it has started; :meth:`finish` comes when nobody is left."""
        if self.dying or self.over or self.status is not None:
            return
        self.flags += flag
        self.dying = True
        self._give_up = time.monotonic() + GONE_S
        stop_and_kill(self._carriers, self.server.held)
        self.server.after(self._pause, self._check)

    def _carriers(self) -> set[int]:
        return self.server.marks.carriers(self._mark, self._leader)

    def _check(self) -> None:
        if self.over:
            return
        left = self._carriers()
        if self.status is not None and not left:
            self.finish()
            return
        if time.monotonic() > self._give_up:
            self.flags += "s"
            self.server.log(f"call {self.number}: {len(left)} processes do not die")
            self.finish()
            return
        for pid in left:
            send(pid, signal.SIGKILL)
        self._pause = min(self._pause * 2, 0.02)
        self.server.after(self._pause, self._check)

    def finish(self) -> None:
        """The process has ended, or does not die. Each kind says so in its own way."""

    def kill(self) -> None:
        self.destroy("k")

    def exit(self) -> str:
        """Exit code, or minus the signal's number."""
        if self.status is None:
            return ""
        return str(-os.WTERMSIG(self.status) if os.WIFSIGNALED(self.status) else os.WEXITSTATUS(self.status))

    def out_of_memory(self) -> bool:
        """Whether memory was what killed it, or what its shell ran."""
        return self.exit() in ("-9", "137") and not self.dying and self.server.oom.count() > self.oom_before


class Spawn(Process):
    """A command."""

    def __init__(self, server: Server, number: int, keep: int) -> None:
        super().__init__(server, number)
        self.keep = keep
        self.out: Capture
        self.err: Capture
        self.value: Capture | None = None
        self._timer: Timer | None = None

    def start(self, argv: list[bytes], cwd: bytes, env: dict[bytes, bytes], flags: bytes) -> None:
        """Start the program.

        Raises:
            Refused: it cannot be.
        """
        server = self.server
        value = feed = -1
        with Pipes() as pipes:
            with server.user:  # whose the pipes then are, or a command could not open its /dev/stdout
                out, far_out = pipes.outgoing()
                err, far_err = pipes.outgoing()
                far = [server.null, far_out, far_err]
                if b"i" in flags:
                    feed, far[0] = pipes.incoming()
                if b"v" in flags:
                    value, far_value = pipes.outgoing()
                    far.append(far_value)
            self.adopt(*server.launch(argv, cwd, env, far))
        half = self.keep // 2
        self.out = Capture(server, out, half, self.keep - half)
        self.err = Capture(server, err, half, self.keep - half)
        if value >= 0:
            self.value = self._value(value)
        if feed >= 0:
            self.window = IN_WINDOW
            self.stdin = Feed(server, feed, self.consumed)

    def _value(self, fd: int) -> Capture:
        return Capture(self.server, fd, self.keep, 0)

    def limit(self, timeout_s: float | None) -> None:
        """Set the time that it has."""
        if timeout_s is not None:
            self._timer = self.server.after(timeout_s, lambda: self.destroy("t"))

    def finish(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self.stdin is not None:
            self.stdin.close()
        if self.out_of_memory():
            self.flags += "o"
        value = 0
        if self.value is not None:
            self.value.drain()
            value = self.value.total
            self.server.outbox.chunks(self.number, VALUE, bytes(self.value.head))
            self.value.drop()
            self.value.close()
        result = outputs(self.server, self.number, self.out, self.err)
        self.done(self.exit(), int(self.elapsed_s * 1e6), *result, value, self.flags)


def outputs(server: Server, number: int, out: Capture, err: Capture) -> list[int]:
    """Send what was captured; returns total and head of both. What comes later is dropped."""
    counts = []
    for capture, kind in ((out, OUT), (err, ERR)):
        capture.drain()
        server.outbox.chunks(number, kind, bytes(capture.head))
        server.outbox.chunks(number, kind, capture.tail())
        counts += [capture.total, len(capture.head)]
        capture.drop()
    return counts


class Interpreter(Spawn):
    """A program that answers cells: it reads length and source on its stdin, and writes length and answer to fd 3.

    What it writes without a cell belongs to nobody.
    """

    def __init__(self, server: Server, number: int) -> None:
        super().__init__(server, number, 0)
        self.cell: Cell | None = None

    def start(self, argv: list[bytes], cwd: bytes, env: dict[bytes, bytes], flags: bytes) -> None:
        super().start(argv, cwd, env, b"iv")
        self.window = 0  # its stdin is ours

    @property
    def ending(self) -> bool:
        """Whether it will answer no more."""
        return self.dying or self.value is None or self.value.fd < 0

    def consumed(self, size: int) -> None:
        """Nobody has to know."""

    def _value(self, fd: int) -> Capture:
        return Capture(self.server, fd, MAX_ANSWER_BYTES + U32.size, 0, self._told)

    def run(self, cell: Cell, source: bytes) -> None:
        """Start a cell."""
        assert self.stdin is not None and self.value is not None  # noqa: PT018
        for capture in (self.out, self.err):
            capture.drop()
            capture.drain()
            capture.start(cell.keep // 2, cell.keep - cell.keep // 2)
        self.value.start(MAX_ANSWER_BYTES + U32.size, 0)
        self.oom_before = self.server.oom.count()
        self.stdin.write(U32.pack(len(source)) + source)

    def _told(self) -> None:
        assert self.value is not None
        answer = self.value.head
        if self.value.fd < 0:  # closed, by whatever means: it cannot answer any more. Mostly it is ending, and gets the time
            self.server.after(LINGER_S, lambda: self.destroy("x"))
        if self.cell is None or not self.cell.running or len(answer) < U32.size:
            return
        (size,) = U32.unpack_from(answer)
        if size > MAX_ANSWER_BYTES:
            self.destroy("x")
        elif len(answer) >= U32.size + size:
            self.cell.answered(bytes(answer[U32.size : U32.size + size]))

    def finish(self) -> None:
        assert self.value is not None
        if self.cell is not None:
            self.cell.lost()
        for capture in (self.out, self.err, self.value):
            capture.drop()
        super().finish()


class Cell(Call):
    """A piece of code for an interpreter, which keeps its state."""

    window = IN_WINDOW

    def __init__(self, server: Server, number: int, interpreter: Interpreter, keep: int, timeout_s: float | None) -> None:
        super().__init__(server, number)
        self.interpreter = interpreter
        self.keep = keep
        self.flags = ""
        self.running = False
        self._source = bytearray()
        self._started = time.monotonic()
        self._timer = None if timeout_s is None else server.after(timeout_s, self._late)
        interpreter.cell = self

    def data(self, chunk: bytes) -> None:
        self._source += chunk
        if len(self._source) > MAX_CELL_BYTES:
            self._release()
            self.fail(Refused("invalid_tool_arguments", f"code of more than {MAX_CELL_BYTES:,} bytes"))
        else:
            self.consumed(len(chunk))

    def end(self) -> None:
        self.running = True
        self.interpreter.run(self, bytes(self._source))
        self._source.clear()

    def kill(self) -> None:
        self._destroy("k")

    def _late(self) -> None:
        self._destroy("t")

    def _destroy(self, flag: str) -> None:
        if self.flags:
            return
        self.flags = flag
        self.interpreter.destroy("k")

    def answered(self, payload: bytes) -> None:
        """The interpreter has answered."""
        self._finish("", payload)

    def lost(self) -> None:
        """The interpreter has died."""
        flags = "o" if self.interpreter.out_of_memory() else ""
        self.flags += flags or ("" if self.flags else "x")
        self._finish(self.interpreter.exit(), b"")

    def _release(self) -> None:
        self.interpreter.cell = None
        if self._timer is not None:
            self._timer.cancel()

    def _finish(self, exit_code: str, payload: bytes) -> None:
        self._release()
        elapsed = time.monotonic() - self._started
        self.server.outbox.chunks(self.number, VALUE, payload)
        result = outputs(self.server, self.number, self.interpreter.out, self.interpreter.err) if self.running else [0] * 4
        self.done(exit_code, int(elapsed * 1e6), *result, len(payload), self.flags)


class Reader(Call):
    """A call that answers with a stream, made piece by piece as the host takes it, as the commands' user.

    Args:
        source: returns what DONE says.
    """

    def __init__(self, server: Server, number: int, path: bytes, source: Generator[bytes, None, int]) -> None:
        super().__init__(server, number)
        self._path = path
        self._source = source
        self._credit = OUT_WINDOW
        self._next = b""
        server.outbox.refills[number] = self._refill
        self._refill()

    def _refill(self) -> None:
        if self.over or self.server.outbox.waiting(self.number):
            return
        try:
            if not self._next:
                with self.server.user:
                    self._next = next(self._source)
        except StopIteration as end:
            self.done(end.value)
        except Refused as refused:
            self.fail(refused)
        except OSError as error:
            self.fail(refusal(error, self._path))
        else:
            if len(self._next) <= self._credit:
                self._credit -= len(self._next)
                self.server.outbox.put(self.number, DATA, self._next)
                self._next = b""

    def credit(self, size: int) -> None:
        self._credit += size
        self._refill()

    def kill(self) -> None:
        self._source.close()
        self.fail(ENDED)


def content(fd: int, path: bytes, offset: int, limit: int | None) -> Generator[bytes, None, int]:
    """The content of a file, which is closed at the end; returns its length."""
    sent = 0
    try:
        while True:
            if limit is not None and max(sent, os.fstat(fd).st_size - offset) > limit:  # now: it may grow
                raise too_large(path, limit)
            data = os.pread(fd, CHUNK, offset + sent)
            if not data:
                return sent
            sent += len(data)
            yield data
    finally:
        os.close(fd)


def too_large(path: bytes, limit: int) -> Refused:
    """The refusal of a file that is larger than was asked for."""
    return Refused(
        "file_too_large",
        f"{shown(path)} has more than {limit:,} bytes, which is the most that is read at once. "
        "Read a part with a command (head, tail, sed)",
    )


class Writer(Call):
    """A file that is being written: beside its place, so that it appears whole or not at all."""

    window = IN_WINDOW

    def __init__(self, server: Server, number: int, path: bytes, mode: int, size: int | None) -> None:
        self._path = path
        self._size = size
        self._written = 0
        with server.user:
            self._directory, self._name = server.workspace.locate(path, create=True)
            try:
                self._mode = self._checked(mode)
                self._temporary = b".rath-" + os.urandom(8).hex().encode() + b".tmp"
                self._fd = os.open(self._temporary, CREATE, 0o600, dir_fd=self._directory)
            except BaseException:
                os.close(self._directory)
                raise
        super().__init__(server, number)

    def _checked(self, mode: int) -> int:
        """The mode that the file gets; refuses to replace what is no file."""
        if self._name == b".":
            raise Refused("is_directory", f"{shown(self._path)} is a directory")
        try:
            status = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return mode
        if stat.S_ISDIR(status.st_mode):
            raise Refused("is_directory", f"{shown(self._path)} is a directory: a file cannot take its place")
        if not stat.S_ISREG(status.st_mode):
            raise Refused("not_a_file", f"{shown(self._path)} is not a regular file, and is not replaced by one")
        return stat.S_IMODE(status.st_mode) if mode == KEPT_MODE else mode

    def data(self, chunk: bytes) -> None:
        try:
            with self.server.user:
                write_all(self._fd, chunk)
        except OSError as error:
            self._give_up(refusal(error, self._path))
            return
        self._written += len(chunk)
        self.consumed(len(chunk))

    def end(self) -> None:
        if self._size is not None and self._size != self._written:
            self._give_up(Refused("invalid_tool_arguments", f"{self._size} bytes were announced, {self._written} came"))
            return
        try:
            with self.server.user:
                os.fchmod(self._fd, self._mode & 0o777)
                os.rename(self._temporary, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except OSError as error:
            self._give_up(refusal(error, self._path))
            return
        self._forget()
        self.done(self._written)

    def kill(self) -> None:
        self._give_up(ENDED)

    def _give_up(self, why: Refused) -> None:
        try:
            with self.server.user:
                os.unlink(self._temporary, dir_fd=self._directory)
        except OSError:
            pass
        self._forget()
        self.fail(why)

    def _forget(self) -> None:
        os.close(self._fd)
        os.close(self._directory)


def write_all(fd: int, data: bytes) -> None:
    """Write all of it."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class Job(Process):
    """Work on a tree, done by a forked child as the commands' user: archive data on pipes, the result on one more.

    Args:
        body: runs in the child; returns the fields of DONE.
        before: runs in the child before it becomes the user.
        takes_input: DATA frames go to the child's stdin.
    """

    def __init__(
        self,
        server: Server,
        number: int,
        path: bytes,
        body: Callable[[], list[int]],
        before: Callable[[], object] = bool,
        takes_input: bool = False,
    ) -> None:
        super().__init__(server, number)
        self._path = path
        self._body = body
        self._before = before
        self._credit = OUT_WINDOW
        self._paused = False
        with Pipes() as pipes:
            self._data, far_data = pipes.outgoing()
            result, far_result = pipes.outgoing()
            far = [server.null, far_data, server.null, far_result]
            feed = -1
            if takes_input:
                feed, far[0] = pipes.incoming()
            mark = server.marks.next()
            pid = os.fork()
            if pid == 0:
                self._child(far)
            self.adopt(mark, pid)
        self._result = Capture(server, result, CHUNK, 0)
        if takes_input:
            self.window = IN_WINDOW
            self.stdin = Feed(server, feed, self.consumed)
        os.set_blocking(self._data, False)
        server.watch(self._data, self._readable, select.EPOLLIN)
        server.outbox.refills[number] = self._resume

    def _child(self, far: list[int]) -> None:
        """Does not return."""
        fields = [b"fail", b"os_error", b"the work was not begun"]
        try:
            settle(far)
            self._before()  # while we may read what Python has not loaded yet
            self.server.user.become_for_good()
            fields = [b"ok", *map(text, self._body())]
        except Refused as refused:
            fields = [b"fail", text(refused.kind), text(refused.message)]
        except OSError as error:
            why = refusal(error, error.filename if isinstance(error.filename, bytes) else self._path)
            fields = [b"fail", text(why.kind), text(why.message)]
        except BaseException as error:
            fields = [b"fail", b"os_error", text(f"{type(error).__name__}: {error}")]
        finally:
            try:
                write_all(3, pack(fields)[:CHUNK])
            finally:
                os._exit(0)

    def kill(self) -> None:
        if self.status is None:
            self.destroy("k")
        else:  # only its data is still on the way
            self.dying = True
            self.finish()

    def credit(self, size: int) -> None:
        self._credit += size
        self._resume()

    def _resume(self) -> None:
        if self._paused and self._data >= 0 and self._credit and not self.server.outbox.waiting(self.number):
            self._paused = False
            self.server.watch(self._data, self._readable, select.EPOLLIN)

    def _readable(self, _events: int) -> None:
        if not self._credit or self.server.outbox.waiting(self.number):
            self._paused = True
            self.server.unwatch(self._data)
            return
        try:
            data = os.read(self._data, min(CHUNK, self._credit))
        except BlockingIOError:
            return
        if data:
            self._credit -= len(data)
            self.server.outbox.put(self.number, DATA, data)
            return
        self._close_data()
        if self.status is not None:
            self._answer()

    def _close_data(self) -> None:
        if self._data >= 0:
            if not self._paused:
                self.server.unwatch(self._data)
            os.close(self._data)
            self._data = -1

    def finish(self) -> None:
        if self.dying or self.exit() != "0":
            self._close_data()
        if self._data < 0:
            self._answer()

    def _answer(self) -> None:
        self._result.drain()
        fields = unpack(bytes(self._result.head))
        self._result.close()
        if self.stdin is not None:
            self.stdin.close()
        if self.dying:
            self.fail(ENDED)
        elif not fields:
            why = f"{shown(self._path)}: the work was cut short, its process ended with {self.exit()}"
            self.fail(Refused("os_error", why))
        elif fields[0] == b"ok":
            self.done(*fields[1:])
        else:
            self.fail(Refused(os.fsdecode(fields[1]), fields[2].decode("utf-8", "replace")))


def settle(far: list[int]) -> None:
    """In a forked child: keep only the given descriptors, as 0, 1, ...; forget the server's signals."""
    signal.set_wakeup_fd(-1)
    for sig in SETTABLE:
        signal.signal(sig, signal.SIG_DFL)
    os.setsid()
    step_back(os.PRIO_PROCESS, 0)
    for target, fd in enumerate(far):
        os.dup2(fd, target)
    for name in os.listdir("/proc/self/fd"):
        if int(name) >= len(far):
            try:
                os.close(int(name))
            except OSError:  # the listing's own
                pass
    try:
        with open("/proc/self/oom_score_adj", "wb", 0) as file:
            file.write(b"1000")
    except OSError:
        pass


# -- trees: these run in a job ----------------------------------------------------------------------------------------


class Tree:
    """Everything below a directory, or one file; read without following links, and without keeping descriptors."""

    def __init__(self, workspace: Workspace, path: bytes, exclude: Iterable[bytes]) -> None:
        self._exclude = frozenset(exclude)
        self._only: bytes | None = None
        try:
            self._top = workspace.directory(path)
        except NotADirectoryError:
            self._top, self._only = workspace.locate(path)

    def within(self, path: bytes) -> int:
        """A descriptor of a directory of the tree."""
        fd = os.dup(self._top)
        for part in filter(None, path.split(b"/")):
            try:
                below = os.open(part, NEXT, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        return fd

    def walk(self) -> Iterator[tuple[bytes, int, bytes, os.stat_result]]:
        """Path, descriptor of its directory, name there, and status, a directory before what is in it."""
        if self._only is not None:
            yield self._only, self._top, self._only, os.stat(self._only, dir_fd=self._top, follow_symlinks=False)
            return
        todo = [b""]
        while todo:
            top = todo.pop()
            try:
                fd = self.within(top)
            except (FileNotFoundError, NotADirectoryError):
                if not top:
                    raise
                continue
            try:
                below = []
                for name in self._names(fd, top):
                    try:
                        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    path = top + b"/" + name if top else name
                    yield path, fd, name, status
                    if stat.S_ISDIR(status.st_mode):
                        below.append(path)
                todo += reversed(below)
            finally:
                os.close(fd)

    def _names(self, fd: int, top: bytes) -> list[bytes]:
        listing = readable(b".", LIST, fd, top or b".")
        try:
            return sorted(name for name in map(os.fsencode, os.listdir(listing)) if name not in self._exclude)
        finally:
            os.close(listing)


def readable(name: bytes, flags: int, directory: int, path: bytes) -> int:
    """Open something for reading; what the user owns but forbade itself is allowed for a moment."""
    try:
        return os.open(name, flags, dir_fd=directory)
    except PermissionError as error:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if status.st_uid != os.geteuid() or stat.S_ISLNK(status.st_mode):
            raise OSError(error.errno, error.strerror, path) from None
    mode = stat.S_IMODE(status.st_mode)
    os.chmod(name, mode | (0o700 if stat.S_ISDIR(status.st_mode) else 0o400), dir_fd=directory)
    try:
        return os.open(name, flags, dir_fd=directory)
    finally:
        os.chmod(name, mode, dir_fd=directory)


def data_ranges(fd: int, size: int) -> list[tuple[int, int]]:
    """Where a file holds data, as offset and length."""
    if os.fstat(fd).st_blocks * 512 >= size:
        return [(0, size)] if size else []
    ranges = []
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
            at = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                break
            return [(0, size)]
        ranges.append((start, min(at, size) - start))
    return [(start, length) for start, length in ranges if length > 0]


def pieces(fd: int, start: int, length: int) -> Iterator[bytes]:
    """The bytes of a range; zeros where the file has become shorter."""
    while length:
        data = os.pread(fd, min(length, 1 << 18), start)
        if not data:
            data = bytes(min(length, 1 << 18))
        yield data
        start += len(data)
        length -= len(data)


class Export:
    """Writes a tree to fd 1, with its content or (manifest) with digests in its place."""

    def __init__(self, tree: Tree, digests: bool) -> None:
        self._tree = tree
        self._digests = digests
        self._out = os.fdopen(1, "wb", 1 << 18)
        self._links: dict[tuple[int, int], bytes] = {}
        self._entries = 0
        self._bytes = 0

    def run(self) -> list[int]:
        """Number of entries, and bytes of content."""
        for path, directory, name, status in self._tree.walk():
            try:
                self._entry(path, directory, name, status)
            except FileNotFoundError:  # vanished since it was listed
                continue
        self._out.write(RECORD.pack(0, 0, 0, 0, 0, 0, 0))
        self._out.flush()
        return [self._entries, self._bytes]

    def _entry(self, path: bytes, directory: int, name: bytes, status: os.stat_result) -> None:
        if stat.S_ISDIR(status.st_mode):
            self._record(1, status, path)
        elif stat.S_ISLNK(status.st_mode):
            self._record(3, status, path, os.readlink(name, dir_fd=directory))
        elif stat.S_ISREG(status.st_mode):
            identity = (status.st_dev, status.st_ino)
            first = self._links.get(identity)
            if first is not None:
                self._record(4, status, path, first)
                return
            self._file(path, directory, name)

    def _record(self, kind: int, status: os.stat_result, path: bytes, link: bytes = b"", data: int = 0) -> None:
        if len(path) > MAX_PATH:
            raise Refused("os_error", f"the path {shown(path)} has more than {MAX_PATH:,} bytes")
        size = status.st_size if kind == 2 else 0
        mode = stat.S_IMODE(status.st_mode)
        self._out.write(RECORD.pack(kind, mode, size, status.st_mtime_ns, data, len(path), len(link)) + path + link)
        self._entries += 1

    def _file(self, path: bytes, directory: int, name: bytes) -> None:
        fd = readable(name, READ, directory, path)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                return
            if status.st_nlink > 1:  # of what was opened: it may be another file than was listed
                self._links[status.st_dev, status.st_ino] = path
            ranges = data_ranges(fd, status.st_size)
            if self._digests:
                self._record(2, status, path)
                self._digest(fd, status.st_size)
                return
            total = sum(length for _, length in ranges)
            self._record(2, status, path, data=total)
            for start, length in ranges:
                self._out.write(SEGMENT.pack(start, length))
                for piece in pieces(fd, start, length):
                    self._out.write(piece)
            self._out.write(LAST_SEGMENT)
            self._bytes += total
        finally:
            os.close(fd)

    def _digest(self, fd: int, size: int) -> None:
        digest = load_hashlib().sha256()
        for piece in pieces(fd, 0, size):
            digest.update(piece)
        self._out.write(digest.digest())
        self._bytes += size


def load_hashlib() -> types.ModuleType:
    """``hashlib``. It loads OpenSSL: only a manifest pays for that."""
    import hashlib  # noqa: PLC0415

    return hashlib


class Import:
    """Makes a tree from the archive on fd 0, below a directory, without following any link in it."""

    def __init__(self, workspace: Workspace, path: bytes) -> None:
        directory, name = workspace.locate(path, create=True)
        make_directory(name, directory)
        os.close(directory)
        self._top = workspace.directory(path)
        self._in = os.fdopen(0, "rb", 1 << 18)
        self._directories: list[tuple[bytes, int, int]] = []
        self._entries = 0
        self._bytes = 0

    def run(self) -> list[int]:
        """Number of entries, and bytes of content."""
        while True:
            kind, mode, size, mtime, data, path_length, link_length = RECORD.unpack(self._take(RECORD.size))
            if kind == 0:
                break
            if path_length > MAX_PATH or link_length > MAX_PATH:
                raise Refused("invalid_tool_arguments", f"the archive has a path of more than {MAX_PATH:,} bytes")
            path, link = self._take(path_length), self._take(link_length)
            directory, name = self._parent(path)
            try:
                self._make(kind, mode, size, mtime, data, path, link, directory, name)
            except OSError as error:
                raise OSError(error.errno, error.strerror, path) from None
            finally:
                os.close(directory)
            self._entries += 1
        # Modes of directories last: one may forbid writing, and times change with each entry.
        for path, mode, mtime in reversed(self._directories):
            directory, name = self._parent(path)
            self._finish(directory, name, mode, mtime)
            os.close(directory)
        return [self._entries, self._bytes]

    def _take(self, size: int) -> bytes:
        data = self._in.read(size)
        if len(data) < size:
            raise Refused("invalid_tool_arguments", "the archive ends before its end record")
        return data

    def _parent(self, path: bytes) -> tuple[int, bytes]:
        parts = path.split(b"/")
        if b"\0" in path or not all(parts) or b".." in parts or b"." in parts:
            raise Refused("invalid_tool_arguments", f"{shown(path)} is no path of an archive")
        fd = os.dup(self._top)
        for part in parts[:-1]:
            try:
                below = os.open(part, NEXT, dir_fd=fd)
            except OSError as error:
                raise OSError(error.errno, error.strerror, path) from None
            finally:
                os.close(fd)
            fd = below
        return fd, parts[-1]

    def _make(
        self, kind: int, mode: int, size: int, mtime: int, data: int, path: bytes, link: bytes, directory: int, name: bytes
    ) -> None:
        if kind == 1:
            self._directory(directory, name)
            self._directories.append((path, mode, mtime))
            return
        self._clear(directory, name)
        if kind == 2:
            self._file(directory, name, mode, size, mtime, data)
        elif kind == 3:
            os.symlink(link, name, dir_fd=directory)
            os.utime(name, ns=(mtime, mtime), dir_fd=directory, follow_symlinks=False)
        elif kind == 4:
            source, old = self._parent(link)
            try:
                os.link(old, name, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)
            finally:
                os.close(source)
        else:
            raise Refused("invalid_tool_arguments", f"the archive has a record of unknown kind {kind}")

    def _directory(self, directory: int, name: bytes) -> None:
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            os.mkdir(name, 0o700, dir_fd=directory)
            return
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(name, dir_fd=directory)
            os.mkdir(name, 0o700, dir_fd=directory)
        elif status.st_uid == os.geteuid():
            os.chmod(name, stat.S_IMODE(status.st_mode) | 0o700, dir_fd=directory)

    def _clear(self, directory: int, name: bytes) -> None:
        try:
            os.unlink(name, dir_fd=directory)
        except FileNotFoundError:
            pass

    def _file(self, directory: int, name: bytes, mode: int, size: int, mtime: int, data: int) -> None:
        fd = os.open(name, CREATE, 0o600, dir_fd=directory)
        try:
            while True:
                offset, length = SEGMENT.unpack(self._take(SEGMENT.size))
                if offset == 2**64 - 1:
                    break
                data -= length
                if data < 0 or offset + length > size:
                    raise Refused("invalid_tool_arguments", "the archive has a file with more data than it announces")
                self._segment(fd, offset, length)
            os.ftruncate(fd, size)
            os.fchmod(fd, mode & 0o7777)
            os.utime(fd, ns=(mtime, mtime))
        finally:
            os.close(fd)

    def _segment(self, fd: int, offset: int, length: int) -> None:
        self._bytes += length
        while length:
            piece = memoryview(self._take(min(length, 1 << 18)))
            length -= len(piece)
            while piece:
                written = os.pwrite(fd, piece, offset)
                offset += written
                piece = piece[written:]

    @staticmethod
    def _finish(directory: int, name: bytes, mode: int, mtime: int) -> None:
        fd = os.open(name, LIST, dir_fd=directory)
        try:
            os.utime(fd, ns=(mtime, mtime))
            if os.fstat(fd).st_uid == os.geteuid():
                os.fchmod(fd, mode & 0o7777)
        finally:
            os.close(fd)


# -- the server -------------------------------------------------------------------------------------------------------


class Timer:
    """Something that will be done, unless it is cancelled."""

    def __init__(self, at: float, order: int, what: Callable[[], None]) -> None:
        self.at = at
        self.order = order
        self.what: Callable[[], None] | None = what

    def cancel(self) -> None:
        """Do not do it."""
        self.what = None

    def __lt__(self, other: Timer) -> bool:
        return (self.at, self.order) < (other.at, other.order)


class OomCounter:
    """How many processes of this control group memory has killed."""

    FILES = ("/sys/fs/cgroup/memory/memory.oom_control", "/sys/fs/cgroup/memory.events")

    def __init__(self) -> None:
        self._fd = -1
        for path in self.FILES:
            try:
                self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                break
            except OSError:
                continue

    def count(self) -> int:
        """The counter; 0 where it cannot be told."""
        if self._fd < 0:
            return 0
        try:
            words = os.pread(self._fd, 4096, 0).split()
            return int(words[words.index(b"oom_kill") + 1])
        except (OSError, ValueError, IndexError):
            return 0


IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE)
# What a command must not inherit: what is ignored here, by Python, or by whoever started us (a shell's `&`, nohup).
SETTABLE = tuple(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})


class Server:
    """The loop, and everything that there is once."""

    def __init__(self) -> None:
        self.calls: dict[int, Call] = {}
        self.children: dict[int, Process] = {}
        self.outbox = Outbox(1)
        self.user = User(None)
        self.marks = Marks()
        self.oom = OomCounter()
        self.held = False
        self.kept = 0
        self.workspace = Workspace(b"/")
        self.env: dict[bytes, bytes] = {}
        self.keep = KEEP
        self.null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self._configured = False
        self._inbox = bytearray()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._epoll = select.epoll()
        self._timers: list[Timer] = []
        self._timer_count = 0
        self._writing = False
        try:
            self._oom_score = os.open("/proc/self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
            self._own_oom_score = os.read(self._oom_score, 16)
        except OSError:
            self._oom_score = -1
        self._prepare()

    def _prepare(self) -> None:
        os.umask(0o022)
        os.chdir("/")
        for sig in IGNORED:
            signal.signal(sig, signal.SIG_IGN)
        wake, wakeup = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(wakeup, False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        self.watch(wake, lambda _events: self._reap(wake), select.EPOLLIN)
        os.set_blocking(0, False)
        os.set_blocking(1, False)
        self.watch(0, self._receive, select.EPOLLIN)

    # -- what calls need

    def watch(self, fd: int, handler: Callable[[int], None], events: int) -> None:
        """Have ``handler`` called when something can be done with ``fd``."""
        self._handlers[fd] = handler
        self._epoll.register(fd, events)

    def unwatch(self, fd: int) -> None:
        """The opposite."""
        del self._handlers[fd]
        self._epoll.unregister(fd)

    def after(self, delay_s: float, what: Callable[[], None]) -> Timer:
        """Have ``what`` called later."""
        self._timer_count += 1
        timer = Timer(time.monotonic() + delay_s, self._timer_count, what)
        heappush(self._timers, timer)
        if len(self._timers) > 64 + 4 * len(self.calls):  # those of calls that ended early
            self._timers = [old for old in self._timers if old.what is not None]
            heapify(self._timers)
        return timer

    def log(self, message: str) -> None:
        """Tell the host, for debugging."""
        self.outbox.put(0, LOG, text(message))

    def launch(self, argv: list[bytes], cwd: bytes, env: dict[bytes, bytes], far: list[int]) -> tuple[bytes, int]:
        """Start a program as the commands' user, with the descriptors ``far`` as 0, 1, ...

        Raises:
            Refused: it cannot be.
        """
        mark = self.marks.next()
        if self._oom_score >= 0:
            os.write(self._oom_score, b"1000")  # or memory would kill us as soon as the command
        self.user.become()
        try:
            self._enter(cwd)
            pid = start_program(argv, env, [(os.POSIX_SPAWN_DUP2, fd, n) for n, fd in enumerate(far)])
            step_back(os.PRIO_PGRP, pid)  # the group: it may have forked since
            return mark, pid
        finally:
            self.user.back()
            os.chdir("/")
            if self._oom_score >= 0:
                os.write(self._oom_score, self._own_oom_score)

    def _enter(self, cwd: bytes) -> None:
        try:
            if cwd in (b"", b"."):
                os.chdir(self.workspace.path)
                return
            fd = self.workspace.directory(cwd)
            try:
                os.fchdir(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise refusal(error, cwd or b".") from None

    # -- the loop

    def serve(self) -> None:
        """Until the owner is gone (``OwnerGone``)."""
        self._hello()
        while True:
            self._flush()
            for fd, events in self._epoll.poll(self._patience(), 64):
                handler = self._handlers.get(fd)
                if handler is not None:  # or it was closed in this very turn
                    handler(events)
            self._run_timers()

    def _patience(self) -> float:
        # At most an hour: there is a largest number that epoll takes.
        return min(max(0.0, self._timers[0].at - time.monotonic()), 3600.0) if self._timers else -1

    def _run_timers(self) -> None:
        now = time.monotonic() if self._timers else 0.0
        while self._timers and self._timers[0].at <= now:
            what = heappop(self._timers).what
            if what is not None:
                what()

    def _flush(self) -> None:
        more = self.outbox.flush()
        if more != self._writing:
            self._writing = more
            if more:
                self.watch(1, lambda _events: None, select.EPOLLOUT)
            else:
                self.unwatch(1)

    def _reap(self, wake: int) -> None:
        try:
            os.read(wake, 4096)
        except BlockingIOError:
            pass
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            child = self.children.pop(pid, None)
            if child is not None:
                child.exited(status)

    def _receive(self, _events: int) -> None:
        try:
            data = os.read(0, MAX_PAYLOAD)
        except BlockingIOError:
            return
        except OSError as error:
            raise OwnerGone(str(error)) from None
        if not data:
            raise OwnerGone("end of input")
        inbox = self._inbox
        inbox += data
        at = 0
        while len(inbox) - at >= HEADER.size:
            size, call, kind = HEADER.unpack_from(inbox, at)
            if size > MAX_PAYLOAD:
                raise ProtocolError(f"a frame of {size} bytes")
            start = at + HEADER.size
            if len(inbox) < start + size:
                break
            self._frame(call, kind, bytes(inbox[start : start + size]))
            at = start + size
        del inbox[:at]

    def _frame(self, number: int, kind: int, payload: bytes) -> None:
        if kind == CONFIG:
            self._configure(unpack(payload))
            return
        if kind == RUN:
            self._run(number, unpack(payload))
            return
        if kind not in (DATA_IN, END, KILL, CREDIT_IN):
            raise ProtocolError(f"a frame of kind {kind}")
        call = self.calls.get(number)
        if call is None:  # it has ended, and the host does not know yet
            return
        if kind == DATA_IN:
            call.window -= len(payload)
            if call.window < 0:
                raise ProtocolError("more input than there was credit for")
            call.data(payload)
        elif kind == END:
            call.end()
        elif kind == KILL:
            call.kill()
        else:
            if len(payload) != 4:
                raise ProtocolError("a credit that is no number")
            call.credit(U32.unpack(payload)[0])

    # -- connection

    def _hello(self) -> None:
        self._tell(HELLO, protocol=1, python=".".join(map(str, sys.version_info[:3])))

    def _tell(self, kind: int, **values: object) -> None:
        self.outbox.put(0, kind, pack([text(item) for pair in values.items() for item in pair]))

    def _configure(self, fields: list[bytes]) -> None:
        """A configuration is whole: what it does not name is as at the start."""
        if len(fields) % 2:
            raise ProtocolError("a configuration with half a pair")
        single = {key: value for key, value in zip(fields[::2], fields[1::2]) if key != b"env"}  # noqa: B905 (3.8)
        unknown = single.keys() - {b"uid", b"gid", b"workspace", b"mode", b"mark", b"keep"}
        if unknown or b"workspace" not in single:
            raise ProtocolError(f"a configuration with unknown keys {unknown}, or without a workspace")
        self.env = environment(value for key, value in zip(fields[::2], fields[1::2]) if key == b"env")  # noqa: B905
        self.keep = number(single.get(b"keep", text(KEEP)))
        self.workspace = Workspace(single[b"workspace"])
        switch = single.get(b"mode", b"same") == b"switch"
        if switch:
            gid, uid = number(single[b"gid"]), number(single[b"uid"])
            os.setresgid(gid, gid, gid)
            self.user = User(uid)
            self.user.become()  # now rather than at the first command: a sandbox that cannot must not begin
            self.user.back()
            self._open_up(uid, gid)
        else:
            self.user = User(None)
            close_proc()
        self.marks = self._choose_marks(single.get(b"mark", b"none").decode("ascii", "replace"))
        self._configured = True
        try:
            status = os.stat(self.workspace.path)
            where: tuple[object, object] = (status.st_dev, status.st_ino)
        except OSError:
            where = ("", "")
        self._tell(READY, workspace_dev=where[0], workspace_ino=where[1], mark=self.marks.kind)

    def _open_up(self, uid: int, gid: int) -> None:
        """A workspace that the engine made belongs to root: let the commands' user write there."""
        try:
            status = os.stat(self.workspace.path)
        except OSError:
            return
        writable = 0o700 if status.st_uid == uid else 0o070 if status.st_gid == gid else 0o007
        if status.st_uid == os.geteuid() and status.st_mode & writable != writable:
            try:
                os.chmod(self.workspace.path, 0o777)
            except OSError as error:
                self.log(f"the workspace cannot be opened to its user: {error}")

    def _choose_marks(self, wanted: str) -> Marks:
        if wanted == self.marks.kind:
            return self.marks
        kinds: dict[str, type[Marks]] = {"groups": GroupMarks, "uts": UtsMarks}
        try:
            return kinds.get(wanted, Marks)()
        except (OSError, ImportError) as error:
            self.log(f"marks of kind {wanted} do not work here: {error}")
            return Marks()

    # -- calls

    def _run(self, call: int, fields: list[bytes]) -> None:
        if not self._configured or not fields or not call or call in self.calls:
            raise ProtocolError("a call without a configuration, a name or a number of its own")
        operation = OPERATIONS.get(fields[0])
        path = fields[1] if len(fields) > 1 else b""
        try:
            if operation is None:
                raise Refused("unsupported_tool", f"no operation {shown(fields[0])}")
            try:
                operation(self, call, fields[1:])
            except OSError as error:
                raise refusal(error, path) from None
        except Refused as refused:
            self.calls.pop(call, None)
            self.outbox.refills.pop(call, None)
            self.outbox.put(call, FAIL, pack([text(refused.kind), text(refused.message)]))

    def _done(self, call: int, *fields: object) -> None:
        self.outbox.put(call, DONE, pack(map(text, fields)))

    def op_spawn(self, call: int, fields: list[bytes]) -> None:
        if len(fields) < 5 or len(fields) < 5 + number(fields[4]):
            raise ProtocolError("a command with too few fields")
        timeout, cwd, keep, flags, count = fields[:5]
        argv = fields[5 : 5 + number(count)]
        env = fields[5 + number(count) :]
        check_program(argv, cwd, env)
        env_of_call = {**self.env, **environment(env)} if env else self.env
        if b"p" in flags:
            Interpreter(self, call).start(argv, cwd, env_of_call, flags)
            return
        spawn = Spawn(self, call, number(keep) if keep else self.keep)
        spawn.start(argv, cwd, env_of_call, flags)
        spawn.limit(seconds(timeout))

    def op_cell(self, call: int, fields: list[bytes]) -> None:
        interpreter, timeout, keep = expect(fields, 3)
        found = self.calls.get(number(interpreter))
        if not isinstance(found, Interpreter) or found.ending:
            raise Refused("os_error", "the interpreter has ended")
        if found.cell is not None:
            raise Refused("busy", "the interpreter is running other code")
        Cell(self, call, found, number(keep) if keep else self.keep, seconds(timeout))

    def op_exists(self, call: int, fields: list[bytes]) -> None:
        (path,) = expect(fields, 1)
        try:
            with self.user:
                os.close(self.workspace.open(path, O_PATH))
            self._done(call, 1)
        except OSError:
            self._done(call, 0)

    def op_stat(self, call: int, fields: list[bytes]) -> None:
        (path,) = expect(fields, 1)
        link = b""
        with self.user:
            directory, name = self.workspace.locate(path, follow=False)
            try:
                status = os.stat(name, dir_fd=directory, follow_symlinks=False)
                if stat.S_ISLNK(status.st_mode):
                    link = os.readlink(name, dir_fd=directory)
            finally:
                os.close(directory)
        kind = {stat.S_IFREG: "f", stat.S_IFDIR: "d", stat.S_IFLNK: "l"}.get(stat.S_IFMT(status.st_mode), "o")
        shape = (stat.S_IMODE(status.st_mode), status.st_size, status.st_uid, status.st_gid, status.st_mtime_ns, kind)
        self.outbox.put(call, DONE, pack([*map(text, shape), link]))

    def op_list(self, call: int, fields: list[bytes]) -> None:
        (path,) = expect(fields, 1)
        with self.user:
            fd = self.workspace.open(path, LIST)
        Reader(self, call, path, self._listing(fd, path))

    def _listing(self, fd: int, path: bytes) -> Generator[bytes, None, int]:
        batch: list[bytes] = []
        count = size = 0
        until = time.monotonic() + LIST_S
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    name = os.fsencode(entry.name)
                    is_dir = self._leads_to_directory(path + b"/" + name) if entry.is_symlink() else entry.is_dir()
                    batch += (name, b"1" if is_dir else b"0")
                    count += 1
                    size += len(name) + 9
                    if size > CHUNK // 2 or time.monotonic() > until:  # links may lead far
                        yield pack(batch)
                        batch, size, until = [], 0, time.monotonic() + LIST_S
            if batch:
                yield pack(batch)
        finally:
            os.close(fd)
        return count

    def _leads_to_directory(self, path: bytes) -> bool:
        try:
            os.close(self.workspace.directory(path))
            return True
        except (OSError, Refused):
            return False

    def op_read(self, call: int, fields: list[bytes]) -> None:
        path, offset, maximum = expect(fields, 3)
        with self.user:
            fd = self.workspace.reach(path, lambda directory, name: regular(directory, name, path))
        limit = number(maximum) if maximum else None
        Reader(self, call, path, content(fd, path, number(offset) if offset else 0, limit))

    def op_write(self, call: int, fields: list[bytes]) -> None:
        path, mode, size = expect(fields, 3)
        Writer(self, call, path, number(mode, 8), number(size) if size else None)

    def op_export(self, call: int, fields: list[bytes]) -> None:
        self._tree_job(call, fields, digests=False)

    def op_manifest(self, call: int, fields: list[bytes]) -> None:
        self._tree_job(call, fields, digests=True)

    def _tree_job(self, call: int, fields: list[bytes], digests: bool) -> None:
        path, exclude = expect(fields, 2)
        names = [name for name in exclude.split(b"\0") if name]
        before = load_hashlib if digests else bool
        Job(self, call, path, lambda: Export(Tree(self.workspace, path, names), digests).run(), before)

    def op_import(self, call: int, fields: list[bytes]) -> None:
        (path,) = expect(fields, 1)
        Job(self, call, path, lambda: Import(self.workspace, path).run(), takes_input=True)

    def op_ping(self, call: int, fields: list[bytes]) -> None:
        self._done(call)

    def op_hold(self, call: int, fields: list[bytes]) -> None:
        """Stop everything. A process stops when it leaves the kernel: wait for those that are in the middle of a write."""
        self.held = True
        send(-1, signal.SIGSTOP)
        end = time.monotonic() + 0.2
        while time.monotonic() < end and self._anyone_runs():
            time.sleep(0.001)
        self._done(call)

    def op_release(self, call: int, fields: list[bytes]) -> None:
        self.held = False
        send(-1, signal.SIGCONT)
        self._done(call)

    @staticmethod
    def _anyone_runs() -> bool:
        return any(slurp(f"/proc/{pid}/stat").rpartition(b")")[2][1:2] in (b"R", b"S", b"D") for pid in pids())


OPERATIONS: dict[bytes, Callable[[Server, int, list[bytes]], None]] = {
    name[3:].encode(): method for name, method in vars(Server).items() if name.startswith("op_")
}


def expect(fields: list[bytes], count: int) -> list[bytes]:
    """The fields, if they are as many."""
    if len(fields) != count:
        raise ProtocolError(f"{len(fields)} fields instead of {count}")
    return fields


def environment(pairs: Iterable[bytes]) -> dict[bytes, bytes]:
    """Variables from ``NAME=VALUE``."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition(b"=")
        if not name or not equals:
            raise Refused("invalid_tool_arguments", f"{shown(pair)} is no variable NAME=VALUE")
        found[name] = value
    return found


def check_program(argv: list[bytes], cwd: bytes, env: list[bytes]) -> None:
    """Refuse what no system call takes."""
    if not argv:
        raise Refused("invalid_tool_arguments", "a command needs at least the name of a program")
    if any(b"\0" in part for part in (*argv, cwd, *env)):
        raise Refused("invalid_tool_arguments", "a command, its directory and its variables cannot contain a NUL character")


def start_program(argv: list[bytes], env: dict[bytes, bytes], actions: list[tuple[int, int, int]]) -> int:
    """Start a program, found by the PATH that it gets, in a session of its own; returns its pid.

    ``posix_spawn`` is a vfork with the least work around it: 0.78 ms against 0.86 by ``subprocess``.
    """
    why = errno.ENOENT
    for path in candidates(argv[0], env):
        try:
            return os.posix_spawn(path, argv, env, file_actions=actions, setsid=True, setsigmask=(), setsigdef=SETTABLE)
        except OSError as error:
            why = error.errno or errno.ENOENT
            if why not in (errno.ENOENT, errno.EACCES, errno.ENOTDIR):
                break
    message = os.strerror(why)
    if why == errno.EAGAIN:
        message = "no more processes: the sandbox has as many as it may"
    elif why == errno.E2BIG:
        message = "its arguments and variables are too long; pass large data by stdin or a file"
    raise Refused("os_error", f"{shown(argv[0])} cannot be started: {message}")


def candidates(program: bytes, env: dict[bytes, bytes]) -> Iterator[bytes]:
    """Where a program may be."""
    if b"/" in program:
        yield program
    if b"/" in program or not program:
        return
    for directory in env.get(b"PATH", os.fsencode(os.defpath)).split(b":"):
        path = os.path.join(directory, program)
        if os.access(path, os.X_OK):
            yield path


def close_proc() -> None:
    """One user for all: be undumpable, and pass no capability on."""
    call = libc().prctl
    call(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    call(PR_SET_SECUREBITS, SECBIT_NOROOT_LOCKED, 0, 0, 0)  # where the one user is root, exec would give it all we have
    if call(PR_SET_DUMPABLE, 0, 0, 0, 0):
        raise OSError(errno.EPERM, "the server cannot hide from its own user")


def main() -> None:
    """Serve. Our end is everybody's. Exit code: 0 the owner is gone, 3 its fault, 4 this is no place for us, 1 our fault."""
    os.closerange(3, 256)
    if os.getpid() != 1 or os.readlink("/proc/self") != "1":  # numbers read in another /proc would hit others
        os.write(2, b"the guest server has to be the first process of a PID namespace, with the /proc of that\n")
        os._exit(4)
    code = 1
    try:
        Server().serve()
    except OwnerGone:
        code = 0
    except ProtocolError as error:
        os.write(2, text(f"the host sent what makes no sense: {error}\n"))
        code = 3
    except BaseException as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        line = trace.tb_lineno if trace is not None else 0
        os.write(2, text(f"the guest server failed in line {line}: {type(error).__name__}: {error}\n"))
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()

"""What changed in a workspace: a baseline kept from its start, and a comparison with it as a unified diff in git's form."""

from __future__ import annotations

import difflib
import hashlib
import os
import stat
import threading
from collections.abc import Sized
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from rath.backend.calls import WorkspaceDiff
from rath.backend.host.own import own_directory, remove_own
from rath.backend.host.paths import Confined, Refused
from rath.backend.host.tree import copy_tree, open_file, read_link, vanished, walk
from rath.errors import SandboxBroken, SandboxError

__all__ = ["Baseline", "Directory", "Listed", "Shown", "Side", "check_count", "compare", "git_mode", "ignored"]

MAX_FILES = 5_000
MAX_BYTES = 64 * 1024 * 1024
MAX_NOW_FILES = 100_000
MAX_SHOWN_BYTES = 4 * 1024 * 1024
# difflib takes time quadratic in the lines that differ: 10,000 of them a second or two.
MAX_MATCHED_LINES = 10_000
IGNORED = frozenset({".git", "__pycache__", ".venv", "node_modules", ".pytest_cache"})
LINK_MODE = 0o120000


def _ignored(name: str, is_dir: bool) -> bool:
    return name in IGNORED or (not is_dir and name.endswith(".pyc"))


class Baseline:
    """The files that a workspace started with. Shared by a workspace and its copies, and counted.

    ``reason`` says why there is none, where there is none.
    """

    def __init__(self) -> None:
        self.path: str | None = None
        self.reason = ""
        self._count = 1
        self._lock = threading.Lock()

    @classmethod
    def of(cls, root: Confined) -> Baseline:
        """The files in ``root`` now; where they are too many or cannot be read, the reason why there is none. Blocks."""
        baseline = cls()
        try:
            baseline._keep(root)
        except (OSError, SandboxError) as error:
            baseline.reason = f"its files could not be kept when it was opened: {error}"
        return baseline

    def _keep(self, root: Confined) -> None:
        files = size = 0
        for found in walk(root, _ignored):
            if stat.S_ISDIR(found.status.st_mode):
                continue
            files += 1
            size += found.status.st_size
            if files > MAX_FILES or size > MAX_BYTES:
                self.reason = (
                    f"it started with more than {MAX_FILES:,} files or {MAX_BYTES >> 20} MiB, and no copy of that is kept. "
                    "Use git in the workspace"
                )
                return
        if not files:
            return
        kept = own_directory()
        try:
            copy_tree(root, kept, _ignored)
        except BaseException:
            remove_own(kept)
            raise
        self.path = kept

    def share(self) -> Baseline:
        """For one more workspace."""
        with self._lock:
            self._count += 1
        return self

    def drop(self) -> None:
        """For one workspace less; the last one removes the files. Blocks."""
        with self._lock:
            self._count -= 1
            last = self._count == 0
        if last and self.path is not None:
            remove_own(self.path)


@dataclass(frozen=True, slots=True)
class Shown:
    """A file's or a link's content, with its mode as git writes it. ``None``: too large to show."""

    mode: int
    data: bytes | None

    @property
    def lines(self) -> list[str] | None:
        """Its lines with their ends, if it is text."""
        if self.data is None or b"\0" in self.data:
            return None
        try:
            text = self.data.decode()
        except UnicodeDecodeError:
            return None
        # Not splitlines(): a form feed or U+2028 ends no line in a diff.
        *whole, rest = text.split("\n")
        return [line + "\n" for line in whole] + ([rest] if rest else [])


class Listed(NamedTuple):
    """A file or link of a workspace: its mode as git writes it, its size, and where it is known, its content's SHA-256."""

    mode: int
    size: int
    digest: bytes | None = None


class Side(Protocol):
    """A workspace as a comparison sees it. Its methods may block."""

    name: str

    def files(self) -> dict[str, Listed]:
        """Its files and links by path, without what does not count (see :func:`ignored`).

        Raises:
            SandboxError: they are more than ``MAX_NOW_FILES``, or cannot be read.
        """

    def load(self, path: str, listed: Listed) -> Shown | None:
        """The content of one of them; ``None`` if it is gone meanwhile."""

    def digest(self, path: str, listed: Listed) -> bytes:
        """The SHA-256 of one of them."""


class Directory:
    """A directory of the host as a side. ``None`` is an empty one."""

    def __init__(self, root: Confined | None) -> None:
        self._root = root
        self.name = "" if root is None else root.path

    def files(self) -> dict[str, Listed]:
        found: dict[str, Listed] = {}
        for path, status in () if self._root is None else walk(self._root, _ignored):
            if stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
                found[path] = Listed(git_mode(status.st_mode), status.st_size)
                check_count(found)
        return found

    def load(self, path: str, listed: Listed) -> Shown | None:
        assert self._root is not None
        try:
            if listed.mode == LINK_MODE:
                return Shown(LINK_MODE, read_link(self._root, path))
            if listed.size > MAX_SHOWN_BYTES:
                return Shown(listed.mode, None)
            with open_file(self._root, path) as fd, os.fdopen(fd, "rb", closefd=False) as file:
                data = file.read(MAX_SHOWN_BYTES + 1)
            return Shown(listed.mode, data if len(data) <= MAX_SHOWN_BYTES else None)
        except (OSError, Refused) as error:
            if isinstance(error, Refused) or vanished(error):
                return None
            raise

    def digest(self, path: str, listed: Listed) -> bytes:
        assert self._root is not None
        if listed.mode == LINK_MODE:
            return hashlib.sha256(read_link(self._root, path)).digest()
        with open_file(self._root, path) as fd, os.fdopen(fd, "rb", closefd=False) as file:
            return hashlib.file_digest(file, "sha256").digest()


def git_mode(mode: int) -> int:
    """A mode as git writes it."""
    return LINK_MODE if stat.S_ISLNK(mode) else 0o100755 if mode & stat.S_IXUSR else 0o100644


def check_count(found: Sized) -> None:
    """Raise ``SandboxError`` if a workspace holds more files than are compared."""
    if len(found) > MAX_NOW_FILES:
        raise SandboxError(f"it holds more than {MAX_NOW_FILES:,} files now")


def ignored(path: str) -> bool:
    """Whether what is at ``path``, a file or link, does not count: caches, version control, installed packages."""
    *above, name = path.split("/")
    return _ignored(name, False) or any(_ignored(part, True) for part in above)


def compare(baseline: Baseline, now: Confined | Side) -> WorkspaceDiff:
    """The changes from ``baseline`` to what ``now`` holds. Blocks.

    Raises:
        SandboxError: there is no baseline, or something cannot be read.
    """
    side = Directory(now) if isinstance(now, Confined) else now
    try:
        if baseline.reason:
            raise SandboxError(baseline.reason)
        root = None if baseline.path is None else Confined(baseline.path)
        try:
            return _compare(Directory(root), side)
        finally:
            if root is not None:
                root.close()
    except SandboxBroken:
        raise
    except (OSError, SandboxError) as error:
        raise SandboxError(f"cannot tell what changed in the workspace {side.name}: {error}") from error


def _compare(before: Directory, after: Side) -> WorkspaceDiff:
    was, now = before.files(), after.files()
    added: list[str] = []
    removed: list[str] = []
    modified: list[str] = []
    binary: list[str] = []
    text: list[str] = []
    for path in sorted(was.keys() | now.keys()):
        if path in was and path in now and _known_same(before, path, was[path], now[path]):
            continue
        old = before.load(path, was[path]) if path in was else None
        new = after.load(path, now[path]) if path in now else None
        if old is None and new is None:
            continue  # came and went while we looked
        if old is not None and new is not None and _same(before, after, path, was[path], now[path], old, new):
            continue
        (added if old is None else removed if new is None else modified).append(path)
        shown, is_text = _describe(path, old, new)
        text.append(shown)
        if not is_text:
            binary.append(path)
    return WorkspaceDiff("".join(text), tuple(added), tuple(removed), tuple(modified), tuple(binary))


def _known_same(before: Directory, path: str, was: Listed, now: Listed) -> bool:
    """Whether they are the same by what is known without looking at the content that is there now."""
    if now.digest is None or was.mode != now.mode or was.size != now.size:
        return False
    return before.digest(path, was) == now.digest


def _same(before: Directory, after: Side, path: str, was: Listed, now: Listed, old: Shown, new: Shown) -> bool:
    if old.mode != new.mode or (old.data is None) != (new.data is None):
        return False
    if old.data is not None:
        return old.data == new.data
    return was.size == now.size and before.digest(path, was) == after.digest(path, now)


def _describe(path: str, old: Shown | None, new: Shown | None) -> tuple[str, bool]:
    """The part of the diff about one file, and whether its content is text."""
    if old is not None and new is not None and (old.mode == LINK_MODE) != (new.mode == LINK_MODE):
        # A file that became a link: for git, one is deleted and another added.
        (gone, was_text), (come, is_text) = _describe(path, old, None), _describe(path, None, new)
        return gone + come, was_text and is_text
    a, b = _quoted("a/" + path), _quoted("b/" + path)
    head = [f"diff --git {a} {b}\n"]
    if old is None and new is not None:
        head.append(f"new file mode {new.mode:06o}\n")
    elif new is None and old is not None:
        head.append(f"deleted file mode {old.mode:06o}\n")
    elif old is not None and new is not None and old.mode != new.mode:
        head += [f"old mode {old.mode:06o}\n", f"new mode {new.mode:06o}\n"]
        if old.data is not None and old.data == new.data:
            return "".join(head), True
    from_name, to_name = "/dev/null" if old is None else a, "/dev/null" if new is None else b
    old_lines = [] if old is None else old.lines
    new_lines = [] if new is None else new.lines
    if old_lines is None or new_lines is None:
        # Without this line `git apply` takes the next file's header for a part of this one, and refuses the whole.
        head.append(f"index {_blob(old)}..{_blob(new)}\n")
        return "".join([*head, f"Binary files {from_name} and {to_name} differ\n"]), False
    hunks = _hunks(old_lines, new_lines)
    if hunks:
        head += [f"--- {from_name}\n", f"+++ {to_name}\n"]
    return "".join(head + hunks), True


def _blob(shown: Shown | None) -> str:
    """What git calls a content, in short; zeros, if there is none or it was too large to read."""
    if shown is None or shown.data is None:
        return "0" * 7
    return hashlib.sha1(b"blob %d\0" % len(shown.data) + shown.data, usedforsecurity=False).hexdigest()[:7]


def _hunks(old: list[str], new: list[str]) -> list[str]:
    if len(old) + len(new) > MAX_MATCHED_LINES:
        lines = _one_hunk(old, new)
    else:
        lines = list(difflib.unified_diff(old, new))[2:]
    return [line if line.endswith("\n") else line + "\n\\ No newline at end of file\n" for line in lines]


def _one_hunk(old: list[str], new: list[str]) -> list[str]:
    """Everything between the common beginning and the common end, as one change."""
    start = 0
    while start < min(len(old), len(new)) and old[start] == new[start]:
        start += 1
    end = 0
    while end < min(len(old), len(new)) - start and old[-1 - end] == new[-1 - end]:
        end += 1
    gone, come = old[start : len(old) - end], new[start : len(new) - end]
    if not gone and not come:
        return []
    lead = old[max(0, start - 3) : start]
    trail = old[len(old) - end : len(old) - end + 3]
    at = start - len(lead) + 1
    old_count, new_count = len(lead) + len(gone) + len(trail), len(lead) + len(come) + len(trail)
    header = f"@@ -{at if old_count else 0},{old_count} +{at if new_count else 0},{new_count} @@\n"
    return [
        header,
        *(" " + line for line in lead),
        *("-" + line for line in gone),
        *("+" + line for line in come),
        *(" " + line for line in trail),
    ]


_ESCAPES = {ord("\t"): "\\t", ord("\n"): "\\n", ord("\r"): "\\r", ord('"'): '\\"', ord("\\"): "\\\\"}


def _quoted(path: str) -> str:
    """A path as git writes it: quoted, with escapes, if it holds anything unusual."""
    raw = os.fsencode(path)
    if all(0x20 <= byte < 0x7F and byte not in (0x22, 0x5C) for byte in raw):
        return path
    return '"' + "".join(_ESCAPES.get(byte) or (chr(byte) if 0x20 <= byte < 0x7F else f"\\{byte:03o}") for byte in raw) + '"'

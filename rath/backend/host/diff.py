"""What changed in a workspace: a baseline kept from its start, and a comparison with it as a unified diff in git's form."""

from __future__ import annotations

import difflib
import os
import stat
import threading
from dataclasses import dataclass

from rath.backend.calls import WorkspaceDiff
from rath.backend.host.own import own_directory, remove_own
from rath.backend.host.paths import Confined, Refused
from rath.backend.host.tree import copy_tree, open_file, read_link, vanished, walk
from rath.errors import SandboxError

__all__ = ["Baseline", "compare"]

MAX_FILES = 5_000
MAX_BYTES = 64 * 1024 * 1024
MAX_NOW_FILES = 100_000
MAX_SHOWN_BYTES = 4 * 1024 * 1024
# difflib takes time quadratic in the lines that differ: 10,000 of them a second or two.
MAX_MATCHED_LINES = 10_000
_IGNORED = frozenset({".git", "__pycache__", ".venv", "node_modules", ".pytest_cache"})
_LINK_MODE = 0o120000


def _ignored(name: str, is_dir: bool) -> bool:
    return name in _IGNORED or (not is_dir and name.endswith(".pyc"))


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
class _File:
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


def compare(baseline: Baseline, root: Confined) -> WorkspaceDiff:
    """The changes from ``baseline`` to what ``root`` holds now. Blocks.

    Raises:
        SandboxError: there is no baseline, or something cannot be read.
    """
    try:
        if baseline.reason:
            raise SandboxError(baseline.reason)
        return _compare(baseline, root)
    except (OSError, SandboxError) as error:
        raise SandboxError(f"cannot tell what changed in the workspace {root.path}: {error}") from error


def _compare(baseline: Baseline, root: Confined) -> WorkspaceDiff:
    before: dict[str, os.stat_result] = {}
    old_root = None if baseline.path is None else Confined(baseline.path)
    try:
        if old_root is not None:
            before = _files(old_root)
        after = _files(root)
        added: list[str] = []
        removed: list[str] = []
        modified: list[str] = []
        binary: list[str] = []
        text: list[str] = []
        for path in sorted(before.keys() | after.keys()):
            old = None if old_root is None or path not in before else _load(old_root, path, before[path])
            new = None if path not in after else _load(root, path, after[path])
            if old is not None and new is not None and _same(old_root, root, path, old, new, before, after):
                continue
            if old is None and new is None:
                continue  # came and went while we looked
            (added if old is None else removed if new is None else modified).append(path)
            shown, is_text = _describe(path, old, new)
            text.append(shown)
            if not is_text:
                binary.append(path)
    finally:
        if old_root is not None:
            old_root.close()
    return WorkspaceDiff("".join(text), tuple(added), tuple(removed), tuple(modified), tuple(binary))


def _files(root: Confined) -> dict[str, os.stat_result]:
    found = {}
    for path, status in walk(root, _ignored):
        if stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
            found[path] = status
            if len(found) > MAX_NOW_FILES:
                raise SandboxError(f"it holds more than {MAX_NOW_FILES:,} files now")
    return found


def _load(root: Confined, path: str, status: os.stat_result) -> _File | None:
    try:
        if stat.S_ISLNK(status.st_mode):
            return _File(_LINK_MODE, read_link(root, path))
        mode = 0o100755 if status.st_mode & stat.S_IXUSR else 0o100644
        if status.st_size > MAX_SHOWN_BYTES:
            return _File(mode, None)
        with open_file(root, path) as fd, os.fdopen(fd, "rb", closefd=False) as file:
            data = file.read(MAX_SHOWN_BYTES + 1)
        return _File(mode, data if len(data) <= MAX_SHOWN_BYTES else None)
    except (OSError, Refused) as error:
        if isinstance(error, Refused) or vanished(error):
            return None
        raise


def _same(
    old_root: Confined | None,
    root: Confined,
    path: str,
    old: _File,
    new: _File,
    before: dict[str, os.stat_result],
    after: dict[str, os.stat_result],
) -> bool:
    if old.mode != new.mode or (old.data is None) != (new.data is None):
        return False
    if old.data is not None:
        return old.data == new.data
    if old_root is None or before[path].st_size != after[path].st_size:
        return False
    with open_file(old_root, path) as a, open_file(root, path) as b:
        while True:
            left, right = os.read(a, 1 << 20), os.read(b, 1 << 20)
            if left != right:
                return False
            if not left:
                return True


def _describe(path: str, old: _File | None, new: _File | None) -> tuple[str, bool]:
    """The part of the diff about one file, and whether its content is text."""
    if old is not None and new is not None and (old.mode == _LINK_MODE) != (new.mode == _LINK_MODE):
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
        return "".join([*head, f"Binary files {from_name} and {to_name} differ\n"]), False
    hunks = _hunks(old_lines, new_lines)
    if hunks:
        head += [f"--- {from_name}\n", f"+++ {to_name}\n"]
    return "".join(head + hunks), True


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

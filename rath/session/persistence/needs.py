"""Which logs of a directory have their first rows in which others: what may go, and in which order.

A log says it in its header (``prefix``). A header that cannot be read strictly (damaged, or of a newer schema) is
taken at its word wherever it has one: each session that it mentions counts as needed. Where it cannot be told which
log a file needs, nothing that it could need is removed.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from rath.errors import PersistenceError
from rath.session.persistence.edges import parse_header, read_first_line
from rath.session.persistence.format import BadLine
from rath.session.persistence.lock import DIRECTORY_LOCK
from rath.session.persistence.paths import SESSION_FILE_SUFFIX, log_name

__all__ = ["Needs", "is_file", "read_needs"]

_EDGE = 4096
_MAX_HEADER = 1 << 20
_HEADER_START = b'{"record_type":"header"'
_ID = rb"[0-9a-fA-F]{8}-?(?:[0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}"
_MENTION = re.compile(_ID)
_OWN_ID = re.compile(rb'"id"\s*:\s*"[^"]{0,64}"')
_PREFIX = re.compile(rb'"prefix"\s*:\s*\{|"session_id"\s*:')
_PREFIX_ID = re.compile(rb'"session_id"\s*:\s*"(' + _ID + rb')"')


@dataclass(slots=True)
class Needs:
    """Who needs whom, by file name.

    Attributes:
        parents: of each log that needs others, which.
        unclear: files that may need any log, and why that is not known.
    """

    parents: dict[str, frozenset[str]] = field(default_factory=dict)
    unclear: dict[str, str] = field(default_factory=dict)

    def children(self, name: str) -> list[str]:
        """The logs that have their first rows in ``name``."""
        return sorted(child for child, parents in self.parents.items() if name in parents and child != name)

    def kept(self, going: Collection[str]) -> dict[str, str]:
        """Which of ``going`` have to stay, and why: a log that stays needs them, itself or through others."""
        wanted = set(going)
        reasons: dict[str, str] = {}
        for name, why in self.unclear.items():
            if name not in wanted:
                reasons = {parent: f"{name}: {why}" for parent in wanted if _can_be_needed(parent)}
                break
        staying = [name for name in self.parents if name not in wanted or name in reasons]
        while staying:
            name = staying.pop()
            for parent in self.parents.get(name, ()):
                if parent in wanted and parent not in reasons:
                    reasons[parent] = f"{_stem(name)} has its first rows in it"
                    staying.append(parent)
        return reasons

    def order(self, going: Iterable[str]) -> list[str]:
        """``going``, children before the logs that they need, level by level; last, those that need each other."""
        left = dict.fromkeys(going)
        waiting = dict.fromkeys(left, 0)
        for name in left:
            for parent in self.parents.get(name, ()):
                if parent in waiting and parent != name:
                    waiting[parent] += 1
        ready = [name for name, children in waiting.items() if not children]
        for name in ready:  # which grows meanwhile
            del left[name]
            for parent in self.parents.get(name, ()):
                if parent in waiting and parent != name:
                    waiting[parent] -= 1
                    if not waiting[parent]:
                        ready.append(parent)
        return [*ready, *left]


def read_needs(directory: Path, progress: Callable[[int, int], None] | None = None) -> Needs:
    """What the headers of a directory's logs say, whatever the files' names. Hold its lock to act on it.

    Raises:
        PersistenceError: the directory cannot be read.
    """
    found = Needs()
    try:
        with os.scandir(directory) as entries:
            files = [entry.name for entry in entries if is_file(entry)]
    except FileNotFoundError:
        return found
    except OSError as error:
        raise PersistenceError(f"cannot list the session logs in {directory}: {error.strerror or error}") from error
    present = set(files)
    for done, name in enumerate(files, 1):
        try:
            _take(found, name, _head(directory / name), present)
        except FileNotFoundError:  # deleted since
            continue
        except OSError as error:
            if SESSION_FILE_SUFFIX in name:
                found.unclear[name] = f"it cannot be read ({error.strerror or error}), so which log it needs is not known"
        if progress is not None:
            progress(done, len(files))
    return found


def _take(found: Needs, name: str, line: bytes, present: set[str]) -> None:
    if not line:
        return
    try:
        prefix = parse_header(line).prefix
    except BadLine:
        _take_damaged(found, name, line, present)
        return
    if prefix is not None:
        found.parents[name] = frozenset({log_name(prefix.session_id)})


def _take_damaged(found: Needs, name: str, line: bytes, present: set[str]) -> None:
    line = _OWN_ID.sub(b"", line)
    mentioned = {log_name(UUID(text.decode())) for text in _MENTION.findall(line)} & present - {name}
    if mentioned:
        found.parents[name] = frozenset(mentioned)
    meant = {log_name(UUID(text.decode())) for text in _PREFIX_ID.findall(line)}
    if _PREFIX.search(line) and not meant & present:
        found.unclear[name] = (
            "its header is damaged, so which log its first rows stand in is not known. Move it to another directory, or "
            "remove it"
        )


def is_file(entry: os.DirEntry[str]) -> bool:
    """Whether an entry of a directory may be a log: a regular file, or a link to one, or who knows what."""
    try:
        return entry.name != DIRECTORY_LOCK and entry.is_file()
    except OSError as error:
        return error.errno != errno.ELOOP


def _head(path: Path) -> bytes:
    """What could be a log's header: the first line, or where none ends, as much as one may have. Raises ``OSError``."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        start = os.pread(fd, _EDGE, 0)
        if SESSION_FILE_SUFFIX not in path.name and not start.startswith(_HEADER_START):
            return b""
        line = read_first_line(fd, start)
        return os.pread(fd, _MAX_HEADER, 0) if line is None else line
    finally:
        os.close(fd)


def _can_be_needed(name: str) -> bool:
    try:
        return log_name(UUID(name.removesuffix(SESSION_FILE_SUFFIX))) == name
    except ValueError:
        return False


def _stem(name: str) -> str:
    return name.removesuffix(SESSION_FILE_SUFFIX)

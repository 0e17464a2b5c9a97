"""Trees as streams of records, in the form that the guest's ``export``, ``import`` and ``manifest`` have.

A record is ``>BIQqQII`` (kind, mode, size, mtime in ns, bytes of content that follow, lengths of path and link), path, link,
and for a file segments of content: ``>QQ`` offset and length, then the bytes; the last one has offset 2**64 - 1. What no
segment covers is a hole. In a manifest 32 bytes of SHA-256 stand in place of the segments. Kind 0 is the end.

What comes from a guest is checked here as far as bytes can be: :class:`ArchiveReader`.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from rath.backend.guest.frames import ProtocolError
from rath.backend.host.paths import Confined, Refused
from rath.backend.host.tree import data_ranges, open_file, read_link, vanished, walk

__all__ = ["DIRECTORY", "FILE", "HARD_LINK", "LINK", "ArchiveReader", "Record", "Sink", "archive"]

END, DIRECTORY, FILE, LINK, HARD_LINK = range(5)
CHUNK_BYTES = 1024 * 1024
_RECORD = struct.Struct(">BIQqQII")
_SEGMENT = struct.Struct(">QQ")
_LAST = (1 << 64) - 1
_DIGEST_BYTES = 32
_MAX_PATH_BYTES = 65_536
_MAX_LINK_BYTES = 4_096
_MAX_FILE_BYTES = 1 << 62


class Record(NamedTuple):
    """One entry of a tree. ``link``: where a symbolic link leads, or the path of the record that a hard link repeats."""

    kind: int
    mode: int
    size: int
    mtime_ns: int
    path: bytes
    link: bytes


# -- writing ----------------------------------------------------------------------------------------------------------


def archive(root: Confined) -> Iterator[bytes]:
    """Everything below ``root`` as an archive, in chunks of about 1 MiB. Blocks.

    Links as links; sockets, pipes and devices are left out, and what vanishes meanwhile. A file that gets shorter while it
    is read ends in zeros.
    """
    chunk = bytearray()
    for part in _parts(root):
        chunk += part
        if len(chunk) >= CHUNK_BYTES:
            yield bytes(chunk)
            chunk.clear()
    yield bytes(chunk)


def _parts(root: Confined) -> Iterator[bytes]:
    first: dict[tuple[int, int], bytes] = {}
    for path, status in walk(root):
        raw = os.fsencode(path)
        try:
            if stat.S_ISDIR(status.st_mode):
                yield _packed(DIRECTORY, status, raw)
            elif stat.S_ISLNK(status.st_mode):
                yield _packed(LINK, status, raw, link=read_link(root, path))
            elif stat.S_ISREG(status.st_mode):
                identity = (status.st_dev, status.st_ino)
                known = first.get(identity)
                if known is not None:
                    yield _packed(HARD_LINK, status, raw, link=known)
                    continue
                yield from _file(root, path, raw)
                if status.st_nlink > 1:
                    first[identity] = raw
        except (OSError, Refused) as error:
            if not vanished(error):
                raise
    yield _RECORD.pack(END, 0, 0, 0, 0, 0, 0)


def _file(root: Confined, path: str, raw: bytes) -> Iterator[bytes]:
    with open_file(root, path) as fd:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return
        ranges = list(data_ranges(fd, status.st_size))
        yield _packed(FILE, status, raw, size=status.st_size, data_bytes=sum(end - start for start, end in ranges))
        for start, end in ranges:
            yield _SEGMENT.pack(start, end - start)
            yield from pieces(fd, start, end)
        yield _SEGMENT.pack(_LAST, 0)


def pieces(fd: int, start: int, end: int) -> Iterator[bytes]:
    """The bytes of a range of a file; zeros where it has become shorter."""
    while start < end:
        want = min(end - start, CHUNK_BYTES)
        data = os.pread(fd, want, start) or bytes(want)
        yield data
        start += len(data)


def _packed(
    kind: int, status: os.stat_result, path: bytes, *, size: int = 0, data_bytes: int = 0, link: bytes = b""
) -> bytes:
    mode = stat.S_IMODE(status.st_mode) & 0o777
    return _RECORD.pack(kind, mode, size, status.st_mtime_ns, data_bytes, len(path), len(link)) + path + link


# -- reading ----------------------------------------------------------------------------------------------------------


class Sink(Protocol):
    """What takes in the entries of an archive, in order."""

    def entry(self, record: Record, digest: bytes) -> None:
        """An entry; of a manifest's file with the digest of its content, else with ``b""``."""

    def content(self, offset: int, data: bytes) -> None:
        """Content of the last entry, a file."""

    def file_end(self) -> None:
        """All content of the last entry is there."""


class ArchiveReader:
    """Reads an archive that may be hostile, as it arrives; holds no more than one record and what was fed last.

    Args:
        digests: whether it is a manifest.
    """

    def __init__(self, sink: Sink, *, digests: bool = False) -> None:
        self._sink = sink
        self._digests = digests
        self._rest = bytearray()
        self._need = _RECORD.size
        self._step = self._read_record
        self._head: tuple[int, ...] = ()
        self._record = Record(END, 0, 0, 0, b"", b"")
        self._left_of_file = 0
        self._left_of_segment = 0
        self._at = 0
        self.ended = False

    def feed(self, data: bytes) -> None:
        """Take in more of it.

        Raises:
            ProtocolError: it is no archive.
        """
        self._rest += data
        while self._rest and not self.ended:
            if self._left_of_segment:
                self._read_content()
            elif len(self._rest) >= self._need:
                raw = bytes(self._rest[: self._need])
                del self._rest[: self._need]
                self._step(raw)
            else:
                return
        if self._rest:
            raise ProtocolError("an archive that goes on after its end")

    def check_ended(self) -> None:
        """Raise ``ProtocolError`` if it is not whole."""
        if not self.ended:
            raise ProtocolError("an archive that is cut off")

    def _read_record(self, raw: bytes) -> None:
        kind, _mode, size, _mtime, data, path_length, link_length = self._head = _RECORD.unpack(raw)
        if kind == END:
            self.ended = True
            return
        if kind not in (DIRECTORY, FILE, LINK, HARD_LINK):
            raise ProtocolError(f"an archive with a record of kind {kind}")
        if not 0 < path_length <= _MAX_PATH_BYTES or link_length > _MAX_PATH_BYTES or size > _MAX_FILE_BYTES:
            raise ProtocolError("an archive with a path or a file of impossible size")
        if data > size or (kind != FILE and (size or data)) or bool(link_length) != (kind in (LINK, HARD_LINK)):
            raise ProtocolError(f"an archive with a record of kind {kind} that contradicts itself")
        self._expect(path_length + link_length, self._read_names)

    def _read_names(self, raw: bytes) -> None:
        kind, mode, size, mtime_ns, data, path_length, _ = self._head
        path, link = raw[:path_length], raw[path_length:]
        _check_path(path)
        if kind == HARD_LINK:
            _check_path(link)
        elif b"\0" in link or len(link) > _MAX_LINK_BYTES:
            raise ProtocolError("an archive with a link that leads nowhere")
        self._record = Record(kind, mode & 0o777, size, mtime_ns, path, link)
        if kind == FILE and self._digests:
            self._expect(_DIGEST_BYTES, self._read_digest)
            return
        self._sink.entry(self._record, b"")
        if kind == FILE:
            self._left_of_file, self._at = data, 0
            self._expect(_SEGMENT.size, self._read_segment)
        else:
            self._expect(_RECORD.size, self._read_record)

    def _read_digest(self, raw: bytes) -> None:
        self._sink.entry(self._record, raw)
        self._expect(_RECORD.size, self._read_record)

    def _read_segment(self, raw: bytes) -> None:
        offset, length = _SEGMENT.unpack(raw)
        if offset == _LAST:
            if length or self._left_of_file:
                raise ProtocolError("an archive with a file that is cut off")
            self._sink.file_end()
            self._expect(_RECORD.size, self._read_record)
            return
        if not length or offset < self._at or length > self._left_of_file or offset + length > self._record.size:
            raise ProtocolError("an archive with a file whose parts do not fit into it")
        self._left_of_file -= length
        self._left_of_segment, self._at = length, offset

    def _read_content(self) -> None:
        data = bytes(self._rest[: self._left_of_segment])
        del self._rest[: len(data)]
        self._sink.content(self._at, data)
        self._at += len(data)
        self._left_of_segment -= len(data)

    def _expect(self, size: int, step: object) -> None:
        self._need = size
        self._step = step  # type: ignore[assignment]


def _check_path(path: bytes) -> None:
    parts = path.split(b"/")
    if b"\0" in path or b"" in parts or b"." in parts or b".." in parts or max(map(len, parts)) > 255:
        raise ProtocolError(f"an archive with the path {path[:80]!r}")

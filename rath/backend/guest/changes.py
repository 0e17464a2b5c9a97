"""What changed in a workspace inside: the guest lists names and digests, and only files that differ are fetched."""

from __future__ import annotations

import hashlib
import os
import threading

from rath.backend.calls import WorkspaceDiff
from rath.backend.guest.archive import FILE, HARD_LINK, LINK, ArchiveReader, Record
from rath.backend.guest.channel import Channel
from rath.backend.guest.files import read_bytes
from rath.backend.guest.frames import ProtocolError
from rath.backend.host.diff import (
    IGNORED,
    LINK_MODE,
    MAX_SHOWN_BYTES,
    Baseline,
    Listed,
    Shown,
    check_count,
    compare,
    git_mode,
)
from rath.backend.host.diff import ignored as is_ignored
from rath.backend.host.paths import Refused
from rath.core import ports
from rath.errors import SandboxError

__all__ = ["changes"]

_MAX_MANIFEST_BYTES = 1 << 30
_VANISHED = frozenset({"file_not_found", "not_a_directory", "is_directory", "not_a_file", "path_outside_workspace"})


async def changes(channel: Channel, baseline: Baseline) -> WorkspaceDiff:
    """The changes from ``baseline`` to what the workspace holds now.

    Raises:
        SandboxError: there is no baseline, or something cannot be read.
    """
    if baseline.reason:
        raise SandboxError(f"cannot tell what changed in the workspace of sandbox {channel.name}: {baseline.reason}")
    inside = _Inside(channel)
    reader = ArchiveReader(inside, digests=True)
    exclude = "\0".join(sorted(IGNORED)).encode()
    engine = ports.engine()
    try:
        async with channel.stream("manifest", b".", exclude, limit_bytes=_MAX_MANIFEST_BYTES, slow=True) as stream:
            async for data in stream:
                with channel.believing():
                    await engine.call(reader.feed, data)
        with channel.believing():
            reader.check_ended()
    except (Refused, SandboxError) as error:
        if isinstance(error, Refused):
            raise SandboxError(f"cannot tell what changed in the workspace of sandbox {channel.name}: {error}") from None
        raise
    try:
        return await engine.call(compare, baseline, inside)
    finally:
        inside.stop.set()


class _Inside:
    """The workspace as a side of a comparison; :meth:`load` asks the guest, from a tool thread."""

    def __init__(self, channel: Channel) -> None:
        self.name = f"of sandbox {channel.name}"
        self.stop = threading.Event()
        self._channel = channel
        self._files: dict[str, Listed] = {}
        self._links: dict[str, bytes] = {}

    # -- as the reader of the manifest

    def entry(self, record: Record, digest: bytes) -> None:
        path = os.fsdecode(record.path)
        if is_ignored(path):
            return
        if record.kind == FILE:
            self._files[path] = Listed(git_mode(record.mode), record.size, digest)
        elif record.kind == LINK:
            self._links[path] = record.link
            self._files[path] = Listed(LINK_MODE, len(record.link), hashlib.sha256(record.link).digest())
        elif record.kind == HARD_LINK:
            first = self._files.get(os.fsdecode(record.link))
            if first is None:
                raise ProtocolError(f"a second name for {record.link[:80]!r}, which has no first one")
            self._files[path] = first
            if first.mode == LINK_MODE:
                self._links[path] = self._links[os.fsdecode(record.link)]
        check_count(self._files)

    def content(self, offset: int, data: bytes) -> None:
        raise ProtocolError("content in a manifest")

    def file_end(self) -> None:
        """A manifest has no content to end."""

    # -- as a side

    def files(self) -> dict[str, Listed]:
        return self._files

    def load(self, path: str, listed: Listed) -> Shown | None:
        if listed.mode == LINK_MODE:
            return Shown(LINK_MODE, self._links[path])
        if listed.size > MAX_SHOWN_BYTES:
            return Shown(listed.mode, None)
        if self.stop.is_set():
            raise SandboxError("nobody waits for it any more")
        try:
            return Shown(listed.mode, ports.engine().run(read_bytes(self._channel, path, MAX_SHOWN_BYTES)))
        except Refused as refused:
            if refused.kind == "file_too_large":
                return Shown(listed.mode, None)
            if refused.kind in _VANISHED:
                return None
            raise SandboxError(refused.message) from None

    def digest(self, path: str, listed: Listed) -> bytes:
        assert listed.digest is not None
        return listed.digest

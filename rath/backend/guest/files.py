"""The file tools as requests to a guest. Where a path leads is checked inside, component by component."""

from __future__ import annotations

import os

from rath.backend.answers import MAX_READ_BYTES, content, too_large
from rath.backend.calls import (
    BackendToolFilesExists,
    BackendToolFilesList,
    BackendToolFilesRead,
    BackendToolFilesWrite,
    FileContent,
    FileEntries,
    FileEntry,
    FileWriteResult,
)
from rath.backend.guest.channel import Channel
from rath.backend.guest.frames import ProtocolError, number, unpack
from rath.backend.guest.inflight import Reply
from rath.backend.host.paths import Refused
from rath.core import ports

__all__ = ["encoded", "exists", "list_directory", "raw_path", "read", "read_bytes", "write"]

_MAX_ENTRIES = 100_000
_MAX_LIST_BYTES = _MAX_ENTRIES * (255 + 9)
_QUICK_BYTES = 64 * 1024
_ENDLESS_BYTES = 1 << 62


def raw_path(path: str) -> bytes:
    """A path as the guest takes it.

    Raises:
        Refused: no file can have it.
    """
    if not isinstance(path, str):
        raise Refused("invalid_tool_arguments", f"a path is a string, not {type(path).__name__}")
    if "\0" in path:
        raise Refused("invalid_tool_arguments", "a path cannot contain a NUL character")
    try:
        return os.fsencode(path) or b"."
    except UnicodeEncodeError:
        raise Refused("invalid_tool_arguments", f"{path!r} holds characters that no file name can") from None


def encoded(data: str | bytes, what: str) -> bytes:
    """Text as UTF-8, and bytes as they are.

    Raises:
        Refused: it cannot be encoded; the message calls it ``what``.
    """
    if isinstance(data, bytes):
        return data
    try:
        return data.encode()
    except UnicodeEncodeError:
        raise Refused("encode_error", f"{what} holds half of a surrogate pair, which UTF-8 cannot encode") from None


async def read_bytes(channel: Channel, path: str, limit_bytes: int) -> bytes:
    """A file's content.

    Raises:
        Refused: there is no such file, or it has more than ``limit_bytes``.
    """
    fields = (raw_path(path), b"0", b"%d" % limit_bytes)
    async with channel.stream("read", *fields, limit_bytes=limit_bytes) as stream:
        return b"".join([data async for data in stream])


async def read(channel: Channel, call: BackendToolFilesRead) -> FileContent:
    """Read a file."""
    try:
        data = await read_bytes(channel, call.path, MAX_READ_BYTES)
    except Refused as refused:
        if refused.kind == "file_too_large":
            raise too_large(call.path, "more") from None
        raise
    return content(data, call.encoding, call.path)


async def write(channel: Channel, call: BackendToolFilesWrite) -> FileWriteResult:
    """Write a file, whole or not at all."""
    data = encoded(call.data, "the text")
    fields = (raw_path(call.path), b"%o" % (call.mode & 0o777), b"%d" % len(data))
    return FileWriteResult(await channel.ask(one_number, "write", *fields, source=data))


async def list_directory(channel: Channel, call: BackendToolFilesList) -> FileEntries:
    """List a directory, sorted by name."""
    path = call.path
    raw = bytearray()
    async with channel.stream("list", raw_path(path), limit_bytes=_ENDLESS_BYTES) as stream:
        async for data in stream:
            raw += data
            if len(raw) > _MAX_LIST_BYTES:
                raise _too_many(path)
    prefix = "" if path.strip("/") in ("", ".") and not path.startswith("/") else path.rstrip("/") + "/"
    with channel.believing():
        # 100,000 entries take 0.2 s: not on the loop, which others need.
        found = ports.engine().call(_entries, bytes(raw), prefix, path) if len(raw) > _QUICK_BYTES else None
        return FileEntries(_entries(bytes(raw), prefix, path) if found is None else await found)


def _too_many(path: str) -> Refused:
    return Refused(
        "file_too_large",
        f"{path!r} has more entries than a list gives: at most {_MAX_ENTRIES:,}. Use a command (ls | head, find -name)",
    )


def _entries(raw: bytes, prefix: str, path: str) -> tuple[FileEntry, ...]:
    fields = unpack(raw)
    if len(fields) % 2:
        raise ProtocolError("a list with half an entry")
    if len(fields) > 2 * _MAX_ENTRIES:
        raise _too_many(path)
    entries = []
    for name, kind in zip(fields[::2], fields[1::2], strict=True):
        if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
            raise ProtocolError(f"a list with an entry {name[:40]!r}")
        text = os.fsdecode(name)
        entries.append(FileEntry(text, prefix + text, kind == b"1"))
    return tuple(sorted(entries, key=lambda entry: entry.name))


async def exists(channel: Channel, call: BackendToolFilesExists) -> bool:
    """Whether there is anything at a path."""
    return await channel.ask(one_number, "exists", raw_path(call.path)) == 1


def one_number(reply: Reply) -> int:
    """The one field of an answer.

    Raises:
        ProtocolError: it is none.
    """
    if len(reply.fields) != 1:
        raise ProtocolError(f"{len(reply.fields)} fields where a number belongs")
    return number(reply.fields[0])

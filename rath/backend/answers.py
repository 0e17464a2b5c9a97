"""How outputs and contents become answers, the same in every backend: what is cut says so, at whole characters."""

from __future__ import annotations

from rath.backend.calls import FileContent
from rath.backend.host.paths import Refused
from rath.utils.decoding import decode_subprocess_output

__all__ = ["MAX_READ_BYTES", "composed", "content", "exit_status", "output_so_far", "too_large"]

MAX_READ_BYTES = 64 * 1024 * 1024
"""The largest file that a read gives."""


def composed(head: bytes | bytearray, tail: bytes | bytearray, total: int) -> bytes:
    """An output of ``total`` bytes: its beginning and its end, around a line that says how much is missing."""
    if total == len(head) + len(tail):
        return bytes(head + tail)
    first = bytes(head[: _whole(head)])
    last = bytes(tail[_continuation(tail) :])
    missing = total - len(first) - len(last)
    return first + f"\n[... {missing:,} bytes are missing here ...]\n".encode() + last


def _whole(data: bytes | bytearray) -> int:
    """The length of ``data`` without an unfinished UTF-8 character at its end."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        length = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return len(data) - back if length > back else len(data)
    return len(data)


def _continuation(data: bytes | bytearray) -> int:
    """How many bytes at the start of ``data`` belong to a UTF-8 character that began before."""
    count = 0
    while count < min(3, len(data)) and data[count] & 0xC0 == 0x80:
        count += 1
    return count


def exit_status(code: int) -> int:
    """128 + N for signal N (a negative code), as shells and containers have it."""
    return code if code >= 0 else 128 - code


def output_so_far(stdout: bytes, stderr: bytes) -> str:
    """The ``detail`` of a timeout."""
    parts = [("stdout", stdout), ("stderr", stderr)]
    return "\n".join(f"{name}:\n{decode_subprocess_output(output)}" for name, output in parts if output)


def content(data: bytes, encoding: str | None, path: str) -> FileContent:
    """The answer to a read.

    Raises:
        Refused: it is not text in ``encoding``, or there is no such encoding.
    """
    if encoding is None:
        return FileContent(data)
    try:
        return FileContent(data.decode(encoding))
    except UnicodeDecodeError as error:
        raise Refused(
            "decode_error",
            f"{path!r} is not {encoding} text (byte {error.start}: {error.reason}). "
            "Give its encoding, or read it with a command",
        ) from None
    except (LookupError, ValueError):
        raise Refused("invalid_tool_arguments", f"{encoding!r} is not a text encoding that Python knows") from None


def too_large(path: str, size: str) -> Refused:
    """The refusal of a read of more than ``MAX_READ_BYTES``."""
    return Refused(
        "file_too_large",
        f"{path!r} has {size} bytes; at most {MAX_READ_BYTES:,} are read at once. "
        "Read a part with a command (head, tail, sed)",
    )

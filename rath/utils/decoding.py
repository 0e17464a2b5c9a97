"""Bytes from processes, as text."""

from __future__ import annotations

import locale

__all__ = ["decode_subprocess_output"]


def decode_subprocess_output(data: bytes) -> str:
    """Text of a process's output; never raises.

    UTF-8 when the bytes are UTF-8; else the locale's encoding, with U+FFFD for what it cannot decode.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode(locale.getpreferredencoding(False), errors="replace")

"""Text that others wrote, made safe to show: no control character reaches a terminal or a page."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["clean", "count", "cut", "duration", "fit", "money", "one_line", "width"]

# Colours carry no meaning here, so they go without a trace. Every other escape sequence is shown, not obeyed.
_COLOUR = re.compile("\x1b\\[[0-9;:]*m")
# C0 (but tab and newline), DEL, C1; line and paragraph separator; what turns the direction of text around ("Trojan
# Source"); zero-width marks and the invisible tag characters; lone surrogates, which no encoding can write, and U+FFFE
# and U+FFFF, which XML forbids.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\ufffe\uffff\U000e0000-\U000e007f]"
)


def clean(text: str) -> str:
    """``text`` in which every character can be seen: controls as ``␛`` or ``\\x9b``, colours dropped, CRLF as a newline."""
    if _HIDDEN.search(text) is None:
        return text
    return _HIDDEN.sub(_shown, _COLOUR.sub("", text.replace("\r\n", "\n")))


def _shown(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def one_line(text: str, limit: int = 80) -> str:
    """``text``, clean, on one line of at most ``limit`` characters."""
    # Twice the limit is read at most: the text may be a file.
    flat = " ".join(clean(text[: 4 * limit + 64]).split())
    return flat if len(flat) <= limit else flat[: limit - 1].rstrip() + "…"


def cut(text: str, limit: int) -> str:
    """``text`` with its middle left out where it is longer than ``limit`` characters; says how much is missing."""
    if len(text) <= limit:
        return text
    head = limit * 2 // 3
    tail = limit - head
    return f"{text[:head]}\n… {len(text) - head - tail:,} characters left out …\n{text[-tail:]}"


def width(text: str) -> int:
    """How many columns ``text`` takes: two for wide East Asian characters, none for combining ones."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def fit(text: str, columns: int) -> str:
    """``text``, clean, on one line of at most ``columns`` columns."""
    flat = one_line(text, columns)
    while width(flat) > columns:
        flat = flat.rstrip("…")[:-1] + "…"
    return flat


def count(number: int, noun: str) -> str:
    """``1 row``, ``2 rows``, ``12,000 rows``; ``1 branch``, ``2 branches``."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun}{'es' if noun.endswith(('ch', 's')) else 's'}"


def duration(seconds: float) -> str:
    """``8 ms``, ``1.2 s``, ``2 min 5 s``."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def money(usd: float) -> str:
    """``$1,200.00``, ``$12.35``; below ten cents ``$0.0042``, and ``<$0.0001`` for less than that: never 0 for something."""
    if 0 < usd < 0.0001:
        return "<$0.0001"
    return f"${usd:,.2f}" if usd >= 0.1 or usd == 0 else f"${usd:.4f}"

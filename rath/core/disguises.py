"""What secrets look like in text: plain, escaped for JSON, URL-encoded, in base64; and where in a text they stand.

Finding goes in two steps. A *clue* is a short piece of ASCII letters and digits that every form of one kind has, whatever
was escaped around it: one search for all clues of all secrets tells whether a text is worth a second look. The second look
undoes encodings, finds whole forms in what comes out, and maps them back to where they stood. Texts without a clue, nearly
all, cost the first step only.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Collection, Iterable, Iterator

from rath.core.encoding import encode_json

__all__ = ["Disguises", "clue_pattern", "decodings", "places"]

_Span = tuple[int, int]

# As many as there are, tried once: from each of them anew, 100 kB of backslashes would take minutes.
_BACKSLASHES = rb"(?<!\\)\\++"
# ASCII as JSON may spell it, whatever need not be escaped: .NET does so for `+` and `"`, Gson for `=`, Go for `<`.
_JSON = _BACKSLASHES + rb"u00([2-7][0-9A-Fa-f])"
# What stands between two characters of base64 that a tool has wrapped: a line break, raw, escaped in JSON, or
# URL-encoded, and the next line's indent; and PHP's `\/`.
_GAP = rb"(?:(?:%b[rn]|[\r\n]|%%(?:25)?0[aAdD])[ \t]*)+|%b(?=/)" % (_BACKSLASHES, _BACKSLASHES)
_ESCAPED = re.compile(_JSON)
_HEX = re.compile(_JSON + rb"|%([0-9A-Fa-f]{2})")
_HEX_TWICE = re.compile(_JSON + rb"|%(?:25)?([0-9A-Fa-f]{2})")
# By how much of the encoding is undone: nothing, JSON's, and URLs' once, and twice.
_TOKENS = (None, _ESCAPED, _HEX, _HEX_TWICE)
_WRAPPED_TOKENS = tuple(re.compile(_GAP + (b"" if token is None else b"|" + token.pattern)) for token in _TOKENS)
_BASE64 = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
_URL_SAFE = bytes.maketrans(b"+/", b"-_")
_STANDARD = bytes.maketrans(b"-_", b"+/")
_PLUS_IS_SPACE = bytes.maketrans(b"+", b" ")
_RUN = re.compile(rb"[A-Za-z0-9]+")
_LINE_END = re.compile(r"\r\n|\r|\n|\\r\\n|\\n")
_CODE = re.compile(r"\\u[0-9a-f]{4}")
_CLUE_LENGTH = 12
_MIN_CLUE = 4
# Both clues to a base64 form lie in this many characters: no more than one line break falls into them.
_CLUES_WITHIN = 48


class Disguises:
    """One secret and its forms.

    Attributes:
        clues: if the secret is in a text, in any form, one of these is in one of the text's :func:`decodings`.
        forms: how it is spelled.
        spaced: those with spaces, for where ``+`` stands for one.
        cores: what base64 has of it.
    """

    __slots__ = ("clues", "cores", "forms", "spaced")

    def __init__(self, value: str) -> None:
        values = _line_ends(value)
        escaped = {form for text in values for form in _escaped(text)} | values
        texts = escaped
        # A tool's result is JSON text, which may quote JSON text, which may again.
        for _ in range(2):
            texts = texts | {again for text in texts for again in _in_json(text)}
        self.forms = frozenset(map(_utf8, texts))
        self.spaced = frozenset(form.translate(_PLUS_IS_SPACE) for form in self.forms if b" " in form)
        self.cores = frozenset(core for text in escaped for core in _base64_cores(_utf8(text)))
        self.clues = frozenset((_plain_clue(self.forms), *(c for core in self.cores for c in _base64_clues(core))))


def places(text: bytes, secrets: Collection[Disguises]) -> Iterator[_Span]:
    """Where any of ``secrets`` stands in ``text``, in any form; spans may overlap."""
    forms = frozenset(form for secret in secrets for form in secret.forms)
    spaced = frozenset(form for secret in secrets for form in secret.spaced)
    cores = frozenset(core for secret in secrets for core in secret.cores)
    for depth in _depths(text):
        yield from _View(text, _TOKENS[depth]).find(forms)
        if spaced:
            yield from _View(text, _TOKENS[depth], _PLUS_IS_SPACE).find(spaced)
        yield from _View(text, _WRAPPED_TOKENS[depth], _STANDARD).find(cores, in_base64=True)


def decodings(data: bytes) -> Iterator[bytes]:
    """``data`` and what it is when escapes are undone, as far as it has any."""
    for depth in _depths(data):
        token = _TOKENS[depth]
        yield data if token is None else token.sub(_byte, data)


def clue_pattern(clues: Iterable[bytes]) -> re.Pattern[bytes]:
    """Finds any of ``clues``.

    ``re`` skips to the next byte that begins an alternative (:func:`_clue` begins clues with bytes that are rare in text)
    and then tries one after the other. Grouped by two bytes there are few to try: 1,600 clues of 200 secrets take 1 ms for
    100 kB, ungrouped 57.
    """
    return re.compile(_any_of(clues, 2))


def _any_of(words: Iterable[bytes], depth: int) -> bytes:
    if depth == 0:
        return b"(?:" + b"|".join(sorted(map(re.escape, words))) + b")"
    rests: dict[bytes, set[bytes]] = {}
    for word in words:
        rests.setdefault(word[:1], set()).add(word[1:])
    return b"(?:" + b"|".join(re.escape(head) + _any_of(rest, depth - 1) for head, rest in sorted(rests.items())) + b")"


# -- forms ------------------------------------------------------------------------------------------------------------


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _line_ends(value: str) -> set[str]:
    """``value`` as it is, and with each kind of line end: a key is a file, or one line of an ``.env`` file, with ``\\n``."""
    lines = _LINE_END.split(value)
    return {value} if len(lines) == 1 else {value, "\n".join(lines), "\r\n".join(lines)}


def _in_json(text: str) -> set[str]:
    """``text`` inside a JSON string: as ASCII, with other characters as they are, as rath writes it.

    Each with quotes as they are, too: who spells them ``\\u0022`` has no backslash left when that is undone.
    """
    encoded = {json.dumps(text, ensure_ascii=True), json.dumps(text, ensure_ascii=False), encode_json(text).decode()}
    forms = {form[1:-1] for form in encoded}
    return forms | {form.replace('\\"', '"') for form in forms}


def _escaped(value: str) -> set[str]:
    """``value`` inside a JSON string, by writers who escape ``/`` (PHP) or ``<>&`` (Go) too, or write hex in capitals."""
    forms = _in_json(value)
    forms |= {form.replace("/", "\\/") for form in forms}
    forms |= {_CODE.sub(lambda code: "\\u" + code[0][2:].upper(), form) for form in forms}
    return forms | {form.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026") for form in forms}


def _base64_cores(value: bytes) -> set[bytes]:
    """What base64 of a text with ``value`` in it has, for each place that it may have in a group of three bytes.

    Characters that hold bits of its neighbours too are left out.
    """
    return {
        b64encode(bytes(offset) + value)[-(-offset * 8 // 6) : (offset + len(value)) * 8 // 6] for offset in range(3)
    }


# -- clues ------------------------------------------------------------------------------------------------------------


def _plain_clue(forms: Collection[bytes]) -> bytes:
    """A clue that all forms have. Nothing, which is everywhere, for a secret without letters and digits."""
    runs = _RUN.findall(min(forms, key=len))
    return _clue(max((run for run in runs if all(run in form for form in forms)), key=len, default=b""))


def _base64_clues(core: bytes) -> set[bytes]:
    """A clue in each half, since a line may break in one; in both alphabets where there is no other."""
    middle = min(len(core), _CLUES_WITHIN) // 2
    clues: set[bytes] = set()
    for half in (core[:middle], core[middle : 2 * middle]):
        run = max(_RUN.findall(half), key=len, default=b"")
        clues |= {_clue(run)} if len(run) >= _MIN_CLUE else {half, half.translate(_URL_SAFE)}
    return clues


# Rarer than others as bytes of text and JSON.
_RARE_FIRST = b"QZXJKVWYUGHBFMPLDRNOCIASTE9786543210qzxjkvwybpgfmcudhlrsnioate"
_RANK = {_RARE_FIRST[i : i + 1]: i for i in range(len(_RARE_FIRST))}


def _clue(run: bytes) -> bytes:
    """A piece of ``run`` that begins as rarely as possible, and is long enough to be rare itself."""
    shortest = 2 * _MIN_CLUE if len(run) >= 2 * _MIN_CLUE else _MIN_CLUE
    at = min(range(max(len(run) - shortest, 0) + 1), key=lambda i: _RANK.get(run[i : i + 1], 0))
    return run[at : at + _CLUE_LENGTH]


# -- places -----------------------------------------------------------------------------------------------------------


def _depths(text: bytes) -> tuple[int, ...]:
    escaped = (1,) if b"\\u00" in text and _ESCAPED.search(text) is not None else ()
    if b"%" not in text or _HEX.search(text) is None:
        return (0, *escaped)
    return (0, *escaped, 2, 3) if b"%25" in text else (0, *escaped, 2)


def _byte(match: re.Match[bytes]) -> bytes:
    return b"" if match.lastindex is None else bytes((int(match[match.lastindex], 16),))


class _View:
    """A text with tokens undone: each becomes one byte or, where it has no group, none."""

    def __init__(self, text: bytes, token: re.Pattern[bytes] | None, table: bytes | None = None) -> None:
        self._text = text
        self._token = token
        self._seen = text if token is None else (token.sub(_byte, text) if token.groups else token.sub(b"", text))
        if table is not None:
            self._seen = self._seen.translate(table)

    def find(self, forms: Iterable[bytes], *, in_base64: bool = False) -> list[_Span]:
        """Spans of the text that show one of ``forms``; in base64 with the characters that it shares, and padding."""
        found = {span for form in forms for span in self._hits(form)}
        if in_base64:
            found = {self._widened(*span) for span in found}
        if not found or self._token is None:
            return sorted(found)
        places = sorted({place for start, end in found for place in (start, end - 1)})
        spans = dict(zip(places, self._originals(places), strict=True))
        return [(spans[start][0], spans[end - 1][1]) for start, end in sorted(found)]

    def _hits(self, form: bytes) -> Iterator[_Span]:
        at = self._seen.find(form)
        while at >= 0:
            yield at, at + len(form)
            at = self._seen.find(form, at + len(form))

    def _widened(self, start: int, end: int) -> _Span:
        seen = self._seen
        if start and seen[start - 1] in _BASE64:
            start -= 1
        if end < len(seen) and seen[end] in _BASE64:
            end += 1
        while seen[end : end + 1] == b"=":
            end += 1
        return start, end

    def _originals(self, places: list[int]) -> list[_Span]:
        """Where the bytes at ``places`` (ascending) of the view stand in the text."""
        assert self._token is not None
        out: list[_Span] = []
        at_text = at_seen = 0  # everything before is mapped
        tokens = self._token.finditer(self._text)
        for match in tokens:
            literal = match.start() - at_text
            while len(out) < len(places) and places[len(out)] < at_seen + literal:
                place = at_text + places[len(out)] - at_seen
                out.append((place, place + 1))
            at_seen += literal
            at_text = match.end()
            if match.lastindex is not None:
                if len(out) < len(places) and places[len(out)] == at_seen:
                    out.append(match.span())
                at_seen += 1
            if len(out) == len(places):
                break
        out += [(at_text + p - at_seen, at_text + p - at_seen + 1) for p in places[len(out) :]]
        return out

"""Secrets by value: what must not reach a log, a page or a trace.

A value is secret when it stands in an environment variable whose name says so, when a ``Provider`` holds it as its
``api_key`` or sends it in a header, or when :func:`register_secret` was told. Redaction happens once, where a row's bytes
are encoded (``session/chunk.py``), and finds the value in its usual disguises too (``disguises.py``). Values shorter than
eight characters are skipped: they would blot out ordinary words.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
from base64 import b64decode
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

from rath.core.disguises import Disguises, clue_pattern, decodings, places
from rath.core.encoding import decode_json, encode_json
from rath.errors import UsageTypeError

__all__ = [
    "REDACTED",
    "Secrets",
    "redact_bytes",
    "redact_text",
    "register_headers",
    "register_secret",
    "register_url",
    "scan_environment",
    "split_secrets",
]

REDACTED = "[redacted]"
_MARK = REDACTED.encode()
MIN_LENGTH = 8
# What every row and every mark is made of: to redact these would leave no row, and hide nothing.
_OWN_WORDS = ("arguments", "function", "tool_call_id", "tool_calls", REDACTED)
_SECRET_NAME = re.compile(
    r"API_?KEY|ACCESS_?KEY|ACCOUNT_?KEY|PRIVATE_?KEY|SECRET|TOKEN|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|AUTHORIZATION"
    r"|COOKIE|(?:^|_)(?:KEY|PASS|PAT|AUTH|DSN)$|_PWD$|PGPASS",
    re.IGNORECASE,
)
# `scheme://user:password@host`, and `name=value` as in queries, connection strings and cookies.
_USER_INFO = re.compile(r"://([^\s/?#:@]*+)(?::([^\s/?#]*))?@")
_FIELD = re.compile(r"(?:^|[?&;\s])([\w.-]+)=([^&;\s#]+)")
# A token in the place of the user's name (`https://TOKEN@host`); names are shorter.
_TOKEN_LENGTH = 20
_BLOCK = 1 << 20
_LONGEST_CLUE = 64
_log = logging.getLogger("rath.redact")


class Secrets:
    """A set of secrets, and what replaces them. Any thread may call any method.

    A text without a secret costs one search; the search is compiled at the first text after a secret was added.
    """

    def __init__(self) -> None:
        # Reentrant: the collector may run a finaliser that has something to redact while we hold it.
        self._lock = threading.RLock()
        self._known: dict[str, Disguises] = {}
        self._warned = False
        self._search: Callable[[bytes], object] = _find_nothing

    def add(self, value: str) -> None:
        """Redact ``value`` from now on. Shorter than 8 characters: one warning, no effect."""
        value = value.strip()  # mounted secret files end in a newline that the output need not have
        if not value or value in self._known:
            return
        if len(value) < MIN_LENGTH or any(value in word for word in _OWN_WORDS):
            if not self._warned:
                self._warned = True
                _log.warning(
                    "a secret that is shorter than %d characters, or a word of every log, is not redacted: "
                    "it would match ordinary text",
                    MIN_LENGTH,
                )
            return
        disguises = Disguises(value)
        with self._lock:
            self._known[value] = disguises
            self._search = self._compile_and_search

    def _compile_and_search(self, data: bytes) -> object:
        with self._lock:
            known = list(self._known.values())
            search = clue_pattern(clue for secret in known for clue in secret.clues).search
            if len(known) == len(self._known):  # else a finaliser has added one meanwhile
                self._search = search
        return search(data)

    def after_fork(self) -> None:
        """Let a forked child add secrets: the thread that held the lock may not exist there."""
        self._lock = threading.RLock()

    def _has_clue(self, data: bytes) -> bool:
        if len(data) <= _BLOCK:
            if self._search(data) is not None:
                return True
        # In blocks: no other thread runs while one search goes on, which takes 10 ms a megabyte.
        elif any(self._search(data[at : at + _BLOCK + _LONGEST_CLUE]) is not None for at in range(0, len(data), _BLOCK)):
            return True
        return (b"%" in data or b"\\u00" in data) and any(self._search(seen) is not None for seen in decodings(data))

    def redact_bytes(self, encoded: bytes) -> bytes:
        """``encoded`` (JSON text) with every known secret in its strings replaced; the same object if there is none.

        The bytes are only searched; where something is found, the *values* are redacted. Replacing bytes could cut an
        escape or a number in two and leave what is no JSON.
        """
        # In one frame what nearly every row comes to.
        if len(encoded) <= _BLOCK and self._search(encoded) is None and b"%" not in encoded and b"\\u00" not in encoded:
            return encoded
        if not self._has_clue(encoded):
            return encoded
        value = decode_json(encoded)
        redacted = self._redact_value(value)
        return encoded if redacted == value else encode_json(redacted)

    def _redact_value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.redact_text(value)
        if isinstance(value, dict):
            return {self.redact_text(key): self._redact_value(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._redact_value(item) for item in value]
        if isinstance(value, int | float) and not isinstance(value, bool) and self.redact_text(str(value)) != str(value):
            return REDACTED  # a password may be all digits
        return value

    def redact_text(self, text: str) -> str:
        """``text`` with every known secret replaced."""
        if len(text) < MIN_LENGTH:
            return text
        parts = self.split(text.encode("utf-8", "surrogatepass"))
        if len(parts) == 1:
            return text
        redacted = b"".join(_MARK if secret else part for part, secret in parts)
        return redacted.decode("utf-8", "surrogatepass")

    def split(self, data: bytes) -> list[tuple[bytes, bool]]:
        """UTF-8 text in parts, one after the other, and whether each is a secret. The first one is none."""
        if not self._has_clue(data):
            return [(data, False)]
        seen = list(decodings(data))
        suspects = [s for s in list(self._known.values()) if any(clue in found for found in seen for clue in s.clues)]
        spans: list[list[int]] = []
        for start, end in sorted(places(data, suspects)):
            if spans and start < spans[-1][1]:
                spans[-1][1] = max(end, spans[-1][1])
            else:
                spans.append([start, end])
        parts, at = [], 0
        for start, end in spans:
            parts += [(data[at:start], False), (data[start:end], True)]
            at = end
        return [*parts, (data[at:], False)]


def _find_nothing(_data: bytes) -> None:
    return None


_secrets = Secrets()
os.register_at_fork(after_in_child=_secrets.after_fork)
redact_bytes = _secrets.redact_bytes
redact_text = _secrets.redact_text
split_secrets = _secrets.split


def register_secret(value: str) -> None:
    """Redact ``value`` from now on, in whatever rath writes or shows. Shorter than 8 characters: one warning, no effect.

    Rows that were made before keep what they have. Models and tools see the value.
    """
    if not isinstance(value, str):
        raise UsageTypeError(f"a secret is a str, not {type(value).__name__}")
    _secrets.add(value)


def register_headers(headers: Mapping[str, Any]) -> None:
    """Register what authenticates a request: the values of headers (or query fields) whose names look secret."""
    for name, value in headers.items():
        if not isinstance(value, str) or not _looks_secret(str(name)):
            continue
        # A cookie has several values, some schemes have named parts.
        pieces = re.split(r"[;,]\s*", value.strip())
        for piece in pieces:
            scheme, _, credentials = piece.rpartition(" ")
            if len(pieces) > 1:
                field = _FIELD.match(credentials)
                credentials = (credentials if field is None else field[2]).strip('"')
            _register_each(credentials)
            if scheme.lower() == "basic":
                with contextlib.suppress(ValueError):
                    _register_each(b64decode(credentials, validate=True).decode().partition(":")[2])


def register_url(text: str) -> None:
    """Register the passwords in ``text``, which has URLs or connection strings: ``user:password@``, ``password=…``."""
    for user, password in _USER_INFO.findall(text):
        _register_each(password, unquote(password))
        if len(user) >= _TOKEN_LENGTH:
            _register_each(user, unquote(user))
    for name, value in _FIELD.findall(text):
        if _looks_secret(f"_{name}"):  # `Pwd=…` is one; the variable PWD is where the shell stands
            _register_each(value, unquote(value))


def _register_each(*values: str) -> None:
    """Register those that are long enough."""
    for value in values:
        if len(value) >= MIN_LENGTH:
            register_secret(value)


def _register_fields(value: str) -> None:
    """Register what looks secret in a JSON object, such as a service account's file."""
    try:
        left = [("", decode_json(value.encode()))]
    except (ValueError, RecursionError):
        return
    while left:
        name, item = left.pop()
        if isinstance(item, dict):
            left += item.items()
        elif isinstance(item, list):
            left += ((name, one) for one in item)
        elif isinstance(item, str) and _looks_secret(name):
            _register_each(item)


def _looks_secret(name: str) -> bool:
    return _SECRET_NAME.search(name.replace("-", "_")) is not None


def scan_environment(environ: Mapping[str, str] | None = None) -> None:
    """Register the values of the environment's variables whose names look secret, and passwords in the others' values.

    A path that exists is where a secret is kept, not the secret.
    """
    for name, value in (os.environ if environ is None else environ).items():
        if len(value) < MIN_LENGTH or _scanned.get(name) == value:
            continue
        _scanned[name] = value
        if _looks_secret(name) and not (os.path.isabs(value) and os.path.exists(value)):
            register_secret(value)
        if value.lstrip().startswith("{"):
            _register_fields(value)
        else:
            register_url(value)


_scanned: dict[str, str] = {}
"""Variables that were looked at, and their values then: every run with a log looks again."""
scan_environment()

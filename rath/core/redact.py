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

from rath.core.disguises import Disguises, clue_pattern, decodings
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
]

REDACTED = "[redacted]"
_MARK = REDACTED.encode()
MIN_LENGTH = 8
_SECRET_NAME = re.compile(
    r"API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|SECRET|TOKEN|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|AUTHORIZATION"
    r"|COOKIE|(?:^|_)(?:KEY|PASS|PWD|PAT|AUTH|DSN)$|PGPASS",
    re.IGNORECASE,
)
_URL_PASSWORD = re.compile(r"^[a-z][a-z0-9+.-]*://[^/@\s:]*:([^/@\s]+)@", re.IGNORECASE)
_log = logging.getLogger("rath.redact")


class Secrets:
    """A set of secrets, and what replaces them. Any thread may call any method.

    A text without a secret costs one search; the search is compiled at the first text after a secret was added.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, Disguises] = {}
        self._warned = False
        self._search: Callable[[bytes], object] = _find_nothing

    def add(self, value: str) -> None:
        """Redact ``value`` from now on. Shorter than 8 characters: one warning, no effect."""
        value = value.strip()  # mounted secret files end in a newline that the output need not have
        if not value or value in self._known:
            return
        with self._lock:
            if len(value) >= MIN_LENGTH:
                self._known[value] = Disguises(value)
                self._search = self._compile_and_search
            elif not self._warned:
                self._warned = True
                _log.warning("a secret shorter than %d characters is not redacted: it would match ordinary text", MIN_LENGTH)

    def _compile_and_search(self, data: bytes) -> object:
        with self._lock:
            search = self._search = clue_pattern(clue for secret in self._known.values() for clue in secret.clues).search
        return search(data)

    def _has_clue(self, data: bytes) -> bool:
        if self._search(data) is not None:
            return True
        return b"%" in data and any(self._search(seen) is not None for seen in decodings(data))

    def redact_bytes(self, encoded: bytes) -> bytes:
        """``encoded`` (JSON text) with every known secret in its strings replaced; the same object if there is none.

        The bytes are only searched; where something is found, the *values* are redacted. Replacing bytes could cut an
        escape or a number in two and leave what is no JSON.
        """
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
        data = text.encode("utf-8", "surrogatepass")
        if not self._has_clue(data):
            return text
        seen = list(decodings(data))
        suspects = [s for s in list(self._known.values()) if any(clue in found for found in seen for clue in s.clues)]
        pieces, at = [], 0
        for start, end in sorted(span for secret in suspects for span in secret.spans(data)):
            if start >= at:
                pieces += [data[at:start], _MARK]
            at = max(at, end)
        return b"".join((*pieces, data[at:])).decode("utf-8", "surrogatepass") if pieces else text


def _find_nothing(_data: bytes) -> None:
    return None


_secrets = Secrets()
redact_bytes = _secrets.redact_bytes
redact_text = _secrets.redact_text


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
        if not isinstance(value, str) or not _SECRET_NAME.search(str(name).replace("-", "_")):
            continue
        scheme, _, credentials = value.strip().rpartition(" ")
        if len(credentials) < MIN_LENGTH:
            continue
        register_secret(credentials)
        if scheme.lower() == "basic":
            with contextlib.suppress(ValueError):
                _, _, password = b64decode(credentials, validate=True).decode().partition(":")
                if len(password) >= MIN_LENGTH:
                    register_secret(password)


def register_url(url: str) -> None:
    """Register the password in ``url``, if there is one."""
    found = _URL_PASSWORD.match(url)
    for password in () if found is None else (found[1], unquote(found[1])):
        if len(password) >= MIN_LENGTH:
            register_secret(password)


def scan_environment(environ: Mapping[str, str] | None = None) -> None:
    """Register the values of the environment's variables whose names look secret."""
    for name, value in (os.environ if environ is None else environ).items():
        if len(value) < MIN_LENGTH:
            continue
        if _SECRET_NAME.search(name):
            register_secret(value)
        else:
            register_url(value)


scan_environment()

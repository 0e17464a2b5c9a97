"""Secrets by value: what must not reach a log, a page or a trace.

A value is secret when it stands in an environment variable whose name says so, when a ``Provider`` holds it as its
``api_key``, or when :func:`add_secret` was told. Redaction happens once, where a row's bytes are encoded
(``session/chunk.py``). Values shorter than eight characters are skipped: they would blot out ordinary words.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Mapping
from typing import Any

from rath.core.encoding import decode_json, encode_json

__all__ = ["REDACTED", "add_secret", "redact_bytes", "redact_text", "scan_environment"]

REDACTED = "[redacted]"
MIN_LENGTH = 8
_SECRET_NAME = re.compile(
    r"API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|SECRET|TOKEN|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|AUTHORIZATION"
    r"|(?:^|_)(?:KEY|PASS|PWD|PAT|AUTH|DSN)$|PGPASS",
    re.IGNORECASE,
)
_URL_PASSWORD = re.compile(r"^[a-z][a-z0-9+.-]*://[^/@\s:]*:([^/@\s]+)@", re.IGNORECASE)
_log = logging.getLogger("rath.redact")

_lock = threading.Lock()
_values: set[str] = set()
_warned_short = False
_pattern: re.Pattern[bytes] | None = None
_text_pattern: re.Pattern[str] | None = None


def add_secret(value: str) -> None:
    """Redact ``value`` from now on, wherever a row is encoded. Shorter than 8 characters: one warning, no effect."""
    global _warned_short, _pattern, _text_pattern
    value = value.strip()  # mounted secret files end in a newline that the output need not have
    if not value or value in _values:
        return
    with _lock:
        if len(value) < MIN_LENGTH:
            if not _warned_short:
                _warned_short = True
                _log.warning("a secret shorter than %d characters is not redacted: it would match ordinary text", MIN_LENGTH)
            return
        _values.add(value)
        # The longest first, so that a secret that contains another is replaced whole.
        ordered = sorted(_values, key=len, reverse=True)
        # A tool's result is JSON text inside a JSON string, and may itself quote JSON: there the value stands escaped,
        # once or twice. In a row's bytes there is one escaping more.
        texts = {form for v in ordered for form in _escaped(v, 2)}
        forms = {form.encode("utf-8", "surrogatepass") for t in texts for form in (t, *_escaped(t, 1))}
        _pattern = re.compile(b"|".join(re.escape(f) for f in sorted(forms, key=len, reverse=True)))
        _text_pattern = re.compile("|".join(re.escape(t) for t in sorted(texts, key=len, reverse=True)))


def _escaped(value: str, depth: int) -> set[str]:
    """``value`` and what it looks like inside JSON strings, up to ``depth`` levels deep."""
    forms = {value}
    level = {value}
    for _ in range(depth):
        level = {json.dumps(form, ensure_ascii=ascii_only)[1:-1] for form in level for ascii_only in (False, True)}
        forms |= level
    return forms


def scan_environment(environ: Mapping[str, str] | None = None) -> None:
    """Register the values of the environment's variables whose names look secret."""
    for name, value in (os.environ if environ is None else environ).items():
        if len(value) < MIN_LENGTH:
            continue
        if _SECRET_NAME.search(name):
            add_secret(value)
        elif (found := _URL_PASSWORD.match(value)) is not None and len(found[1]) >= MIN_LENGTH:
            add_secret(found[1])


def redact_bytes(encoded: bytes) -> bytes:
    """``encoded`` (JSON text) with every known secret in its strings replaced; the same object if there is none.

    The bytes are only searched; where something is found, the *values* are redacted. Replacing bytes could cut an escape
    or a number in two and leave what is no JSON.
    """
    if _pattern is None or _pattern.search(encoded) is None:
        return encoded
    value = decode_json(encoded)
    redacted = _redact_value(value)
    return encoded if redacted == value else encode_json(redacted)


def _redact_value(value: Any) -> Any:
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, dict):
        return {redact_text(key): _redact_value(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_redact_value(item) for item in value]
    if isinstance(value, int | float) and not isinstance(value, bool) and redact_text(str(value)) != str(value):
        return REDACTED  # a password may be all digits
    return value


def redact_text(text: str) -> str:
    """``text`` with every known secret replaced."""
    return text if _text_pattern is None else _text_pattern.sub(REDACTED, text)


scan_environment()

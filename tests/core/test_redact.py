"""Secrets by value."""

import json
import logging

import pytest

from rath.core.encoding import encode_json
from rath.core.redact import REDACTED, redact_bytes, redact_text, register_secret, scan_environment


@pytest.mark.parametrize(
    ("secret", "value", "expected"),
    [
        ("plain-secret-value", "the plain-secret-value here", f"the {REDACTED} here"),
        ('with "quotes" \\ and ü', 'x with "quotes" \\ and ü y', f"x {REDACTED} y"),
        ("nabcdefgh", "line\nabcdefgh", "line\nabcdefgh"),
        ("9182736455", 91827364550, REDACTED),
        ("key-as-a-key-1", {"key-as-a-key-1": [1, {"a": "key-as-a-key-1!"}]}, {REDACTED: [1, {"a": REDACTED + "!"}]}),
        ("emoji-😀-secret", "an emoji-😀-secret", f"an {REDACTED}"),
        ("sep\u2028arated-secret", "a sep\u2028arated-secret", f"a {REDACTED}"),
    ],
)
def test_what_is_redacted_stays_json(secret, value, expected):
    register_secret(secret)
    assert json.loads(redact_bytes(encode_json({"v": value}))) == {"v": expected}


@pytest.mark.parametrize("secret", ["-----BEGIN KEY-----\nMIIabc/+def\nxyz==\n-----END KEY-----\n", 'pa"ss\\word123', "tab\tand ünicode 1"])
@pytest.mark.parametrize("levels", [0, 1, 2])
def test_a_secret_inside_json_inside_json_is_found(secret, levels):
    register_secret(secret)
    text = f"before {secret} after"
    for _ in range(levels):
        text = json.dumps({"stdout": text})
    shown = json.loads(redact_bytes(encode_json({"content": text})))["content"]
    for _ in range(levels):
        shown = json.loads(shown)["stdout"]
    assert secret.strip() not in shown
    assert REDACTED in shown


def test_a_password_in_a_url_of_the_environment_is_registered():
    scan_environment({"DATABASE_URL": "postgresql://me:url-password-77@db/x", "GITHUB_PAT": "pat-value-0000001", "MY_PATH": "/some/long/path"})
    assert redact_text("url-password-77 pat-value-0000001 /some/long/path me") == f"{REDACTED} {REDACTED} /some/long/path me"


def test_what_has_no_secret_is_the_same_object():
    encoded = encode_json({"v": "nothing here"})
    assert redact_bytes(encoded) is encoded


def test_the_longer_of_two_secrets_is_replaced_whole():
    register_secret("overlapping-1")
    register_secret("overlapping-1-and-more")
    assert redact_text("overlapping-1-and-more") == REDACTED


def test_a_short_value_is_skipped_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING, logger="rath.redact"):
        register_secret("ab1")
        register_secret("cd2")
    assert redact_text("ab1 cd2") == "ab1 cd2"
    assert len(caplog.records) <= 1


def test_variables_named_like_secrets_are_registered_and_others_are_not():
    scan_environment({"MY_API_KEY": "env-secret-0001", "DB_PASSWORD": "env-secret-0002", "HOMEPAGE": "env-public-0003"})
    assert redact_text("env-secret-0001 env-secret-0002 env-public-0003") == f"{REDACTED} {REDACTED} env-public-0003"

"""Secrets by value."""

import base64
import gc
import json
import logging
import os
import threading
import time
from pathlib import Path

import pytest

from rath.core.encoding import encode_json
from rath.core.redact import (
    REDACTED,
    Secrets,
    redact_bytes,
    redact_text,
    register_headers,
    register_secret,
    register_url,
    scan_environment,
)
from rath.testing.pace import within


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


def test_the_working_directory_is_no_secret():
    scan_environment({"PWD": "/somewhere/a-project", "OLDPWD": "/somewhere/another-project", "MYSQL_PWD": "env-secret-0004"})
    text = "/somewhere/a-project /somewhere/another-project"
    assert redact_text(f"{text} env-secret-0004") == f"{text} {REDACTED}"


def test_where_a_secret_is_kept_is_no_secret(tmp_path: Path):
    kept = tmp_path / "kept-secret"
    kept.touch()
    scan_environment({"DB_PASSWORD_FILE": str(kept), "MY_TOKEN": "/looks/like/a/path/and/is/none"})
    assert redact_text(f"{kept} /looks/like/a/path/and/is/none") == f"{kept} {REDACTED}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("INDEXES", "https://a:indexes-secret-1@x/simple https://b:indexes-secret-2@y/simple"),
        ("DB_DSN", "postgresql://me:db_dsn-secret-1@db/x?sslpassword=db_dsn-secret-2"),
        ("STORE", "DefaultEndpointsProtocol=https;AccountName=me;AccountKey=store-secret-1;Pwd=store-secret-2"),
        ("ACCOUNT", '{"private_key": "account-secret-1", "deep": [{"auths": {"host": {"auth": "account-secret-2"}}}]}'),
        ("HIS_CREDENTIALS", '{"client_secret": "his_credentials-secret-1", "tokens": ["his_credentials-secret-2"]}'),
        ("REMOTE", "https://remote-secret-1-is-a-token@host/x https://remote-secret-2-is-a-token:x@host/x"),
    ],
)
def test_the_secret_parts_of_a_value_are_secrets_too(name, value):
    text = f"it is {name.lower()}-secret-1-is-a-token or {name.lower()}-secret-2-is-a-token."
    assert redact_text(text) == text
    scan_environment({name: value})
    assert redact_text(text).replace("-is-a-token", "") == f"it is {REDACTED} or {REDACTED}."
    assert redact_text("me host AccountName DefaultEndpointsProtocol") == "me host AccountName DefaultEndpointsProtocol"


def test_a_users_name_in_an_address_is_no_secret():
    register_url("https://somebody-real@bitbucket.org/x")
    assert redact_text("somebody-real") == "somebody-real"


def test_a_long_value_without_an_address_takes_no_time():
    began = time.thread_time()
    blob = base64.b64encode(bytes(96_000)).decode().replace("/", "a")
    scan_environment({"BLOB": blob, "AT": f"data://{blob}", "USER": f"data://a:{blob}", "FIELD": f"?{blob}"})
    assert time.thread_time() - began < within(0.5)


def test_every_cookie_and_every_part_of_a_header_is_a_secret():
    register_headers({"Cookie": "session=cookie-value-0001; theme=dark; other=cookie-value-0002"})
    register_headers({"Authorization": 'Digest username="me", response="digest-value-0003", qop=auth'})
    text = "cookie-value-0001 cookie-value-0002 digest-value-0003 dark me auth Digest"
    assert redact_text(text) == f"{REDACTED} {REDACTED} {REDACTED} dark me auth Digest"


@pytest.mark.parametrize("word", ["function", "arguments", "tool_calls", "tool_call_id", "redacted"])
def test_a_secret_that_is_a_word_of_every_row_leaves_the_rows_as_they_are(word):
    secrets = Secrets()
    secrets.add(word)
    row = encode_json({"tool_call_id": "a", "tool_calls": [{"type": "function", "function": {"arguments": REDACTED}}]})
    assert secrets.redact_bytes(row) is row


def test_what_a_finaliser_redacts_while_a_secret_is_added_is_redacted():
    secrets = Secrets()
    secrets.add("finaliser-secret-1")
    seen = []

    def collected(phase, _info):
        if phase == "start" and threading.current_thread() is thread:
            secrets.add(f"of-the-finaliser-{len(seen)}")
            seen.append(secrets.redact_text("it is finaliser-secret-1"))

    def redact():
        for number in range(20):
            secrets.add(f"another-secret-{number}")
            seen.append(secrets.redact_text("it is finaliser-secret-1"))

    thread = threading.Thread(target=redact, daemon=True)
    before = gc.get_threshold()
    gc.callbacks.append(collected)
    gc.set_threshold(20)
    try:
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(collected)
    assert len(seen) > 50
    assert set(seen) == {f"it is {REDACTED}"}
    assert secrets.redact_text(f"another-secret-19 of-the-finaliser-{len(seen) // 2}").startswith(REDACTED)


def test_a_forked_child_can_add_secrets_whatever_the_other_threads_were_doing():
    secrets = Secrets()
    held, forked = threading.Event(), threading.Event()

    def hold():
        with secrets._lock:
            held.set()
            forked.wait(20)

    os.register_at_fork(after_in_child=secrets.after_fork)
    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(20)
    child = os.fork()
    if child == 0:
        secrets.add("of-the-child-only")
        os._exit(secrets.redact_text("of-the-child-only") != REDACTED)
    forked.set()
    thread.join()
    deadline = time.monotonic() + 10
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    if ended == (0, 0):
        os.kill(child, 9)
        ended = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(ended[1]) == 0

"""A secret in disguise: base64, URL-encoding, JSON, and what is only similar to one."""

import base64
import json
import re
import time
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rath
from rath.core.encoding import encode_json
from rath.core.redact import REDACTED, Secrets, redact_text, register_headers, register_url
from rath.display.html import session_html
from rath.llm import Provider
from rath.session import ChunkKind, ChunkRow, ChunkTable, Session, SessionWriter
from rath.testing.pace import within

KEY = "sk-proj-7Qx/Zt+4_mN~w0Lk9PdR"
PHRASE = 'correct horse & "battery" staple/ü'
PEM = "-----BEGIN KEY-----\n" + "\n".join(base64.b64encode(bytes(range(i, i + 48))).decode() for i in range(6)) + "\n-----END KEY-----"

secret_texts = st.one_of(
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=60),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=8, max_size=30).filter(lambda t: len(t.strip()) >= 8),
).map(str.strip)
contexts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def knowing(*values: str) -> Secrets:
    secrets = Secrets()
    for value in values:
        secrets.add(value)
    return secrets


def shown(secrets: Secrets, text: str) -> str:
    """What a row with ``text`` shows of it."""
    row = json.loads(secrets.redact_bytes(encode_json({"content": text})))
    assert secrets.redact_text(text) == row["content"]
    return row["content"]


def bits_of(secret: bytes, offset: int, alphabet: bytes | None = None) -> str:
    """What base64 has of the secret and nothing else, when ``offset`` bytes stand before it in its group of three."""
    whole = base64.b64encode(bytes(offset) + secret, alphabet).decode().rstrip("=")
    return whole[{0: 0, 1: 2, 2: 3}[offset] : (offset + len(secret)) * 8 // 6]


def holds_base64(text: str, secret: str) -> bool:
    encoded = secret.encode()
    return any(bits_of(encoded, offset, alphabet) in text for offset in range(3) for alphabet in (b"+/", b"-_"))


@pytest.mark.parametrize("secret", [KEY, PHRASE, PEM, "12345678"])
@pytest.mark.parametrize("before", ["", "a", "ab", "abc"])
@pytest.mark.parametrize("after", ["", "z", "zz"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_base64_of_a_text_with_the_secret_in_it_loses_all_that_says_something_of_it(secret, before, after, encode):
    encoded = encode((before + secret + after).encode()).decode()
    for form in (encoded, encoded.rstrip("=")):
        out = shown(knowing(secret), f"key: {form} end")
        assert out.startswith("key: ")
        assert out.endswith(" end")
        # What is left are the neighbours' own characters.
        left, right = out.removeprefix("key: ").removesuffix(" end").split(REDACTED)
        assert len(left) <= len(before) * 8 // 6
        assert base64.b64encode(before.encode()).decode().startswith(left)
        assert len(right.rstrip("=")) <= len(after) * 8 / 6 + 1


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("width", [64, 76])
def test_base64_that_a_tool_has_wrapped_is_found(width, level):
    encoded = base64.b64encode(f"config before\n{PEM} after it".encode()).decode()
    text = "\n".join(encoded[i : i + width] for i in range(0, len(encoded), width))
    for _ in range(level):
        text = json.dumps({"stdout": text})
    out = shown(knowing(PEM), text)
    assert REDACTED in out
    assert not holds_base64(re.sub(r"\\+n|\n", "", out), PEM)
    assert len(out) < 100 + 10 * level


@given(secret_texts, contexts, contexts, st.booleans())
def test_no_secret_survives_in_base64(secret, before, after, url_safe):
    encode = base64.urlsafe_b64encode if url_safe else base64.b64encode
    out = shown(knowing(secret), "x:" + encode((before + secret + after).encode()).decode() + ".")
    assert REDACTED in out
    assert not holds_base64(out, secret)


@pytest.mark.slow
@given(secret_texts, st.data())
def test_no_secret_survives_in_url_encoding_however_partial(secret, data):
    def spell(char: str) -> str:
        plain = st.just("+" if char == " " else char)
        hexes = st.just("".join(f"%{byte:02X}" for byte in char.encode()))
        return data.draw(st.one_of(plain, hexes, hexes.map(str.lower)) if char != "%" else hexes)

    text = "".join(spell(char) for char in secret)
    assert shown(knowing(secret), f"?q={text}&r=1") == f"?q={REDACTED}&r=1"


@pytest.mark.parametrize("secret", [KEY, PHRASE, "100%25 of it"])
@pytest.mark.parametrize("spell", [quote, quote_plus, lambda s: quote(s, safe=""), lambda s: quote(quote(s, safe=""), safe="")])
def test_common_url_encodings_are_found_twice_encoded_too(secret, spell):
    assert shown(knowing(secret), f"GET /a?key={spell(secret)} 200") == f"GET /a?key={REDACTED} 200"


def test_base64_in_a_url_is_found():
    encoded = quote(base64.b64encode(b"user:" + KEY.encode()).decode(), safe="")
    assert not holds_base64(shown(knowing(KEY), f"?auth={encoded}&x"), KEY)
    assert REDACTED in shown(knowing(KEY), f"?auth={encoded}&x")


@given(secret_texts, contexts, contexts, st.integers(0, 2))
def test_no_secret_survives_in_json(secret, before, after, levels):
    text = before + secret + after
    for level in range(levels):
        text = json.dumps({"stdout": text}, ensure_ascii=bool(level))
    out = shown(knowing(secret), text)
    assert REDACTED in out
    for form in (secret, json.dumps(secret)[1:-1], json.dumps(json.dumps(secret)[1:-1])[1:-1]):
        assert form not in out.replace(REDACTED, "\0")


@pytest.mark.parametrize(
    ("secret", "spelled"),
    [
        ("abCD+efgh/ijKL==12", "abCD\\u002Befgh/ijKL==12"),  # .NET
        ("abCD+efgh/ijKL==12", "abCD+efgh/ijKL\\u003d\\u003d12"),  # Gson
        ('pa"ss\\wörd&<12>', "pa\\u0022ss\\\\w\\u00F6rd\\u0026\\u003C12\\u003E"),
        ("wörd€😀pässwörd", "w\\u00F6rd\\u20AC\\uD83D\\uDE00p\\u00E4ssw\\u00F6rd"),
        ("password-12", "".join(f"\\u{ord(char):04x}" for char in "password-12")),
        ("pass%20word+12", "pass%20word\\u002B12"),
    ],
)
@pytest.mark.parametrize("level", [0, 1])
def test_escapes_that_json_allows_and_python_does_not_use_are_found(secret, spelled, level):
    assert json.loads(f'"{spelled}"') == secret
    text = f'{{"key":"{spelled}"}}'
    for _ in range(level):
        text = json.dumps(text)
    out = shown(knowing(secret), text)
    for _ in range(level):
        out = json.loads(out)
    assert json.loads(out) == {"key": REDACTED}


def test_base64_is_found_where_json_escapes_its_signs():
    encoded = base64.b64encode(b"\xff\xff>?" + KEY.encode() + b">>>?").decode()
    assert "+" in encoded
    out = shown(knowing(KEY), json.dumps({"key": encoded}).replace("+", "\\u002B").replace("=", "\\u003D"))
    assert not holds_base64(out.replace("\\u002B", "+"), KEY)
    assert REDACTED in out


@pytest.mark.parametrize("known", ["\n", "\r\n", "\\n"])
@pytest.mark.parametrize("given", ["\n", "\r\n", "\\n", "\\\\n"])
def test_a_key_of_several_lines_is_found_with_other_line_ends(known, given):
    assert shown(knowing(PEM.replace("\n", known)), f"key: {PEM.replace(chr(10), given)}.") == f"key: {REDACTED}."


@pytest.mark.parametrize("begin", ["\\u0041 ", "%5c ", KEY])
def test_a_megabyte_of_backslashes_takes_no_more_than_a_moment(begin):
    began = time.thread_time()
    assert shown(knowing(KEY), begin + "\\" * 1_000_000) == begin.replace(KEY, REDACTED) + "\\" * 1_000_000
    assert time.thread_time() - began < within(2)


def test_two_hundred_secrets_cost_little():
    keys = [base64.b64encode(bytes([n, 255 - n] * 20)).decode() for n in range(200)]
    secrets = knowing(*keys)
    text = "A line of text, def function(arguments): return 12345 % 3, as there are many.\n" * 5_000
    secrets.redact_text(text)
    began = time.thread_time()
    assert secrets.redact_text(text) is text
    without = time.thread_time() - began
    assert secrets.redact_text(text + " ".join(keys)).count(REDACTED) == 200
    assert without < 0.05  # 5 ms; 200 when each position was tried with each of 1,600 clues
    assert time.thread_time() - began < within(1.0)


def test_other_writers_json_is_found():
    secret = "p<a>ss/w&rd/x1"
    php = secret.replace("/", "\\/")
    go = secret.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    assert shown(knowing(secret), f'{{"a":"{php}","b":"{go}"}}') == f'{{"a":"{REDACTED}","b":"{REDACTED}"}}'


@pytest.mark.slow
@given(secret_texts, st.text(max_size=200))
def test_text_without_the_secret_stays_as_it_is(secret, text):
    secrets = knowing(secret)
    if secrets.redact_text(text) != text:
        # Then it was there: undo the encodings that are looked through, and look.
        assert len(text) >= len(secret)
        assert REDACTED in secrets.redact_text(text)
        cut = secrets.redact_text(text).split(REDACTED)
        assert all(piece in text for piece in cut)


@pytest.mark.parametrize(
    "text",
    [
        "sk-proj-7Qx/Zt+4_mN~w0Lk9Pd",  # one character short
        "sk-proj-7qx/Zt+4_mN~w0Lk9PdR",  # another case
        "progress 45% of 7Qx, see %41%42",
        base64.b64encode(b"sk-proj-8Qx/Zt+4_mN~w0Lk9PdR").decode()[:12],
        "a+b c%20d",
        "7Qx/Zt+4",
    ],
)
def test_what_is_only_similar_is_not_cut(text):
    assert shown(knowing(KEY), text) == text


def test_words_shorter_than_eight_characters_are_never_cut():
    secrets = knowing("admin", "secret1", "1234567")
    text = "admin secret1 1234567 " + base64.b64encode(b"secret1").decode() + " %73ecret1"
    assert secrets.redact_text(text) == text


def test_secrets_side_by_side_and_one_in_the_other_leave_nothing():
    secrets = knowing("outer-inner-secret-outer", "inner-secret", KEY)
    assert secrets.redact_text(f"outer-inner-secret-outer{KEY}inner-secret") == REDACTED * 3


def test_a_secret_added_later_is_found_from_then_on():
    secrets = knowing("first-secret-1")
    assert secrets.redact_text("first-secret-1 second-secret-2") == f"{REDACTED} second-secret-2"
    secrets.add("second-secret-2")
    assert secrets.redact_text("first-secret-1 second-secret-2") == f"{REDACTED} {REDACTED}"


@pytest.mark.slow
def test_a_megabyte_of_encoded_text_takes_no_more_than_a_moment():
    secrets = knowing(KEY, PEM, PHRASE)
    text = "%41" * 300_000 + quote(KEY, safe="") + "\n".join(["QUJD" * 19] * 3_000)
    assert secrets.redact_text(text).count(REDACTED) == 1


def test_headers_and_addresses_that_authenticate_are_secrets():
    register_headers({"Authorization": "Bearer header-token-00001", "X-Api-Key": "header-token-00002", "Accept": "header-plain-00003"})
    register_headers({"Proxy-Authorization": "Basic " + base64.b64encode(b"me:header-token-00004").decode()})
    register_url("https://me:p%40ss-word-00005@host/x")
    text = "header-token-00001 header-token-00002 header-plain-00003 header-token-00004 p@ss-word-00005 Bearer"
    assert redact_text(text) == f"{REDACTED} {REDACTED} header-plain-00003 {REDACTED} {REDACTED} Bearer"


def test_a_providers_headers_are_secrets():
    Provider(model="m", extra_create_args={"extra_headers": {"api-key": "provider-header-00006"}})
    assert redact_text("provider-header-00006") == REDACTED


def test_what_is_registered_must_be_text():
    with pytest.raises(TypeError, match="a secret is a str"):
        rath.register_secret(b"bytes-are-no-text")


def test_a_registered_secret_reaches_neither_log_nor_page_in_any_form(tmp_path):
    secret = "registered/Secret+Value~0007"
    rath.register_secret(secret)
    forms = [
        secret,
        quote(secret, safe=""),
        "".join(f"%{byte:02x}" for byte in secret.encode()),
        json.dumps({"key": secret}),
        *(base64.b64encode(("x" * n + secret).encode()).decode() for n in range(3)),
        *(base64.urlsafe_b64encode(("x" * n + secret).encode()).decode().rstrip("=") for n in range(3)),
    ]
    table = ChunkTable(tuple(ChunkRow(ChunkKind.USER, {"content": f"it is {form}"}) for form in forms))
    session = Session(table)
    with SessionWriter(session, path=tmp_path / "a.jsonl") as writer:
        for index, row in enumerate(table):
            writer.write_chunk(index, row)
    for text in ((tmp_path / "a.jsonl").read_text(), session_html(session)):
        assert text.count(REDACTED) >= len(forms)
        assert not holds_base64(text, secret)
        for form in forms:
            assert form not in text
    assert [row.payload["content"] for row in table] == [f"it is {form}" for form in forms]

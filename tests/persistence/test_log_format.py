from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import rath.session.persistence as persistence
from rath.errors import PersistenceError
from rath.session.chunk import ChunkTable, user_text_chunk
from rath.session.persistence import load_session
from rath.session.persistence.format import (
    MAX_DEPTH,
    MAX_ELEMENTS,
    MAX_LINE_BYTES,
    MAX_OTHER_BYTES,
    SEAL_LENGTH,
    BadLine,
    build_line,
    check_line,
    decode_object,
)
from rath.session.persistence.logfile import LogFile
from rath.session.persistence.paths import lock_file
from rath.session.persistence.recordparts import check_payload
from tests.persistence.samples import records, write_sample

PAGE = (Path(__file__).parents[2] / "docs" / "log-format.md").read_text(encoding="utf-8")
EXAMPLE = re.findall(r"```jsonl\n(.*?)```", PAGE, re.DOTALL)[0]
READER = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]


def test_the_pages_example_is_a_complete_log(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(EXAMPLE.encode())
    loaded = load_session("", path=path)
    assert loaded.closed
    assert loaded.chunk_table == ChunkTable((user_text_chunk("Hello\u2028"),))
    assert loaded.chunk_table.digest.hex() == "b7c9b79128ac8491e5b88a751adedb01"
    hashes = [record["h"] for record in records(path)]
    table = re.findall(r"^\| \d \| `([0-9a-f]{16})`.* \| `([0-9a-f]{16})` \|$", PAGE, re.MULTILINE)
    assert table == list(zip(["00112233445566ff", *hashes], hashes, strict=False))


def test_the_pages_arithmetic_is_right() -> None:
    (body,) = re.findall(r"^(.*),\"h\":\"25023f45df66c348\"}$", EXAMPLE, re.MULTILINE)
    text = ("1c836bfebb83c1de" + body).encode()
    assert hashlib.blake2b(text, digest_size=8).hexdigest() == "25023f45df66c348"
    row = rb'{"kind":"user","payload":{"content":"Hello\u2028"}}'
    assert hashlib.blake2b(bytes(16) + row, digest_size=16).hexdigest() == "b7c9b79128ac8491e5b88a751adedb01"


def test_the_pages_reader_reads_the_example_and_what_rath_writes(tmp_path: Path) -> None:
    scope: dict[str, Any] = {}
    exec(READER.replace('open(path, "rb").read()', "path.read_bytes()"), scope)
    path = tmp_path / "a.jsonl"
    path.write_bytes(EXAMPLE.encode())
    assert [r["record_type"] for r in scope["read"](path)] == ["header", "chunk", "trailer"]
    write_sample(tmp_path / "b.jsonl")
    assert scope["read"](tmp_path / "b.jsonl") == records(tmp_path / "b.jsonl")
    path.write_bytes(EXAMPLE.replace("Hello", "hello").encode())
    with pytest.raises(AssertionError):
        scope["read"](path)


def test_the_page_names_every_field_that_is_written_and_the_limits(tmp_path: Path) -> None:
    write_sample(tmp_path / "a.jsonl")
    for record in records(tmp_path / "a.jsonl"):
        for name in (record["record_type"], *record):
            assert f"`{name}`" in PAGE, name
    assert f"{MAX_LINE_BYTES:,} bytes" in PAGE
    assert f"{MAX_OTHER_BYTES:,} bytes" in PAGE
    assert f"{MAX_ELEMENTS:,} of the" in PAGE
    assert f"at most {MAX_DEPTH} deep" in PAGE


def test_a_line_proves_what_stood_before_it() -> None:
    line, h = build_line({"record_type": "usage", "model": "m"}, 3, b"0" * 16)
    assert line.endswith(b',"h":"' + h + b'"}\n')
    assert len(line) - len(line[: line.rindex(b',"h"')]) == SEAL_LENGTH + 1
    assert check_line(line, 3, b"0" * 16) == json.loads(line)
    for seq, previous in ((3, b"1" * 16), (4, b"0" * 16), (3, h)):
        with pytest.raises(BadLine):
            check_line(line, seq, previous)
    for changed in (line.replace(b'"m"', b'"n"'), line[:-2] + b"\n", line.upper(), b"", b"\n", line[1:]):
        with pytest.raises(BadLine):
            check_line(changed, 3, b"0" * 16)


def test_depth_is_bounded_and_brackets_in_text_do_not_count() -> None:
    assert decode_object(b'{"a":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH)
    for opening, closing in ((b'{"a":', b"}"), (b'{"a":[', b"]}")):
        with pytest.raises(BadLine, match="deep"):
            decode_object(opening * (MAX_DEPTH + 1) + b"1" + closing * (MAX_DEPTH + 1))
    text = "[{" * 10_000
    assert decode_object(json.dumps({"a": text}).encode()) == {"a": text}
    wide = {"a": [{} for _ in range(10_000)]}
    assert decode_object(json.dumps(wide).encode()) == wide


def test_the_package_exports_every_documented_name_and_loads_nothing_early() -> None:
    assert persistence.__all__ == sorted(
        [
            "BlobStore", "blob_directory", "collect_blobs",
            "CURRENT_SCHEMA_VERSION", "PersistedSession", "PersistedSessionHeader", "PersistedSessionMeta", "PersistenceError",
            "SESSIONS_DIR_NAME", "SESSION_FILE_SUFFIX", "SESSION_PARTIAL_SUFFIX", "SessionWriter", "delete_session",
            "ensure_sessions_dir", "list_persisted_sessions", "load_session", "prune_sessions", "register_chunk_migration",
            "register_header_migration", "resume_session", "session_file", "session_partial_file", "sessions_dir",
            "LogCollection", "LogEntry", "Salvage", "Verdict", "export_session", "open_dir", "pin_session", "salvage",
            "unpin_session", "verify",
        ]
    )  # fmt: skip
    for name in persistence.__all__:
        assert getattr(persistence, name) is not None
    assert persistence.CURRENT_SCHEMA_VERSION == 2
    assert persistence.PersistenceError is PersistenceError
    code = (
        "import sys, rath.session.persistence\n"
        "assert not [m for m in sys.modules if m.startswith('rath.session.persistence.')]\n"
        "from rath.session.persistence import load_session, SessionWriter, list_persisted_sessions\n"
        "print(sorted({'openai', 'anthropic', 'docker', 'networkx', 'pydantic'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("log", "lock"),
    [
        ("6a1f8f0e-8d5b-4c0e-9d53-0a5d2c9f5a11.jsonl", "6a1f8f0e-8d5b-4c0e-9d53-0a5d2c9f5a11.lock"),
        ("6a1f8f0e-8d5b-4c0e-9d53-0a5d2c9f5a11.jsonl.__partial__", "6a1f8f0e-8d5b-4c0e-9d53-0a5d2c9f5a11.lock"),
        ("6A1F8F0E-8D5B-4C0E-9D53-0A5D2C9F5A11.jsonl", "6A1F8F0E-8D5B-4C0E-9D53-0A5D2C9F5A11.jsonl.lock"),
        ("uv.jsonl", "uv.jsonl.lock"),
        ("a.jsonl.__partial__", "a.jsonl.__partial__.lock"),
        ("a.txt", "a.txt.lock"),
        ("a", "a.lock"),
        (".jsonl", ".jsonl.lock"),
    ],
)
def test_a_lock_stands_beside_its_log(log: str, lock: str) -> None:
    assert lock_file(Path("/x") / log) == Path("/x") / lock


def test_a_log_file_begins_a_chain_of_its_own(tmp_path: Path) -> None:
    files = [LogFile(tmp_path / f"{n}.jsonl") for n in range(2)]
    assert files[0].epoch != files[1].epoch
    assert re.fullmatch("[0-9a-f]{16}", files[0].epoch)
    for file in files:
        file.abandon()


_FRAME = b'{"tool_call_id":"a","name":"b","content":%b}'


@pytest.mark.parametrize(
    ("payload", "good"),
    [
        (_FRAME % b'"text \\n \\u0041"', True),
        (_FRAME % b'"\\ud800"', True),
        (_FRAME % '"ü"'.encode(), True),
        (_FRAME % b'"\xff"', False),
        (_FRAME % b'"\\x"', False),
        (_FRAME % b'"a\nb"', False),
        (_FRAME % (b"9" * 5000), False),
        (_FRAME % (b"[" * 200 + b"]" * 200), False),
        # What stands twice is read twice.
        (_FRAME % (b"9" * 5000 + b',"content":"text"'), False),
        (b'{"tool_call_id":"a","name":"b","content":"text","more":' + b"[" * 200 + b"]" * 200 + b"}", False),
        (b'["text"]', False),
    ],
)
def test_a_results_payload_is_refused_where_decoding_it_is(payload: bytes, good: bool) -> None:
    for check in (check_payload, decode_object):
        if good:
            check(payload)
        else:
            with pytest.raises(BadLine):
                check(payload)

"""Every truncation and every flipped bit of many logs: never another exception, never ``complete``, nothing whole is lost."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import pytest

from rath.errors import PersistenceError
from rath.session.chunk import ChunkRow
from rath.session.persistence import load_session, salvage
from rath.session.persistence.verdict import Verdict, verify_file
from tests.persistence.corpus import LEGACY_SHAPES, SHAPES, make, make_legacy, rows_before

_PATH = Path("log.jsonl")


def verdict_on(data: bytes) -> Verdict | None:
    """``None`` where the file claims to be of a newer version."""
    try:
        return verify_file(io.BytesIO(data), len(data), _PATH)
    except PersistenceError as error:
        assert "newer" in str(error)
        return None


def check_truncations(data: bytes, cuts: Iterable[int]) -> None:
    lines = rows_before(data)
    for size in cuts:
        found = verdict_on(data[:size])
        assert found is not None
        whole = [(end, rows) for end, rows in lines if end <= size]
        assert found.records == len(whole), size
        assert found.rows == (whole[-1][1] if whole else 0), size
        assert found.verdict == ("open" if whole and whole[-1][0] == size else "torn"), size


def check_flips(data: bytes, bits: Iterable[int]) -> None:
    lines = rows_before(data)
    changed = bytearray(data)
    for bit in bits:
        place, mask = bit >> 3, 1 << (bit & 7)
        changed[place] ^= mask
        found = verdict_on(bytes(changed))
        changed[place] ^= mask
        whole = [(end, rows) for end, rows in lines if end <= place]
        if found is None:  # the header claims another version
            assert not whole, bit
            continue
        assert found.verdict in ("torn", "damaged"), bit
        assert (found.records, found.line) == (len(whole), len(whole) + 1), bit
        assert found.rows == (whole[-1][1] if whole else 0), bit


@pytest.mark.parametrize("shape", SHAPES)
def test_a_sample_of_the_changes_of_a_log_is_found_and_what_stands_before_them_kept(shape: str, tmp_path: Path) -> None:
    data = make(shape, tmp_path)
    untouched = verdict_on(data)
    assert untouched is not None
    assert untouched.verdict == ("complete" if b'"record_type":"trailer"' in data.split(b"\n")[-2] else "open")
    assert (len(data), untouched.rows) == rows_before(data)[-1]
    check_truncations(data, [*range(0, len(data), 61), len(data) - 1])
    check_flips(data, [*range(0, len(data) * 8, 397), *range(len(data) * 8 - 40, len(data) * 8)])


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_truncation_and_every_flipped_bit_of_a_log_is_found(shape: str, tmp_path: Path) -> None:
    data = make(shape, tmp_path)
    check_truncations(data, range(len(data)))
    check_flips(data, range(len(data) * 8))


def check_legacy(data: bytes, changes: Iterable[bytes]) -> None:
    """Without a chain a change inside a text is not to be seen; nothing raises, and lines before it count."""
    for changed in changes:
        found = verdict_on(changed)
        if found is None:
            continue
        same = next((i for i, (a, b) in enumerate(zip(data, changed, strict=False)) if a != b), len(changed))
        lines = [line for line in data[:same].split(b"\n")[:-1] if line.strip()]
        assert found.records >= len(lines)


@pytest.mark.parametrize("shape", LEGACY_SHAPES)
def test_a_sample_of_the_changes_of_a_log_of_schema_1(shape: str, tmp_path: Path) -> None:
    data = make_legacy(shape, tmp_path)
    found = verdict_on(data)
    assert found is not None
    assert (found.verdict, found.schema, found.rows) == ("open" if shape == "legacy_open" else "complete", 1, 4)
    check_legacy(data, (data[:size] for size in range(0, len(data), 31)))
    check_legacy(data, (_flipped(data, bit) for bit in range(0, len(data) * 8, 97)))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("shape", LEGACY_SHAPES)
def test_every_truncation_and_every_flipped_bit_of_a_log_of_schema_1(shape: str, tmp_path: Path) -> None:
    data = make_legacy(shape, tmp_path)
    check_legacy(data, (data[:size] for size in range(len(data))))
    check_legacy(data, (_flipped(data, bit) for bit in range(len(data) * 8)))


@pytest.mark.parametrize("shape", ["parallel_tools", "strange_tool", "results_without_rows"])
def test_loading_and_verifying_agree_and_the_salvaged_log_has_every_row(shape: str, tmp_path: Path) -> None:
    data = make(shape, tmp_path)
    path, out = tmp_path / "changed.jsonl", tmp_path / "out.jsonl"
    whole = _rows(data, path)
    for place in range(40, len(data), 211):
        for changed in (data[:place], _flipped(data, place * 8 + 1)):
            path.write_bytes(changed)
            found = verdict_on(changed)
            if found is None or not found.records:
                with pytest.raises(PersistenceError):
                    load_session("", path=path)
                continue
            if found.verdict == "damaged":
                with pytest.raises(PersistenceError):
                    load_session("", path=path)
            else:
                loaded = load_session("", path=path)
                assert (loaded.verdict, list(loaded.chunk_table)) == (found.verdict, whole[: found.rows])
            assert salvage(path, out).result.verdict == "complete"
            assert list(load_session("", path=out).chunk_table) == whole[: found.rows]
            out.unlink()


def _rows(data: bytes, path: Path) -> list[ChunkRow]:
    path.write_bytes(data)
    return list(load_session("", path=path).chunk_table)


def _flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit >> 3] ^= 1 << (bit & 7)
    return bytes(changed)

"""Frames: what is encoded is decoded, and no input does anything but that or a ProtocolError."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rath.backend.guest.frames import (
    MAX_PAYLOAD_BYTES,
    Decoder,
    Frame,
    Kind,
    ProtocolError,
    encode,
    number,
    pack,
    pack_credit,
    unpack,
    unpack_credit,
    unpack_pairs,
)

HEADER_BYTES = 9
OF_CALL = [Kind.GUEST_DATA, Kind.OUT, Kind.ERR, Kind.VALUE, Kind.GUEST_CREDIT, Kind.DONE, Kind.FAIL]
frames = st.builds(Frame, st.integers(1, 2**32 - 1), st.sampled_from(OF_CALL), st.binary(max_size=300))


def in_pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted(cut % (len(data) + 1) for cut in cuts)
    return [data[start:end] for start, end in zip([0, *at], [*at, len(data)], strict=True)]


@pytest.mark.slow
@given(st.lists(frames, max_size=8), st.lists(st.integers(0), max_size=8))
def test_frames_arrive_whole_however_the_bytes_are_cut(sent: list[Frame], cuts: list[int]) -> None:
    decoder = Decoder()
    wire = b"".join(encode(frame.kind, frame.call, frame.payload) for frame in sent)
    arrived = [frame for piece in in_pieces(wire, cuts) for frame in decoder.feed(piece)]
    assert arrived == sent
    assert decoder.pending_bytes == 0


@given(st.lists(st.binary(max_size=64), max_size=20))
def test_no_bytes_raise_anything_but_a_protocol_error_or_are_kept_beyond_one_frame(pieces: list[bytes]) -> None:
    decoder = Decoder()
    for piece in pieces:
        with contextlib.suppress(ProtocolError):
            for frame in decoder.feed(piece):
                assert len(frame.payload) <= MAX_PAYLOAD_BYTES
        assert decoder.pending_bytes < HEADER_BYTES + MAX_PAYLOAD_BYTES


@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 255),
    st.binary(max_size=50),
)
def test_a_header_is_judged_before_anything_is_kept(size: int, call: int, kind: int, rest: bytes) -> None:
    decoder = Decoder()
    known = kind in (OF_CALL if call else [Kind.HELLO, Kind.READY, Kind.LOG])
    header = struct.pack(">IIB", size, call, kind)
    if size > MAX_PAYLOAD_BYTES or not known:
        for _ in range(2):  # and no second chance
            with pytest.raises(ProtocolError):
                list(decoder.feed(header + rest))
            assert decoder.pending_bytes == 0
    else:
        assert list(decoder.feed(header + rest)) == ([Frame(call, kind, rest[:size])] if len(rest) == size else []) or (
            len(rest) > size
        )


def test_a_frame_of_the_largest_size_passes_and_one_byte_more_does_not() -> None:
    largest = encode(Kind.DONE, 7, bytes(MAX_PAYLOAD_BYTES))
    assert list(Decoder().feed(largest)) == [Frame(7, Kind.DONE, bytes(MAX_PAYLOAD_BYTES))]
    with pytest.raises(ProtocolError, match="262,145"):
        list(Decoder().feed(encode(Kind.DONE, 7, bytes(MAX_PAYLOAD_BYTES + 1))))


def test_what_is_cut_off_is_told_by_what_is_pending() -> None:
    decoder = Decoder()
    assert list(decoder.feed(encode(Kind.DONE, 1, b"four")[:-1])) == []
    assert decoder.pending_bytes == HEADER_BYTES + 3


@given(st.lists(st.binary(max_size=100), max_size=10))
def test_fields_are_unpacked_as_they_were_packed(fields: list[bytes]) -> None:
    assert unpack(pack(fields)) == fields


@given(st.binary(max_size=200))
def test_no_payload_raises_anything_but_a_protocol_error(payload: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        assert pack(unpack(payload)) == payload
    with contextlib.suppress(ProtocolError):
        unpack_pairs(payload)
    with contextlib.suppress(ProtocolError):
        assert pack_credit(unpack_credit(payload)) == payload


@given(st.integers(-(2**70), 2**70))
def test_a_number_is_itself_or_out_of_bounds(value: int) -> None:
    if 0 <= value <= 1 << 62:
        assert number(b"%d" % value) == value
    else:
        with pytest.raises(ProtocolError):
            number(b"%d" % value)


@pytest.mark.parametrize("field", [b"", b"-", b"--1", b"1.5", b"+1", b" 1", b"1_000", b"\xb2", "١".encode(), b"9" * 5_000])
def test_what_only_looks_like_a_number_is_refused(field: bytes) -> None:
    with pytest.raises(ProtocolError):
        number(field, minimum=-10)

"""The engine's framing comes off in pieces of any size, and what is no framing of the engine's is refused."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rath.backend.docker.carrier import DIAGNOSTICS_BYTES, Demultiplexer, OutputOnly
from rath.backend.guest.frames import ProtocolError


def frame(kind: int, data: bytes) -> bytes:
    return struct.pack(">BxxxI", kind, len(data)) + data


@given(st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=50))), st.lists(st.integers(0, 400)))
def test_streams_come_apart_wherever_they_are_cut(pieces: list[tuple[int, bytes]], cuts: list[int]) -> None:
    whole = b"".join(frame(kind, data) for kind, data in pieces)
    edges = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    streams = Demultiplexer()
    found = {1: b"", 2: b""}
    for start, end in itertools.pairwise(edges):
        for kind, data in streams.feed(whole[start:end]):
            found[kind] += data
    assert found == {kind: b"".join(data for k, data in pieces if k == kind) for kind in (1, 2)}


@pytest.mark.parametrize("data", [b"HTTP/1.1 400 Bad Request\r\n", b"\x03\0\0\0\0\0\0\1x", b"\x01\0\0\1\0\0\0\1x"])
def test_what_is_no_stream_of_the_engines_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(Demultiplexer().feed(data))


def test_diagnostics_are_kept_apart_and_bounded() -> None:
    output = OutputOnly()
    assert output(frame(1, b"a") + frame(2, b"oh no\n") + frame(1, b"b")) == b"ab"
    assert output.said == "oh no"
    output(frame(2, b"x" * (2 * DIAGNOSTICS_BYTES) + b"end"))
    assert len(output.diagnostics) == DIAGNOSTICS_BYTES
    assert output.said.endswith("end")

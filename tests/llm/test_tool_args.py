"""Arguments as models write them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rath.llm.tool_args import distinct_call_ids, parse_tool_arguments

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_values, max_size=4), st.booleans())
def test_an_object_is_read_as_it_was_written(arguments: dict[str, object], ascii_only: bool):
    assert parse_tool_arguments(json.dumps(arguments, ensure_ascii=ascii_only)) == (arguments, False)


@given(st.text())
def test_any_text_is_read_or_refused_and_nothing_is_raised(text: str):
    parsed, wrong = parse_tool_arguments(text)
    assert wrong is (parsed is None)


@pytest.mark.parametrize("nothing", [None, "", " ", "\n\t"])
def test_no_text_means_no_arguments(nothing: str | None):
    assert parse_tool_arguments(nothing) == ({}, False)


@pytest.mark.parametrize("text", ["[]", "null", "3", '"x"', "true", "{", "{'a': 1}", "{}{}", "[" * 100_000])
def test_what_is_no_object_is_an_error(text: str):
    assert parse_tool_arguments(text) == (None, True)


def test_what_python_reads_is_read():
    assert parse_tool_arguments('{"a": "\\ud83d"}') == ({"a": "\ud83d"}, False)
    assert parse_tool_arguments('{"a": "\udc80"}') == ({"a": "\udc80"}, False)
    assert parse_tool_arguments('{"a": Infinity}') == ({"a": float("inf")}, False)


@given(st.lists(st.none() | st.sampled_from(["", "a", "b"]), max_size=6))
def test_ids_become_distinct_and_good_ones_stay(ids: list[str | None]):
    made = distinct_call_ids(ids)
    assert len(set(made)) == len(ids)
    for place, call_id in enumerate(ids):
        if call_id and call_id not in ids[:place]:
            assert made[place] == call_id

"""Results of tools as JSON text for the model."""

from __future__ import annotations

import collections
import enum
import hashlib
import json
import math
import re
import timeit
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from rath.backend.types import (
    CodeResult,
    CommandResult,
    FileContent,
    FileEntries,
    FileEntry,
    FileWriteResult,
    ToolExecutionFailure,
)
from rath.core.redact import redact_text, register_secret
from rath.errors import PersistenceError, SandboxError, ToolError
from rath.runtime.cutting import cut, cut_and_whole
from rath.runtime.dumping import dump_any
from rath.runtime.results import Encoded, begin_error, begin_result, encode_result, failure_payload, is_failure


def shown(raw: Any) -> Any:
    """What a strict reader sees: the text must survive UTF-8 and hold no NaN."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(encode_result(raw).body.encode("utf-8"), parse_constant=refuse)


def told(error: Exception) -> Any:
    begun = begin_error(error)
    return json.loads((begun if isinstance(begun, Encoded) else begun.encode()).body)


def test_a_bool_is_an_object_with_ok() -> None:
    assert encode_result(True) == ('{"ok":true}', True, ())
    assert shown(False) == {"ok": False}


def test_a_false_answer_is_not_a_failure_of_the_tool() -> None:
    encoded = encode_result(False)
    assert encoded.ok
    assert not is_failure(encoded.body)


def test_a_command_shows_exit_code_output_and_time() -> None:
    assert shown(CommandResult(2, b"out\n", "grün".encode(), 1.5)) == {
        "exit_code": 2,
        "stdout": "out\n",
        "stderr": "grün",
        "elapsed_ms": 1.5,
    }


def test_a_command_says_when_it_timed_out_and_how_much_it_really_wrote() -> None:
    result = CommandResult(
        137, b"head", b"", 9.0, stdout_bytes=10**9, stderr_bytes=0, truncated=True, timed_out=True
    )
    assert shown(result) | {"elapsed_ms": 0} == {
        "exit_code": 137,
        "stdout": "head",
        "stderr": "",
        "elapsed_ms": 0,
        "timed_out": True,
        "truncated": True,
        "stdout_bytes": 10**9,
        "stderr_bytes": 0,
    }


def test_a_command_says_when_the_sandbox_ran_out_of_memory() -> None:
    assert shown(CommandResult(137, b"", b"", 9.0, oom_killed=True))["out_of_memory"] is True
    assert "out_of_memory" not in shown(CommandResult(137, b"", b"", 9.0))


def test_code_says_how_many_figures_it_drew_and_when_its_state_is_gone() -> None:
    fields = shown(CodeResult(None, b"", b"", None, figures=(b"png", b"png"), restarted=True))
    assert (fields["figures"], fields["state_lost"]) == (2, True)


def test_each_output_of_a_command_is_cut_on_its_own_and_keeps_head_and_tail() -> None:
    fields = shown(CommandResult(0, b"a" + b"x" * 100_000 + b"z", b"y" * 48_000, 1.0))
    assert 47_990 < len(fields["stdout"]) <= 48_000
    assert fields["stdout"].startswith("ax")
    assert fields["stdout"].endswith("xz")
    assert fields["stderr"] == "y" * 48_000


def test_output_that_is_not_utf8_is_shown_all_the_same() -> None:
    assert "ok" in shown(CommandResult(0, b"\xff\xfe ok", b"", 1.0))["stdout"]


def test_a_file_is_cut_at_12000_characters() -> None:
    text = shown(FileContent("é" * 20_000))["data"]
    assert 11_990 < len(text) <= 12_000
    assert "characters left out" in text
    assert shown(FileContent(b"bytes"))["data"] == "bytes"
    assert shown(FileContent("é" * 12_000))["data"] == "é" * 12_000


def test_a_long_directory_shows_500_entries_and_says_how_many_more() -> None:
    entries = tuple(FileEntry(f"f{i}", f"d/f{i}", i % 2 == 0) for i in range(503))
    fields = shown(FileEntries(entries))
    assert len(fields["entries"]) == 500
    assert fields["entries"][1] == {"name": "f1", "path": "d/f1", "is_dir": False}
    assert fields["left_out"] == 3
    assert "left_out" not in shown(FileEntries(entries[:500]))


def test_writes_and_code_have_their_fields() -> None:
    assert shown(FileWriteResult(7)) == {"bytes_written": 7}
    assert shown(CodeResult(None, b"1\n", b"", "Boom")) == {
        "text": None,
        "stdout": "1\n",
        "stderr": "",
        "error": "Boom",
    }


def test_a_failure_of_the_sandbox_is_a_failure() -> None:
    encoded = encode_result(ToolExecutionFailure("file_not_found", "no file a.txt", None))
    assert not encoded.ok
    assert is_failure(encoded.body)
    assert json.loads(encoded.body) == {
        "ok": False,
        "error_kind": "file_not_found",
        "message": "no file a.txt",
        "detail": None,
    }


def test_the_detail_of_a_failure_is_cut_at_4000_characters() -> None:
    assert 3_990 < len(json.loads(failure_payload("k", "m", "d" * 10_000))["detail"]) <= 4_000


class Point(BaseModel):
    x: int
    when: datetime = datetime(2024, 1, 2)


def test_a_pydantic_model_is_its_own_json_also_inside_of_others() -> None:
    assert shown(Point(x=1)) == {"x": 1, "when": "2024-01-02T00:00:00"}
    assert shown([Point(x=2)]) == [{"x": 2, "when": "2024-01-02T00:00:00"}]


class Colour(str, enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (None, None),
        ("text", "text"),
        (3, 3),
        ([1, "ä"], [1, "ä"]),
        ({"a": (1, 2)}, {"a": [1, 2]}),
        (Path("a/b"), "a/b"),
        (Colour.RED, "red"),
        ({"when": datetime(2024, 1, 2)}, {"when": "2024-01-02 00:00:00"}),
    ],
)
def test_anything_else_is_json_with_str_for_what_json_has_not(raw: Any, expected: Any) -> None:
    assert shown(raw) == expected


def test_other_scripts_stay_characters() -> None:
    assert encode_result({"ü": "日本"}).body == '{"ü":"日本"}'


def test_numbers_that_json_has_not_are_words() -> None:
    assert shown([math.nan, {"x": math.inf}, -math.inf, 1.5]) == ["NaN", {"x": "Infinity"}, "-Infinity", 1.5]


def test_what_cannot_be_json_is_shown_by_repr_and_type() -> None:
    assert shown({(1, 2): 3}) == {"repr": "{(1, 2): 3}", "type": "builtins.dict"}
    circular: list[Any] = []
    circular.append(circular)
    assert shown(circular) == {"repr": "[[...]]", "type": "builtins.list"}


def test_addresses_in_memory_are_not_shown() -> None:
    assert shown({"f": object()}) == {"f": "<object object>"}
    assert "0x" not in encode_result({(1,): object()}).body
    assert "0x" not in str(told(ValueError(f"bad {object()!r}")))
    assert "at 0x7f00" in failure_payload("k", "segfault at 0x7f00")


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no")


class HostileModel:
    def model_dump(self, mode: str = "python") -> Any:
        raise KeyError("no")


def test_an_object_whose_own_methods_fail_is_still_shown() -> None:
    assert shown(Hostile())["repr"] == "<Hostile, whose repr failed>"
    assert "HostileModel" in shown([HostileModel()])["repr"]


def test_nesting_without_end_is_shown() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert set(shown(deep)) == {"repr", "type"}


def test_a_result_with_other_types_than_promised_is_shown() -> None:
    assert shown(FileEntries(None))["type"].endswith("FileEntries")  # type: ignore[arg-type]


def test_a_result_that_is_too_long_is_cut_inside_valid_json() -> None:
    fields = shown({"rows": ['"'] * 50_000})
    assert fields["truncated"] is True
    assert fields["characters"] > 200_000
    assert 47_990 < len(fields["text"]) <= 48_000
    assert fields["text"].startswith('{"rows":["')
    assert fields["text"].endswith('"]}')


def test_a_long_text_is_cut_before_it_is_quoted() -> None:
    fields = shown("\n" * 48_001)
    assert fields["characters"] == 48_001
    assert set(fields["text"].partition("…")[0]) == {"\n"}
    assert shown("\n" * 48_000) == "\n" * 48_000


def test_lone_surrogates_become_escapes_and_come_back() -> None:
    assert shown({"a": "\ud800é", "b": ["\udfff"]}) == {"a": "\ud800é", "b": ["\udfff"]}
    assert shown(FileContent("\udc80")) == {"data": "\udc80"}
    assert "é" in encode_result("\ud800é").body


@given(st.text("abé\n", min_size=1), st.integers(min_value=60, max_value=400))
def test_a_cut_keeps_the_limit_the_ends_and_the_count(piece: str, limit: int) -> None:
    text = piece * 500
    result = cut(text, limit)
    assert len(result) <= limit
    found = re.fullmatch(r"(.*)…\[([\d,]+) characters left out\]…(.*)", result, re.DOTALL)
    if len(text) <= limit:
        assert result == text
        return
    assert found is not None
    head, count, tail = found.groups()
    assert text.startswith(head)
    assert text.endswith(tail)
    assert int(count.replace(",", "")) == len(text) - len(head) - len(tail)


def test_the_marker_says_how_much_is_missing() -> None:
    assert cut("x" * 20_000, 7_685).count("…[12,345 characters left out]…") == 1


# -- what was cut is kept whole ------------------------------------------------------------------------------------------


def kept(raw: Any) -> tuple[Any, dict[str, str]]:
    """What the model sees, and the texts that were kept, by digest. What is said of them is checked."""
    texts: dict[str, bytes] = {}
    encoded = encode_result(raw, texts.__setitem__)
    assert sorted(encoded.spills) == sorted((digest, len(data)) for digest, data in texts.items())
    assert all(hashlib.sha256(data).hexdigest() == digest for digest, data in texts.items())
    fields = json.loads(encoded.body.encode("utf-8"))
    return fields, {digest: data.decode("utf-8", "surrogatepass") for digest, data in texts.items()}


LONG = "".join(f"{number:06}\n" for number in range(10_000))


@pytest.mark.parametrize(
    ("raw", "names"),
    [
        (CommandResult(0, LONG.encode(), b"short", 1.0), ["stdout"]),
        (CommandResult(0, LONG.encode(), (LONG + "e").encode(), 1.0), ["stdout", "stderr"]),
        (FileContent(LONG), ["data"]),
        (FileContent(LONG.encode()), ["data"]),
        (CodeResult(LONG, LONG.encode() + b"o", b"", LONG + "x"), ["text", "stdout", "error"]),
        (ToolExecutionFailure("command_failed", "m", LONG), ["detail"]),
    ],
)
def test_each_field_that_was_cut_names_its_whole_text(raw: Any, names: list[str]) -> None:
    fields, texts = kept(raw)
    assert list(fields["whole"]) == names
    assert len(texts) == len(names)
    for name in names:
        value = getattr(raw, name)
        assert texts[fields["whole"][name]] == (value.decode() if isinstance(value, bytes) else value)
        assert "characters left out; read on with result_read" in fields[name]


def test_one_text_names_its_whole_by_the_digest_alone() -> None:
    for raw in (LONG, [LONG], {"a": LONG}):
        fields, texts = kept(raw)
        (text,) = texts.values()
        assert texts[fields["whole"]] == text == (raw if isinstance(raw, str) else json.dumps(raw, separators=(",", ":")))
        assert fields["characters"] == len(text)


def test_a_long_directory_is_kept_as_lines_of_json() -> None:
    entries = tuple(FileEntry(f"f{i}", f"d/f{i}", False) for i in range(502))
    fields, texts = kept(FileEntries(entries))
    lines = [json.loads(line) for line in texts[fields["whole"]["entries"]].splitlines()]
    assert [line["path"] for line in lines] == [entry.path for entry in entries]
    assert lines[:500] == fields["entries"]


def test_what_a_failed_tool_says_at_length_is_kept_too() -> None:
    texts: dict[str, bytes] = {}
    begun = begin_error(ToolError("no", kind="k", detail=LONG))
    assert not isinstance(begun, Encoded)  # left for a thread
    encoded = begun.encode(texts.__setitem__)
    assert is_failure(encoded.body)
    assert not encoded.ok
    assert texts[json.loads(encoded.body)["whole"]["detail"]] == LONG.encode()


def test_what_is_not_cut_is_not_kept_and_not_left_for_later() -> None:
    for raw in (True, None, "x" * 48_000, FileContent("x" * 12_000), CommandResult(0, b"x" * 48_000, b"", 1.0)):
        assert isinstance(begin_result(raw), Encoded)
        assert kept(raw)[1] == {}
        assert "whole" not in encode_result(raw).body


def test_bytes_that_are_fewer_characters_are_not_cut() -> None:
    fields, texts = kept(CommandResult(0, "é".encode() * 48_000, b"", 1.0))
    assert fields["stdout"] == "é" * 48_000
    assert texts == {}


@pytest.mark.parametrize("raw", ["\ud800" + LONG, FileContent("\udfff" * 20_000), CommandResult(0, b"\xff\xfe\0" * 30_000, b"", 1.0)])
def test_no_text_is_too_odd_to_be_kept(raw: Any) -> None:
    fields, texts = kept(raw)
    assert len(texts) == 1
    assert fields["whole"]


def test_what_keeping_raises_goes_through() -> None:
    def full(digest: str, data: bytes) -> None:
        raise PersistenceError("the disk is full")

    with pytest.raises(PersistenceError):
        encode_result(LONG, full)


def test_a_long_result_with_other_types_than_promised_is_shown_too() -> None:
    assert "repr" in shown(CommandResult(math.nan, LONG.encode(), b"", 1.0))  # type: ignore[arg-type]
    assert shown(FileContent([0] * 20_000))["type"].endswith("FileContent")  # type: ignore[arg-type]


@given(
    st.lists(st.sampled_from(["a", "é😀", "s3cret-of-the-cut-test"]), min_size=1, max_size=120),
    st.integers(min_value=130, max_value=400),
)
def test_what_is_shown_redacted_is_the_kept_text_around_the_marker(pieces: list[str], limit: int) -> None:
    register_secret("s3cret-of-the-cut-test")
    text = "".join(pieces) + "a" * limit
    shown, whole = cut_and_whole(text, limit)
    kept = whole.data.decode()
    assert kept == redact_text(text)
    assert (len(kept), hashlib.sha256(whole.data).hexdigest()) == (whole.characters, whole.digest)
    assert len(shown) <= limit
    found = re.fullmatch(r"(.*)…\[([\d,]+) characters .*offset (\d+)\]…(.*)", redact_text(shown), re.DOTALL)
    assert found is not None
    head, missing, offset, tail = found.groups()
    assert int(offset) == len(head)
    assert kept == head + kept[len(head) : len(head) + int(missing.replace(",", ""))] + tail


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()))
    | st.binary()
    | st.datetimes()
    | st.uuids()
    | st.complex_numbers()
    | st.decimals()
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers() | st.floats() | st.tuples(st.integers()), inner)
        | st.frozensets(st.integers() | st.text())
    ),
    max_leaves=20,
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(ANYTHING)
def test_whatever_a_tool_returns_becomes_valid_json(raw: Any) -> None:
    shown(raw)


@given(
    st.text(st.characters(exclude_categories=())), st.none() | st.text(st.characters(exclude_categories=()))
)
def test_every_failure_is_valid_json(message: str, detail: str | None) -> None:
    payload = failure_payload("kind", message, detail)
    fields = json.loads(payload.encode())
    assert fields["ok"] is False
    assert is_failure(payload)


JSON = st.recursive(
    st.none() | st.integers() | st.text() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON.filter(lambda value: not isinstance(value, bool)))
def test_what_is_json_already_comes_through_unchanged(raw: Any) -> None:
    assert shown(raw) == raw


def test_an_exception_is_told_by_its_message_and_its_type() -> None:
    assert told(KeyError("x")) == {
        "ok": False,
        "error_kind": "tool_execution_exception",
        "message": "KeyError: 'x'",
        "detail": "KeyError",
    }


def test_an_exception_without_a_message_is_told_by_its_type() -> None:
    assert told(TimeoutError())["message"] == "TimeoutError"


def test_a_tool_error_has_the_kind_and_detail_that_it_names() -> None:
    fields = told(ToolError("quota is used up", kind="quota", detail="3 of 3"))
    assert (fields["error_kind"], fields["message"], fields["detail"]) == (
        "quota",
        "quota is used up",
        "3 of 3",
    )


def test_an_exception_that_cannot_say_what_it_is_is_told_too() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise SandboxError("no")

    assert "Mute" in told(Mute())["message"]


def test_small_results_cost_little_more_than_their_json() -> None:
    raw = {"ok": True, "count": 3, "name": "x"}

    def best_s(encode: Callable[[Any], Any]) -> float:
        return min(timeit.repeat(lambda: encode(raw), number=100, repeat=30))

    # json.dumps makes an encoder a call, as the engine must not.
    plain = best_s(lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    assert best_s(encode_result) < 2 * plain


# -- large plain data --------------------------------------------------------------------------------------------------


LARGE: dict[str, Any] = {"rows": [{"id": number, 7: [None, True, 0.5], "é": ("x",)} for number in range(5_000)], "end": {}}


@pytest.mark.parametrize("raw", [LARGE, {"set": {1}}, ["x" * 60_000], collections.OrderedDict(a=1)])
def test_what_may_take_long_to_dump_is_left_for_a_thread(raw: Any) -> None:
    assert not isinstance(begin_result(raw), Encoded)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.just("long" * 200),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3) | st.integers() | st.none(), inner),
        max_leaves=6,
    )
)
@settings(max_examples=30, deadline=None)
def test_a_value_that_is_dumped_in_pieces_is_the_same_json(item: Any) -> None:
    raw = {"list": [item] * 130, 5: {number: item for number in range(65)}, "text": "x" * 60_000, "tuple": (item, [])}
    assert dump_any(raw, small=False) == json.dumps(raw, ensure_ascii=False, separators=(",", ":"))


def test_large_plain_data_is_cut_and_kept_whole() -> None:
    fields, texts = kept(LARGE)
    assert json.loads(texts[fields["whole"]]) == json.loads(json.dumps(LARGE))


def test_a_large_value_that_is_no_json_is_shown_all_the_same() -> None:
    circular: list[Any] = ["x" * 60_000]
    circular.append(circular)
    assert kept({"a": circular})[0]["type"] == "builtins.dict"
    deep: Any = "x" * 60_000
    for _ in range(5_000):
        deep = [deep]
    assert kept(deep)[0]["type"] == "builtins.list"
    fields, texts = kept([math.nan] * 20_000)
    assert json.loads(texts[fields["whole"]]) == ["NaN"] * 20_000


def test_an_error_of_many_addresses_is_left_for_a_thread_and_shows_none() -> None:
    begun = begin_error(RuntimeError("<f at 0x7f52c0>," * 5_000))
    assert not isinstance(begun, Encoded)
    assert "0x7f" not in begun.encode().body

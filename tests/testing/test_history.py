"""The strict checker of histories: it takes what providers take, and names what they refuse."""

from __future__ import annotations

from typing import Any

import pytest

from rath.session.chunk import ChunkRow, ChunkTable, assistant_turn_chunk, system_text_chunk, user_text_chunk
from rath.session.session import Session
from rath.testing import anthropic_faults, check_history, history_faults, openai_faults
from tests.persistence.samples import assistant, result, rows

GO = user_text_chunk("go")


@pytest.mark.parametrize("length", [1, 4, 5])
def test_whole_rounds_are_accepted(length: int) -> None:
    check_history(ChunkTable(tuple(rows()[:length])))
    check_history(Session(ChunkTable((system_text_chunk("x"), *rows()[:length]))))


REFUSED: dict[str, tuple[list[ChunkRow], str]] = {
    "nothing": ([], "no messages"),
    "a call without a result": ([GO, assistant("a")], "'a'. have no result"),
    "one of two calls without a result": ([GO, assistant("a", "b"), result("b")], "'a'. have no result"),
    "an orphan": ([GO, result("a")], "which no call directly before is waiting for"),
    "an orphan after a round": ([GO, assistant("a"), result("a"), GO, result("a")], "which no call directly before"),
    "two results": ([GO, assistant("a"), result("a"), result("a")], "which no call directly before"),
    "another call's result": ([GO, assistant("a"), result("b")], "for 'b'"),
    "a result too late": ([GO, assistant("a"), GO, result("a")], "user speaks while"),
    "two calls of one id": ([GO, assistant("a", "a"), result("a"), result("a")], "two tool calls of one id"),
    "an assistant first": ([assistant(text="hello")], "the first is the user's"),
}


@pytest.mark.parametrize(("table", "fault"), REFUSED.values(), ids=REFUSED)
def test_what_a_provider_refuses_is_named(table: list[ChunkRow], fault: str) -> None:
    with pytest.raises(AssertionError, match="a provider would refuse this history") as caught:
        check_history(ChunkTable(tuple(table)))
    assert fault in str(caught.value).replace("[", "").replace("]", ".")


CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
USER: dict[str, Any] = {"role": "user", "content": "go"}
ANSWER: dict[str, Any] = {"role": "tool", "tool_call_id": "a", "content": "1"}


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ([{"role": "robot", "content": "x"}], "no role"),
        ([{"role": "user", "content": None}], "says nothing"),
        ([USER, {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "a b", "arguments": ""}}]}], "no function's name"),
        ([USER, {"role": "user", "content": "x", "tool_calls": [CALL]}, ANSWER], "only an assistant"),
        ([USER, {"role": "assistant", "content": "x", "tool_calls": []}], "empty"),
        ([USER, {"role": "assistant", "content": None, "tool_calls": [{**CALL, "id": ""}]}], "without an id"),
        ([USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]}], "that is none"),
        (
            [USER, {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": {}}}]}, ANSWER],
            "arguments are no text",
        ),
        ([USER, {"role": "assistant", "tool_calls": [CALL]}, {**ANSWER, "content": None}], "content is no text"),
    ],
)
def test_openai_messages_on_the_wire(messages: list[dict[str, Any]], fault: str) -> None:
    assert any(fault in found for found in openai_faults(messages))
    assert openai_faults([USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, ANSWER]) == []


USE = {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]}
RESULT = {"type": "tool_result", "tool_use_id": "a", "content": "1"}
TEXT = {"type": "text", "text": "x"}


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ([{"role": "system", "content": "x"}], "no role"),
        ([USER, {"role": "assistant", "content": []}], "is empty"),
        ([USER, {"role": "assistant", "content": [{"type": "text", "text": " "}]}], "an empty text"),
        ([USER, USE, {"role": "user", "content": [TEXT, RESULT]}], "first words"),
        ([USER, USE, {"role": "user", "content": [RESULT, RESULT]}], "results for ['a', 'a']"),
        ([USER, USE, USER], "results for []"),
        ([USER, {"role": "user", "content": [{**USE["content"][0], "id": "a b"}]}], "tool_use 'a b'"),  # type: ignore[dict-item]
        ([USER, USE], "have no result"),
        ([USER, USE, {"role": "user", "content": [RESULT]}, USE], "a second tool_use of id 'a'"),
        ([USER, {"role": "assistant", "content": [{**USE["content"][0], "name": "no name"}]}], "no tool's name"),  # type: ignore[dict-item]
    ],
)
def test_anthropic_messages_on_the_wire(messages: list[dict[str, Any]], fault: str) -> None:
    assert any(fault in found for found in anthropic_faults(messages))
    assert anthropic_faults([USER, USE, {"role": "user", "content": [RESULT, TEXT]}]) == []


def test_faults_say_whose_rule_and_which_message() -> None:
    table = ChunkTable((GO, assistant_turn_chunk(tool_calls=None, content="x"), result("a")))
    faults = history_faults(table)
    assert any(fault.startswith("OpenAI: message 2: a result for 'a'") for fault in faults)
    assert any(fault.startswith("Anthropic: message 2:") for fault in faults)

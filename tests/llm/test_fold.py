"""Folding a stream gives the message that came, however it was cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rath.llm.fold import DeltaFold, fold_deltas, response_deltas
from rath.llm.tool_args import tool_call_part
from rath.llm.types import (
    RathLLMAssistantMessage,
    RathLLMChatChoice,
    RathLLMChatResponse,
    RathLLMTokenUsage,
)
from rath.llm.types import RathLLMStreamDelta as Delta


def calls(*deltas: Delta) -> list[tuple[str, str, str]]:
    made = fold_deltas(deltas).primary_choice.message.tool_calls or ()
    return [(call.id, call.function.name, call.function.arguments) for call in made]


texts = st.text(max_size=30)
some_text = st.text(min_size=1, max_size=30)


@st.composite
def responses(draw: st.DrawFn) -> RathLLMChatResponse:
    ids = draw(st.lists(some_text, unique=True, max_size=4))
    made = tuple(tool_call_part(call_id, draw(texts), draw(texts)) for call_id in ids) or None
    message = RathLLMAssistantMessage(
        content=draw(st.none() | some_text), reasoning_content=draw(st.none() | some_text), tool_calls=made
    )
    finish = draw(st.sampled_from(["stop", "length", "tool_calls", "content_filter"]))
    usage = draw(st.none() | st.builds(RathLLMTokenUsage, st.integers(0), st.integers(0), st.integers(0)))
    return RathLLMChatResponse("", (RathLLMChatChoice(0, finish, message),), 0, "m", usage=usage)


@given(responses(), st.integers(1, 7) | st.none())
def test_cutting_a_reply_up_and_folding_it_gives_it_back(response: RathLLMChatResponse, size: int | None):
    assert fold_deltas(response_deltas(response, size), "m") == response


@given(responses(), st.randoms(use_true_random=False))
def test_calls_may_be_interleaved_as_they_like(response: RathLLMChatResponse, random: object):
    deltas = list(response_deltas(response, 2))
    lanes: dict[int | None, list[Delta]] = {}
    for delta in deltas:
        lanes.setdefault(delta.tool_call_index, []).append(delta)
    mixed = []
    while any(lanes.values()):
        lane = random.choice([lane for lane in lanes.values() if lane])  # type: ignore[attr-defined]
        mixed.append(lane.pop(0))
    assert fold_deltas(mixed, "m") == response


@given(responses())
def test_the_response_may_be_asked_for_at_any_time(response: RathLLMChatResponse):
    fold = DeltaFold()
    for delta in response_deltas(response, 3):
        fold.response("m")
        fold.add(delta)
    assert fold.response("m") == response


def test_a_later_id_takes_the_earlier_ones_place_and_names_and_arguments_grow():
    assert calls(
        Delta(tool_call_index=0, tool_call_id="a", tool_call_name_delta="lo", tool_call_args_delta='{"x'),
        Delta(tool_call_index=0, tool_call_id="b", tool_call_name_delta="ok", tool_call_args_delta='": 1}'),
    ) == [("b", "look", '{"x": 1}')]


def test_a_first_fragment_without_index_opens_the_first_call():
    assert calls(
        Delta(tool_call_id="a", tool_call_name_delta="f"), Delta(tool_call_index=0, tool_call_args_delta="{}")
    ) == [("a", "f", "{}")]


def test_fragments_without_index_go_by_their_id():
    assert calls(
        Delta(tool_call_id="a", tool_call_name_delta="f"),
        Delta(tool_call_id="b", tool_call_name_delta="g"),
        Delta(tool_call_id="a", tool_call_args_delta="1"),
        Delta(tool_call_id="b", tool_call_args_delta="2"),
    ) == [("a", "f", "1"), ("b", "g", "2")]


def test_fragments_without_index_and_id_go_to_the_last_open_call():
    assert calls(
        Delta(tool_call_index=0, tool_call_id="a", tool_call_name_delta="f"),
        Delta(tool_call_index=2, tool_call_id="c", tool_call_name_delta="h"),
        Delta(tool_call_index=1, tool_call_id="b", tool_call_name_delta="g"),
        Delta(tool_call_args_delta="{}"),
    ) == [("a", "f", ""), ("b", "g", "{}"), ("c", "h", "")]


def test_ids_that_are_missing_or_the_same_are_made_distinct():
    made = calls(
        Delta(tool_call_index=0, tool_call_name_delta="f"),
        Delta(tool_call_index=1, tool_call_id="x", tool_call_name_delta="g"),
        Delta(tool_call_index=2, tool_call_id="x", tool_call_name_delta="h"),
    )
    assert [name for _, name, _ in made] == ["f", "g", "h"]
    assert made[1][0] == "x"
    assert len({call_id for call_id, _, _ in made if call_id}) == 3


def test_a_missing_finish_reason_is_told_by_the_calls():
    assert fold_deltas([Delta(content_delta="x")]).primary_choice.finish_reason == "stop"
    assert fold_deltas([Delta(tool_call_index=0)]).primary_choice.finish_reason == "tool_calls"


def test_the_last_usage_and_finish_reason_count():
    first, last = RathLLMTokenUsage(1, 1, 2), RathLLMTokenUsage(1, 5, 6)
    response = fold_deltas(
        [Delta(usage=first), Delta(finish_reason="stop"), Delta(finish_reason="length"), Delta(usage=last)]
    )
    assert (response.usage, response.primary_choice.finish_reason) == (last, "length")


def test_nothing_folds_to_an_empty_message():
    fold = DeltaFold()
    assert fold.empty
    assert fold.response("m").primary_choice.message == RathLLMAssistantMessage()
    fold.add(Delta(content_delta="x"))
    assert not fold.empty

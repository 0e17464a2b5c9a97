"""The turn machine, taken up where another run stopped."""

from __future__ import annotations

import pytest

from rath.llm.types import RathLLMToolCallFunction, RathLLMToolCallPart
from rath.runtime.turn import (
    AppendResults,
    Begin,
    CallModel,
    Dispatch,
    Ended,
    Finish,
    Interrupted,
    Phase,
    Replied,
    Resume,
    start_state,
    step,
)

CALLS = tuple(RathLLMToolCallPart(f"c{at}", "function", RathLLMToolCallFunction("f", "{}")) for at in range(3))


def test_without_open_calls_the_next_turn_is_asked_for() -> None:
    state, actions = step(start_state(9), Resume(4, (), (), False))
    assert actions == (CallModel(5),)
    assert (state.phase, state.turn) == (Phase.ASKING, 5)


def test_after_the_answer_it_is_over() -> None:
    state, actions = step(start_state(9), Resume(4, (), (), True))
    assert (state.phase, actions) == (Phase.ENDED, (Finish(False),))


def test_known_results_become_rows_before_the_next_turn() -> None:
    _, actions = step(start_state(9), Resume(4, CALLS, ("a", "b", "c"), False))
    assert actions == (AppendResults(CALLS, ("a", "b", "c")), CallModel(5))


def test_only_calls_without_a_result_are_waited_for_and_rows_keep_the_order_of_the_calls() -> None:
    state, actions = step(start_state(9), Resume(1, CALLS, (None, "b", None), False))
    assert actions == (Dispatch(CALLS),)
    with pytest.raises(ValueError, match="does not run"):
        step(state, Ended(1, "again"))
    state, actions = step(state, Ended(2, "c"))
    assert actions == ()
    state, actions = step(state, Ended(0, "a"))
    assert actions == (AppendResults(CALLS, ("a", "b", "c")), CallModel(2))


def test_an_interruption_fills_the_gaps_only() -> None:
    state, _ = step(start_state(9), Resume(1, CALLS, (None, "b", None), False))
    state, actions = step(state, Interrupted("x"))
    assert (state.phase, actions) == (Phase.ENDED, (AppendResults(CALLS, ("x", "b", "x")),))


def test_the_limit_counts_the_turns_before() -> None:
    state, actions = step(start_state(4), Resume(4, CALLS[:1], ("a",), False))
    assert (state.phase, actions) == (Phase.ENDED, (AppendResults(CALLS[:1], ("a",)), Finish(True)))


@pytest.mark.parametrize("event", [Begin(), Resume(1, (), (), False)])
def test_it_is_taken_up_once(event: object) -> None:
    state, _ = step(start_state(9), Resume(1, (), (), False))
    with pytest.raises(ValueError, match="cannot happen"):
        step(state, event)  # type: ignore[arg-type]
    state, _ = step(state, Replied("done", ()))
    assert state.phase is Phase.ENDED

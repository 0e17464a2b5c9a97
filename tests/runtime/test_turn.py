"""The turn machine, driven through arbitrary interleavings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rath.llm.types import RathLLMToolCallFunction, RathLLMToolCallPart
from rath.runtime.turn import (
    AppendAssistant,
    AppendResults,
    Begin,
    CallModel,
    Dispatch,
    Ended,
    Finish,
    Interrupted,
    Phase,
    Replied,
    start_state,
    step,
)


def call(call_id, name="t"):
    return RathLLMToolCallPart(call_id, "function", RathLLMToolCallFunction(name, "{}", {}, False))


@st.composite
def scripts(draw):
    """A run: per turn, the ids of the calls (empties and doubles included) and the order in which they end."""
    limit = draw(st.integers(0, 5))
    turns = []
    for _ in range(draw(st.integers(0, 6))):
        ids = draw(st.lists(st.sampled_from(["", "a", "b", "call_1_1"]), min_size=1, max_size=5))
        turns.append((ids, draw(st.permutations(range(len(ids))))))
    stop_after = draw(st.integers(0, 40))
    return limit, turns, stop_after


def drive(limit, turns, stop_after):
    """Run the machine like the driver does; returns the transcript and the actions taken."""
    transcript, actions_taken, inputs = [], [], 0
    state, actions = step(start_state(limit), Begin())
    todo, script = list(actions), iter(turns)
    while todo:
        action = todo.pop(0)
        actions_taken.append(action)
        feeds = []
        if isinstance(action, CallModel):
            ids, order = next(script, ((), ()))
            current_order = order
            feeds = [Replied("text", tuple(call(i) for i in ids))]
        elif isinstance(action, AppendAssistant):
            transcript.append(("assistant", tuple(c.id for c in action.calls)))
        elif isinstance(action, Dispatch):
            feeds = [Ended(index, f"body {index}") for index in current_order]
        elif isinstance(action, AppendResults):
            transcript.extend(("tool", c.id, b) for c, b in zip(action.calls, action.bodies, strict=True))
        for event in feeds:
            inputs += 1
            if inputs > stop_after and state.phase is not Phase.ENDED:
                state, more = step(state, Interrupted("interrupted"))
                for extra in more:
                    transcript.extend(("tool", c.id, b) for c, b in zip(extra.calls, extra.bodies, strict=True))
                return transcript, actions_taken, True
            state, more = step(state, event)
            todo.extend(more)
    return transcript, actions_taken, False


@given(scripts())
def test_every_call_has_exactly_one_result_in_call_order_however_the_run_ends(script):
    transcript, actions, interrupted = drive(*script)
    index = 0
    while index < len(transcript):
        kind, ids = transcript[index][0], transcript[index][1]
        assert kind == "assistant"
        results = transcript[index + 1 : index + 1 + len(ids)]
        if interrupted and index + 1 == len(transcript) and ids:
            # Interrupted before dispatch began: the machine is still in `running`, so results are there all the same.
            pytest.fail("an assistant row with calls is never last")
        assert [row[1] for row in results] == list(ids)
        assert len(set(ids)) == len(ids)
        assert all(ids)
        index += 1 + len(ids)
    if not interrupted:
        assert sum(isinstance(a, Finish) for a in actions) == 1
        assert isinstance(actions[-1], Finish)


@given(scripts())
def test_the_model_is_asked_at_most_limit_times(script):
    limit, turns, _ = script
    _, actions, _ = drive(limit, turns, 10_000)
    asked = sum(isinstance(a, CallModel) for a in actions)
    assert asked == min(limit, len(turns) + 1)
    assert actions[-1] == Finish(truncated=len(turns) >= limit)


@pytest.mark.parametrize("event", [Begin(), Replied("x", ()), Ended(0, "b"), Interrupted("i")])
def test_an_ended_machine_takes_nothing(event):
    state, _ = step(start_state(0), Begin())
    assert state.phase is Phase.ENDED
    with pytest.raises(ValueError, match="cannot happen while ended"):
        step(state, event)


def test_a_second_result_of_one_call_is_refused():
    state, _ = step(start_state(1), Begin())
    state, _ = step(state, Replied(None, (call("a"), call("b"))))
    state, _ = step(state, Ended(1, "x"))
    with pytest.raises(ValueError, match="does not run"):
        step(state, Ended(1, "again"))
    with pytest.raises(ValueError, match="does not run"):
        step(state, Ended(7, "no such call"))


def test_result_bodies_may_be_empty_strings():
    state, _ = step(start_state(2), Begin())
    state, _ = step(state, Replied(None, (call("a"),)))
    state, actions = step(state, Ended(0, ""))
    assert actions[0].bodies == ("",)
    assert isinstance(actions[1], CallModel)

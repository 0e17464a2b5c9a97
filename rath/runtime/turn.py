"""The agent turn as a pure machine: ``step(state, event) -> (state, actions)``. No I/O, no clock, no rows.

Why a machine? The rules that matter (one result a call, results in call order, a transcript that any provider accepts at
every moment) must hold whatever order tools end in and wherever a run is interrupted. Here they are a table that property
tests can drive through every interleaving; the driver only performs what it says.

::

    ready ──Begin──► asking ──Replied(calls)──► running ──Ended × n──► asking …
    ready ──Resume─► asking, running or ended
                       │                           │          └──(round limit)──► ended
                       ├──Replied(no calls)──► ended│
                       └──────Interrupted──────────┴──► ended

In ``asking`` every call before has its result; in ``running`` the results of this turn's calls are held back until the
last is there (or the run is interrupted, which fills the gaps), because rows are appended in call order.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from rath.llm.types import RathLLMToolCallPart

__all__ = [
    "Action",
    "AppendAssistant",
    "AppendResults",
    "Begin",
    "CallModel",
    "Dispatch",
    "Ended",
    "Finish",
    "Input",
    "Interrupted",
    "Phase",
    "Replied",
    "Resume",
    "TurnState",
    "start_state",
    "step",
]


class Phase(Enum):
    READY = "ready"
    ASKING = "asking"
    RUNNING = "running"
    ENDED = "ended"


class TurnState(msgspec.Struct, frozen=True, gc=False):
    """Where a run stands. ``results[i]`` is the body for ``calls[i]``, ``None`` while it runs."""

    phase: Phase
    limit: int
    turn: int = 0
    calls: tuple[RathLLMToolCallPart, ...] = ()
    results: tuple[str | None, ...] = ()


# -- inputs -----------------------------------------------------------------------------------------------------------


class Begin(msgspec.Struct, frozen=True, gc=False):
    """The inputs are resolved: go."""


class Resume(msgspec.Struct, frozen=True, gc=False):
    """Go on with a run of which ``turn`` turns are known: instead of :class:`Begin`.

    ``calls`` are those of its last reply that have no row yet; ``results[i]`` is the body for ``calls[i]``, ``None`` if it
    has to run. ``answered``: the last reply ended the run.
    """

    turn: int
    calls: tuple[RathLLMToolCallPart, ...]
    results: tuple[str | None, ...]
    answered: bool


class Replied(msgspec.Struct, frozen=True, gc=False):
    """The model's reply is whole."""

    text: str | None
    calls: tuple[RathLLMToolCallPart, ...]


class Ended(msgspec.Struct, frozen=True, gc=False):
    """Call ``index`` of the turn has its result."""

    index: int
    body: str


class Interrupted(msgspec.Struct, frozen=True, gc=False):
    """The run ends here; ``body`` stands in for results that will not come."""

    body: str


Input = Begin | Resume | Replied | Ended | Interrupted

# -- actions ----------------------------------------------------------------------------------------------------------


class CallModel(msgspec.Struct, frozen=True, gc=False):
    """Ask the model for turn ``turn`` (from 1)."""

    turn: int


class AppendAssistant(msgspec.Struct, frozen=True, gc=False):
    """Append the assistant's row."""

    text: str | None
    calls: tuple[RathLLMToolCallPart, ...]


class Dispatch(msgspec.Struct, frozen=True, gc=False):
    """Run those of these calls that have no result yet; each must lead to one :class:`Ended`."""

    calls: tuple[RathLLMToolCallPart, ...]


class AppendResults(msgspec.Struct, frozen=True, gc=False):
    """Append one row a call, in this order."""

    calls: tuple[RathLLMToolCallPart, ...]
    bodies: tuple[str, ...]


class Finish(msgspec.Struct, frozen=True, gc=False):
    """The run is over. ``truncated``: the round limit ended it."""

    truncated: bool


Action = CallModel | AppendAssistant | Dispatch | AppendResults | Finish
_Step = tuple[TurnState, tuple[Action, ...]]


def start_state(limit: int) -> TurnState:
    """A run that may ask the model ``limit`` times."""
    return TurnState(Phase.READY, limit)


def step(state: TurnState, event: Input) -> _Step:
    """The next state, and what to do.

    Raises:
        ValueError: the event cannot happen in this state: a defect of the caller.
    """
    phase = state.phase
    if phase is Phase.RUNNING and type(event) is Ended:
        return _ended(state, event)
    if phase is Phase.ASKING and type(event) is Replied:
        return _replied(state, event)
    if phase is Phase.READY and type(event) is Begin:
        return _next_turn(state, ())
    if phase is Phase.READY and type(event) is Resume:
        return _resumed(state, event)
    if phase is not Phase.ENDED and type(event) is Interrupted:
        over = TurnState(Phase.ENDED, state.limit, state.turn)
        if phase is not Phase.RUNNING:
            return over, ()
        bodies = tuple(event.body if body is None else body for body in state.results)
        return over, (AppendResults(state.calls, bodies),)
    raise ValueError(f"{type(event).__name__} cannot happen while {phase.value}")


def _resumed(state: TurnState, event: Resume) -> _Step:
    if event.answered:
        return TurnState(Phase.ENDED, state.limit, event.turn), (Finish(False),)
    bodies = tuple(body for body in event.results if body is not None)
    if len(bodies) < len(event.calls):
        running = TurnState(Phase.RUNNING, state.limit, event.turn, event.calls, event.results)
        return running, (Dispatch(event.calls),)
    rows = (AppendResults(event.calls, bodies),) if event.calls else ()
    return _next_turn(TurnState(Phase.READY, state.limit, event.turn), rows)


def _replied(state: TurnState, event: Replied) -> _Step:
    if not event.calls:
        return TurnState(Phase.ENDED, state.limit, state.turn), (AppendAssistant(event.text, ()), Finish(False))
    calls = _with_ids(event.calls, state.turn)
    running = TurnState(Phase.RUNNING, state.limit, state.turn, calls, (None,) * len(calls))
    return running, (AppendAssistant(event.text, calls), Dispatch(calls))


def _ended(state: TurnState, event: Ended) -> _Step:
    if not 0 <= event.index < len(state.calls) or state.results[event.index] is not None:
        raise ValueError(f"call {event.index} does not run")
    results = (*state.results[: event.index], event.body, *state.results[event.index + 1 :])
    bodies = tuple(body for body in results if body is not None)
    if len(bodies) < len(results):
        return TurnState(Phase.RUNNING, state.limit, state.turn, state.calls, results), ()
    return _next_turn(state, (AppendResults(state.calls, bodies),))


def _next_turn(state: TurnState, actions: tuple[Action, ...]) -> _Step:
    if state.turn >= state.limit:
        return TurnState(Phase.ENDED, state.limit, state.turn), (*actions, Finish(True))
    turn = state.turn + 1
    return TurnState(Phase.ASKING, state.limit, turn), (*actions, CallModel(turn))


def _with_ids(calls: tuple[RathLLMToolCallPart, ...], turn: int) -> tuple[RathLLMToolCallPart, ...]:
    """Calls with distinct, non-empty ids: providers match results to calls by them, and some models send none."""
    if len(calls) == 1 and calls[0].id:
        return calls
    given = {call.id for call in calls}
    seen: set[str] = set()
    named = []
    for index, call in enumerate(calls):
        if not call.id or call.id in seen:
            made = f"call_{turn}_{index}"
            while made in given:
                made += "_"
            call = RathLLMToolCallPart(made, call.type or "function", call.function)
        seen.add(call.id)
        named.append(call)
    return tuple(named)

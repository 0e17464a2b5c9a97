"""One round of calls: stages and queues."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from rath.runtime.dispatch import run_round, stages_of

keys = st.lists(st.one_of(st.none(), st.sampled_from([("a",), ("b",), ("c",)])), max_size=8)


@given(keys)
def test_every_call_runs_once_same_keys_in_order_and_unsafe_calls_alone(round_keys):
    began, ended = {}, {}
    clock = iter(range(10_000))

    async def run_call(index):
        assert index not in began
        began[index] = next(clock)
        await asyncio.sleep(0)
        ended[index] = next(clock)

    asyncio.run(run_round(round_keys, run_call))
    assert set(began) == set(range(len(round_keys)))
    for first, key in enumerate(round_keys):
        for second in range(first + 1, len(round_keys)):
            other = round_keys[second]
            if key is None or other is None or key == other:
                assert ended[first] < began[second]


def test_different_keys_overlap():
    assert stages_of([("a",), ("b",), ("a",)]) == [[[0, 2], [1]]]
    assert stages_of([("a",), None, ("a",), ("b",)]) == [[[0]], [[1]], [[2], [3]]]


def test_a_fatal_error_cancels_the_rest_and_waits_for_it():
    cancelled = []

    async def run_call(index):
        if index == 0:
            return RuntimeError("fatal")
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            cancelled.append(index)
            raise

    fatal = asyncio.run(run_round([("a",), ("b",), None], run_call))
    assert str(fatal) == "fatal"
    assert cancelled == [1]

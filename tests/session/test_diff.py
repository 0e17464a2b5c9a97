"""``diff(a, b)``: the common beginning, and how the rest of one transcript becomes the rest of the other."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rath.core.encoding import decode_json
from rath.llm.types import RathLLMToolCallFunction, RathLLMToolCallPart
from rath.session import ChunkKind, ChunkRow, ChunkTable, Session, SessionDiff, diff
from rath.session.chunk import assistant_turn_chunk, system_text_chunk, tool_feedback_chunk, user_text_chunk
from rath.session.graph.align import align
from rath.testing.pace import within


def of(*rows: str | ChunkRow) -> Session:
    return Session(ChunkTable(tuple(user_text_chunk(row) if isinstance(row, str) else row for row in rows)))


def said(text: str) -> ChunkRow:
    return assistant_turn_chunk(tool_calls=None, content=text)


def calling(call_id: str, name: str = "run", arguments: str = "{}", text: str | None = None) -> ChunkRow:
    call = RathLLMToolCallPart(call_id, "function", RathLLMToolCallFunction(name, arguments))
    return assistant_turn_chunk(tool_calls=(call,), content=text)


def answer(call_id: str, body: str = '{"ok": true}', name: str = "run") -> ChunkRow:
    return tool_feedback_chunk(call_id, name, body)


def steps(found: SessionDiff) -> list[tuple[object, ...]]:
    """The changes as they can be written down: kind, left rows, right rows, and where moved ones are."""
    return [
        (change.kind, [*change.left], [*change.right], *([] if change.other is None else [[*change.other]]))
        for change in found.changes
    ]


# -- golden ---------------------------------------------------------------------------------------------------------------


def test_the_same_rows_are_the_same_whoever_made_them() -> None:
    found = diff(of("a", "b"), of("a", "b"))
    assert (found.same, found.prefix_rows, found.changes, found.fork_point) == (True, 2, (), None)
    assert diff(of(), of()).same


def test_rows_that_follow_are_inserted() -> None:
    base = of("a", "b")
    after = base.append(said("c"), user_text_chunk("d"))
    found = diff(base, after)
    assert steps(found) == [("insert", [], [2, 3])]
    assert (found.same, found.prefix_rows, len(found.left.rows), len(found.right.rows)) == (False, 2, 0, 2)


def test_rows_in_the_middle_are_inserted_and_deleted() -> None:
    assert steps(diff(of("a", "b", "c"), of("a", "new", "b", "c"))) == [("insert", [], [1]), ("equal", [1, 2], [2, 3])]
    assert steps(diff(of("a", "gone", "b"), of("a", "b"))) == [("delete", [1], []), ("equal", [2], [1])]


def test_a_row_with_another_text_in_its_place_is_an_edit() -> None:
    found = diff(of("a", "take the left way", "c"), of("a", "take the right way", "c"))
    assert steps(found) == [("edit", [1], [1]), ("equal", [2], [2])]
    # Alone between rows that both have, even where no word stayed.
    assert steps(diff(of("a", "yes", "c"), of("a", "no", "c")))[0] == ("edit", [1], [1])


def test_rows_that_have_nothing_in_common_are_no_versions_of_each_other() -> None:
    assert steps(diff(of("a", "left words only"), of("a", "something else entirely"))) == [
        ("delete", [1], []),
        ("insert", [], [1]),
    ]


def test_rows_of_different_roles_are_no_versions_of_each_other() -> None:
    found = diff(of("a", user_text_chunk("the same words here"), "z"), of("a", said("the same words here"), "z"))
    assert steps(found)[:2] == [("delete", [1], []), ("insert", [], [1])]


def test_the_best_versions_are_paired_not_the_first() -> None:
    found = diff(
        of("a", "one two three four", "five six seven eight"), of("a", "five six seven nine"),
    )
    assert steps(found) == [("delete", [1], []), ("edit", [2], [1])]


def test_a_row_that_moved_is_seen_on_both_sides() -> None:
    found = diff(of("a", "b", "c", "d", "e"), of("a", "e", "b", "c", "d"))
    assert steps(found) == [
        ("moved_here", [], [1], [4]),
        ("equal", [1, 2, 3], [2, 3, 4]),
        ("moved_away", [4], [], [1]),
    ]


def test_a_tools_result_moves_with_its_call_only() -> None:
    call, result = calling("1", arguments='{"x": 1}'), answer("1")
    found = diff(of("a", call, result, "b", "c", "d"), of("a", "b", "c", "d", call, result))
    assert ("moved_away", [1, 2], [], [4, 5]) in steps(found)
    # Many results say no more than "ok": without their calls they are not the same ones.
    kinds = [kind for kind, *_ in steps(diff(of("a", result, "b", "c"), of("a", "b", "c", result)))]
    assert kinds == ["delete", "equal", "insert"]


def test_transcripts_without_a_common_row_are_left_and_right() -> None:
    found = diff(of("alpha beta", "gamma delta"), of(said("epsilon"), said("zeta"), said("eta")))
    assert steps(found) == [("delete", [0, 1], []), ("insert", [], [0, 1, 2])]
    assert steps(diff(of(), of("a"))) == [("insert", [], [0])]
    assert steps(diff(of("a"), of())) == [("delete", [0], [])]


def test_ids_of_calls_and_measured_times_are_no_difference_in_what_was_said() -> None:
    body = '{{"exit_code": 0, "stdout": "x", "stderr": "", "elapsed_ms": {}}}'
    one = of("a", calling("call_1"), answer("call_1", body.format(12)), "b")
    two = of("a", calling("call_9"), answer("call_9", body.format(7.5)), "b")
    found = diff(one, two)
    assert not found.same
    assert steps(found) == [("alike", [1, 2], [1, 2]), ("equal", [3], [3])]
    other = of("a", calling("call_9"), answer("call_9", body.format(7).replace('"x"', '"y"')), "b")
    assert [kind for kind, *_ in steps(diff(one, other))] == ["alike", "edit", "equal"]


def test_a_field_that_rath_does_not_know_is_a_difference() -> None:
    plain = ChunkRow(ChunkKind.ASSISTANT, {"content": "x", "tool_calls": None})
    more = ChunkRow(ChunkKind.ASSISTANT, {"content": "x", "tool_calls": None, "reasoning": "y"})
    assert [kind for kind, *_ in steps(diff(of(plain), of(more)))] != ["alike"]


# -- merges ---------------------------------------------------------------------------------------------------------------


def test_rows_that_a_merge_put_there_name_the_session_that_they_are_of() -> None:
    base = of("a", "b")
    left, right = base.user("left"), base.user("right")
    merged = left.merge(right).user("after")
    found = diff(left, merged)
    assert [(change.kind, [*change.right], change.source) for change in found.changes] == [
        ("insert", [3, 4, 5], right.id),
        ("insert", [6], None),
    ]
    found = diff(right, merged)
    assert [(change.kind, [*change.right], change.source) for change in found.changes] == [
        ("insert", [2], None),
        ("insert", [3, 4], right.id),
        ("equal", [5], right.id),
        ("insert", [6], None),
    ]


def test_rows_of_the_other_side_are_found_inside_merges_of_merges() -> None:
    one, two, three = of("one"), of("two"), of("three")
    merged = one.merge(two.merge(three))
    assert [(change.kind, [*change.right], change.source) for change in diff(three, merged).changes] == [
        ("insert", [0], None),
        ("insert", [1], merged.parent_session_ids[1]),
        ("equal", [2], three.id),
    ]
    joined = of("0")
    for number in range(1, 300):
        joined = joined.merge(of(str(number)))
    assert len(diff(of("0"), joined).changes) == 299


def test_merging_a_session_with_itself_says_so() -> None:
    one = of("a", "b")
    found = diff(one, one.merge(one))
    assert [(change.kind, [*change.right], change.source) for change in found.changes] == [("insert", [2, 3], one.id)]


# -- what holds for all -----------------------------------------------------------------------------------------------------

ROWS = st.lists(
    st.one_of(
        st.sampled_from(["a", "b", "c", "a b c d", "a b c e", "x y z w"]).map(user_text_chunk),
        st.sampled_from(["a", "b c d e f", "b c d e g"]).map(said),
        st.tuples(st.sampled_from(["1", "2"]), st.sampled_from(["run", "read"])).map(lambda c: calling(*c)),
        st.tuples(st.sampled_from(["1", "2"]), st.sampled_from(['{"ok": true}', '{"elapsed_ms": 1}'])).map(
            lambda c: answer(*c)
        ),
        st.just(system_text_chunk("be good")),
    ),
    max_size=14,
)


def applied(rows: Sequence[ChunkRow], changes: list[dict[str, object]], prefix: int) -> list[object]:
    """The left rows with the changes of ``to_dict(full=True)`` applied."""
    made: list[object] = [decode_json(row.encoded) for row in rows[:prefix]]
    at = prefix
    for change in changes:
        start, stop = change["left"]
        assert start == at, "the changes skip rows of the left side"
        at = stop
        assert change["right"][0] == len(made), "the changes skip rows of the right side"
        if change["kind"] == "equal":
            made += [decode_json(row.encoded) for row in rows[start:stop]]
        else:
            assert change["left_rows"] == [decode_json(row.encoded) for row in rows[start:stop]]
            made += change["right_rows"]
    assert at == len(rows)
    return made


@given(ROWS, ROWS, st.integers(0, 6))
@settings(max_examples=80, deadline=None)
def test_the_changes_applied_to_the_left_rows_give_the_right_ones(a, b, common) -> None:
    left, right = of(*a), of(*a[:common], *b)
    found = diff(left, right)
    as_json = json.loads(json.dumps(found.to_dict(full=True)))
    wanted = [decode_json(row.encoded) for row in right.chunk_table]
    assert applied(left.chunk_table.rows, as_json["changes"], as_json["prefix_rows"]) == wanted
    assert found.same == (left.chunk_table == right.chunk_table)
    for change in found.changes:
        if change.kind in ("equal", "edit", "alike"):
            assert len(change.left) == len(change.right) > 0
        if change.other is not None:
            assert len(change.other) == len(change.left or change.right)
    # The moved rows of one side are those of the other.
    away = sorted((i, j) for c in found.changes if c.kind == "moved_away" for i, j in zip(c.left, c.other or (), strict=True))
    here = sorted((i, j) for c in found.changes if c.kind == "moved_here" for j, i in zip(c.right, c.other or (), strict=True))
    assert away == here


def longest_common(a: Sequence[int], b: Sequence[int]) -> int:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@given(*[st.lists(st.integers(0, 4), max_size=20)] * 2)
@settings(max_examples=120, deadline=None)
def test_an_alignment_is_a_longest_common_subsequence(a, b) -> None:
    blocks = align(a, b)
    assert sum(count for _, _, count in blocks) == longest_common(a, b)
    at = there = 0
    for i, j, count in blocks:
        assert count > 0
        assert i >= at
        assert j >= there
        assert a[i:i + count] == b[j:j + count]
        at, there = i + count, j + count


def test_beyond_its_budget_an_alignment_is_still_one_and_still_good() -> None:
    chance = random.Random(7)
    a = list(range(10_000))
    b = [item if chance.random() > 0.2 else -item for item in a]
    assert sum(count for _, _, count in align(a, b)) == sum(x == y for x, y in zip(a, b, strict=True))
    assert sum(count for _, _, count in align([1] * 5000, [1, 2] * 2500)) == 2500


def test_what_occurs_once_keeps_repeated_items_in_their_places() -> None:
    chance = random.Random(3)
    counts = [(chance.randrange(4), chance.randrange(4)) for _ in range(2000)]
    a = [item for number, (some, _) in enumerate(counts) for item in (number, *["x"] * some)]
    b = [item for number, (_, some) in enumerate(counts) for item in (number, *["x"] * some)]
    assert sum(count for _, _, count in align(a, b)) == sum(1 + min(pair) for pair in counts)


# -- time -----------------------------------------------------------------------------------------------------------------

N = 10_000
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"]


def texts(salt: str) -> list[str]:
    chance = random.Random(salt)
    return [f"{salt} {number} " + " ".join(chance.choices(WORDS, k=20)) for number in range(N)]


PAIRS = {
    "one row more after a fork": lambda: (lambda base: (base.user("left"), base.user("right")))(of(*map(str, range(N)))),
    "nothing in common": lambda: (of(*texts("left")), of(*texts("right"))),
    "one row repeated": lambda: (of(*["x"] * N), of("y", *["x", "z"] * (N // 2))),
    "reversed": lambda: (of(*map(str, range(N))), of(*map(str, reversed(range(N))))),
    "shuffled": lambda: (of(*map(str, range(N))), of(*random.Random(1).sample([str(i) for i in range(N)], N))),
    "two rows repeated at random": lambda: tuple(of(*random.Random(s).choices(["x", "y"], k=N)) for s in (1, 2)),
    "one long word a row": lambda: (of(*["z" * 3000 + f"a{i}" for i in range(N)]), of(*["z" * 3000 + f"b{i}" for i in range(N)])),
    "rows without spaces": lambda: tuple(of(*["没有空格的文字" * 50 + f"{i}{side}" for i in range(N)]) for side in "ab"),
    "every second row edited": lambda: (of(*texts("l")), of(*[t if i % 2 else t + " more" for i, t in enumerate(texts("l"))])),
}


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS)
def test_a_pair_of_10_000_rows_takes_less_than_a_second(pair: str) -> None:
    left, right = PAIRS[pair]()
    start = time.process_time()
    found = diff(left, right)
    took_s = time.process_time() - start
    assert not found.same
    assert took_s < within(1)

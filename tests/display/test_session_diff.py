"""A comparison as text and as HTML: readable in 80 columns and without colour, harmless, bounded."""

from __future__ import annotations

import json
import re
import time
from uuid import UUID

import pytest
from IPython.lib.pretty import pretty

from rath.backend.types import WorkspaceDiff
from rath.display.edited import edited_lines
from rath.display.session_diff import session_diff_lines, session_diff_text
from rath.display.session_diff_html import session_diff_html, session_diff_page
from rath.display.text import width
from rath.llm.types import RathLLMTokenUsage
from rath.session import ChunkTable, Session, diff
from rath.session.chunk import ChunkRow, user_text_chunk
from rath.session.graph.diff import DiffSide, SessionDiff
from rath.session.graph.diff_changes import Change
from rath.testing.pace import within
from tests.display.support import CONTROL, HOSTILE, assert_harmless
from tests.display.test_html import HOSTILE_ROW, hostile_rows
from tests.session.test_diff import answer, calling, of, said

A, B = UUID(int=0xAAAAAAAA << 96), UUID(int=0xBBBBBBBB << 96)


def named(session: Session, session_id: UUID) -> Session:
    return Session(session.chunk_table, id=session_id)


def example() -> SessionDiff:
    start = ("Fix the test.", calling("1", "read_file", '{"path": "calc.py"}'), answer("1", '{"data": "x"}', "read_file"))
    done = json.dumps({"exit_code": 1, "stdout": "one\ntwo\nthree\nfour\nfive\nsix\nseven", "stderr": ""})
    left = of(*start, "Take the long way.", said("moved later"), said("both say this"), said("and this"), calling("2"))
    right = of(
        *(*start, "Take the short way.", said("both say this"), said("and this"), said("moved later")),
        *(calling("2", "run_shell_command", '{"cmd": "make test"}'), answer("2", done, "run_shell_command")),
    )
    return diff(named(left, A), named(right, B))


GOLDEN = """\
3 rows in common at the start, then 5 on the left and 6 on the right

          left (-)                           right (+)
session   aaaaaaaa session                   bbbbbbbb session
status    completed                          completed
rows      8 (5 of its own)                   9 (6 of its own)
calls     run × 1 (1 unanswered)             run_shell_command × 1 (1 erred)
tokens    0                                  0
cost      $0                                 $0
time      no run                             no run
files     no sandbox                         no sandbox

~ changed (left 3, right 3)
~   user
~     Take the [-long-]{+short+} way.

< row 4 moved: on the right at 6
< [4] assistant  moved later

= 2 rows the same (left 5–6, right 4–5)

- [7] assistant  → run

> row 6 moved: on the left at 4
> [6] assistant  moved later

+ [7] assistant  → run_shell_command make test
+ [8] tool
+   • run_shell_command exit 1
+   stdout:
+   one
+   two
+   … 5 more lines"""


def test_the_text_of_a_comparison_is_this() -> None:
    assert str(example()) == GOLDEN
    assert repr(example()) == "<SessionDiff: 3 rows in common, then 5 against 6 in 5 changes>"


def test_ipython_shows_the_text_where_there_is_no_html() -> None:
    assert pretty(example()) == GOLDEN


def test_the_text_of_equal_sessions_is_short_and_says_so() -> None:
    assert str(diff(of("a"), of("a"))).startswith("the same: 1 row\n")
    assert str(diff(of(), of())).startswith("the same: 0 rows\n")
    assert str(diff(of(), of("a"))).startswith("no row in common at the start, then 0 on the left and 1 on the right\n")


def test_merged_rows_say_which_side_they_are_of() -> None:
    base = of("a")
    left, right = base.user("left"), base.user("right")
    merged = left.merge(right)
    assert f"+ rows 2–3, merged from session {right.id.hex[:8]}" in str(diff(left, merged))
    assert "+ row 2, merged from the left session" in str(diff(right, merged))


def test_what_is_unknown_is_said_to_be_unknown_and_what_is_missing_is_counted() -> None:
    usage = RathLLMTokenUsage(1, 2, 1234)
    files = WorkspaceDiff(
        "diff --git a/a b/a\n--- a/a\n+++ b/a\n@@ -1 +1 @@\n-x\n+y\n", added=tuple(f"n{i}" for i in range(9)), modified=("a",)
    )
    left = DiffSide(A, "loop", "completed", (), (), 3, ("m",), usage, 1, None, 3, 75.0, 0, files, "", ("a", "n1"))
    right = DiffSide(B, "loop", "open", (), (), 2, (), None, 2, 0.01234, 1, None, 2, None, "unknown: its sandbox is busy")
    text = session_diff_text(SessionDiff((), left, right, ()))
    rows = {line[:9].strip(): (line[10:44].strip(), line[45:].strip()) for line in text.split("\n")}
    assert rows["tokens"] == ("1,234, and 1 run unknown", "unknown")
    assert rows["cost"] == ("unknown", "$0.0123, and 1 run unknown")
    assert rows["time"] == ("1 min 15 s", "unknown")
    assert rows["files"] == ("9 added, 1 changed (+1 −1 lines)", "unknown: its sandbox is busy")
    assert "+ n1" in text
    assert "~ a" in text
    assert "n2" not in text
    assert "8 of them as on the other side" in text


# -- words and lines --------------------------------------------------------------------------------------------------------


def test_changed_words_are_marked_within_their_line() -> None:
    assert edited_lines("the old way here", "the new way here") == [
        [(" ", "the "), ("-", "old"), ("+", "new"), (" ", " way here")]
    ]


def test_changed_words_next_to_each_other_are_one_change() -> None:
    assert edited_lines("keep these words one two", "keep these words three four") == [
        [(" ", "keep these words "), ("-", "one two"), ("+", "three four")]
    ]


def test_changed_words_are_text_in_html() -> None:
    found = diff(of("a", "one two three four <b>old</b>", "z"), of("a", "one two three four <i>new</i>", "z"))
    html = session_diff_html(found)
    assert_harmless(html)
    assert '<del class="sd-gone">b</del>' in html
    assert "&lt;" in html
    found = diff(of("a", "one two three four five six", "z"), of("a", "one two three four five <script>six", "z"))
    assert_harmless(session_diff_html(found))


def test_lines_that_have_too_little_in_common_are_marked_whole() -> None:
    assert edited_lines("alpha beta", "gamma delta") == [[("-", "alpha beta")], [("+", "gamma delta")]]


def test_a_line_that_came_is_a_line_and_far_lines_are_left_out() -> None:
    old = [f"line {number}" for number in range(20)]
    new = [*old[:10], "    new", *old[10:]]
    assert edited_lines("\n".join(old), "\n".join(new)) == [
        None,
        *([(" ", f"line {number}")] for number in (8, 9)),
        [("+", "    new")],
        *([(" ", f"line {number}")] for number in (10, 11)),
        None,
    ]
    assert edited_lines("a\nb", "a\n\nb") == [[(" ", "a")], [("+", "⏎")], [(" ", "b")]]
    assert edited_lines("same", "same") == []


@pytest.mark.parametrize(("old", "new"), [("x " * 30_000, "y " * 30_000), ("a\n" * 40_000, "b\na\n" * 20_000), ("", "x" * 10**7)])
def test_versions_of_any_size_take_little_time(old: str, new: str) -> None:
    start = time.process_time()
    lines = edited_lines(old, new)
    assert time.process_time() - start < within(1)
    assert sum(len(text) for line in lines if line for _, text in line) <= 130_000


# -- hostile ----------------------------------------------------------------------------------------------------------------


def hostile() -> SessionDiff:
    rows = hostile_rows()
    old, new = (user_text_chunk(f"{word} {HOSTILE_ROW} one two three {HOSTILE_ROW} {word}<i>") for word in ("old", "new"))
    left = Session(ChunkTable((old, *rows)), lineage_operator=HOSTILE_ROW)
    right = Session(ChunkTable((new, rows[0], said("only here"), *reversed(rows[1:]))))
    found = diff(left, right)
    assert any(change.kind == "edit" for change in found.changes)
    files = WorkspaceDiff(HOSTILE, (HOSTILE,), (HOSTILE,), (HOSTILE,), (HOSTILE,))
    fields = {name: getattr(found.left, name) for name in DiffSide.__slots__}
    side = DiffSide(**{**fields, "files": files, "files_note": HOSTILE, "models": (HOSTILE,), "status": HOSTILE})
    return SessionDiff(found.prefix, side, found.right, found.changes, found.fork_point)


def test_hostile_text_is_shown_as_text() -> None:
    found = hostile()
    for html in (session_diff_html(found), session_diff_page(found)):
        page = assert_harmless(html)
        assert "<script>" in page.text
    for full in (False, True):
        for line in session_diff_lines(found, full=full):
            text = "".join(part for part, _ in line)
            assert CONTROL.search(text) is None
            assert "\n" not in text
            assert "\x1b" not in text
    json.dumps(found.to_dict(full=True)).encode()


def test_no_line_of_the_text_is_wider_than_80_columns() -> None:
    wide = diff(of("日本語" * 100, "x" * 500, *hostile_rows()), of("日本語" * 99 + "語", "y" * 500, calling("1", "t" * 300, "z" * 300)))
    for found in (wide, hostile(), example()):
        assert max(width(line) for line in str(found).split("\n")) <= 80


@pytest.mark.parametrize("size", [200_000, pytest.param(10_000_000, marks=pytest.mark.slow)])
def test_displays_of_huge_sessions_are_bounded_and_quick(size: int) -> None:
    rows = [f"{number} alpha beta gamma delta" for number in range(2000)]
    many = diff(of(*rows), of(*(f"{row} more" for row in rows)))
    huge = diff(of("a", *["<&\x1b" * (size // 3)] * 2), of("a", *["\u202e" * size] * 2, "b"))
    words = "alpha beta gamma delta "
    edited = diff(of("a", words + "x" * size, "b"), of("a", words + "y" * size, "b"))
    for found in (many, huge, edited):
        start = time.process_time()
        html, text = found._repr_html_(), str(found)
        assert time.process_time() - start < within(2)
        assert len(html.encode()) < 1_000_000
        assert len(text) < 40_000
    assert "more changes not shown" in many._repr_html_()
    assert str(many).endswith("prints it")


def test_rows_that_nobody_can_read_are_shown_as_they_stand() -> None:
    broken = ChunkRow.from_encoded(b'{"kind":"assistant","payload":{"content":"\xff","tool_calls":3}}')
    deep = ChunkRow.from_encoded(b'{"kind":"user","payload":' + b'{"a":' * 5000 + b"1" + b"}" * 5001)
    found = diff(of("a", broken, deep), of("b", deep))
    assert '"tool_calls":3' in str(found)
    assert_harmless(found._repr_html_())
    found.to_dict(full=True)


# -- html -----------------------------------------------------------------------------------------------------------------


def test_the_cell_says_what_the_text_says_with_a_sign_for_every_change() -> None:
    html = session_diff_html(example())
    text = re.sub(r"\s+", " ", assert_harmless(html).text)
    for words in (
        "3 rows in common at the start, then 5 on the left and 6 on the right",
        "= 3 rows in common at the start",
        "~ user changed (left 3, right 3)",
        "< row 4 moved: on the right at 6",
        "= 2 rows the same (left 5–6, right 4–5)",
        "− only on the left: row 7",
        "> row 6 moved: on the left at 4",
        "+ only on the right: rows 7–8",
    ):
        assert words in text
    assert '<del class="sd-gone">long</del><ins class="sd-came">short</ins>' in html
    for rule in ("line-through", "underline", "prefers-color-scheme:dark", "max-width:720px"):
        assert rule in html


def test_a_page_stands_alone_and_refers_to_nothing_outside() -> None:
    page = session_diff_page(example())
    assert_harmless(page)
    assert page.startswith("<!doctype html>")
    assert "default-src 'none'" in page
    assert "<script" not in page


def test_what_stands_between_common_rows_stands_side_by_side() -> None:
    found = diff(of("a", "left words", "z"), of("a", said("right words"), said("again"), "z"))
    assert [change.kind for change in found.changes] == ["delete", "insert", "equal"]
    assert session_diff_html(found).count('class="sd-two"') == 1
    assert isinstance(found.changes[0], Change)

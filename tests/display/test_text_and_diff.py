"""Text is made visible, and a diff knows what its lines are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rath.display.diff import diff_counts, diff_html, diff_lines
from rath.display.text import clean, count, cut, duration, fit, one_line, width
from tests.display.support import CONTROL, HOSTILE, assert_harmless


def test_no_control_character_survives_cleaning() -> None:
    shown = clean(HOSTILE)
    assert CONTROL.search(shown) is None
    assert "␛]0;title␇" in shown
    assert "\\x9b31m" in shown
    assert "\\u202etxt.exe\\u2066" in shown
    assert "\\U000e0041" in shown


def test_colours_go_without_a_trace_and_other_sequences_do_not() -> None:
    assert clean("\x1b[1;31mFAILED\x1b[0m") == "FAILED"
    assert clean("\x1b[38:2:1:2:3mx") == "x"
    assert clean("\x1b[2J") == "␛[2J"


def test_ordinary_text_is_the_same_object() -> None:
    text = "naïve 日本語 🙂\n\ttab"
    assert clean(text) is text


def test_carriage_returns_cannot_overwrite_what_stands_before_them() -> None:
    assert clean("safe\rEVIL\r\nnext") == "safe␍EVIL\nnext"


@given(st.text(alphabet=st.characters()))
def test_cleaning_is_idempotent_and_encodable(text: str) -> None:
    once = clean(text)
    assert clean(once) == once
    once.encode()
    assert CONTROL.search(once) is None


@given(st.text(max_size=300), st.integers(min_value=2, max_value=60))
def test_fitted_text_fits(text: str, columns: int) -> None:
    fitted = fit(text, columns)
    assert width(fitted) <= columns
    assert "\n" not in fitted


def test_wide_characters_take_two_columns() -> None:
    assert width("日本") == 4
    assert fit("日本語日本語", 6) in ("日本…", "日本語")
    assert width("e\u0301") == 1


def test_a_cut_says_how_much_is_missing() -> None:
    text = "a" * 700 + "b" * 300
    shown = cut(text, 100)
    assert shown.startswith("a" * 66)
    assert shown.endswith("b" * 34)
    assert "900 characters left out" in shown
    assert cut("short", 100) == "short"


def test_one_line_reads_only_as_much_as_it_shows() -> None:
    assert one_line("x" * 50_000_000, 10) == "x" * 9 + "…"
    assert one_line("a\n  b\tc", 80) == "a b c"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.0004, "0 ms"), (0.25, "250 ms"), (0.9999, "1.0 s"), (59.96, "1 min 0 s"), (125, "2 min 5 s")]
)
def test_durations_read_well(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_counts_read_well() -> None:
    assert [count(1, "row"), count(0, "row"), count(12_000, "row"), count(3, "branch")] == [
        "1 row",
        "0 rows",
        "12,000 rows",
        "3 branches",
    ]


DIFF = """\
diff --git a/a.txt b/a.txt
--- a/a.txt
+++ b/a.txt
@@ -1,3 +1,3 @@
 first
--- looks like a file name
++++ so does this
 last
\\ No newline at end of file
diff --git a/b.bin b/b.bin
Binary files a/b.bin and b/b.bin differ
"""


def test_lines_of_a_hunk_are_no_file_names_whatever_they_look_like() -> None:
    styles = [style for style, _line in diff_lines(DIFF)]
    assert styles == ["file", "file", "file", "hunk", "context", "removed", "added", "context", "note", "file", "file"]
    assert diff_counts(DIFF) == (1, 1)


def test_a_diff_of_hostile_text_is_text() -> None:
    line = HOSTILE.replace("\n", " ")
    page = assert_harmless(diff_html(f"--- a/x\n+++ b/x\n@@ -0,0 +1 @@\n+{line}\n"))
    assert "<script>alert('x')</script>" in page.text
    assert diff_lines("") == []


def test_only_newlines_end_a_line_of_a_diff() -> None:
    assert len(diff_lines("@@ -0,0 +1 @@\n+a\x0cb\u2028c\x85d\n")) == 2

"""``rath sessions diff A B``: exits as diff(1) does; text, JSON or a page."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from rath.session.chunk import ChunkTable, user_text_chunk
from rath.session.persistence import SessionWriter, session_file
from rath.session.session import Session
from tests.cli.support import CONTROL, Ran, environment, rath_at_a_terminal

Rath = Callable[..., Ran]


def logged(*texts: str) -> Session:
    session = Session(ChunkTable(tuple(map(user_text_chunk, texts))))
    with SessionWriter(session) as writer:
        for index, row in enumerate(session.chunk_table):
            writer.write_chunk(index, row)
    return session


def test_it_exits_with_0_for_the_same_rows_and_1_for_others(rath_here: Rath) -> None:
    one, same, other = logged("a", "b"), logged("a", "b"), logged("a", "c")
    done = rath_here("sessions", "diff", str(one.id), str(same.id))
    assert (done.code, done.out.split("\n")[0], done.err) == (0, "the same: 2 rows", "")
    done = rath_here("sessions", "diff", str(one.id), str(session_file(other.id)))
    assert done.code == 1
    assert "1 row in common at the start, then 1 on the left and 1 on the right" in done.out
    assert "- [1] user  b\n" in done.out
    assert "+ [1] user  c\n" in done.out
    assert max(map(len, done.out.split("\n"))) <= 80
    assert rath_here("sessions", "diff", one.id.hex[:8], other.id.hex[:8]).code == 1


def test_any_trouble_exits_with_2(rath_here: Rath, tmp_path: Path) -> None:
    one = logged("a", "b")
    damaged = session_file(logged("a", "b").id)
    damaged.write_bytes(damaged.read_bytes().replace(b'"index":0', b'"index":7', 1))
    for arguments in (
        (str(one.id),),
        (str(one.id), "not an id"),
        (str(one.id), "00000000"),
        (str(one.id), str(tmp_path / "none.jsonl")),
        (str(one.id), str(damaged)),
        (str(one.id), str(one.id), "--html", str(tmp_path / "no" / "such" / "page.html")),
        (str(one.id), str(one.id), "--html", str(session_file(one.id))),
    ):
        done = rath_here("sessions", "diff", *arguments)
        assert done.code == 2, arguments
        assert done.err.startswith(("error: ", "Usage: ")), arguments
    assert rath_here("sessions", "verify", str(one.id)).code == 0


def test_json_is_the_comparison_with_rows_if_asked(rath_here: Rath) -> None:
    one, other = logged("a", "b"), logged("a", "c", "d")
    done = rath_here("sessions", "diff", str(one.id), str(other.id), "--json")
    assert (done.code, done.json["prefix_rows"], done.json["left"]["id"]) == (1, 1, str(one.id))
    assert [change["kind"] for change in done.json["changes"]] == ["delete", "insert"]
    full = rath_here("sessions", "diff", str(one.id), str(other.id), "--json", "--full").json
    assert [row["payload"]["content"] for row in full["changes"][1]["right_rows"]] == ["c", "d"]


def test_full_does_not_fold(rath_here: Rath) -> None:
    one, other = logged("a"), logged("a", "\n".join(f"line {number}" for number in range(40)) + "w" * 300)
    folded = rath_here("sessions", "diff", str(one.id), str(other.id)).out
    full = rath_here("sessions", "diff", str(one.id), str(other.id), "--full").out
    assert "36 more lines" in folded
    assert "line 39" + "w" * 300 in full


def test_a_page_is_written_and_named(rath_here: Rath, tmp_path: Path) -> None:
    one, other = logged("a", "b"), logged("a", "<script>alert(1)</script>")
    done = rath_here("sessions", "diff", str(one.id), str(other.id), "--html", "page.html")
    assert done.code == 1
    assert "the page is at page.html" in done.out
    page = (tmp_path / "page.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script" not in page


@pytest.mark.slow
def test_a_terminal_gets_colours_and_nothing_of_the_logs_own(rath_here: Rath, tmp_path: Path) -> None:
    one, other = logged("a", "b"), logged("a", "c \x1b]0;title\x07 \x1b[2J")
    code, written = rath_at_a_terminal(tmp_path, "sessions", "diff", str(one.id), str(other.id), env=environment(tmp_path))
    assert code == 1
    assert "\x1b]0" not in written
    assert "\x1b[2J" not in written
    plain = re.sub(r"\x1b\[[0-9;]*m", "", written).replace("\r\n", "\n")
    assert CONTROL.search(plain) is None
    assert plain != written.replace("\r\n", "\n")

"""Editing a file of the workspace by replacing a piece of its text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rath.backend.types import ToolExecutionFailure
from rath.errors import ToolError
from rath.flow.tool import FlowToolFilesEdit, coding_tools, global_system_tools
from rath.session.session import Session

EDIT = FlowToolFilesEdit()


def edit(session: Session, old: str, new: str, path: str = "f.py", **more: Any) -> Any:
    return EDIT(session, {"path": path, "old": old, "new": new, **more})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "f.py"


def test_it_is_a_coding_tool_and_not_one_of_the_built_in_six() -> None:
    assert [made.name for made in coding_tools()] == ["edit_workspace_file"]
    assert "edit_workspace_file" not in global_system_tools()


def test_the_one_occurrence_is_replaced_and_its_line_told(placed: Session, file: Path) -> None:
    file.write_text("a = 1\nb = 2\nc = 3\n")
    assert edit(placed, "b = 2\n", "b = 20\nbb = 21\n") == {
        "ok": True,
        "path": "f.py",
        "replacements": 1,
        "line": 2,
    }
    assert file.read_text() == "a = 1\nb = 20\nbb = 21\nc = 3\n"


def test_nothing_may_be_put_in_its_place(placed: Session, file: Path) -> None:
    file.write_text("keep drop keep")
    edit(placed, " drop", "")
    assert file.read_text() == "keep keep"


def test_what_occurs_more_than_once_is_refused_with_the_lines(placed: Session, file: Path) -> None:
    file.write_text("x\ny\nx\nx\n")
    with pytest.raises(ToolError, match="occurs 3 times, on lines 1, 3, 4") as caught:
        edit(placed, "x", "z")
    assert caught.value.kind == "edit_ambiguous"
    assert file.read_text() == "x\ny\nx\nx\n"


def test_overlapping_occurrences_count(placed: Session, file: Path) -> None:
    file.write_text("aaa")
    with pytest.raises(ToolError, match="occurs 2 times, on lines 1, 1"):
        edit(placed, "aa", "b")


def test_replace_all_replaces_every_occurrence(placed: Session, file: Path) -> None:
    file.write_text("k\nx x\naaa x\n")
    assert edit(placed, "x", "zz", replace_all=True) == {
        "ok": True,
        "path": "f.py",
        "replacements": 3,
        "line": 2,
    }
    assert file.read_text() == "k\nzz zz\naaa zz\n"
    assert edit(placed, "aa", "b", replace_all=True)["replacements"] == 1


def test_what_does_not_occur_is_refused(placed: Session, file: Path) -> None:
    file.write_text("a\n")
    with pytest.raises(ToolError, match=r"f\.py: 'old' does not occur.*read the file again") as caught:
        edit(placed, "zebra", "horse")
    assert caught.value.kind == "edit_not_found"


def test_a_difference_in_white_space_is_shown(placed: Session, file: Path) -> None:
    file.write_text("def f():\n\tif x:\n\t\treturn  1\n")
    with pytest.raises(
        ToolError, match=r"but for spaces.*on line 2, where the file has '\\tif x:\\n\\t\\treturn  1'"
    ):
        edit(placed, "    if x:\n        return 1", "pass")


def test_a_difference_within_one_line_is_shown(placed: Session, file: Path) -> None:
    file.write_text("a\nfoo( 1,2 )\n")
    with pytest.raises(ToolError, match=r"spaces.*on line 2, where the file has 'foo\( 1,2 \)'"):
        edit(placed, "foo(1, 2)", "bar")


def test_a_difference_in_capitals_is_shown(placed: Session, file: Path) -> None:
    file.write_text("a\nFoo = 1\nfoo  =1\n")
    with pytest.raises(
        ToolError, match=r"capitals or spaces on line 2, where the file has 'Foo = 1\\nfoo  =1'"
    ):
        edit(placed, "FOO = 1\nfoo = 1", "bar")


def test_the_first_line_that_differs_is_shown(placed: Session, file: Path) -> None:
    file.write_text("def f():\n    a = 1\n    b = 2\n\ndef f():\n    a = 9\n")
    with pytest.raises(
        ToolError, match=r"begins like line 1 of the file, but line 3 reads '    b = 2', not '    b = 3'"
    ):
        edit(placed, "def f():\n    a = 1\n    b = 3\n", "pass")


def test_a_text_that_goes_on_beyond_the_file_is_refused(placed: Session, file: Path) -> None:
    file.write_text("a\nb")
    with pytest.raises(ToolError, match="begins like line 2 of the file, but the file ends"):
        edit(placed, "b\nc", "d")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"path": "f.py", "old": "", "new": "x"}, "'old' is empty"),
        ({"path": "f.py", "old": "x", "new": "x"}, "nothing would change"),
        ({"path": "f.py", "old": "x"}, "'new' is missing"),
        ({"path": "", "old": "x", "new": "y"}, "'path' is empty"),
        (
            {"path": "f.py", "old": "x", "new": "y", "replace_all": "yes"},
            "must be true or false, not a string",
        ),
        ({"path": "f.py", "old": "x", "new": "y", "regex": True}, "unknown argument 'regex'"),
        ({"path": "f.py", "old": "x", "new": "\udc80"}, "half a surrogate pair"),
    ],
)
def test_wrong_arguments_are_refused_before_a_file_is_touched(
    arguments: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ToolError, match=problem) as caught:
        EDIT(Session.from_user_message("not placed"), arguments)
    assert caught.value.kind == "invalid_tool_arguments"


def test_a_missing_file_is_the_failure_of_the_sandbox(placed: Session) -> None:
    result = edit(placed, "a", "b", path="none.txt")
    assert isinstance(result, ToolExecutionFailure)
    assert result.kind == "file_not_found"


def test_windows_line_endings_stay(placed: Session, file: Path) -> None:
    file.write_bytes(b"a\r\nb\r\nc\r\n")
    assert edit(placed, "a\nb\n", "x\ny\nz\n")["line"] == 1
    assert file.read_bytes() == b"x\r\ny\r\nz\r\nc\r\n"
    edit(placed, "y", "1\r\n2\n3")
    assert file.read_bytes() == b"x\r\n1\r\n2\r\n3\r\nz\r\nc\r\n"


def test_unix_line_endings_stay(placed: Session, file: Path) -> None:
    file.write_bytes(b"a\nb\n")
    edit(placed, "a\r\nb\r\n", "x\r\ny\n")
    assert file.read_bytes() == b"x\ny\n"


def test_an_edit_of_line_endings_alone_is_refused(placed: Session, file: Path) -> None:
    file.write_bytes(b"a\r\n")
    with pytest.raises(ToolError, match="keeps those of the file"):
        edit(placed, "a\r\n", "a\n")
    assert file.read_bytes() == b"a\r\n"


def test_a_file_that_mixes_line_endings_is_taken_literally(placed: Session, file: Path) -> None:
    file.write_bytes(b"a\r\nb\nc\n")
    with pytest.raises(
        ToolError, match=r"spaces, tabs or line endings on line 1, where the file has 'a\\r\\nb'"
    ):
        edit(placed, "a\nb", "x")
    edit(placed, "a\r\nb\n", "x\r\ny\n")
    assert file.read_bytes() == b"x\r\ny\nc\n"


def test_a_byte_order_mark_and_bytes_that_are_not_utf8_stay(placed: Session, file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbfname = 'M\xfcller'\n")
    edit(placed, "name", "nom")
    assert file.read_bytes() == b"\xef\xbb\xbfnom = 'M\xfcller'\n"


def test_two_encodings_are_not_mixed_in_one_file(placed: Session, file: Path) -> None:
    file.write_bytes(b"M\xfcller x\n")
    with pytest.raises(ToolError, match=r"not UTF-8 \(byte 1\)") as caught:
        edit(placed, "x", "é")
    assert caught.value.kind == "edit_not_text"
    assert file.read_bytes() == b"M\xfcller x\n"


def test_a_binary_file_is_refused(placed: Session, file: Path) -> None:
    file.write_bytes("a b".encode("utf-16"))
    with pytest.raises(ToolError, match="NUL bytes"):
        edit(placed, "a", "b")


@pytest.mark.parametrize("mode", [0o755, 0o600, 0o644])
def test_the_mode_of_the_file_stays(placed: Session, file: Path, mode: int) -> None:
    file.write_text("#!/bin/sh\necho a\n")
    file.chmod(mode)
    edit(placed, "echo a", "echo b")
    assert file.stat().st_mode & 0o777 == mode
    assert file.read_text() == "#!/bin/sh\necho b\n"


def test_a_file_whose_name_looks_like_an_option_keeps_its_mode(placed: Session, tmp_path: Path) -> None:
    odd = tmp_path / "-rf $(x) 'y'"
    odd.write_text("a")
    odd.chmod(0o700)
    edit(placed, "a", "b", path=odd.name)
    assert (odd.read_text(), odd.stat().st_mode & 0o777) == ("b", 0o700)


TEXT = st.text("ab\n \té", max_size=30)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXT, TEXT.filter(bool), TEXT, TEXT)
def test_only_the_piece_changes(
    placed: Session, file: Path, head: str, old: str, new: str, tail: str
) -> None:
    before = f"{head}[{old}]{tail}"
    file.write_bytes(before.encode())
    if old == new or f"[{old}]" == f"[{new}]":
        return
    assert edit(placed, f"[{old}]", f"[{new}]") == {
        "ok": True,
        "path": "f.py",
        "replacements": 1,
        "line": 1 + head.count("\n"),
    }
    assert file.read_bytes() == f"{head}[{new}]{tail}".encode()

"""The built-in tools: what they ask of the sandbox, and what the sandbox answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rath.backend.types import (
    BackendTool,
    BackendToolCodeRun,
    BackendToolCommandRun,
    BackendToolFilesExists,
    BackendToolFilesList,
    BackendToolFilesRead,
    BackendToolFilesWrite,
    ToolExecutionFailure,
)
from rath.errors import SandboxError, ToolError
from rath.flow.tool import (
    FlowToolCodeRun,
    FlowToolCommandRun,
    FlowToolFilesEdit,
    FlowToolFilesExists,
    FlowToolFilesList,
    FlowToolFilesRead,
    FlowToolFilesWrite,
    SandboxTool,
    flow_tool_code_run,
    flow_tool_command_run,
    flow_tool_files_exists,
    flow_tool_files_list,
    flow_tool_files_read,
    flow_tool_files_write,
    global_system_tools,
)
from rath.runtime.results import encode_result
from rath.session.session import Session

EXAMPLES: list[tuple[SandboxTool, dict[str, Any], BackendTool]] = [
    (FlowToolCommandRun(), {"cmd": "ls"}, BackendToolCommandRun("ls")),
    (
        FlowToolCommandRun(),
        {"cmd": "a\nb", "timeout": 3, "cwd": "src"},
        BackendToolCommandRun("a\nb", cwd="src", timeout=3.0),
    ),
    (FlowToolFilesRead(), {"path": "a"}, BackendToolFilesRead("a", "utf-8")),
    (FlowToolFilesRead(), {"path": "a", "encoding": "latin-1"}, BackendToolFilesRead("a", "latin-1")),
    (FlowToolFilesWrite(), {"path": "a", "content": ""}, BackendToolFilesWrite("a", "")),
    (FlowToolFilesList(), {"path": "."}, BackendToolFilesList(".")),
    (FlowToolFilesExists(), {"path": "a"}, BackendToolFilesExists("a")),
    (FlowToolCodeRun(), {"code": "1"}, BackendToolCodeRun("1", "python")),
    (
        FlowToolCodeRun(),
        {"code": "1", "language": "sh", "timeout": 0.5},
        BackendToolCodeRun("1", "sh", timeout=0.5),
    ),
]


@pytest.mark.parametrize(("made", "arguments", "request_"), EXAMPLES)
def test_arguments_become_a_request(
    made: SandboxTool, arguments: dict[str, Any], request_: BackendTool
) -> None:
    assert made.request(arguments) == request_


@pytest.mark.parametrize(
    ("name", "required", "optional"),
    [
        ("run_shell_command", ["cmd"], ["timeout", "cwd"]),
        ("read_workspace_file", ["path"], ["encoding"]),
        ("write_workspace_file", ["path", "content"], []),
        ("list_workspace_files", ["path"], []),
        ("workspace_path_exists", ["path"], []),
        ("run_code", ["code"], ["language", "timeout"]),
        ("result_read", ["digest"], ["offset", "limit"]),
    ],
)
def test_each_tool_has_the_documented_arguments_and_no_others(
    name: str, required: list[str], optional: list[str]
) -> None:
    made = global_system_tools()[name]
    assert made.name == name
    assert made.description
    schema = made.parameters
    assert (schema["type"], schema["required"], schema["additionalProperties"]) == ("object", required, False)
    assert list(schema["properties"]) == [*required, *optional]
    assert all(entry["description"] for entry in schema["properties"].values())


@pytest.mark.parametrize("made", [*global_system_tools().values(), FlowToolFilesEdit()])
def test_a_missing_argument_is_named(made: Any) -> None:
    first = made.parameters["required"][0]
    with pytest.raises(ToolError) as caught:
        made(Session.from_user_message("not placed"), dict.fromkeys(made.parameters["required"][1:], "x"))
    assert f"{first!r} is missing" in str(caught.value)
    assert caught.value.kind == "invalid_tool_arguments"


@pytest.mark.parametrize(
    ("made", "arguments", "problem"),
    [
        (FlowToolCommandRun(), {"cmd": ["ls", "-l"]}, "'cmd' must be a string, not an array"),
        (FlowToolCommandRun(), {"cmd": None}, "'cmd' must be a string, not null"),
        (FlowToolCommandRun(), {"cmd": ""}, "'cmd' is empty"),
        (FlowToolCommandRun(), {"cmd": "a\0b"}, "NUL character"),
        (FlowToolCommandRun(), {"cmd": "é" * 64_001}, "128,002 bytes; at most 128,000"),
        (FlowToolCommandRun(), {"cmd": "echo \ud800"}, "half a surrogate pair at character 5"),
        (FlowToolCommandRun(), {"cmd": "ls", "timeout": "5"}, "number of seconds, not a string"),
        (FlowToolCommandRun(), {"cmd": "ls", "timeout": True}, "number of seconds, not a boolean"),
        (FlowToolCommandRun(), {"cmd": "ls", "timeout": 0}, "positive, finite number"),
        (FlowToolCommandRun(), {"cmd": "ls", "timeout": -1.5}, "positive, finite number"),
        (FlowToolCommandRun(), {"cmd": "ls", "timeout": float("nan")}, "positive, finite number"),
        (FlowToolCommandRun(), {"cmd": "ls", "timeout": 10**400}, "positive, finite number"),
        (FlowToolCommandRun(), {"cmd": "ls", "cwd": 3}, "'cwd' must be a string, not a number"),
        (
            FlowToolCommandRun(),
            {"cmd": "ls", "timeout_s": 5, "shell": 1},
            "unknown arguments 'timeout_s', 'shell'; this tool takes cmd, timeout, cwd",
        ),
        (FlowToolFilesRead(), {"path": ""}, "'path' is empty"),
        (FlowToolFilesRead(), {"path": "a\0"}, "NUL character"),
        (FlowToolFilesRead(), {"path": "a", "encoding": "klingon"}, "'klingon' is not a text encoding"),
        (FlowToolFilesRead(), {"path": "a", "encoding": "hex"}, "'hex' is not a text encoding"),
        (FlowToolFilesRead(), {"path": "a", "encoding": 8}, "'encoding' must be a string"),
        (
            FlowToolFilesWrite(),
            {"path": "a", "content": {"x": 1}},
            "'content' must be a string, not an object",
        ),
        (FlowToolFilesWrite(), {"path": "a", "content": "\udfff"}, "half a surrogate pair"),
        (FlowToolFilesList(), {}, "'path' is missing"),
        (FlowToolFilesExists(), {"path": 1.5}, "'path' must be a string, not a number"),
        (FlowToolCodeRun(), {"code": " " * 3, "language": ""}, "'language' is empty"),
        (FlowToolCodeRun(), ["code"], "arguments must be a JSON object, not an array"),
    ],
)
def test_wrong_arguments_are_refused_in_words_for_the_model(
    made: SandboxTool, arguments: Any, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        made.request(arguments)
    with pytest.raises(ToolError, match=problem) as caught:
        made(Session.from_user_message("not placed"), arguments)
    assert caught.value.kind == "invalid_tool_arguments"


@given(
    st.sampled_from([made for made in global_system_tools().values() if isinstance(made, SandboxTool)]),
    st.dictionaries(
        st.sampled_from(["cmd", "path", "content", "code", "encoding", "language", "timeout", "cwd", "x"]),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(st.characters(exclude_categories=())),
    ),
)
def test_any_arguments_become_a_request_or_a_value_error(made: Any, arguments: dict[str, Any]) -> None:
    assert all(isinstance(part, str) for part in made.resource_key(arguments))
    try:
        request = made.request(arguments)
    except ValueError:
        return
    assert isinstance(request, BackendTool)


def test_null_stands_for_an_absent_option() -> None:
    arguments = {"cmd": "ls", "timeout": None, "cwd": None}
    assert FlowToolCommandRun().request(arguments) == BackendToolCommandRun("ls")
    assert FlowToolFilesRead().request({"path": "a", "encoding": None}) == BackendToolFilesRead("a", "utf-8")


def test_commands_of_many_lines_and_128_kilobytes_are_taken() -> None:
    cmd = "echo 1\n" * 18_000
    assert 125_000 < len(cmd) <= 128_000
    assert FlowToolCommandRun().request({"cmd": cmd}) == BackendToolCommandRun(cmd)


def test_a_sandbox_tool_of_ones_own_may_raise_plain_errors() -> None:
    class Head(SandboxTool):
        @property
        def name(self) -> str:
            return "head"

        @property
        def parameters(self) -> dict[str, Any]:
            return {"type": "object"}

        def request(self, arguments: Any) -> BackendTool:
            if "path" not in arguments:
                raise TypeError("head needs a path")
            return BackendToolCommandRun(["head", "-n1", arguments["path"]])

    with pytest.raises(ToolError, match="head needs a path") as caught:
        Head()(Session.from_user_message("not placed"), {})
    assert caught.value.kind == "invalid_tool_arguments"


def test_the_engine_may_await_a_request_unless_a_subclass_calls_in_its_own_way() -> None:
    class Shouting(FlowToolCommandRun):
        def __call__(self, session: Any, arguments: Any) -> Any:
            return super().__call__(session, {**arguments, "cmd": arguments["cmd"].upper()})

    assert FlowToolCommandRun.__call__.runs_sandbox_request is True
    assert not hasattr(Shouting.__call__, "runs_sandbox_request")


# -- resource keys ----------------------------------------------------------------------------------------------------


def test_everything_done_to_one_file_is_in_one_queue_however_its_path_is_spelt() -> None:
    file_tools = (FlowToolFilesRead(), FlowToolFilesWrite(), FlowToolFilesExists(), FlowToolFilesEdit())
    spellings = (
        "a/b.txt",
        "./a/b.txt",
        "a//b.txt",
        "a/c/../b.txt",
        "/workspace/a/b.txt",
        "//workspace/a/b.txt",
    )
    assert {t.resource_key({"path": path}) for t in file_tools for path in spellings} == {("fs", "a/b.txt")}
    assert FlowToolFilesList().resource_key({"path": "/workspace"}) == FlowToolFilesList().resource_key(
        {"path": "."}
    )


def test_different_files_are_in_different_queues() -> None:
    keys = {FlowToolFilesWrite().resource_key({"path": path}) for path in ("a", "b", "/a", "../a", "a/a")}
    assert len(keys) == 5


def test_files_may_overlap_with_others_but_commands_and_code_may_not() -> None:
    safe = {name for name, made in global_system_tools().items() if made.parallel_safe}
    assert safe == {
        "read_workspace_file",
        "write_workspace_file",
        "list_workspace_files",
        "workspace_path_exists",
        "result_read",
    }
    assert FlowToolCommandRun().resource_key({"cmd": "ls"}) == ("exec",)
    assert FlowToolCodeRun().resource_key({"code": "1"}) == ("code",)


def test_only_what_reads_may_be_repeated_after_a_crash() -> None:
    repeatable = {name for name, made in global_system_tools().items() if made.idempotent}
    assert repeatable == {"read_workspace_file", "list_workspace_files", "workspace_path_exists", "result_read"}


# -- with a sandbox ---------------------------------------------------------------------------------------------------


def call(session: Session, name: str, **arguments: Any) -> Any:
    """What the model sees."""
    return json.loads(encode_result(global_system_tools()[name](session, arguments)).body)


def test_the_tools_work_on_a_real_workspace(placed: Session, tmp_path: Path) -> None:
    assert call(placed, "write_workspace_file", path="src/a.txt", content="grün\n") == {"bytes_written": 6}
    assert (tmp_path / "src/a.txt").read_text(encoding="utf-8") == "grün\n"
    assert call(placed, "read_workspace_file", path="src/a.txt") == {"data": "grün\n"}
    assert [entry["name"] for entry in call(placed, "list_workspace_files", path="src")["entries"]] == [
        "a.txt"
    ]
    assert call(placed, "workspace_path_exists", path="src/a.txt") == {"ok": True}
    assert call(placed, "workspace_path_exists", path="src/b.txt") == {"ok": False}
    ran = call(placed, "run_shell_command", cmd="x=1\necho $x; cat a.txt; exit 3", cwd="src")
    assert (ran["exit_code"], ran["stdout"]) == (3, "1\ngrün\n")
    assert call(placed, "run_code", code="print(6 * 7)")["stdout"] == "42\n"


def test_a_file_that_is_not_there_is_a_failure_for_the_model(placed: Session) -> None:
    assert call(placed, "read_workspace_file", path="none.txt")["error_kind"] == "file_not_found"


def test_a_file_that_is_rewritten_keeps_its_mode(placed: Session) -> None:
    def mode() -> bytes:
        return flow_tool_command_run(placed, "stat -c %a run.sh").stdout.strip()

    call(placed, "write_workspace_file", path="run.sh", content="#!/bin/sh\n")
    assert mode() == b"644"
    for kept in ("755", "600"):
        flow_tool_command_run(placed, f"chmod {kept} run.sh")
        call(placed, "write_workspace_file", path="run.sh", content="#!/bin/sh\necho 1\n")
        assert mode() == kept.encode()
        flow_tool_files_write(placed, "run.sh", "#!/bin/sh\necho 2\n")
        assert mode() == kept.encode()
    flow_tool_files_write(placed, "run.sh", "x", mode=0o700)
    assert mode() == b"700"


def test_the_same_operations_are_there_for_people(placed: Session) -> None:
    assert flow_tool_files_write(placed, "a.bin", b"\x00\xff", mode=0o755).bytes_written == 2
    assert flow_tool_files_read(placed, "a.bin", encoding=None).data == b"\x00\xff"
    assert flow_tool_files_exists(placed, "a.bin") is True
    assert [entry.name for entry in flow_tool_files_list(placed, ".").entries] == ["a.bin"]
    ran = flow_tool_command_run(
        placed, ["sh", "-c", "cat; echo $X"], env={"X": "1"}, cwd=".", stdin=b"in", timeout=20
    )
    assert (ran.exit_code, ran.stdout) == (0, b"in1\n")
    assert flow_tool_code_run(placed, "print(1)", language="python", timeout=20).stdout == b"1\n"


def test_a_command_that_takes_too_long_is_a_failure(placed: Session) -> None:
    result = flow_tool_command_run(placed, "sleep 30", timeout=0.2)
    assert isinstance(result, ToolExecutionFailure) or result.timed_out


def test_a_session_that_is_not_placed_says_how_to_place_it() -> None:
    with pytest.raises(SandboxError, match=r'session\.to\("local"\)'):
        flow_tool_command_run(Session.from_user_message("x"), "ls")

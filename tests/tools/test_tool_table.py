"""The table of a run's tools, and what the model is told of them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest

from rath.errors import ToolNameConflictError, UsageTypeError, UsageValueError
from rath.flow.tool import (
    FlowToolCall,
    FlowToolCommandRun,
    FlowToolFilesRead,
    coding_tools,
    global_system_tools,
    merge_tools_for_loop,
    tools_dict_to_schemas,
)
from rath.llm.types import RathLLMFunctionTool

SEVEN = [
    "run_shell_command",
    "read_workspace_file",
    "write_workspace_file",
    "list_workspace_files",
    "workspace_path_exists",
    "run_code",
    "result_read",
]


class Echo(FlowToolCall):
    def __init__(self, name: Any = "echo", schema: Any = None, about: Any = "Says it again.") -> None:
        self._name, self.about = name, about
        self.schema = (
            {"type": "object", "properties": {"text": {"type": "string"}}} if schema is None else schema
        )

    @property
    def name(self) -> str:
        return self._name

    @property
    def description(self) -> str | None:
        return self.about

    @property
    def parameters(self) -> Mapping[str, Any]:
        return self.schema

    def __call__(self, session: Any, arguments: Mapping[str, Any]) -> Any:
        return arguments["text"]


def schemas_of(*tools: FlowToolCall) -> tuple[RathLLMFunctionTool, ...]:
    return tools_dict_to_schemas({tool.name: tool for tool in tools})


def test_a_run_without_own_tools_has_exactly_the_six_built_in_ones() -> None:
    assert list(merge_tools_for_loop(None)) == SEVEN
    assert list(merge_tools_for_loop([])) == SEVEN


def test_the_built_in_tools_are_the_same_objects_at_every_call_and_cannot_be_changed() -> None:
    assert all(global_system_tools()[name] is merge_tools_for_loop(None)[name] for name in SEVEN)
    with pytest.raises(TypeError):
        global_system_tools()["x"] = Echo()  # type: ignore[index]


def test_the_table_of_a_run_is_its_own() -> None:
    merge_tools_for_loop(None).clear()
    assert list(merge_tools_for_loop(None)) == SEVEN


def test_own_tools_stand_behind_the_built_in_ones_in_their_order() -> None:
    assert list(merge_tools_for_loop([Echo("b"), Echo("a"), *coding_tools()])) == [
        *SEVEN,
        "b",
        "a",
        "edit_workspace_file",
    ]


def test_an_own_tool_with_the_name_of_a_built_in_one_is_refused() -> None:
    with pytest.raises(ToolNameConflictError, match="'run_code' belongs to a built-in tool"):
        merge_tools_for_loop([Echo("run_code")])
    with pytest.raises(ValueError, match="read_workspace_file"):
        merge_tools_for_loop([FlowToolFilesRead()])


def test_two_own_tools_with_one_name_are_refused() -> None:
    with pytest.raises(ToolNameConflictError, match="'echo' belongs to another tool of this list"):
        merge_tools_for_loop([Echo(), Echo()])


class Duck:
    name = "duck"
    description = "Looks like a tool."
    parameters: Mapping[str, Any] = {"type": "object"}

    def __call__(self, session: Any, arguments: Mapping[str, Any]) -> Any:
        return None


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        (Duck(), "derive from rath.flow.tool.FlowToolCall"),
        (Echo, r"Pass an instance: Echo\(\)"),
        (len, "decorator rath.flow.tool.tool"),
        ("echo", "Tools derive from"),
    ],
)
def test_what_is_no_tool_is_refused_with_the_remedy(wrong: Any, remedy: str) -> None:
    with pytest.raises(UsageTypeError, match=remedy):
        merge_tools_for_loop([wrong])


@pytest.mark.parametrize("wrong", [Echo(), "tools", 3])
def test_tools_that_are_no_list_are_refused(wrong: Any) -> None:
    with pytest.raises(UsageTypeError, match="tools is a list of tools"):
        merge_tools_for_loop(wrong)


def test_a_name_that_is_no_string_is_refused() -> None:
    with pytest.raises(UsageTypeError, match="name of tool Echo is 7"):
        merge_tools_for_loop([Echo(7)])


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "naïve", "a.b", "a\n"])
def test_a_name_that_providers_refuse_is_refused_here(name: str) -> None:
    with pytest.raises(UsageValueError, match="providers take 1 to 64"):
        schemas_of(Echo(name))


def test_schemas_carry_name_description_and_parameters_in_the_order_of_the_table() -> None:
    schemas = tools_dict_to_schemas(merge_tools_for_loop([Echo()]))
    assert [schema.name for schema in schemas] == [*SEVEN, "echo"]
    assert schemas[-1] == RathLLMFunctionTool(
        name="echo",
        parameters={"type": "object", "properties": {"text": {"type": "string"}}},
        description="Says it again.",
    )


def test_every_schema_is_plain_json() -> None:
    nested = MappingProxyType({"type": "object", "properties": MappingProxyType({}), "required": ("a",)})
    for schema in tools_dict_to_schemas(merge_tools_for_loop([Echo(schema=nested)])):
        assert json.loads(json.dumps(schema.parameters)) == schema.parameters


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ("object", "not a JSON Schema"),
        ([], "not a JSON Schema"),
        ({"type": "array"}, "a tool's arguments are an object"),
        ({"type": "object", "properties": {"x": object()}}, "it holds a object"),
        ({"type": "object", 3: 4}, "keys must be strings, not 3"),
        ({"type": "object", "default": {1, 2}}, "it holds a set"),
    ],
)
def test_parameters_that_are_no_schema_of_an_object_are_refused_naming_the_tool(
    schema: Any, problem: str
) -> None:
    with pytest.raises(UsageTypeError, match=problem) as caught:
        schemas_of(Echo("broken", schema))
    assert "'broken'" in str(caught.value)


def test_a_schema_that_contains_itself_is_refused() -> None:
    schema: dict[str, Any] = {"type": "object"}
    schema["properties"] = schema
    with pytest.raises(UsageTypeError, match="'loop' are not JSON"):
        schemas_of(Echo("loop", schema))


def test_a_description_that_is_no_string_is_refused() -> None:
    with pytest.raises(UsageTypeError, match="description of tool 'echo'"):
        schemas_of(Echo(about=["no"]))


def test_a_tool_that_changes_is_described_anew_and_earlier_schemas_stay() -> None:
    echo = Echo()
    (before,) = schemas_of(echo)
    echo.schema["properties"]["times"] = {"type": "integer"}
    echo.about = "Says it again and again."
    (after,) = schemas_of(echo)
    assert "times" not in before.parameters["properties"]
    assert "times" in after.parameters["properties"]
    assert after.description == "Says it again and again."


def test_an_unchanged_tool_is_checked_once() -> None:
    echo = Echo()
    assert schemas_of(echo)[0] is schemas_of(echo)[0]


def test_schemas_of_unchanged_tools_cost_microseconds() -> None:
    table = merge_tools_for_loop([Echo()])
    tools_dict_to_schemas(table)
    best = float("inf")
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(100):
            tools_dict_to_schemas(table)
        best = min(best, (time.perf_counter() - began) / 100)
    assert best < 10e-6


def test_a_tool_that_may_not_overlap_shares_one_key_with_all_such_tools() -> None:
    assert Echo("a").resource_key({}) == Echo("b").resource_key({}) == ("global",)


def test_a_parallel_safe_tool_has_a_key_of_its_own() -> None:
    class Safe(Echo):
        parallel_safe = True

    assert Safe("a").resource_key({}) == ("safe", "a")


def test_repr_names_the_tool_and_its_parameters() -> None:
    assert repr(FlowToolCommandRun()) == (
        "FlowToolCommandRun(name='run_shell_command', parameters=(cmd, timeout=…, cwd=…))"
    )


def test_a_tool_class_without_a_call_cannot_be_made() -> None:
    class Half(FlowToolCall):
        @property
        def name(self) -> str:
            return "half"

        @property
        def parameters(self) -> Mapping[str, Any]:
            return {}

    with pytest.raises(TypeError, match="__call__"):
        Half()  # type: ignore[abstract]


def test_the_built_in_tools_load_neither_pydantic_nor_an_sdk() -> None:
    code = (
        "import sys, rath.flow.tool as t, rath.runtime.results;"
        "t.merge_tools_for_loop(None); t.coding_tools();"
        "print([m for m in ('pydantic', 'openai', 'anthropic', 'networkx', 'docker') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    import rath.flow.tool as room

    assert all(getattr(room, name) is not None for name in room.__all__)
    documented = {
        "FlowToolCall",
        "ToolNameConflictError",
        "global_system_tools",
        "merge_tools_for_loop",
        "tool",
    }
    assert documented <= set(room.__all__)

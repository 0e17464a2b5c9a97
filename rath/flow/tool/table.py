"""The tools of one run: by name, and as the schemas that go to the model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from rath.core.encoding import encode_json
from rath.errors import ToolNameConflictError, UsageTypeError, UsageValueError
from rath.flow.tool.base import FlowToolCall
from rath.flow.tool.builtin import global_system_tools
from rath.llm.types import RathLLMFunctionTool

__all__ = ["check_tool_name", "merge_tools_for_loop", "tools_dict_to_schemas"]

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
# Where a tool keeps its checked schema: on itself, where it goes when the tool goes.
_CACHE = "_rath_checked_schema"


def merge_tools_for_loop(user_tools: list[FlowToolCall] | None) -> dict[str, FlowToolCall]:
    """The built-in tools and ``user_tools``, by name.

    Raises:
        ToolNameConflictError: two tools have one name; a built-in's name is taken too.
        UsageTypeError: something in ``user_tools`` is no tool.
    """
    table = dict(global_system_tools())
    if user_tools is None:
        return table
    if isinstance(user_tools, FlowToolCall | str) or not isinstance(user_tools, Iterable):
        raise UsageTypeError(f"tools is a list of tools, not {_what(user_tools)}")
    for tool in user_tools:
        if not isinstance(tool, FlowToolCall):
            raise UsageTypeError(f"not a tool: {_what(tool)}. {_remedy(tool)}")
        name = tool.name
        if not isinstance(name, str):
            raise UsageTypeError(f"the name of tool {type(tool).__name__} is {_what(name)}, not a string")
        if name in table:
            owner = "a built-in tool" if name in global_system_tools() else "another tool of this list"
            raise ToolNameConflictError(f"tool name {name!r} belongs to {owner}: give {type(tool).__name__} another name")
        table[name] = tool
    return table


def tools_dict_to_schemas(table: Mapping[str, FlowToolCall]) -> tuple[RathLLMFunctionTool, ...]:
    """What the model is told about the tools, in the table's order. Checked once, and again when one changes.

    Raises:
        UsageTypeError: a tool's ``parameters`` are no JSON Schema of an object, its description is no string.
        UsageValueError: a name that providers refuse.
    """
    schemas = []
    for name, tool in table.items():
        kept: RathLLMFunctionTool | None = getattr(tool, _CACHE, None)
        if kept is None or kept.name != name or kept.parameters != tool.parameters or kept.description != tool.description:
            kept = _checked_schema(name, tool)
        schemas.append(kept)
    return tuple(schemas)


def check_tool_name(name: str) -> None:
    """Raises ``UsageValueError`` for a name that providers refuse."""
    if not _NAME.fullmatch(name):
        raise UsageValueError(f"tool name {name!r}: providers take 1 to 64 of the characters a-z A-Z 0-9 _ -")


def _checked_schema(name: str, tool: FlowToolCall) -> RathLLMFunctionTool:
    if not isinstance(tool, FlowToolCall):
        raise UsageTypeError(f"not a tool: {_what(tool)}. {_remedy(tool)}")
    check_tool_name(name)
    description = tool.description
    if description is not None and not isinstance(description, str):
        raise UsageTypeError(f"the description of tool {name!r} is {_what(description)}, not a string")
    schema = tool.parameters
    if not isinstance(schema, Mapping):
        raise UsageTypeError(f"the parameters of tool {name!r} are {_what(schema)}, not a JSON Schema (a dict)")
    if schema.get("type", "object") != "object":
        raise UsageTypeError(
            f"the parameters of tool {name!r} describe {schema['type']!r}; a tool's arguments are an object"
        )
    try:
        # A copy of our own: when the tool changes its dict later, requests made from it stay as they are.
        parameters = _plain(schema)
        encode_json(parameters)
    except (TypeError, RecursionError) as error:
        raise UsageTypeError(f"the parameters of tool {name!r} are not JSON: {error}") from error
    made = RathLLMFunctionTool(name=name, parameters=parameters, description=description)
    vars(tool)[_CACHE] = made
    return made


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"keys must be strings, not {next(_what(key) for key in value if not isinstance(key, str))}")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"it holds {_what(value)}")


def _what(value: object) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"{value!r}" if isinstance(value, str | int | float) else f"a {type(value).__name__}"


def _remedy(value: object) -> str:
    if isinstance(value, type) and issubclass(value, FlowToolCall):
        return f"Pass an instance: {value.__name__}()"
    if hasattr(value, "parameters") and hasattr(value, "name"):
        return "It looks like one: let its class derive from rath.flow.tool.FlowToolCall"
    if callable(value):
        return "Make one of it with the decorator rath.flow.tool.tool"
    return "Tools derive from rath.flow.tool.FlowToolCall"

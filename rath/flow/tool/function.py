"""Tools from plain functions: the signature is the schema, the docstring is what the model reads.

::

    @tool
    def add(a: int, b: Annotated[int, Field(ge=0)] = 1) -> int:
        "Add two numbers."
        return a + b
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, NamedTuple, Optional, get_args, get_origin, overload

from pydantic import BaseModel, ConfigDict, Field, PydanticUserError, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema

from rath.core.encoding import encode_json
from rath.errors import UsageTypeError
from rath.flow.tool.base import FlowToolCall, InvalidToolArguments
from rath.flow.tool.table import check_tool_name
from rath.session.session import Session

__all__ = ["FunctionTool", "tool"]

ResourceKey = str | tuple[str, ...] | Callable[[Mapping[str, Any]], "str | tuple[str, ...]"]
_MAX_PROBLEMS = 10


class FunctionTool(FlowToolCall):
    """A tool made from a function by :func:`tool`. The plain function is ``function``."""

    def __init__(
        self,
        function: Callable[..., Any],
        signature: _Signature,
        *,
        name: str,
        description: str | None,
        parallel_safe: bool,
        idempotent: bool,
        resource_key: ResourceKey | None,
    ) -> None:
        self.function = function
        self.parallel_safe = parallel_safe
        self.idempotent = idempotent
        self.__doc__ = function.__doc__
        self._signature = signature
        self._name = name
        self._description = description
        self._parameters = signature.schema()
        self._resource_key = resource_key

    @property
    def takes_session(self) -> bool:
        """Whether the function wants the session: if not, a run need not make a snapshot of it."""
        return bool(self._signature.session_parameters)

    @property
    def name(self) -> str:
        return self._name

    @property
    def description(self) -> str | None:
        return self._description

    @property
    def parameters(self) -> Mapping[str, Any]:
        return self._parameters

    def resource_key(self, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        given = self._resource_key
        if given is None:
            return super().resource_key(arguments)
        if callable(given):
            try:
                given = given(arguments)
            except Exception:
                try:
                    self._signature.bind(self._name, None, arguments)
                except InvalidToolArguments:
                    # No key of arguments that are wrong: the call will tell the model so, at its turn.
                    return ("global",)
                raise
        return (given,) if isinstance(given, str) else tuple(given)

    def __call__(self, session: Session, arguments: Mapping[str, Any]) -> Any:
        return self.function(**self._signature.bind(self._name, session, arguments))


class AsyncFunctionTool(FunctionTool):
    """A :class:`FunctionTool` whose function is ``async def``: it runs on the engine's loop."""

    async def __call__(self, session: Session, arguments: Mapping[str, Any]) -> Any:
        return await self.function(**self._signature.bind(self._name, session, arguments))


@overload
def tool(function: Callable[..., Any], /) -> FunctionTool: ...
@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    parallel_safe: bool = False,
    idempotent: bool = False,
    resource_key: ResourceKey | None = None,
) -> Callable[[Callable[..., Any]], FunctionTool]: ...


def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    parallel_safe: bool = False,
    idempotent: bool = False,
    resource_key: ResourceKey | None = None,
) -> FunctionTool | Callable[[Callable[..., Any]], FunctionTool]:
    """A tool from a function, with or without ``async``; as ``@tool`` or ``@tool(…)``.

    Arguments are checked and converted by pydantic, so that the function gets what it is annotated with;
    wrong ones go back to the model. A parameter named ``session`` or annotated ``Session`` gets the run's
    session and is not shown to the model. Descriptions come from the docstring (Google, numpy, reST) or
    from ``Field``.

    Args:
        name: the function's name by default.
        description: the docstring's first paragraph by default.
        parallel_safe: whether calls may overlap those of other tools.
        idempotent: whether a resumed run may repeat a call whose result was lost.
        resource_key: for ``parallel_safe`` tools: calls with equal keys run in order, others in parallel. A
            key, or a function that makes it from the arguments.

    Raises:
        UsageTypeError: the function cannot be a tool: positional-only parameters, ``*args``, ``**kwargs``, a
            type that no JSON Schema describes, a generator.
        UsageValueError: a name that providers refuse.
    """
    # Types may be defined in the function that decorates; their names are only known there.
    local_names = sys._getframe(1).f_locals

    def make(function: Callable[..., Any]) -> FunctionTool:
        plain = _checked(function)
        tool_name = plain.__name__ if name is None else name
        check_tool_name(tool_name)
        summary, documented = _read_docstring(inspect.getdoc(plain) or "")
        kind = AsyncFunctionTool if inspect.iscoroutinefunction(function) else FunctionTool
        return kind(
            function,
            _Signature(tool_name, function, plain, local_names, documented),
            name=tool_name,
            description=summary if description is None else description,
            parallel_safe=parallel_safe,
            idempotent=idempotent,
            resource_key=resource_key,
        )

    return make if function is None else make(function)


def _checked(function: Any) -> Callable[..., Any]:
    """The function that has name, docstring and globals: of a partial, the one inside."""
    if isinstance(function, FlowToolCall):
        raise UsageTypeError(f"{function!r} is a tool already")
    plain = function
    while isinstance(plain, functools.partial):
        plain = plain.func
    if isinstance(plain, type) or not callable(plain) or not hasattr(plain, "__name__"):
        raise UsageTypeError(f"@tool takes a function or a bound method, not {plain!r}; else derive from FlowToolCall")
    if inspect.isgeneratorfunction(plain) or inspect.isasyncgenfunction(plain):
        raise UsageTypeError(f"{plain.__name__!r} is a generator, and a tool returns one result: return a list")
    return typing.cast("Callable[..., Any]", plain)


# -- the signature -------------------------------------------------------------------------------------------


class _Schema(GenerateJsonSchema):
    # A default that JSON has not is left out of the schema; it is the function's all the same.
    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012 - pydantic's form

    def field_title_should_be_set(self, schema: Any) -> bool:
        # "Max results" beside "max_results" tells a model nothing.
        return False


class _Parameter(NamedTuple):
    name: str
    own_default: bool  # the function has the default itself, so that an absent argument need not be passed


class _Signature:
    """What a function's parameters ask of arguments: their schema, and how they become keyword arguments."""

    def __init__(
        self,
        tool_name: str,
        function: Callable[..., Any],
        plain: Callable[..., Any],
        local_names: Mapping[str, Any],
        documented: Mapping[str, str],
    ) -> None:
        self.session_parameters: list[str] = []
        self._parameters: dict[str, _Parameter] = {}
        fields: dict[str, Any] = {}
        for parameter, hint in _typed_parameters(tool_name, function, plain, local_names):
            if parameter.name == "session" or _is_session(hint):
                self.session_parameters.append(parameter.name)
                continue
            # Field names of our own: pydantic's models reserve some, like "copy" or "_id".
            field = f"p{len(fields)}"
            default = parameter.default
            fields[field] = _field(parameter, hint, documented.get(parameter.name))
            own_default = default is not parameter.empty and not isinstance(default, FieldInfo)
            self._parameters[field] = _Parameter(parameter.name, own_default)
        try:
            config = ConfigDict(extra="forbid")
            self._model: type[BaseModel] = create_model(tool_name, __config__=config, **fields)
            self._validate: Callable[[Any], BaseModel] = self._model.__pydantic_validator__.validate_python
            self._json_schema = self._model.model_json_schema(schema_generator=_Schema)
        except (PydanticUserError, NameError, TypeError) as error:
            reason = str(error).partition("\n")[0]
            raise UsageTypeError(f"tool {tool_name!r}: its parameters have no JSON Schema: {reason}") from error
        self._json_schema.pop("title", None)
        self._json_schema.setdefault("properties", {})

    def schema(self) -> dict[str, Any]:
        return self._json_schema

    def bind(self, tool_name: str, session: Session | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The function's keyword arguments. Raises :class:`InvalidToolArguments`."""
        if type(arguments) is not dict and not isinstance(arguments, Mapping):
            raise UsageTypeError(
                f"a tool is called as tool(session, arguments) with a mapping, not a "
                f"{type(arguments).__name__}; the plain function is its attribute .function"
            )
        try:
            made = self._validate(dict(arguments))
        except ValidationError as error:
            made = self._from_json(arguments, error)
        given = made.model_fields_set
        bound = {
            parameter.name: made.__dict__[field]
            for field, parameter in self._parameters.items()
            if field in given or not parameter.own_default
        }
        for name in self.session_parameters:
            bound[name] = session
        return bound

    def _from_json(self, arguments: Mapping[str, Any], error: ValidationError) -> BaseModel:
        # In strict models a UUID may be a string in JSON but not in Python; and JSON is what arguments are.
        try:
            return self._model.model_validate_json(encode_json(dict(arguments)))
        except ValidationError as strict_error:
            if strict_error.errors(include_url=False)[0]["type"] != "json_invalid":
                error = strict_error
        except UsageTypeError:
            pass  # arguments made in Python, with objects that JSON has not: the first error is the right one
        raise InvalidToolArguments(self._problems(error)) from error

    def _problems(self, error: ValidationError) -> str:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        problems = []
        for problem in found[:_MAX_PROBLEMS]:
            place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"])
            problems.append(f"{place.lstrip('.')}: {_PLAIN.get(problem['type'], problem['msg'])}")
        if len(found) > _MAX_PROBLEMS:
            problems.append(f"and {len(found) - _MAX_PROBLEMS} more")
        if any(problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1 for problem in found):
            problems.append(f"this tool takes {', '.join(p.name for p in self._parameters.values()) or 'no arguments'}")
        return "; ".join(problems)


_PLAIN = {"missing": "missing", "extra_forbidden": "unknown argument"}


def _typed_parameters(
    tool_name: str, function: Callable[..., Any], plain: Callable[..., Any], local_names: Mapping[str, Any]
) -> Iterator[tuple[inspect.Parameter, Any]]:
    """The parameters with their types. Raises ``UsageTypeError`` for those that a JSON object cannot fill."""
    global_names = getattr(inspect.unwrap(plain), "__globals__", {})
    # ``Session`` is often imported for type checkers only. A name of the function's own module goes before.
    names = {"Session": Session, **global_names, **local_names}
    try:
        parameters = inspect.signature(function).parameters
        annotated = {p.name: p.annotation for p in parameters.values() if p.annotation is not p.empty}
        # Not of the function itself: what it returns may have a type that is unknown at run time.
        holder = types.SimpleNamespace(__annotations__=annotated)
        hints = typing.get_type_hints(holder, global_names, names, include_extras=True)
    except NameError as error:
        raise UsageTypeError(f"tool {tool_name!r}: an annotation is not known at run time: {error}") from error
    except (TypeError, ValueError) as error:
        raise UsageTypeError(f"tool {tool_name!r}: its signature cannot be read: {error}") from error
    for index, parameter in enumerate(parameters.values()):
        if parameter.kind in _UNFILLABLE:
            raise UsageTypeError(
                f"tool {tool_name!r}: {parameter} is {_UNFILLABLE[parameter.kind]}; "
                "arguments come by name, so give each one a named parameter"
            )
        if index == 0 and parameter.name in ("self", "cls") and parameter.name not in hints:
            raise UsageTypeError(f"tool {tool_name!r} is a method: make the tool of a bound one, tool(object.{tool_name})")
        yield parameter, hints.get(parameter.name, Any)


_UNFILLABLE = {
    inspect.Parameter.POSITIONAL_ONLY: "positional-only",
    inspect.Parameter.VAR_POSITIONAL: "of variable number",
    inspect.Parameter.VAR_KEYWORD: "open to any name",
}


def _is_session(hint: Any) -> bool:
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    return any(isinstance(kind, type) and issubclass(kind, Session) for kind in (hint, *get_args(hint)))


def _field(parameter: inspect.Parameter, hint: Any, description: str | None) -> tuple[Any, Any]:
    metadata: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *rest = get_args(hint)
        metadata = tuple(rest)
    if parameter.default is None and hint is not Any:
        # "x: int = None" means that null is fine.
        hint = Optional[hint]  # noqa: UP045 - a value here, which may be no class
    # First, so that what the annotation says goes before the docstring.
    ours = Field(alias=parameter.name, description=description)
    default = Field() if parameter.default is parameter.empty else parameter.default
    return Annotated[(hint, ours, *metadata)], default


# -- the docstring -------------------------------------------------------------------------------------------

_GOOGLE_HEADER = re.compile(r"(?:(?:keyword |other )?(?:args|arguments|parameters|params)):\s*$", re.IGNORECASE)
_GOOGLE_ITEM = re.compile(r"\*{0,2}(\w+)\s*(?:\(.*?\))?\s*:(?:\s+(.*))?$")
_NUMPY_HEADER = re.compile(r"(?:other )?parameters\s*$", re.IGNORECASE)
_NUMPY_ITEM = re.compile(r"(\*{0,2}\w+(?:\s*,\s*\*{0,2}\w+)*)\s*(?::.*)?$")
_REST_ITEM = re.compile(r":(?:param|parameter|arg|argument|key|keyword)\s+(?:[^:]*\s)?\*{0,2}(\w+)\s*:\s*(.*)$")
_SECTION = re.compile(r"[A-Z]\w*(?: \w+)?:\s*$")
_RULE = re.compile(r"\s*-{3,}\s*$")


def _read_docstring(doc: str) -> tuple[str | None, dict[str, str]]:
    """The first paragraph, and what is said of each parameter, in Google, numpy or reST style."""
    lines = doc.splitlines()
    described: dict[str, str] = {}
    for index, line in enumerate(lines):
        text, below = line.strip(), lines[index + 1 :]
        if _GOOGLE_HEADER.match(text):
            described |= _items(_indented(below, _indent(line)), _GOOGLE_ITEM)
        elif _NUMPY_HEADER.match(text) and below and _RULE.match(below[0]):
            described |= _items(_until_rule(below[1:]), _NUMPY_ITEM)
        elif found := _REST_ITEM.match(text):
            described[found[1]] = _joined([found[2], *_indented(below, _indent(line), blank=False)])
    return _summary(lines), {name: text for name, text in described.items() if text}


def _summary(lines: list[str]) -> str | None:
    paragraph: list[str] = []
    for index, line in enumerate(lines):
        text = line.strip()
        numpy_header = index + 1 < len(lines) and _RULE.match(lines[index + 1])
        if not text or text.startswith(":") or _SECTION.match(text) or numpy_header:
            break
        paragraph.append(text)
    return " ".join(paragraph) or None


def _items(block: list[str], item: re.Pattern[str]) -> dict[str, str]:
    """``name: description`` for each item of a block; deeper lines go on with the last one."""
    filled = [line for line in block if line.strip()]
    depth = _indent(filled[0]) if filled else 0
    names: list[str] = []
    texts: dict[str, list[str]] = {}
    for line in filled:
        found = item.match(line.strip()) if _indent(line) == depth else None
        if found:
            names = [name.strip(" *") for name in found[1].split(",")]
            for name in names:
                texts[name] = [found[2] or ""] if item.groups > 1 else []
        elif _indent(line) > depth:
            for name in names:
                texts[name].append(line)
    return {name: _joined(parts) for name, parts in texts.items()}


def _indented(lines: list[str], depth: int, *, blank: bool = True) -> list[str]:
    """The lines up to the first that is not deeper than ``depth``; ``blank``: empty ones do not end them."""
    kept: list[str] = []
    for line in lines:
        if _indent(line) <= depth if line.strip() else not blank:
            break
        kept.append(line)
    return kept


def _until_rule(lines: list[str]) -> list[str]:
    """The lines of a numpy section: up to the next header, which has a rule below it."""
    for index, line in enumerate(lines):
        if _RULE.match(line):
            return lines[: max(0, index - 1)]
    return lines


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _joined(parts: list[str]) -> str:
    return " ".join(" ".join(parts).split())

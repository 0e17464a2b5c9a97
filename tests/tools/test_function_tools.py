"""Tools from plain functions: the signature is the schema."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import functools
import inspect
import json
import pickle
from collections.abc import Iterator
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from rath.errors import ToolError, UsageTypeError, UsageValueError
from rath.flow.tool import FlowToolCall, tool, tools_dict_to_schemas
from rath.session.session import Session

if TYPE_CHECKING:
    from nowhere import Unknown

USER = Session.from_user_message("hi")


def properties(made: FlowToolCall) -> dict[str, Any]:
    return dict(made.parameters["properties"])


def refusal(made: FlowToolCall, arguments: dict[str, Any]) -> str:
    with pytest.raises(ToolError) as caught:
        made(USER, arguments)
    assert caught.value.kind == "invalid_tool_arguments"
    return str(caught.value)


# -- the decorator ----------------------------------------------------------------------------------------------------


def test_a_function_becomes_a_tool_with_its_name_and_the_first_paragraph_of_its_docstring() -> None:
    @tool
    def add(a: int, b: int = 1) -> int:
        """Add two
        numbers.

        This is for people.
        """
        return a + b

    assert (add.name, add.description) == ("add", "Add two numbers.")
    assert add.parameters == {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer", "default": 1}},
        "required": ["a"],
        "additionalProperties": False,
    }
    assert add(USER, {"a": 2}) == 3
    assert add(USER, {"a": 2, "b": 5}) == 7


def test_the_plain_function_stays_callable() -> None:
    def add(a: int, b: int = 1) -> int:
        return a + b

    assert tool(add).function(1, b=2) == 3


def test_options_of_the_decorator_go_before_what_the_function_says() -> None:
    @tool(name="plus-1", description="Better.", parallel_safe=True, idempotent=True)
    def add(a: int) -> int:
        """Worse."""
        return a + 1

    assert (add.name, add.description, add.parallel_safe, add.idempotent) == ("plus-1", "Better.", True, True)
    assert add.resource_key({"a": 1}) == ("safe", "plus-1")


def test_a_tool_is_neither_parallel_safe_nor_idempotent_by_default() -> None:
    @tool
    def act() -> None: ...

    assert (act.parallel_safe, act.idempotent, act.resource_key({})) == (False, False, ("global",))


def test_an_async_function_becomes_an_async_tool() -> None:
    @tool
    async def double(x: int) -> int:
        await asyncio.sleep(0)
        return 2 * x

    assert inspect.iscoroutinefunction(type(double).__call__)
    assert asyncio.run(double(USER, {"x": 4})) == 8


def test_an_async_tool_refuses_wrong_arguments_when_awaited() -> None:
    @tool
    async def double(x: int) -> int:
        return 2 * x

    with pytest.raises(ToolError, match="x: missing"):
        asyncio.run(double(USER, {}))


def test_a_bound_method_and_a_partial_become_tools() -> None:
    class Shop:
        def __init__(self) -> None:
            self.sold: list[str] = []

        def sell(self, item: str, count: int = 1) -> int:
            """Sell it."""
            self.sold += [item] * count
            return len(self.sold)

    shop = Shop()
    sell = tool(shop.sell)
    assert sell(USER, {"item": "pear", "count": 2}) == 2
    assert list(properties(sell)) == ["item", "count"]
    few = tool(functools.partial(shop.sell, count=3))
    assert (few.name, few.description) == ("sell", "Sell it.")
    assert few(USER, {"item": "fig"}) == 5


def test_a_wrapped_function_keeps_its_signature() -> None:
    def twice(function: Any) -> Any:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            return [function(*args, **kwargs), function(*args, **kwargs)]

        return run

    @tool
    @twice
    def add(a: int) -> int:
        return a + 1

    assert add(USER, {"a": "1"}) == [2, 2]


def positional(a: int, /) -> int:
    return a


def stars(*values: int) -> int:
    return sum(values)


def options(**named: int) -> int:
    return len(named)


def generator() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (positional, "positional-only"),
        (stars, "of variable number"),
        (options, "open to any name"),
        (generator, "is a generator"),
        (int, "takes a function or a bound method"),
        (3, "takes a function or a bound method"),
        (functools.partial(int, base=2), "takes a function or a bound method"),
    ],
)
def test_what_cannot_be_a_tool_is_refused_when_it_is_decorated(function: Any, problem: str) -> None:
    with pytest.raises(UsageTypeError, match=problem):
        tool(function)


def test_a_tool_is_not_made_twice() -> None:
    @tool
    def act() -> None: ...

    with pytest.raises(UsageTypeError, match="is a tool already"):
        tool(act)


def test_an_unbound_method_is_refused_with_the_remedy() -> None:
    with pytest.raises(UsageTypeError, match="make the tool of a bound one"):

        class Shop:
            @tool
            def sell(self, item: str) -> None: ...


def test_a_name_that_providers_refuse_is_refused_when_decorated() -> None:
    with pytest.raises(UsageValueError, match="<lambda>"):
        tool(lambda: 1)
    assert tool(name="one")(lambda: 1)(USER, {}) == 1


def test_a_type_without_a_schema_is_refused_when_decorated() -> None:
    class Opaque: ...

    with pytest.raises(UsageTypeError, match=r"'act'.*no JSON Schema.*Opaque"):

        @tool
        def act(x: Opaque) -> None: ...


def test_a_type_that_is_not_known_at_run_time_is_refused_when_decorated() -> None:
    with pytest.raises(UsageTypeError, match=r"'act': an annotation is not known.*Unknown"):

        @tool
        def act(x: Unknown) -> None: ...


def test_the_type_of_the_result_may_be_unknown() -> None:
    @tool
    def act(x: int) -> Unknown:
        return x

    assert act(USER, {"x": 1}) == 1


def test_calling_a_tool_like_the_function_says_how_to_call_it() -> None:
    @tool
    def add(a: int, b: int) -> int:
        return a + b

    with pytest.raises(UsageTypeError, match=r"tool\(session, arguments\).*\.function"):
        add(1, 2)  # type: ignore[arg-type]


# -- types ------------------------------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Address(BaseModel):
    street: str
    number: int = 1


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


def test_arguments_are_converted_to_what_the_function_is_annotated_with() -> None:
    @tool
    def act(
        when: date,
        colour: Colour,
        address: Address,
        point: Point,
        kind: Literal["a", "b"],
        names: list[str],
        ages: dict[str, int],
        pair: tuple[int, str],
        tags: set[str],
        note: Optional[str] = None,  # noqa: UP045 - the old spelling is what is tried
    ) -> list[Any]:
        return [when, colour, address, point, kind, names, ages, pair, tags, note]

    arguments = {
        "when": "2024-02-29",
        "colour": "blue",
        "address": {"street": "High"},
        "point": {"x": 3},
        "kind": "b",
        "names": ["n"],
        "ages": {"n": 4},
        "pair": [1, "one"],
        "tags": ["t", "t"],
    }
    assert act(USER, arguments) == [
        date(2024, 2, 29),
        Colour.BLUE,
        Address(street="High"),
        Point(3),
        "b",
        ["n"],
        {"n": 4},
        (1, "one"),
        {"t"},
        None,
    ]
    json.dumps(act.parameters)


def test_types_defined_where_the_tool_is_are_known() -> None:
    class Local(BaseModel):
        x: int

    @tool
    def act(value: Local) -> Local:
        return value

    assert act(USER, {"value": {"x": 1}}) == Local(x=1)


def test_an_untyped_parameter_takes_anything() -> None:
    @tool
    def act(x, y=None):  # type: ignore[no-untyped-def]
        return [x, y]

    assert properties(act) == {"x": {}, "y": {"default": None}}
    assert act(USER, {"x": {"a": [1]}}) == [{"a": [1]}, None]


def test_a_default_of_none_lets_the_model_send_null() -> None:
    @tool
    def act(x: int = None) -> Any:  # type: ignore[assignment]  # noqa: RUF013 - what is tried
        return x

    assert act(USER, {"x": None}) is None


def test_constraints_and_descriptions_of_fields_hold() -> None:
    @tool
    def act(
        a: Annotated[int, Field(ge=0, description="not below zero")],
        b: int = Field(3, le=5, description="five at most"),
    ) -> int:
        """Act.

        Args:
            a: overruled
            b: overruled
        """
        return a + b

    assert properties(act)["a"] == {"type": "integer", "minimum": 0, "description": "not below zero"}
    assert properties(act)["b"] == {
        "type": "integer",
        "maximum": 5,
        "default": 3,
        "description": "five at most",
    }
    assert act.parameters["required"] == ["a"]
    assert act(USER, {"a": 1}) == 4
    assert "a: Input should be greater than or equal to 0" in refusal(act, {"a": -1})
    assert "b: Input should be less than or equal to 5" in refusal(act, {"a": 1, "b": 6})


def test_parameters_may_have_names_that_pydantic_reserves() -> None:
    @tool
    def act(copy: int, json: str, model_config: bool, _x: int = 1, p0: int = 0) -> list[Any]:
        return [copy, json, model_config, _x, p0]

    assert list(properties(act)) == ["copy", "json", "model_config", "_x", "p0"]
    assert act(USER, {"copy": 1, "json": "j", "model_config": True, "_x": 2}) == [1, "j", True, 2, 0]


def test_a_field_of_a_nested_type_keeps_its_name() -> None:
    @dataclasses.dataclass
    class Clash:
        p0: int

    @tool
    def act(value: Clash) -> Any:
        return value.p0

    assert act(USER, {"value": {"p0": 7}}) == 7


def test_an_absent_argument_is_left_to_the_function_itself() -> None:
    marker = object()

    @tool
    def act(x: object = marker) -> bool:
        return x is marker

    assert act(USER, {}) is True


def test_a_strict_model_takes_what_json_can_hold() -> None:
    class Strict(BaseModel):
        model_config = ConfigDict(strict=True)
        id: UUID
        n: int

    @tool
    def act(value: Strict) -> Strict:
        return value

    text = "12345678-1234-5678-1234-567812345678"
    assert act(USER, {"value": {"id": text, "n": 1}}).id == UUID(text)
    assert "value.n: Input should be a valid integer" in refusal(act, {"value": {"id": text, "n": "1"}})


# -- wrong arguments --------------------------------------------------------------------------------------------------


def test_every_problem_is_told_with_its_place() -> None:
    @tool
    def act(a: int, address: Address, points: list[Point], b: str = "") -> None: ...

    message = refusal(act, {"address": {"street": 1}, "points": [{"x": 1}, {"x": "one"}], "c": 2, "b": None})
    assert message == (
        "a: missing; address.street: Input should be a valid string; points[1].x: Input should be a valid integer, "
        "unable to parse string as an integer; b: Input should be a valid string; c: unknown argument; "
        "this tool takes a, address, points, b"
    )


def test_only_the_first_problems_are_told() -> None:
    @tool
    def act(values: list[int]) -> None: ...

    assert refusal(act, {"values": ["x"] * 50}).endswith("; and 40 more")


def test_a_tool_without_parameters_says_so() -> None:
    @tool
    def act() -> str:
        return "done"

    assert act(USER, {}) == "done"
    assert refusal(act, {"x": 1}) == "x: unknown argument; this tool takes no arguments"


def test_a_refusal_survives_pickling() -> None:
    @tool
    def act(a: int) -> None: ...

    with pytest.raises(ToolError) as caught:
        act(USER, {})
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.kind) == ("a: missing", "invalid_tool_arguments")


def test_what_the_function_raises_comes_out_as_it_is() -> None:
    @tool
    def act(a: int) -> None:
        raise LookupError(a)

    with pytest.raises(LookupError, match="1"):
        act(USER, {"a": 1})


# -- the session ------------------------------------------------------------------------------------------------------


def test_a_parameter_named_session_gets_the_session_and_is_hidden_from_the_model() -> None:
    @tool
    def act(a: int, session=None):  # type: ignore[no-untyped-def]
        return session

    assert list(properties(act)) == ["a"]
    assert act(USER, {"a": 1}) is USER


def test_a_parameter_annotated_session_gets_the_session() -> None:
    @tool
    def act(where: Session, a: int, maybe: Session | None = None) -> Any:
        return where, maybe

    assert list(properties(act)) == ["a"]
    assert act(USER, {"a": 1}) == (USER, USER)


def test_the_model_cannot_pass_a_session() -> None:
    @tool
    def act(session: Session) -> Any:
        return session

    assert "session: unknown argument" in refusal(act, {"session": "mine"})


# -- resource keys ----------------------------------------------------------------------------------------------------


def test_a_resource_key_is_a_name_a_tuple_or_made_from_the_arguments() -> None:
    def act(table: str) -> None: ...

    assert tool(resource_key="db")(act).resource_key({}) == ("db",)
    assert tool(resource_key=("db", "main"))(act).resource_key({}) == ("db", "main")
    by_table = tool(resource_key=lambda arguments: ("db", arguments["table"]))(act)
    assert by_table.resource_key({"table": "users"}) == ("db", "users")


def test_wrong_arguments_have_the_global_key_and_a_wrong_key_function_raises() -> None:
    @tool(resource_key=lambda arguments: ("db", arguments["table"].upper(), 1 // 0))
    def act(table: str) -> None: ...

    assert act.resource_key({}) == ("global",)
    with pytest.raises(ZeroDivisionError):
        act.resource_key({"table": "users"})


# -- docstrings -------------------------------------------------------------------------------------------------------


def google(place: str, days: int, unit: str = "C", extra: int = 0) -> None:
    """Tell the weather.

    Uses a service.

    Args:
        place (str, optional): where: a town,
            or a postcode
        days: how many
            days (at most 7).

        unit (Literal["C", "F"]): C or F
        *extra: ignored

    Returns:
        days: not a parameter
    """


def numpy(place: str, days: int, unit: str = "C", extra: int = 0) -> None:
    """Tell the weather.

    Parameters
    ----------
    place : str, optional
        where: a town,
        or a postcode
    days : int
        how many

        days (at most 7).
    unit : {"C", "F"}
        C or F
    extra
        ignored

    Returns
    -------
    days : str
        not a parameter
    """


def rest(place: str, days: int, unit: str = "C", extra: int = 0) -> None:
    """Tell the weather.
    :param place: where: a town,
        or a postcode
    :param int days: how many
        days (at most 7).
    :type unit: str
    :param unit: C or F
    :param extra: ignored
    :returns: not a parameter
    """


@pytest.mark.parametrize("function", [google, numpy, rest])
def test_descriptions_come_from_docstrings_of_three_styles(function: Any) -> None:
    made = tool(function)
    assert made.description == "Tell the weather."
    assert {name: schema["description"] for name, schema in properties(made).items()} == {
        "place": "where: a town, or a postcode",
        "days": "how many days (at most 7).",
        "unit": "C or F",
        "extra": "ignored",
    }


def test_a_docstring_without_a_summary_gives_no_description() -> None:
    @tool
    def act(a: int) -> None:
        """
        Args:
            a: the first
        """

    assert act.description is None
    assert properties(act)["a"]["description"] == "the first"


@settings(max_examples=200, deadline=None)  # a busy machine is no failure
@given(st.text())
def test_no_docstring_stops_a_tool_from_being_made(doc: str) -> None:
    def act(a: int) -> None: ...

    act.__doc__ = doc
    assert tool(act)(USER, {"a": 1}) is None


# -- round trips ------------------------------------------------------------------------------------------------------

TYPES: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**63), 2**63 - 1),
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: st.text(),
    bool: st.booleans(),
    list[int]: st.lists(st.integers(0, 9)),
    dict[str, float]: st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False)),
    Literal["a", "b"]: st.sampled_from(["a", "b"]),
    int | None: st.none() | st.integers(0, 9),
    list[list[str]]: st.lists(st.lists(st.text(max_size=3), max_size=2), max_size=3),
}
SIGNATURES = st.lists(st.tuples(st.sampled_from(list(TYPES)), st.booleans()), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(st.data(), SIGNATURES)
def test_arguments_that_fit_the_schema_arrive_as_they_were_sent(
    data: st.DataObject, kinds: list[Any]
) -> None:
    def act(**got: Any) -> dict[str, Any]:
        return got

    values = {f"a{i}": data.draw(TYPES[kind]) for i, (kind, _) in enumerate(kinds)}
    defaults = {f"a{i}": data.draw(TYPES[kind]) for i, (kind, optional) in enumerate(kinds) if optional}
    act.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                f"a{i}",
                inspect.Parameter.KEYWORD_ONLY,
                annotation=kind,
                default=defaults.get(f"a{i}", inspect.Parameter.empty),
            )
            for i, (kind, _) in enumerate(kinds)
        ]
    )
    made = tool(act)
    (schema,) = tools_dict_to_schemas({made.name: made})
    assert schema.parameters.get("required", []) == [name for name in values if name not in defaults]
    assert made(USER, json.loads(json.dumps(values))) == values
    needed = {name: value for name, value in values.items() if name not in defaults}
    assert made(USER, needed) == needed

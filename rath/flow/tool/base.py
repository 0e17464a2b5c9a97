"""What a tool is: a name, a JSON Schema, and a call that gets a session and arguments."""

from __future__ import annotations

import math
import posixpath
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from types import NoneType
from typing import Any

from rath.backend.types import BackendTool
from rath.errors import ToolError
from rath.session.session import Session

__all__ = [
    "FlowToolCall",
    "InvalidToolArguments",
    "SandboxTool",
    "check_names",
    "file_key",
    "object_schema",
    "optional_flag",
    "optional_number",
    "optional_seconds",
    "optional_text",
    "required_path",
    "required_text",
]


class FlowToolCall(ABC):
    """A tool that a model may call. Derive from it, or make one from a function with ``@tool``.

    ``__call__`` may be ``async def``: then it runs on the engine's loop, else in a thread. What it returns
    goes to the model as JSON; what it raises goes there as a failure, and the run goes on.

    Attributes:
        parallel_safe: whether its calls may overlap others; those that may not run one at a time.
        idempotent: whether a resumed run may repeat a call whose result was lost.
    """

    parallel_safe: bool = False
    idempotent: bool = False

    @property
    @abstractmethod
    def name(self) -> str:
        """What the model calls it by: 1 to 64 of ``a-z A-Z 0-9 _ -``."""

    @property
    def description(self) -> str | None:
        """What the model reads about it."""
        return None

    @property
    @abstractmethod
    def parameters(self) -> Mapping[str, Any]:
        """JSON Schema of the arguments: an object."""

    @abstractmethod
    def __call__(self, session: Session, arguments: Mapping[str, Any]) -> Any:
        """Do it.

        Args:
            session: a resolved snapshot of the run: its id, lineage, placement and rows so far.
            arguments: what the model sent, as parsed JSON, not yet checked against ``parameters``.
        """

    def resource_key(self, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """Calls of one round with equal keys run in order, others in parallel. Takes wrong arguments, too."""
        return ("safe", self.name) if self.parallel_safe else ("global",)

    def extra_repr(self) -> str:
        """What ``repr`` shows between the parentheses."""
        shown = f"name={self.name!r}, parameters={_parameter_names(self.parameters)}"
        flags = [flag for flag in ("parallel_safe", "idempotent") if getattr(self, flag)]
        return ", ".join([shown, *(f"{flag}=True" for flag in flags)])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


def _parameter_names(schema: Mapping[str, Any]) -> str:
    required = schema.get("required", ())
    names = [name if name in required else f"{name}=…" for name in schema.get("properties", ())]
    return f"({', '.join(names)})"


class InvalidToolArguments(ToolError, ValueError):
    """The model called a tool with arguments it does not take. The message goes back to the model."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message, kind="invalid_tool_arguments")


class SandboxTool(FlowToolCall):
    """A tool that is one operation of the session's sandbox.

    The engine awaits the operation itself and needs no thread for it; a subclass with its own ``__call__`` is
    called as any other tool.
    """

    @abstractmethod
    def request(self, arguments: Mapping[str, Any]) -> BackendTool:
        """The operation that ``arguments`` ask for. Pure.

        Raises:
            ValueError, TypeError: the arguments are wrong; ``InvalidToolArguments`` is a ``ValueError``.
        """

    def __call__(self, session: Session, arguments: Mapping[str, Any]) -> Any:
        try:
            request = self.request(arguments)
        except ToolError:
            raise
        except (TypeError, ValueError) as error:
            raise InvalidToolArguments(str(error)) from error
        return session.require_sandbox().dispatch(request)

    # Read by the engine, which then awaits the request and skips this method.
    __call__.runs_sandbox_request = True  # type: ignore[attr-defined]


def object_schema(required: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A JSON Schema of an object with these properties and no others."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


# -- reading arguments; every message goes to the model ------------------------------------------------------


def check_names(arguments: Mapping[str, Any], allowed: Collection[str]) -> None:
    """Refuse arguments that are no object or have unknown names: a misspelt option is not ignored."""
    if not isinstance(arguments, Mapping):
        raise InvalidToolArguments(f"arguments must be a JSON object, not {_json_type(arguments)}")
    unknown = [str(name) for name in arguments if name not in allowed]
    if unknown:
        raise InvalidToolArguments(
            f"unknown argument{'s' if len(unknown) > 1 else ''} {', '.join(map(repr, unknown))}; "
            f"this tool takes {', '.join(allowed)}"
        )


def required_text(arguments: Mapping[str, Any], name: str, *, empty: bool = True) -> str:
    """The string ``name``."""
    value = arguments.get(name)
    if name not in arguments:
        raise InvalidToolArguments(f"argument {name!r} is missing")
    if not isinstance(value, str):
        raise InvalidToolArguments(f"argument {name!r} must be a string, not {_json_type(value)}")
    if not value and not empty:
        raise InvalidToolArguments(f"argument {name!r} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidToolArguments(
            f"argument {name!r} holds half a surrogate pair at character {error.start}, which UTF-8 cannot"
        ) from None
    return value


def required_path(arguments: Mapping[str, Any], name: str) -> str:
    """The string ``name``, which can be a path."""
    value = required_text(arguments, name, empty=False)
    if "\0" in value:
        raise InvalidToolArguments(f"argument {name!r} holds a NUL character, which no path can")
    return value


def optional_text(arguments: Mapping[str, Any], name: str, default: str) -> str:
    """The string ``name``, or ``default`` where it is absent or null."""
    return default if arguments.get(name) is None else required_text(arguments, name, empty=False)


def optional_seconds(arguments: Mapping[str, Any], name: str) -> float | None:
    """The number of seconds ``name``; ``None`` where it is absent or null."""
    value = arguments.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidToolArguments(f"argument {name!r} must be a number of seconds, not {_json_type(value)}")
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if not 0 < seconds < math.inf:
        raise InvalidToolArguments(f"argument {name!r} must be a positive, finite number of seconds")
    return seconds


def optional_number(arguments: Mapping[str, Any], name: str, default: int, lowest: int, highest: int) -> int:
    """The integer ``name`` in these bounds; ``default`` where it is absent or null. A float that is whole is an integer."""
    value = arguments.get(name)
    if value is None:
        return default
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # JSON has one kind of number, and some models write 12000.0
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidToolArguments(f"argument {name!r} must be an integer, not {_json_type(value)}")
    if not lowest <= value <= highest:
        raise InvalidToolArguments(f"argument {name!r} must be from {lowest:,} to {highest:,}")
    return value


def optional_flag(arguments: Mapping[str, Any], name: str) -> bool:
    """The boolean ``name``; false where it is absent or null."""
    value = arguments.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise InvalidToolArguments(f"argument {name!r} must be true or false, not {_json_type(value)}")
    return value


def _json_type(value: object) -> str:
    """What JSON calls it, because it is the model who reads this."""
    return next((name for kind, name in _JSON_TYPES if isinstance(value, kind)), type(value).__name__)


_JSON_TYPES: tuple[tuple[type, str], ...] = (
    (bool, "a boolean"),
    (str, "a string"),
    (int, "a number"),
    (float, "a number"),
    (Mapping, "an object"),
    (list, "an array"),
    (NoneType, "null"),
)


def file_key(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """The resource key of ``arguments["path"]``: equal for different spellings of one path."""
    path = arguments.get("path")
    if not isinstance(path, str):
        return ("fs", "")
    path = posixpath.normpath(path)
    if path.startswith("/"):
        # Containers have the workspace there; elsewhere two files share a queue, which is harmless.
        path = "/" + path.lstrip("/")
        if path == "/workspace" or path.startswith("/workspace/"):
            path = path[len("/workspace/") :] or "."
    return ("fs", path)

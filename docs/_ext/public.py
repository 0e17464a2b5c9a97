"""The public surface as the reference shows it: which names there are, and the one path under which each is described."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

__all__ = ["MODULES", "home", "names", "others", "reachable"]

# Where a name is public in several of them and was defined in none, the first one has its description.
MODULES = (
    "rath.errors",
    "rath.core.events",
    "rath.testing",
    "rath.session.graph",
    "rath.session.persistence",
    "rath.session",
    "rath.llm",
    "rath.flow.tool",
    "rath.flow",
    "rath.backend",
    "rath",
)
# The clients that are made for tests are shown where the tests import them from.
_CHOSEN = {"ScriptedClient": "rath.testing"}


def names(module: str) -> list[str]:
    """What ``module`` offers, without the public modules that it offers too."""
    found = importlib.import_module(module)
    return [name for name in sorted(found.__all__) if f"{module}.{name}" not in MODULES and not _is_module(found, name)]


@cache
def home(module: str, name: str) -> str:
    """The public module under which the thing that ``module.name`` gives is described."""
    chosen = _CHOSEN.get(name)
    thing = getattr(importlib.import_module(module), name)
    offering = [m for m in MODULES if name in names(m) and getattr(importlib.import_module(m), name) is thing]
    if chosen in offering:
        return chosen
    defined = getattr(thing, "__module__", "")
    return max((m for m in offering if f"{defined}.".startswith(f"{m}.")), key=len, default=offering[0])


def others(module: str, name: str) -> list[str]:
    """The other paths under which the same thing can be imported, shortest first."""
    thing = getattr(importlib.import_module(module), name)
    found = [f"{m}.{name}" for m in MODULES if m != module and name in names(m)]
    return sorted((path for path in found if _get(path) is thing), key=len)


@cache
def reachable() -> dict[str, str]:
    """Every path by which annotations and docstrings may name something public → the path of its description."""
    table: dict[str, str] = {}
    for module in reversed(MODULES):
        for name in names(module):
            path = f"{home(module, name)}.{name}"
            thing = _get(path)
            defined = getattr(thing, "__module__", None)
            table[name] = table[f"{module}.{name}"] = path
            if isinstance(defined, str) and defined.startswith("rath."):
                table[f"{defined}.{getattr(thing, '__qualname__', name)}"] = path
    return table


def _get(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _is_module(module: Any, name: str) -> bool:
    return type(getattr(module, name)).__name__ == "module"

"""Package façades as lazy tables (PEP 562): a name's module is loaded when the name is first asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["lazy_exports"]


def lazy_exports(package: str, table: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package whose names live in other modules.

    Args:
        package: the package's ``__name__``.
        table: public name → module that defines it. A module that ends in ``:name`` renames;
            a module that ends in ``:`` is exported itself.
    """

    def __getattr__(name: str) -> Any:
        try:
            home = table[name]
        except KeyError:
            raise AttributeError(f"module {package!r} has no attribute {name!r}") from None
        module_name, colon, original = home.partition(":")
        module = importlib.import_module(module_name)
        value = module if colon and not original else getattr(module, original or name)
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *table})

    return __getattr__, __dir__, sorted(table)

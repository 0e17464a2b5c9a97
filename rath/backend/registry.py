"""Backends by name: one instance each a process, made when first asked for."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from typing import TypeVar, cast

from rath.backend.types import Backend
from rath.core import ports
from rath.errors import BackendNotFound, SandboxUnavailable, UsageTypeError, UsageValueError

__all__ = [
    "check_name",
    "current",
    "get",
    "get_class",
    "is_available",
    "list_names",
    "preferred",
    "register",
    "set_default",
]

B = TypeVar("B", bound=Backend)
PORT = "backend"
_lock = threading.RLock()
_instances: dict[str, Backend] = {}
_known: set[str] = set()
_default = "local"


def register(name: str) -> Callable[[type[B]], type[B]]:
    """A class decorator: ``session.to(name)`` and :func:`get` find the class from now on.

    Raises:
        UsageValueError: there is a backend with this name.
        UsageTypeError: the class is not a :class:`Backend`.
    """

    def decorate(cls: type[B]) -> type[B]:
        if not (isinstance(cls, type) and issubclass(cls, Backend)):
            raise UsageTypeError(f"@register({name!r}) takes a class that derives from Backend, not {cls!r}")
        with _lock:
            if name in ports.names(PORT):
                raise UsageValueError(f"there is a backend {name!r} already: register yours under another name")
            if "name" not in vars(cls):
                cls.name = name
            ports.register(PORT, name, cls)
        return cls

    return decorate


def list_names() -> list[str]:
    """The names of all backends, rath's own first, whether or not they work on this machine."""
    return list(ports.names(PORT))


def check_name(name: str) -> None:
    """Raise :class:`BackendNotFound` unless there is a backend with this name. Imports no backend."""
    if name in _known:
        return
    if not isinstance(name, str):
        raise UsageTypeError(f"a backend is given by its name, a string such as 'local'; not {type(name).__name__}")
    # Looking through the installed packages takes milliseconds, so it is done once, and again for a name that is new.
    _known.update(ports.names(PORT))
    if name not in _known:
        raise _not_found(name)


def get_class(name: str) -> type[Backend]:
    """The class of a backend.

    Raises:
        BackendNotFound: no backend has this name.
    """
    check_name(name)
    try:
        return cast("type[Backend]", ports.load(PORT, name))
    except KeyError:
        raise _not_found(name) from None


def get(name: str) -> Backend:
    """A backend: the same object at every call.

    Raises:
        BackendNotFound: no backend has this name.
    """
    found = _instances.get(name)
    if found is None:
        cls = get_class(name)
        with _lock:
            found = _instances.get(name)
            if found is None:
                found = _instances[name] = cls()
                if not found.name:
                    cls.name = name
    return found


def is_available(name: str) -> bool:
    """Whether there is a backend with this name and it works on this machine."""
    return name in list_names() and get_class(name).is_available()


def preferred(names: Iterable[str]) -> Backend:
    """The first backend of ``names`` that works on this machine.

    Raises:
        SandboxUnavailable: none does.
    """
    wanted = list(names)
    for name in wanted:
        if is_available(name):
            return get(name)
    raise SandboxUnavailable(
        f"none of the backends {', '.join(map(repr, wanted)) or '(an empty list)'} works on this machine; "
        f"there are: {', '.join(list_names())}"
    )


def current() -> Backend:
    """The default backend: ``local``, unless :func:`set_default` said otherwise."""
    return get(_default)


def set_default(name: str) -> None:
    """Make ``name`` the backend that :func:`current` returns.

    Raises:
        BackendNotFound: no backend has this name.
    """
    global _default
    check_name(name)
    _default = name


def _not_found(name: str) -> BackendNotFound:
    return BackendNotFound(
        f"there is no backend {name!r}; there are: {', '.join(list_names())}. Check the spelling, install the package "
        f"that brings it, or put @rath.backend.register({name!r}) on your own Backend class"
    )


def _reset_in_child() -> None:
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_reset_in_child)

"""Values of tools as JSON text. Large ones are dumped piece by piece: while the C encoder works, no other thread runs."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["ADDRESS", "dump_any", "dumps", "is_small"]

# "<function f at 0x7f52c0>": what stands behind "at" is another number in every process.
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+(?=[>,])")
# Some 0.5 ms to look at, and to dump.
_SMALL = 50_000
_ITEM = 8
_BATCH = 64
_DEPTH = 200
_SCALARS = frozenset({int, float, bool, type(None)})


def dump_any(value: Any, *, small: bool) -> str:
    """``value`` as JSON, with ``str`` for what JSON has not and words for the floats that it has not.

    Args:
        small: what :func:`is_small` says of it.

    Raises:
        Exception: it is circular or too deep, or something in it fails to say what it is.
    """
    dump = dumps if small else _dump_large
    try:
        return dump(value)
    except ValueError:
        # NaN and infinities are one reason; if they are not the reason it raises again.
        return dump(_finite(value, 0))


def is_small(value: Any) -> bool:
    """Whether ``value`` is plain data that is dumped in no time."""
    left, room = [value], _SMALL
    for item in left:
        kind = type(item)
        if kind in _SCALARS:
            continue
        if kind is str:
            room -= len(item)
        elif kind is dict or kind is list or kind is tuple:
            room -= _ITEM * len(item)
            if room >= 0:
                left += item
                if kind is dict:
                    left += item.values()
        else:
            return False
        if room < 0:
            return False
    return True


def _dump_large(value: Any) -> str:
    return "".join(_pieces(value, ()))


def _pieces(value: Any, above: tuple[int, ...]) -> Iterator[str]:
    """The text of a large value, in pieces that each take no time if that can be.

    Args:
        above: the identities of what ``value`` is in.
    """
    if id(value) in above:
        raise ValueError("circular")
    if len(above) > _DEPTH or not isinstance(value, (dict, list, tuple)):
        yield dumps(value)
        return
    above = (*above, id(value))
    keyed = isinstance(value, dict)
    items = list(value.items()) if isinstance(value, dict) else list(value)
    yield "{" if keyed else "["
    for number, batch in enumerate(_batches(items)):
        if number:
            yield ","
        if is_small(batch):
            yield dumps(dict(batch) if keyed else batch)[1:-1]
            continue
        for place, item in enumerate(batch):
            if place:
                yield ","
            if keyed:
                yield dumps({item[0]: 0})[1:-2]
            yield from _pieces(item[1] if keyed else item, above)
    yield "}" if keyed else "]"


def _batches(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[start : start + _BATCH] for start in range(0, len(items), _BATCH))


def _default(value: Any) -> Any:
    """What JSON has not: a pydantic model as its own JSON, anything else as ``str`` says it."""
    if not isinstance(value, type) and hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    return ADDRESS.sub("", str(value))


def _finite(value: Any, depth: int) -> Any:
    """``value`` with words for the floats that JSON has not. Raises ``ValueError`` if it is circular."""
    if depth > _DEPTH:
        raise ValueError("too deep")
    if isinstance(value, float):
        return value if math.isfinite(value) else {"inf": "Infinity", "-inf": "-Infinity"}.get(str(value), "NaN")
    if isinstance(value, dict):
        return {(str(key) if isinstance(key, float) else key): _finite(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item, depth + 1) for item in value]
    if not isinstance(value, type) and hasattr(value, "model_dump"):
        return _finite(value.model_dump(mode="json"), depth + 1)
    return value


# Made once: ``json.dumps`` makes an encoder a call, which is most of its time for a small result.
dumps = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_default).encode

"""Your own operators: lazy functions from sessions to a session, recorded in the lineage."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, overload

from rath.core import ports
from rath.core.node import Node, call_site
from rath.errors import UsageTypeError
from rath.session.graph.kind import LineageKind
from rath.session.manager import session_registry
from rath.session.session import Session, journaled, make_session, new_record, share_lease

__all__ = ["operator"]

P = ParamSpec("P")


@overload
def operator(function: Callable[P, Any], /) -> Callable[P, Session]: ...
@overload
def operator(*, name: str | None = None) -> Callable[[Callable[P, Any]], Callable[P, Session]]: ...
def operator(function: Callable[..., Any] | None = None, /, *, name: str | None = None) -> Any:
    """Make a lazy operator of a function that takes sessions and returns a session.

    The call returns a pending session at once. When every session among the arguments is resolved, the function runs: on
    the engine's loop if it is ``async``, else in a tool thread. The output has the returned session's rows, its own id,
    the argument sessions as parents, the function's name as operator, the kind ``OP_CUSTOM``, and the first argument
    session's sandbox.

    Args:
        name: the lineage operator; the function's ``__name__`` by default.

    Example::

        @operator
        def keep_last(session: Session, count: int) -> Session:
            return Session(ChunkTable(session.chunk_table.rows[-count:]))

        short = keep_last(answer, 2)
    """
    if function is None:
        return functools.partial(operator, name=name)
    if not callable(function):
        raise UsageTypeError(f"operator decorates a function, not {type(function).__name__}")
    work: Callable[..., Any] = function
    signature = inspect.signature(work)
    op_name: str = name or getattr(work, "__name__", None) or type(work).__name__

    @functools.wraps(work)
    def apply(*args: Any, **kwargs: Any) -> Session:
        signature.bind(*args, **kwargs)  # a wrong call is an error here, not in the run
        inputs = tuple(value for value in (*args, *kwargs.values()) if isinstance(value, Session))
        if not inputs:
            raise UsageTypeError(f"operator {op_name!r} needs at least one Session among its arguments")
        record = new_record(op_name, LineageKind.OP_CUSTOM, inputs)
        node = Node(op_name, tuple(s.id for s in inputs), call_site())
        lease = share_lease(inputs[0]._lease)
        cell, view = ports.load("run", "custom")(node, record.id, inputs, work, (args, kwargs), record)
        out = journaled(make_session(record, cell, lease, None, view))
        session_registry().register(out)
        return out

    return apply

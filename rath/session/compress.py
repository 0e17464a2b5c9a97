"""Compression: a conversation retold as one user row."""

from __future__ import annotations

from pathlib import Path

from rath.core.node import Node, call_site
from rath.core.ports import Durability
from rath.llm.provider import Provider
from rath.session.graph.kind import LineageKind
from rath.session.loop import OnEventCb, SessionLoopExecutor, check_arguments, check_streaming, log_options, submit
from rath.session.request import RunRequest
from rath.session.session import Session, new_record

__all__ = ["run_session_compress"]

DEFAULT_INSTRUCTION = (
    "Summarise everything above so that work can go on from the summary alone: what the user wants, what was found out "
    "and decided, the state of files and tools, and what is still to do. Keep names, numbers and paths exact. Reply with "
    "the summary as plain text and nothing else."
)


def run_session_compress(
    user_session: Session,
    agent_session: Session,
    *,
    agent_provider: Provider,
    executor: SessionLoopExecutor | None = None,
    compress_instruction: str | None = None,
    register_sessions: bool = True,
    on_event: OnEventCb | None = None,
    persist: bool | Durability = False,
    persist_path: Path | str | None = None,
    sandbox_handle_id: str | None = None,
    lazy: bool = True,
    timeout_s: float | None = None,
) -> Session:
    """A session of one user row: the model's summary of both transcripts. Returns at once, pending.

    One completion without tools. The output shares the user session's sandbox.

    Args:
        compress_instruction: the last message of the request; a sensible one by default.
        register_sessions: whether the three sessions go into the registry.

    Raises:
        UsageValueError: ``on_event`` with ``executor``.
        UsageTypeError: arguments of wrong types; ``on_event`` with a client that cannot stream.
        UsageError: ``persist`` without a directory for logs: this user has no home, and ``OPENRATH_HOME`` names none.

    Reading the output raises ``RathError`` (a ``RuntimeError``) if the model called a tool or said nothing.
    """
    check_arguments(user_session, agent_session, on_event, timeout_s, persist_path)
    client = check_streaming(agent_provider, executor, on_event)
    node = Node("run_session_compress", (user_session.id, agent_session.id), call_site())
    extras = (("compression.lossy", True), ("compression.rows_out", 1))
    record = new_record(node.op, LineageKind.OP_SESSION_COMPRESS, (user_session, agent_session), extras)
    return submit(
        RunRequest(
            node=node,
            record=record,
            user=user_session,
            agent=agent_session,
            provider=agent_provider,
            tools={},
            schemas=(),
            client=client,
            executor=executor,
            on_event=on_event,
            instruction=(compress_instruction or "").strip() or DEFAULT_INSTRUCTION,
            sandbox_handle_id=sandbox_handle_id,
            timeout_s=timeout_s,
            **log_options(persist, persist_path, record.id),
        ),
        "session_compress",
        lazy=lazy,
        register=register_sessions,
    )

"""Semantics 3: run_session_loop and run_session_compress."""

import asyncio
import json
import logging
import threading
import time
from dataclasses import replace

import pytest

from rath import flow
from rath.core import events
from rath.errors import (
    BudgetExceededError,
    PermissionDeniedError,
    ProviderError,
    RathError,
    RunCancelled,
    SandboxError,
    ToolError,
    ToolNameConflictError,
    TurnTimeoutError,
    UsageTypeError,
    UsageValueError,
)
from rath.flow.tool import FlowToolCall, global_system_tools, tool
from rath.llm import (
    Provider,
    RathLLMAssistantMessage,
    RathLLMChatChoice,
    RathLLMChatResponse,
    RathLLMStreamDelta,
    RathLLMTokenUsage,
    RathLLMToolCallFunction,
    RathLLMToolCallPart,
    register_chat_client,
)
from rath.session import (
    ChunkKind,
    DefaultSessionLoopExecutor,
    LineageKind,
    Session,
    StreamingExecutor,
    load_session,
    resolve_executor,
    run_session_compress,
    run_session_loop,
    session_graph_mode_override,
    session_registry,
)
from rath.testing import ScriptedClient
from rath.testing.pace import within


def scripted(*replies, **options):
    return ScriptedClient(list(replies), **options).as_provider()


def call(name, _id=None, **arguments):
    return {"name": name, "arguments": arguments} | ({"id": _id} if _id else {})


def calls(*tool_calls, text=None, **more):
    return {"text": text, "tool_calls": list(tool_calls), **more}


def loop(provider, user="go", agent="be good", **options):
    return run_session_loop(
        Session.from_user_message(user) if isinstance(user, str) else user,
        Session.from_agent_prompt(agent),
        agent_provider=provider,
        **options,
    )


def bodies(session):
    return [json.loads(r.text) for r in session.chunk_table if r.kind is ChunkKind.TOOL_RESULT]


def kinds(session):
    return [r.kind.value for r in session.chunk_table]


class Recorder(FlowToolCall):
    """A synchronous tool that notes what it gets."""

    parallel_safe = False

    def __init__(self, name="record", result=True, key=None, seconds=0.0, safe=False):
        self._name, self._result, self._key, self._seconds = name, result, key, seconds
        self.parallel_safe = safe
        self.seen, self.sessions, self.spans = [], [], []

    name = property(lambda self: self._name)
    parameters = property(lambda self: {"type": "object", "properties": {}})

    def resource_key(self, arguments):
        return self._key(arguments) if self._key else super().resource_key(arguments)

    def __call__(self, session, arguments):
        began = time.monotonic()
        time.sleep(self._seconds)
        self.seen.append(dict(arguments))
        self.sessions.append(session)
        self.spans.append((began, time.monotonic()))
        if isinstance(self._result, BaseException):
            raise self._result
        return self._result(arguments) if callable(self._result) else self._result


# -- messages, rows, lineage ------------------------------------------------------------------------------------------


def test_request_messages_are_the_agents_rows_then_the_users():
    client = ScriptedClient(["done"], record=True)
    out = loop(client.as_provider(), user="question", agent="instructions")
    out.synchronize()
    assert [(m.role, m.content) for m in client.requests[0].messages] == [("system", "instructions"), ("user", "question")]
    assert [r.text for r in out.chunk_table] == ["question", "done"]
    assert kinds(out) == ["user", "assistant"]


def test_lineage_of_the_output():
    user, agent = Session.from_user_message("u"), Session.from_agent_prompt("a")
    out = run_session_loop(user, agent, agent_provider=scripted("done"))
    assert out.parent_session_ids == (user.id, agent.id)
    assert (out.lineage_operator, out.lineage_kind) == ("run_session_loop", LineageKind.OP_SESSION_LOOP)
    assert (out.lineage.producer_user_session_id, out.lineage.producer_system_session_id) == (user.id, agent.id)
    assert session_registry().get(out.id) is out
    assert session_registry().get(user.id) is user
    assert session_registry().get_active_id() == out.id
    out.synchronize()


def test_stamping_off_leaves_no_parents():
    with session_graph_mode_override(False):
        out = loop(scripted("done"))
    assert out.parent_session_ids == ()
    assert out.synchronize().lineage_kind is LineageKind.UNKNOWN


def test_every_request_has_all_rows_so_far():
    client = ScriptedClient([calls(call("record", "c1")), calls(call("record", "c2")), "done"], record=True)
    seen = []

    class Look(Recorder):
        def __call__(self, session, arguments):
            seen.append([r.kind.value for r in session.chunk_table])

    loop(client.as_provider(), tools=[Look("record")]).synchronize()
    assert [[m.role for m in r.messages] for r in client.requests] == [
        ["system", "user"],
        ["system", "user", "assistant", "tool"],
        ["system", "user", "assistant", "tool", "assistant", "tool"],
    ]
    assert seen == [["user", "assistant"], ["user", "assistant", "tool_result", "assistant"]]


def test_usage_is_the_sum_of_this_runs_completions():
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    out = loop(scripted(calls(call("record"), usage=usage), {"text": "done", "usage": usage}), tools=[Recorder()])
    assert out.cumulative_usage == RathLLMTokenUsage(10, 4, 14)


def test_a_chain_continues_the_conversation():
    client = ScriptedClient(["one", "two"], record=True)
    provider = client.as_provider()
    first = loop(provider)
    second = loop(provider, user=first.user("and?"))
    assert [r.text for r in second.chunk_table] == ["go", "one", "and?", "two"]
    assert [m.content for m in client.requests[1].messages] == ["be good", "go", "one", "and?"]


# -- tools ------------------------------------------------------------------------------------------------------------


def test_tools_are_the_built_ins_and_the_users():
    client = ScriptedClient(["done"], record=True)
    loop(client.as_provider(), tools=[Recorder()]).synchronize()
    assert {t.name for t in client.requests[0].tools} == {*global_system_tools(), "record"}


def test_a_users_tool_with_a_built_ins_name_is_refused_at_the_call():
    with pytest.raises(ToolNameConflictError):
        loop(scripted("x"), tools=[Recorder("run_code")])
    with pytest.raises(ValueError):
        loop(scripted("x"), tools=[Recorder("same"), Recorder("same")])


def test_results_stand_in_call_order_whatever_order_they_end_in():
    slow, fast = Recorder("slow", "slow", seconds=0.15, safe=True), Recorder("fast", "fast", safe=True)
    out = loop(scripted(calls(call("slow", "a"), call("fast", "b"), call("slow", "c")), "done"), tools=[slow, fast])
    results = [r for r in out.chunk_table if r.kind is ChunkKind.TOOL_RESULT]
    assert [r.tool_call_id for r in results] == ["a", "b", "c"]
    assert [json.loads(r.text) for r in results] == ["slow", "fast", "slow"]
    finished = [e.call_id for e in out.events(events.ToolFinished) if isinstance(e, events.ToolFinished)]
    assert finished[0] == "b"


def test_same_resource_key_in_order_different_keys_in_parallel():
    def key(arguments):
        return ("k", arguments["k"])

    same = Recorder("t", lambda a: a["n"], key=key, seconds=0.05, safe=True)
    out = loop(scripted(calls(*(call("t", k=k, n=n) for n, k in enumerate("aabb"))), "done"), tools=[same])
    out.synchronize()
    spans = {seen["n"]: span for seen, span in zip(same.seen, same.spans, strict=True)}
    assert spans[0][1] <= spans[1][0]
    assert spans[2][1] <= spans[3][0]
    assert spans[2][0] < spans[0][1]


def test_tools_that_are_not_parallel_safe_share_one_queue():
    one, two = Recorder("one", seconds=0.05, key=lambda a: ("x",)), Recorder("two", seconds=0.05, key=lambda a: ("y",))
    loop(scripted(calls(call("one"), call("two")), "done"), tools=[one, two]).synchronize()
    assert one.spans[0][1] <= two.spans[0][0]


def test_async_tools_run_on_the_engines_loop_and_overlap():
    threads = []

    @tool(parallel_safe=True)
    async def nap(n: int) -> int:
        threads.append(threading.current_thread().name)
        await asyncio.sleep(0.1)
        return n

    @tool(parallel_safe=True, name="nap2")
    async def nap2(n: int) -> int:
        await asyncio.sleep(0.1)
        return n

    began = time.monotonic()
    out = loop(scripted(calls(call("nap", n=1), call("nap2", n=2)), "done"), tools=[nap, nap2])
    assert bodies(out) == [1, 2]
    assert time.monotonic() - began < within(0.19)
    assert threads == ["rath-engine"]


def test_sync_tools_run_in_tool_threads_with_a_resolved_snapshot_of_the_run():
    seen = []

    class Look(Recorder):
        def __call__(self, session, arguments):
            seen.append((threading.current_thread().name, session.id, len(session.chunk_table), session.done,
                         session.parent_session_ids, session.sandbox_backend))
            return True

    user = Session.from_user_message("go").to("local")
    out = loop(scripted(calls(call("look")), "done"), user=user, tools=[Look("look")])
    out.synchronize()
    assert seen == [("rath-tool", out.id, 2, True, out.parent_session_ids, "local")]


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (ValueError("bad luck"), {"ok": False, "error_kind": "tool_execution_exception", "message": "ValueError: bad luck", "detail": "ValueError"}),
        (KeyError("k"), {"ok": False, "error_kind": "tool_execution_exception"}),
        (ToolError("own", kind="my_kind", detail="d"), {"ok": False, "error_kind": "my_kind", "detail": "d"}),
    ],
)
def test_a_tool_that_raises_is_told_to_the_model_and_the_loop_goes_on(result, expected):
    out = loop(scripted(calls(call("record")), "done"), tools=[Recorder(result=result)])
    body = bodies(out)[0]
    assert expected.items() <= body.items()
    assert out.chunk_table[-1].text == "done"


@pytest.mark.parametrize("arguments", ["{not json", "[1]", '"text"', "3"])
def test_arguments_that_are_no_json_object_are_told_to_the_model(arguments):
    recorder = Recorder()
    out = loop(scripted(calls({"name": "record", "arguments": arguments}), "done"), tools=[recorder])
    assert bodies(out)[0]["error_kind"] == "invalid_tool_arguments"
    assert recorder.seen == []


def test_empty_arguments_mean_an_empty_object():
    recorder = Recorder()
    out = loop(scripted(calls({"name": "record", "arguments": ""}), "done"), tools=[recorder])
    assert bodies(out) == [{"ok": True}]
    assert recorder.seen == [{}]


def test_an_unknown_tool_is_told_to_the_model():
    out = loop(scripted(calls(call("nope")), "done"))
    assert bodies(out)[0]["error_kind"] == "unknown_tool"


def test_empty_and_double_call_ids_are_made_distinct():
    out = loop(scripted(calls(call("record", "x"), call("record", "x")), "done"), tools=[Recorder()])
    ids = [c["id"] for c in out.chunk_table[1].tool_calls]
    assert len(set(ids)) == 2
    assert [r.tool_call_id for r in out.chunk_table if r.tool_call_id] == ids


@pytest.mark.parametrize(
    "error", [SandboxError("gone"), PermissionDeniedError("no"), RunCancelled("stop"), KeyboardInterrupt(), SystemExit(3)]
)
def test_fatal_errors_fail_the_run_and_leave_a_valid_transcript(error):
    good, bad = Recorder("good", safe=True), Recorder("bad", error, safe=True)
    hang = Recorder("hang", key=lambda a: ("z",), seconds=0.3, safe=True)
    out = loop(scripted(calls(call("good", "a"), call("bad", "b"), call("hang", "c"))), tools=[good, bad, hang])
    with pytest.raises(type(error)) as caught:
        out.synchronize()
    assert caught.value is error
    assert out.status == "failed"
    partial = out.partial
    assert [r.tool_call_id for r in partial if r.tool_call_id] == ["a", "b", "c"]
    assert json.loads(partial[-1].text)["error_kind"] == "interrupted"


def test_a_run_that_was_never_placed_fails_when_a_tool_needs_a_sandbox():
    out = loop(scripted(calls(call("run_shell_command", cmd="true"))))
    with pytest.raises(SandboxError, match=r'session = session\.to\("local"\)'):
        out.synchronize()


def test_built_in_tools_run_in_the_placements_sandbox():
    user = Session.from_user_message("go").to("local")
    out = loop(
        scripted(calls(call("write_workspace_file", path="a.txt", content="hi")), calls(call("run_shell_command", cmd="cat a.txt")), "done"),
        user=user,
    )
    write, cat = bodies(out)
    assert write == {"bytes_written": 2}
    assert (cat["exit_code"], cat["stdout"]) == (0, "hi")
    assert out.sandbox is user.sandbox
    out.close_sandbox()
    assert not user.sandbox.closed
    user.close_sandbox()


# -- ending -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["stop", "length", "content_filter"])
def test_the_loop_ends_on(reason):
    out = loop(scripted({"text": "end", "finish_reason": reason}, "never asked"))
    assert out.chunk_table[-1].text == "end"
    assert dict(out.lineage_extras) == {}


def test_the_round_limit_logs_one_warning_and_marks_the_outcome(caplog):
    with caplog.at_level(logging.WARNING, logger="rath.session.loop"):
        out = loop(scripted(calls(call("record")), loop=True), tools=[Recorder()], max_tool_rounds=3)
        assert "loop.truncated" not in dict(out.lineage_extras)
        out.synchronize()
    assert len([r for r in caplog.records if "max_tool_rounds=3" in r.getMessage()]) == 1
    assert ("loop.truncated", True) in out.lineage_extras
    assert kinds(out) == ["user", *(["assistant", "tool_result"] * 3)]


def test_no_rounds_at_all_is_a_truncated_run():
    out = loop(scripted("x"), max_tool_rounds=0)
    assert kinds(out) == ["user"]
    assert dict(out.lineage_extras)["loop.truncated"] is True


def test_a_timeout_fails_the_run_with_its_rows_in_partial():
    @tool
    async def forever() -> None:
        await asyncio.sleep(60)

    out = loop(scripted(calls(call("forever"))), tools=[forever], timeout_s=0.1)
    with pytest.raises(TurnTimeoutError) as caught:
        out.synchronize(5)
    assert caught.value.timeout_s == 0.1
    assert [r.kind.value for r in out.partial] == ["user", "assistant", "tool_result"]


def test_lazy_false_waits_and_its_error_carries_id_and_rows():
    assert loop(scripted("done"), lazy=False).done
    with pytest.raises(ProviderError) as caught:
        loop(scripted({"error": {"status": 400, "message": "no"}}), lazy=False)
    assert caught.value.session_id
    assert [r.text for r in caught.value.partial] == ["go"]


# -- budget -----------------------------------------------------------------------------------------------------------

USAGE = {"prompt_tokens": 6, "completion_tokens": 4, "total_tokens": 10}


def budgeted(cap, callback=None, rounds=4):

    provider = scripted(*[calls(call("record"), usage=USAGE)] * rounds, {"text": "done", "usage": USAGE})
    return replace(provider, budget_total_tokens=cap, on_budget_exceeded=callback)


def test_the_budget_callback_comes_once_with_the_session_and_the_running_total():
    seen = []
    out = loop(budgeted(15, lambda s, u: seen.append((s.id, u.total_tokens, threading.current_thread().name))), tools=[Recorder()])
    out.synchronize()
    assert seen == [(out.id, 20, "rath-tool")]


def test_raising_from_the_budget_callback_fails_the_run():
    error = BudgetExceededError("stop", budget_tokens=15)

    def stop(session, usage):
        raise error

    out = loop(budgeted(15, stop), tools=[Recorder()])
    with pytest.raises(BudgetExceededError) as caught:
        out.synchronize()
    assert caught.value is error


def test_the_reply_that_broke_the_budget_was_paid_for_and_is_kept(tmp_path):
    def stop(session, usage):
        raise BudgetExceededError("stop")

    path = tmp_path / "answered.jsonl"
    answered = loop(budgeted(5, stop, rounds=0), persist_path=path)
    with pytest.raises(BudgetExceededError):
        answered.synchronize()
    assert answered.partial[-1].text == "done"
    log = load_session(answered.id, path=path)
    assert (log.chunk_table, log.closed) == (answered.partial, False)

    called = loop(budgeted(5, stop), tools=[Recorder()])
    with pytest.raises(BudgetExceededError):
        called.synchronize()
    assert [row.kind.value for row in called.partial] == ["user", "assistant", "tool_result"]
    assert json.loads(called.partial[-1].text)["error_kind"] == "interrupted"


def test_without_a_callback_the_budget_logs_one_warning(caplog):
    with caplog.at_level(logging.WARNING, logger="rath.session.loop"):
        loop(budgeted(15), tools=[Recorder()]).synchronize()
    assert len([r for r in caplog.records if "budget_total_tokens=15" in r.getMessage()]) == 1


def test_reaching_the_budget_exactly_is_not_exceeding_it():
    seen = []
    loop(budgeted(20, lambda s, u: seen.append(1), rounds=1), tools=[Recorder()]).synchronize()
    assert seen == []


# -- streaming and events ---------------------------------------------------------------------------------------------


def test_on_event_sees_each_fragment_in_order_and_the_transcript_gets_one_row():
    seen, threads = [], set()

    def on_event(delta):
        threads.add(threading.current_thread().name)
        if delta.content_delta:
            seen.append(delta.content_delta)

    out = loop(scripted("a fairly long answer", chunk_chars=4), on_event=on_event)
    assert [r.text for r in out.chunk_table] == ["go", "a fairly long answer"]
    assert "".join(seen) == "a fairly long answer"
    assert len(seen) == 5
    assert threads == {"rath-tool"}


def test_raising_from_on_event_fails_the_run():
    def on_event(delta):
        raise LookupError("not this")

    with pytest.raises(LookupError, match="not this"):
        loop(scripted("text"), on_event=on_event).synchronize()


def test_asynchronous_callbacks_are_refused():
    async def callback(*args):
        pass

    with pytest.raises(UsageTypeError, match="plain function"):
        loop(scripted("x"), on_event=callback)
    with pytest.raises(UsageTypeError, match="plain function"):
        loop(replace(scripted("x"), on_budget_exceeded=callback))
    with pytest.raises(UsageTypeError, match="asynchronous"):
        loop(scripted("x"), on_event=lambda delta: callback(delta)).synchronize(5)


class Indescribable(Exception):
    def __str__(self):
        raise ValueError("no words")


class Frozen(Exception):
    def __setattr__(self, name, value):
        raise TypeError("frozen")

    def add_note(self, note):
        raise TypeError("frozen")


@pytest.mark.parametrize("error", [Indescribable, Frozen])
@pytest.mark.parametrize("lazy", [True, False])
def test_an_error_that_cannot_be_described_ends_its_run_all_the_same(error, lazy):
    def on_event(delta):
        raise error

    with pytest.raises(error):
        loop(scripted("x"), on_event=on_event, lazy=lazy).synchronize(5)


def test_a_tools_error_that_cannot_be_described_goes_to_the_model():
    out = loop(scripted(calls(call("record")), "done"), tools=[Recorder(result=Indescribable())])
    assert bodies(out)[0]["message"] == "Indescribable"


def test_on_event_is_called_for_what_arrived_before_the_run_fails_and_not_after_a_cancel():
    seen = []

    def slowly(delta):
        time.sleep(0.02)
        seen.append(delta)

    class Breaks(SyncOnly):
        def complete_stream(self, req):
            for _ in range(10):
                yield RathLLMStreamDelta(content_delta="x")
            raise ConnectionError("broken off")

    register_chat_client("breaks", Breaks)
    out = loop(Provider(provider_kind="breaks"), on_event=slowly)
    with pytest.raises(ConnectionError):
        out.synchronize(5)
    assert len(seen) == 10
    seen.clear()
    out = loop(scripted("x" * 400, chunk_chars=4), on_event=slowly)
    while not seen:
        time.sleep(0.005)
    out.cancel()
    with pytest.raises(RunCancelled):
        out.synchronize(5)
    after = len(seen)
    time.sleep(0.2)
    assert len(seen) <= after + 1


def test_on_event_with_an_executor_is_refused():
    with pytest.raises(ValueError, match="executor"):
        loop(scripted("x"), on_event=print, executor=object())


class SyncOnly:
    """A user's client: synchronous, cannot stream."""

    def __init__(self, provider):
        self.provider = provider

    def complete(self, req):
        return RathLLMChatResponse("", (RathLLMChatChoice(0, "stop", RathLLMAssistantMessage(content=f"sync:{len(req.messages)}")),), 0, "m")


def test_on_event_with_a_client_that_cannot_stream_is_refused_before_anything_is_registered():
    register_chat_client("sync-only", SyncOnly)
    before = session_registry().get_active_id()
    with pytest.raises(TypeError, match="complete_stream"):
        loop(Provider(provider_kind="sync-only"), on_event=print)
    assert session_registry().get_active_id() == before
    assert loop(Provider(provider_kind="sync-only")).chunk_table[-1].text == "sync:2"


class SyncStreaming(SyncOnly):
    def complete_stream(self, req):
        yield RathLLMStreamDelta(content_delta="s")
        yield RathLLMStreamDelta(content_delta="treamed")
        yield RathLLMStreamDelta(finish_reason="stop", usage=RathLLMTokenUsage(1, 1, 2))


class AsyncClient(SyncOnly):
    async def complete(self, req):
        await asyncio.sleep(0)
        return SyncOnly.complete(self, req)

    async def complete_stream(self, req):
        for piece in ("a", "sync"):
            await asyncio.sleep(0)
            yield RathLLMStreamDelta(content_delta=piece)


@pytest.mark.parametrize(("client", "text"), [(SyncStreaming, "streamed"), (AsyncClient, "async")])
def test_users_clients_may_be_synchronous_or_asynchronous(client, text):
    register_chat_client(client.__name__, client)
    provider = Provider(provider_kind=client.__name__)
    assert loop(provider).chunk_table[-1].text == "sync:2"
    seen = []
    out = loop(provider, on_event=seen.append)
    assert out.chunk_table[-1].text == text
    assert len(seen) >= 2


class RaisesAtOnce(SyncOnly):
    def complete_stream(self, req):
        raise ConnectionError("no stream")


class NoStream(SyncOnly):
    def complete_stream(self, req):
        return None


class StreamsText(SyncOnly):
    def complete_stream(self, req):
        yield "text"


class PlainDefReturnsAsync(SyncOnly):
    def complete_stream(self, req):
        return AsyncClient.complete_stream(self, req)


class VendorShaped(SyncOnly):
    """Like the vendors' own streams: asynchronous, with ``close`` instead of ``aclose``."""

    async def complete_stream(self, req):
        source = AsyncClient.complete_stream(self, req)

        class Stream:
            closed = False

            def __aiter__(self):
                return self

            async def __anext__(self):
                return await anext(source)

            async def close(self):
                VendorShaped.closed = True

        return Stream()


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        (RaisesAtOnce, ConnectionError),
        (NoStream, ProviderError),
        (StreamsText, ProviderError),
        (PlainDefReturnsAsync, "async"),
        (VendorShaped, "async"),
    ],
)
def test_whatever_complete_stream_is_the_run_ends(client, expected):
    register_chat_client(client.__name__, client)
    out = loop(Provider(provider_kind=client.__name__), on_event=lambda d: None)
    if isinstance(expected, str):
        assert out.synchronize(5).chunk_table[-1].text == expected
        assert client is not VendorShaped or VendorShaped.closed
    else:
        with pytest.raises(expected):
            out.synchronize(5)


def test_tool_call_fragments_are_collected_by_index():
    class Fragments(SyncOnly):
        rounds = 0

        def complete_stream(self, req):
            Fragments.rounds += 1
            if Fragments.rounds > 1:
                yield RathLLMStreamDelta(content_delta="done")
                return
            yield RathLLMStreamDelta(tool_call_index=1, tool_call_id="b", tool_call_name_delta="rec")
            yield RathLLMStreamDelta(tool_call_index=0, tool_call_id="old", tool_call_name_delta="record", tool_call_args_delta='{"n"')
            yield RathLLMStreamDelta(tool_call_index=1, tool_call_name_delta="ord", tool_call_args_delta='{"n": 2}')
            yield RathLLMStreamDelta(tool_call_index=0, tool_call_id="a", tool_call_args_delta=": 1}")

    register_chat_client("fragments", Fragments)
    recorder = Recorder()
    out = loop(Provider(provider_kind="fragments"), tools=[recorder], on_event=lambda d: None)
    assert [c["id"] for c in out.chunk_table[1].tool_calls] == ["a", "b"]
    assert recorder.seen == [{"n": 1}, {"n": 2}]


def test_events_tell_the_whole_run_and_replay_for_late_readers():
    out = loop(scripted(calls(call("record", "c1"), text="thinking", usage=USAGE), {"text": "done", "usage": USAGE}), tools=[Recorder()]).synchronize()
    told = list(out.events())
    assert [type(e).__name__ for e in told] == [
        "RunStarted",
        "TurnStarted", "MessageFinished", "UsageReported", "RowAppended", "ToolStarted", "ToolFinished", "RowAppended", "TurnFinished",
        "TurnStarted", "MessageFinished", "UsageReported", "RowAppended", "TurnFinished",
        "RunFinished",
    ]
    assert [e.seq for e in told] == list(range(len(told)))
    assert {e.session_id for e in told} == {out.id}
    assert [e.turn for e in told if isinstance(e, events.TurnFinished)] == [1, 2]
    rows = [e.row for e in told if isinstance(e, events.RowAppended)]
    assert tuple(rows) == out.chunk_table.rows[1:]


def test_a_live_reader_makes_the_wire_stream_and_gets_deltas():
    gate = threading.Event()

    class Wait(Recorder):
        def __call__(self, session, arguments):
            gate.wait(5)
            return True

    out = loop(scripted(calls(call("wait")), "streamed answer", chunk_chars=5), tools=[Wait("wait")])
    got = []
    reader = threading.Thread(target=lambda: got.extend(out.events()))
    reader.start()
    while not any(isinstance(e, events.ToolStarted) for e in got):
        time.sleep(0.005)
    gate.set()
    reader.join(5)
    assert "".join(e.text for e in got if isinstance(e, events.TextDelta)) == "streamed answer"
    assert isinstance(got[-1], events.RunFinished)


def test_an_async_reader_gets_the_same_and_stopping_early_stops_nothing():
    out = loop(scripted(calls(call("record")), "done"), tools=[Recorder()])

    async def read():
        async for event in out.events():
            return event

    assert isinstance(asyncio.run(read()), events.RunStarted)
    assert out.chunk_table[-1].text == "done"
    assert [type(e) for e in out.events(events.TurnFinished)] == [events.TurnFinished] * 2 + [events.RunFinished]


def test_a_session_that_no_run_made_has_no_events():
    assert list(Session.from_user_message("x").events()) == []


# -- executors --------------------------------------------------------------------------------------------------------


def reply(text=None, *tool_calls):
    parts = tuple(RathLLMToolCallPart(f"c{i}", "function", RathLLMToolCallFunction(n, a)) for i, (n, a) in enumerate(tool_calls))
    return RathLLMChatResponse("", (RathLLMChatChoice(0, "tool_calls" if parts else "stop", RathLLMAssistantMessage(content=text, tool_calls=parts or None)),), 0, "m")


class Executor:
    def __init__(self, *replies):
        self.replies, self.dispatched, self.requests = list(replies), [], []

    def complete(self, req):
        self.requests.append(req)
        return self.replies.pop(0)

    def dispatch_tool(self, session, tool, arguments):
        self.dispatched.append((session.id, tool.name, dict(arguments)))
        return tool(session, arguments)

    def tool_schemas(self):
        return ()


def test_counts_that_are_no_numbers_are_usage_that_nobody_knows():
    none, some = RathLLMTokenUsage(None, "2", None), RathLLMTokenUsage(1, 2, 3)
    replies = (replace(reply(None, ("record", '{"n": 1}')), usage=usage) for usage in (none, some, none))
    out = loop(Provider(model="m"), executor=Executor(*replies, replace(reply("done"), usage=some)), tools=[Recorder()])
    assert out.cumulative_usage == RathLLMTokenUsage(2, 4, 6)


def test_a_refusal_is_what_the_model_said():
    refused = reply()
    message = replace(refused.choices[0].message, refusal="I may not.")
    out = loop(Provider(model="m"), executor=Executor(replace(refused, choices=(replace(refused.choices[0], message=message),))))
    assert out.chunk_table[-1].text == "I may not."


def test_an_executor_completes_and_dispatches():
    executor = Executor(reply(None, ("record", '{"n": 1}')), reply("done"))
    out = loop(Provider(model="m"), executor=executor, tools=[Recorder()])
    assert out.chunk_table[-1].text == "done"
    assert executor.dispatched == [(out.id, "record", {"n": 1})]
    assert executor.requests[0].model in (None, "m")
    assert [t.name for t in executor.requests[0].tools][-1] == "record"


def test_an_asynchronous_executor_works_too():
    class Async(Executor):
        async def complete(self, req):
            return Executor.complete(self, req)

        async def dispatch_tool(self, session, tool, arguments):
            return Executor.dispatch_tool(self, session, tool, arguments)

    out = loop(Provider(), executor=Async(reply(None, ("record", "{}")), reply("done")), tools=[Recorder()])
    assert out.chunk_table[-1].text == "done"


def test_resolve_executor_gives_what_a_loop_amounts_to():
    provider = scripted("x")
    assert isinstance(resolve_executor(agent_provider=provider, executor=None, on_event=None), DefaultSessionLoopExecutor)
    assert isinstance(resolve_executor(agent_provider=provider, executor=None, on_event=print), StreamingExecutor)
    executor = Executor()
    assert resolve_executor(agent_provider=provider, executor=executor, on_event=None) is executor


def test_a_streaming_executor_streams_and_folds():
    seen = []
    client = ScriptedClient(["streamed text"], chunk_chars=4)
    out = loop(Provider(), executor=StreamingExecutor(client, seen.append))
    assert out.chunk_table[-1].text == "streamed text"
    assert len(seen) >= 4


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_tool_rounds": -1}, UsageValueError),
        ({"timeout_s": 0}, UsageValueError),
        ({"on_event": 3}, UsageTypeError),
        ({"tools": [object()]}, UsageTypeError),
        ({"executor": object()}, UsageTypeError),
        ({"timeout_s": "5"}, UsageTypeError),
        ({"timeout_s": float("nan")}, UsageValueError),
        ({"persist_path": 3}, UsageTypeError),
        ({"middleware": print}, UsageTypeError),
        ({"middleware": [3]}, UsageTypeError),
    ],
)
def test_wrong_arguments_are_refused_at_the_call(options, error):
    with pytest.raises(error):
        loop(scripted("x"), **options)


def test_wrong_sessions_and_providers_are_refused_at_the_call():
    session = Session.from_user_message("x")
    with pytest.raises(UsageTypeError, match="user_session"):
        run_session_loop("text", session, agent_provider=scripted("x"))
    with pytest.raises(UsageTypeError, match="agent_provider"):
        run_session_loop(session, session, agent_provider="gpt")
    with pytest.raises(UsageValueError, match="kind"):
        loop(Provider(provider_kind="no-such-kind"))


def test_a_tool_schema_that_is_not_json_is_refused_at_the_call():
    class Bad(Recorder):
        parameters = property(lambda self: {"type": "object", "default": object()})

    with pytest.raises(UsageTypeError, match="bad_schema"):
        loop(scripted("x"), tools=[Bad("bad_schema")])


def test_a_reply_without_choices_is_a_provider_error():
    class Empty(SyncOnly):
        def complete(self, req):
            return RathLLMChatResponse("", (), 0, "m")

    register_chat_client("empty", Empty)
    with pytest.raises(ProviderError, match="no choices"):
        loop(Provider(provider_kind="empty")).synchronize()


def test_a_client_that_returns_something_else_is_a_provider_error():
    class Wrong(SyncOnly):
        def complete(self, req):
            return {"text": "hi"}

    register_chat_client("wrong", Wrong)
    with pytest.raises(ProviderError, match="dict"):
        loop(Provider(provider_kind="wrong")).synchronize()


def test_a_retryable_failure_is_retried_before_anything_was_seen():
    provider = replace(scripted({"error": {"status": 503, "message": "busy", "retryable": True}}, "done"), retry_base_seconds=0.01)
    out = loop(provider)
    assert out.chunk_table[-1].text == "done"
    assert [e.attempt for e in out.events(events.Retried) if isinstance(e, events.Retried)] == [1]


def test_a_failure_that_is_not_retryable_fails_at_once():
    out = loop(scripted({"error": {"status": 400, "message": "bad request"}}, "never"))
    with pytest.raises(ProviderError, match="bad request"):
        out.synchronize()


# -- middleware -------------------------------------------------------------------------------------------------------


def test_middleware_wraps_the_run_first_outermost_and_sees_every_event():
    order, seen = [], []

    def named(name):
        def middleware(runner):
            async def run(request):
                order.append(f"{name} in")
                async for event in runner(request):
                    seen.append((name, type(event).__name__))
                    yield event
                order.append(f"{name} out")

            return run

        return middleware

    out = loop(scripted(calls(call("record")), "done"), tools=[Recorder()], middleware=[named("a"), named("b")])
    assert [r.text for r in out.chunk_table if r.kind is ChunkKind.ASSISTANT][-1] == "done"
    assert order == ["a in", "b in", "b out", "a out"]
    assert ("a", "ToolFinished") in seen
    assert seen.index(("b", "ToolStarted")) < seen.index(("a", "ToolStarted"))
    told = list(out.events())
    assert [e.seq for e in told] == list(range(len(told)))
    assert sum(isinstance(e, events.TERMINAL) for e in told) == 1


def test_a_tool_runs_only_after_its_start_came_through_the_middleware():
    order = []

    def slow(runner):
        async def run(request):
            async for event in runner(request):
                if isinstance(event, events.ToolStarted):
                    await asyncio.sleep(0.05)
                    order.append("started seen")
                yield event

        return run

    class Note(Recorder):
        def __call__(self, session, arguments):
            order.append("tool ran")

    loop(scripted(calls(call("note")), "done"), tools=[Note("note")], middleware=[slow]).synchronize()
    assert order == ["started seen", "tool ran"]


def test_middleware_may_stop_a_run():
    def stop(runner):
        async def run(request):
            async for event in runner(request):
                yield event
                if isinstance(event, events.ToolStarted):
                    raise PermissionDeniedError("not this tool")

        return run

    recorder = Recorder()
    out = loop(scripted(calls(call("record"))), tools=[recorder], middleware=[stop])
    with pytest.raises(PermissionDeniedError):
        out.synchronize()
    assert recorder.seen == []
    assert [r.kind.value for r in out.partial] == ["user", "assistant", "tool_result"]


def test_middleware_that_leaves_early_leaves_a_valid_transcript():
    def leave(runner):
        async def run(request):
            async for event in runner(request):
                yield event
                if isinstance(event, events.ToolStarted):
                    return

        return run

    out = loop(scripted(calls(call("record", "a"), call("record", "b"))), tools=[Recorder()], middleware=[leave])
    assert [r.tool_call_id for r in out.chunk_table if r.tool_call_id] == ["a", "b"]
    assert {b["error_kind"] for b in bodies(out)} == {"interrupted"}


def passing(runner):
    async def run(request):
        async for event in runner(request):
            yield event

    return run


@pytest.mark.parametrize("middleware", [[], [lambda runner: runner], [passing], [passing, passing]])
@pytest.mark.parametrize("where", ["tool", "model"])
@pytest.mark.parametrize("how", ["cancel", "timeout"])
def test_a_run_that_is_cut_short_ends_as_it_should_whatever_wraps_it(middleware, where, how):
    @tool(name="wait")
    async def wait() -> None:
        await asyncio.sleep(30)

    replies = [calls(call("wait", "c"))] if where == "tool" else [{"text": "late", "latency_s": 30}]
    out = loop(scripted(*replies), tools=[wait], middleware=middleware, timeout_s=0.3 if how == "timeout" else None)
    if how == "cancel":
        kind = events.ToolStarted if where == "tool" else events.TurnStarted
        next(e for e in out.events() if isinstance(e, kind))
        out.cancel("enough")
    with pytest.raises(TurnTimeoutError if how == "timeout" else RunCancelled):
        out.synchronize(5)
    assert out.status == ("failed" if how == "timeout" else "cancelled")
    expected = ["user", "assistant", "tool_result"] if where == "tool" else ["user"]
    assert [r.kind.value for r in out.partial] == expected
    told = list(out.events())
    assert sum(isinstance(e, events.TERMINAL) for e in told) == 1
    assert isinstance(told[-1], events.TERMINAL)


# -- compress ---------------------------------------------------------------------------------------------------------


def test_compress_gives_one_user_row_and_is_lazy():
    client = ScriptedClient(["  the summary "], record=True)
    user, agent = Session.from_user_message("u"), Session.from_agent_prompt("a")
    out = run_session_compress(user, agent, agent_provider=client.as_provider(), compress_instruction="shorter")
    assert (out.lineage_kind, out.parent_session_ids) == (LineageKind.OP_SESSION_COMPRESS, (user.id, agent.id))
    assert [(r.kind, r.text) for r in out.chunk_table] == [(ChunkKind.USER, "the summary")]
    request = client.requests[0]
    assert [m.content for m in request.messages] == ["a", "u", "shorter"]
    assert request.tools is None
    assert dict(out.lineage_extras)["compression.lossy"] is True
    assert out.lineage.operator == "run_session_compress"


@pytest.mark.parametrize("bad", [calls(call("run_code", code="1")), "", "   "])
def test_compress_refuses_tool_calls_and_empty_replies(bad):
    out = run_session_compress(Session.from_user_message("u"), Session.from_agent_prompt("a"), agent_provider=scripted(bad))
    with pytest.raises(RuntimeError) as caught:
        out.synchronize()
    assert isinstance(caught.value, RathError)


# -- flow -------------------------------------------------------------------------------------------------------------


def test_agents_and_compressors_are_lazy_layers():
    agent = flow.Agent("be brief", scripted("answer"))
    squeeze = flow.Compressor("squeeze", scripted("short"))

    class Chain(flow.Workflow):
        def __init__(self):
            super().__init__()
            self.agent, self.squeeze = agent, squeeze

        def forward(self, session):
            return self.squeeze(self.agent(session))

    chain = Chain()
    out = chain(Session.from_user_message("hi"))
    assert [r.text for r in out.chunk_table] == ["short"]
    assert "(agent): Agent(" in repr(chain)
    assert "(squeeze): Compressor(" in repr(chain)
    assert agent.named_agents()[0][0] == "agent"
    with pytest.raises(UsageTypeError):
        chain("text")
    with pytest.raises(ValueError, match="model"):
        flow.Agent("x")


def test_agent_tools_can_be_registered_and_removed():
    agent = flow.Agent("x", scripted(calls(call("record")), "done"))
    recorder = Recorder()
    agent.register_tool(recorder)
    agent.register_tool(recorder)
    assert [t.name for t in agent.tools] == ["record"]
    assert agent(Session.from_user_message("go")).chunk_table[-1].text == "done"
    agent.unregister_tool("record")
    assert agent.tools == []

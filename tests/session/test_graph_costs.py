"""What runs cost: at the prices of their completions, whoever goes on with them, and whenever a price becomes known."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
from pathlib import Path
from uuid import UUID, uuid4

import pytest

import rath
from rath.core.cell import Cell
from rath.errors import UsageValueError
from rath.llm.pricing import Bill, Unpriced, register_price
from rath.llm.scripted import Reply, ScriptedClient
from rath.llm.types import RathLLMAssistantMessage, RathLLMChatChoice, RathLLMChatResponse, RathLLMTokenUsage
from rath.session import (
    continue_session_loop,
    lineage,
    operator,
    resume_session,
    run_session_loop,
    session_graph_mode_override,
)
from rath.session.graph.kind import LineageKind
from rath.session.graph.lineage import LineageNode
from rath.session.graph.model import SessionGraph
from rath.session.graph.record import LineageRecord
from rath.session.graph.sums import Total
from rath.session.outcome import Outcome
from rath.session.persistence.costs import bill_of
from rath.session.primitives import create_system_session, create_user_session
from rath.session.session import Session, make_session
from tests.session.graphs import answer

NO = {"error": {"status": 400, "message": "no"}}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENRATH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def used(prompt: int, completion: int = 0, cached: int | None = None) -> RathLLMTokenUsage:
    details = None if cached is None else {"cached_tokens": cached, "audio_tokens": None}
    return RathLLMTokenUsage(prompt, completion, prompt + completion, None, details)


def turn(usage: RathLLMTokenUsage) -> Reply:
    return Reply(tool_calls=[{"name": "no_such_tool", "arguments": {}}], usage=usage)


def run(*replies: object, model: str, asked: str | None = None, persist: bool = True) -> Session:
    """A loop that ends, or fails."""
    session = run_session_loop(
        create_user_session("Go."), create_system_session("y"), agent_provider=_provider(replies, model, asked), persist=persist
    )
    if NO not in replies:
        return session.synchronize(10)
    with pytest.raises(rath.RathError):
        session.synchronize(10)
    return session


def _provider(replies, model, asked=None):
    provider = ScriptedClient(list(replies), model=model).as_provider()
    return provider if asked is None else dataclasses.replace(provider, model=asked)


def in_another_process(home: Path, session: Session) -> str:
    """Its cost, by its log, where no price is registered."""
    code = "import rath, sys; print(rath.lineage(dir=sys.argv[1])[sys.argv[2]].cost_usd)"
    arguments = [sys.executable, "-c", code, str(home), str(session.id)]
    return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.strip()


# -- runs that were gone on with --------------------------------------------------------------------------------------


def test_a_continued_run_costs_what_each_of_its_completions_did(home):
    first, second = f"first-{uuid4()}", f"second-{uuid4()}"
    register_price(first, input_usd_per_mtok=1e6, output_usd_per_mtok=0)
    register_price(second, input_usd_per_mtok=5e6, output_usd_per_mtok=0)
    failed = run(turn(used(2)), NO, model=first)
    assert lineage(failed)[failed].cost_usd == 2.0
    # Prices change; what was paid does not.
    register_price(first, input_usd_per_mtok=100e6, output_usd_per_mtok=0)
    resumed = resume_session(failed.id)
    assert lineage(resumed)[resumed].cost_usd == 2.0
    whole = continue_session_loop(failed.id, agent_provider=_provider([Reply(text="Now.", usage=used(3))], second))
    whole.synchronize(10)
    node = lineage(whole)[whole]
    assert (node.cost_usd, node.usage.total_tokens, node.model) == (17.0, 5, first)
    assert lineage(dir=home)[whole] == node
    assert in_another_process(home, whole) == "17.0"


def test_a_log_that_was_reopened_records_the_price_of_the_model_that_was_asked(home):
    asked = f"asked-{uuid4()}"
    failed = run(NO, model="served", asked=asked)
    register_price(asked, input_usd_per_mtok=1e6, output_usd_per_mtok=0)
    whole = continue_session_loop(failed.id, agent_provider=_provider([Reply(text="Now.", usage=used(3))], "served", asked))
    whole.synchronize(10)
    lines = (home / "sessions" / f"{whole.id}.jsonl").read_text().splitlines()
    (usage,) = (json.loads(line) for line in lines if '"record_type":"usage"' in line)
    assert usage["price"]["input_usd_per_mtok"] == 1e6
    assert lineage(whole)[whole].cost_usd == 3.0


# -- prices that come later -------------------------------------------------------------------------------------------


def test_a_price_that_comes_later_gives_the_cost_that_it_would_have_given_before(home):
    early, late = f"early-{uuid4()}", f"late-{uuid4()}"
    price = {"input_usd_per_mtok": 2e6, "cached_input_usd_per_mtok": 1e6, "output_usd_per_mtok": 10e6}
    register_price(early, **price)
    replies = [turn(used(10, 1, cached=4)), turn(used(20, 1, cached=15)), Reply(text="Done.", usage=used(5, 1))]
    before, after = run(*replies, model=early), run(*replies, model=late)
    assert lineage(after).total("cost") == Total(None, 1)
    assert lineage(dir=home)[after].cost_usd is None
    register_price(late, **price)
    expected = (35 - 19) * 2 + 19 + 30
    for graph in (lineage([before, after]), lineage(dir=home)):
        assert [graph[session].cost_usd for session in (before, after)] == [expected, expected]


def test_each_model_of_a_run_has_its_own_price_and_one_without_leaves_the_whole_unknown(home):
    router, known, unknown = (f"{name}-{uuid4()}" for name in ("router", "known", "unknown"))
    register_price(known, input_usd_per_mtok=1e6, output_usd_per_mtok=0)
    failed = run(turn(used(1)), NO, model=known, asked=router)
    whole = continue_session_loop(failed.id, agent_provider=_provider([Reply(text="x", usage=used(2))], unknown, router))
    whole.synchronize(10)
    assert lineage(whole)[whole].cost_usd is None
    assert lineage(dir=home)[whole].cost_usd is None
    register_price(unknown, input_usd_per_mtok=10e6, output_usd_per_mtok=0)
    # Nothing of it costs what the router does.
    register_price(router, input_usd_per_mtok=1000e6, output_usd_per_mtok=0)
    assert lineage(whole)[whole].cost_usd == 21.0
    assert lineage(dir=home)[whole].cost_usd == 21.0


def test_a_bill_keeps_few_models_apart():
    names = [f"m{n}-{uuid4()}" for n in range(20)]
    bill = Bill()
    for name in names * 2:
        bill = bill.plus(used(1), name, None)
    assert len(bill.unpriced) == 9
    for name in names:
        register_price(name, input_usd_per_mtok=1e6, output_usd_per_mtok=0)
    assert bill.cost_usd is None
    few = Bill().plus(used(1), names[0], None).joined(Bill(2.0)).joined(Bill().plus(used(5), names[0], None))
    # A price counts where a completion is booked: here, all of them.
    assert (few.cost_usd, few.unpriced) == (8.0, ())
    assert Bill().cost_usd is None


def test_a_bill_of_a_log_may_say_anything():
    assert bill_of(1.5, "x", "y") == Bill(1.5)
    assert bill_of(None) == Bill()
    good = [["m", None, 1, 0, 2]]
    assert bill_of(None, 2.0, good) == Bill(2.0, (Unpriced("m", None, 1, 0, 2),))
    for wrong in (5, "x", [5], [["m", None, 1, 0]], [["m", None, -1, 0, 2]], [["m", None, 10**400, 0, 2]], good * 10):
        assert bill_of(float("nan"), 2.0, wrong).cost_usd is None


# -- whose tokens they are --------------------------------------------------------------------------------------------


def test_a_merge_owns_nothing_whatever_it_is_called():
    a, b = answer(create_user_session("x")), answer(create_user_session("y"))
    with session_graph_mode_override(False):
        unstamped = a.merge(b)
    restamped = a.merge(b).with_lineage((a.id, b.id), "mine", LineageKind.OP_CUSTOM, ())
    unstamped.synchronize(10)
    restamped.synchronize(10)
    assert lineage([a, b, unstamped, restamped]).total() == Total(22)
    assert restamped.cumulative_usage.total_tokens == 22


def test_a_run_that_never_began_spent_nothing():
    failed = run(NO, model="m", persist=False)
    after = answer(answer(failed))
    with pytest.raises(rath.RathError):
        after.synchronize(10)
    # What the one that asked has used, nobody knows.
    assert lineage(after).total() == lineage(after).total("cost") == Total(None, 1)


def test_an_operator_inside_an_operator_is_charged_once():
    inner: list[Session] = []

    @operator
    async def nested(session: Session) -> Session:
        inner.append(answer(session))
        return await inner[0]

    @operator
    async def outer(session: Session) -> Session:
        made = await nested(session)
        return await made.merge(inner[0])

    out = outer(create_user_session("x"))
    out.synchronize(10)
    assert lineage(out).total() == lineage([out, *inner]).total() == Total(11)


def test_an_operator_in_a_long_chain_leaves_every_subtree_known():
    run_ = {"kind": LineageKind.OP_SESSION_LOOP, "status": "completed", "usage": used(1)}
    nodes = [LineageNode(UUID(int=1), **run_)]
    for n in range(2, 4000):
        nodes.append(LineageNode(UUID(int=n), (nodes[-1].id,), roles=("user",), covers=(uuid4(),) if n == 2 else (), **run_))
    assert SessionGraph(nodes).subtree_totals()[UUID(int=3999)] == Total(3999)


# -- sessions with one id, and moments --------------------------------------------------------------------------------


def test_a_session_that_was_loaded_again_hides_no_ancestor_of_the_one_before(home):
    first = answer(create_user_session("x"), persist=True)
    after = first.fork()
    after.synchronize(10)
    again = resume_session(first.id)
    for graph in (lineage([again, after]), lineage([after, again])):
        assert sorted(node.label for node in graph) == ["fork", "loop", "system", "user"]


def test_of_a_run_that_failed_and_was_gone_on_with_the_second_part_counts(home):
    failed = run(NO, model="m")
    whole = continue_session_loop(failed.id, agent_provider=_provider(["Now."], "m"))
    whole.synchronize(10)
    for graph in (lineage([failed, whole]), lineage([whole, failed])):
        assert graph[whole].status == "completed"
        assert sorted(node.label for node in graph) == ["loop", "system", "user"]


def test_who_has_waited_for_a_session_sees_all_of_its_node():
    record, cell, seen = LineageRecord(uuid4()), Cell(), threading.Event()
    # As when the thread that ends a run is not done telling everybody.
    cell.on_done(lambda _cell: seen.wait(10))
    session = make_session(record, cell, None)
    table = create_user_session("x").chunk_table
    ending = threading.Thread(target=cell.complete, args=(Outcome(table, used(3), (("loop.truncated", True),)),))
    table.digest
    ending.start()
    try:
        session.synchronize(10)
        node = lineage(session)[session]
    finally:
        seen.set()
        ending.join()
    assert (node.status, node.rows, node.usage, node.digest) == ("completed", 1, used(3), table.digest.hex())
    assert lineage(session)[session].extras == node.extras == (("loop.truncated", True),)


def test_what_a_provider_says_of_its_tokens_is_the_same_from_memory_and_from_its_log(home):
    session = run(Reply(text="x", usage=used(9, 1, cached=4)), model="m")
    assert lineage(dir=home)[session] == lineage(session)[session]
    assert lineage(session)[session].usage.prompt_tokens_details == {"cached_tokens": 4}


def test_a_count_that_is_none_is_unknown_to_the_graph_and_to_every_form_of_it(home, tmp_path):
    class Careless:
        def complete(self, request):
            message = RathLLMAssistantMessage(content="Done.")
            usage = RathLLMTokenUsage(*self.counts, "none", "none")
            return RathLLMChatResponse("1", (RathLLMChatChoice("stop", 0, message),), 0, "m", usage=usage)

        def dispatch_tool(self, session, tool, arguments):
            raise NotImplementedError

        def tool_schemas(self):
            return ()

    for counts in ((None, None, None), (None, 5, 5), (1, 2, None), ("1", "2", "3"), (10**30, 1, 10**30), (-1, 2, 1)):
        executor = Careless()
        executor.counts = counts
        session = run_session_loop(
            create_user_session("Go."),
            create_system_session("y"),
            agent_provider=_provider((), "m"),
            executor=executor,
            persist=True,
        )
        session.synchronize(10)
        graph = lineage(session)
        assert graph[session].usage is lineage(dir=home)[session].usage is None
        assert graph.total() == Total(None, 1)
        assert "1 row" in str(graph)
        assert "<svg" in graph.to_svg()
        graph.to_parquet(tmp_path / "tables")


def test_a_completion_without_usage_leaves_the_cost_of_its_run_unknown(home):
    model = f"m-{uuid4()}"
    register_price(model, input_usd_per_mtok=1, output_usd_per_mtok=1)
    call = {"tool_calls": [{"name": "no_such_tool", "arguments": {}}]}
    for replies in ((turn(used(5)), Reply(text="x")), (call, Reply(text="x", usage=used(5)))):
        session = run(*replies, model=model)
        assert lineage(session).total("cost") == lineage(session, dir=home).subtree_total(session, "cost") == Total(None, 1)
        assert in_another_process(home, session) == "None"


def test_an_operator_around_runs_without_usage_spent_something_that_nobody_knows():
    @operator
    async def asks(session: Session) -> Session:
        return await run_session_loop(
            session.fork(), create_system_session("y"), agent_provider=_provider([Reply(text="x")], "m")
        )

    @operator
    async def around(session: Session) -> Session:
        return await asks(session)

    @operator
    async def asks_nobody(session: Session) -> Session:
        return await session.user("x")

    @operator
    async def around_nobody(session: Session) -> Session:
        return await asks_nobody(session)

    for spends, unknown in ((asks, 1), (around, 1), (asks_nobody, 0), (around_nobody, 0)):
        out = spends(create_user_session("x"))
        out.synchronize(10)
        graph = lineage(out)
        assert graph.total() == Total(None if unknown else 0, unknown)
        assert graph.total("cost") == Total(None if unknown else 0.0, unknown)


@pytest.mark.parametrize("price", [1e12, 1e308, pytest.param(10**5000, id="10^5000"), -1, float("nan"), float("inf")])
def test_a_price_is_one_that_logs_have_and_that_costs_come_out_of(price):
    with pytest.raises(UsageValueError, match="less than"):
        register_price("m", input_usd_per_mtok=1, output_usd_per_mtok=price)


def test_nodes_can_stand_in_sets():
    node = LineageNode(uuid4(), extras=(("list", [1]),), usage=used(1, cached=1))
    assert len({node, dataclasses.replace(node)}) == 1

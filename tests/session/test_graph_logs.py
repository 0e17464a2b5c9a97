"""The lineage graph from logs: of any process, with every gap bridged that a header can bridge, whatever a log says."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest

import rath
from rath.core.redact import REDACTED, register_secret
from rath.errors import PersistenceError
from rath.llm.pricing import register_price
from rath.llm.scripted import ScriptedClient
from rath.session import SessionWriter, continue_session_loop, lineage, resume_session, run_session_loop
from rath.session.graph.kind import LineageKind
from rath.session.graph.sums import Total
from rath.session.persistence.format import build_line
from rath.session.persistence.lineage import read_nodes, read_transcript
from rath.session.primitives import create_system_session, create_user_session
from rath.session.session import Session
from rath.testing.pace import within
from tests.session.graphs import answer, family


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENRATH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def log_of(home: Path, session_id: object) -> Path:
    return home / "sessions" / f"{session_id}.jsonl"


def header(session_id: UUID, *parents: UUID, **fields: object) -> dict[str, object]:
    return {
        "record_type": "header",
        "schema_version": 2,
        "id": str(session_id),
        "created_at": "2026-01-02T03:04:05.000006+00:00",
        "epoch": "00112233445566ff",
        "parent_session_ids": [str(parent) for parent in parents],
        "lineage_operator": "Session.fork",
        "lineage_kind": "op_fork",
        "prefix": None,
        **fields,
    }


def write(home: Path, *records: dict[str, object], name: str | None = None) -> Path:
    path = log_of(home, records[0]["id"]) if name is None else home / "sessions" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    previous, lines = str(records[0]["epoch"]).encode(), []
    for seq, record in enumerate(records):
        line, previous = build_line(record, seq, previous)
        lines.append(line)
    path.write_bytes(b"".join(lines))
    return path


def failing() -> Session:
    client = ScriptedClient([{"error": {"status": 400, "message": "no"}}])
    session = run_session_loop(
        create_user_session("x"), create_system_session("y"), agent_provider=client.as_provider(), persist=True
    )
    with pytest.raises(rath.RathError):
        session.synchronize(10)
    return session


# -- the same graph -----------------------------------------------------------------------------------------------------


def test_another_process_reads_the_graph_that_this_one_has(home):
    made = family(persist=True)
    code = "import rath, sys\nfor node in rath.lineage(dir=sys.argv[1]): print(repr(node))"
    told = subprocess.run([sys.executable, "-c", code, str(home)], capture_output=True, text=True, check=True).stdout
    assert told.splitlines() == [repr(node) for node in lineage(made["end"])]


def test_logs_bridge_what_was_not_logged_between_them(home):
    first = answer(create_user_session("Go."), persist=True)
    unlogged = answer(first.fork().user("And?"))
    last = answer(unlogged.merge(first.user("Or?")), persist=True)
    last.synchronize(10)
    graph = lineage(dir=home)
    assert graph == lineage(last)
    assert graph.total() == Total(33)
    assert graph[unlogged].path is None
    assert graph.subtree_total(unlogged) == Total(22)
    assert all(node.status == "completed" for node in graph)


def test_a_header_carries_no_more_than_the_nearest_ancestors(home):
    session = create_user_session("Go.")
    for _ in range(300):
        session = session.fork()
    answer(session, persist=True).synchronize(10)
    graph = lineage(dir=home)
    assert len(graph) == 1 + 128 + 1
    (beyond,) = graph.where(status="unknown")
    assert graph.roots() == (beyond, *graph.where(kind="leaf_system"))
    assert all(path.stat().st_size < 64 * 1024 for path in (home / "sessions").glob("*.jsonl"))


def test_a_chain_of_logged_runs_does_not_repeat_its_ancestors(home):
    session = create_user_session("Go.")
    for n in range(12):
        session = answer(session.user(f"question {n}"), persist=True)
    session.synchronize(20)
    lines = [path.read_bytes().partition(b"\n")[0] for path in (home / "sessions").glob("*.jsonl")]
    assert max(len(json.loads(line)["ancestry"]) for line in lines) == 3  # the first has the task, too
    assert lineage(dir=home) == lineage(session)


def test_a_log_in_another_directory_is_told_of_too(home, tmp_path):
    elsewhere = answer(create_user_session("Go."), persist_path=tmp_path / "elsewhere.jsonl")
    last = answer(elsewhere, persist=True)
    last.synchronize(10)
    known = lineage(dir=home)[elsewhere]
    assert (known.status, known.usage, known.path) == ("completed", lineage(last)[elsewhere].usage, None)
    assert lineage(last)[elsewhere].path == tmp_path / "elsewhere.jsonl"


def test_a_log_that_was_written_by_hand_tells_the_same_too(home):
    made = family()
    for name in ("a", "merged"):
        session = made[name]
        with SessionWriter(session) as writer:
            for index, row in enumerate(session.chunk_table):
                writer.write_chunk(index, row)
    graph = lineage(dir=home)
    expected = lineage(made["merged"])
    assert [node.id for node in graph] == [node.id for node in expected]
    assert [graph[name].verdict for name in (made["a"], made["merged"])] == ["complete"] * 2
    for name in ("a", "b", "task"):
        assert graph[made[name]] == expected[made[name]]
    assert graph.total() == expected.total()


def test_costs_that_were_recorded_are_in_the_log_of_any_process(home):
    model = f"priced-{uuid4()}"
    register_price(model, input_usd_per_mtok=2, output_usd_per_mtok=8, cached_input_usd_per_mtok=1)
    session = answer(create_user_session("Go."), tokens=500_000, model=model, persist=True)
    session.synchronize(10)
    code = "import rath, sys; print(rath.lineage(dir=sys.argv[1]).total('cost'))"
    told = subprocess.run([sys.executable, "-c", code, str(home)], capture_output=True, text=True, check=True).stdout
    assert told.strip() == repr(Total(1.000008))
    usages = [json.loads(line) for line in log_of(home, session.id).read_text().splitlines() if '"usage"' in line[:30]]
    assert [record["price"] for record in usages] == [
        {"input_usd_per_mtok": 2.0, "output_usd_per_mtok": 8.0, "cached_input_usd_per_mtok": 1.0}
    ]


def test_memory_and_logs_together_are_one_graph(home):
    logged = answer(create_user_session("Go."), persist=True)
    logged.synchronize(10)
    code = "import rath, sys; rath.session.run_session_loop(rath.session.create_user_session('x'), "
    code += "rath.session.create_system_session('y'), agent_provider=rath.Provider(model='scripted:' + sys.argv[1]), "
    code += "persist=True).synchronize(20)"
    script = home / "script.json"
    script.write_text('["Hello."]')
    subprocess.run([sys.executable, "-c", code, str(script)], check=True)
    unlogged = logged.fork()
    graph = lineage(unlogged, dir=home)
    assert len(graph) == len(lineage(unlogged)) + 3
    assert graph[logged].verdict == "complete"
    assert unlogged in graph


# -- verdicts -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_log_without_an_end_is_running_while_it_is_written_and_unknown_afterwards(home):
    slow = answer(create_user_session("Go."), persist=True, latency_s=0.5)
    deadline = time.monotonic() + 5
    while lineage(slow)[slow].verdict is None and time.monotonic() < deadline:
        time.sleep(0.01)
    node = lineage(dir=home)[slow]
    assert (node.status, node.verdict, node.rows) == ("running", "open", 1)
    assert (lineage(slow)[slow].status, lineage(slow)[slow].verdict) == ("running", "open")
    slow.synchronize(10)
    assert lineage(dir=home) == lineage(slow)
    failed = failing()
    node = lineage(dir=home)[failed]
    assert (node.status, node.verdict, node.path) == ("unknown", "open", log_of(home, failed.id))
    assert (lineage(failed)[failed].status, lineage(failed)[failed].verdict) == ("failed", "open")
    assert lineage(dir=home).total() == Total(11, 1)


def test_a_continued_run_has_one_node_with_all_its_tokens(home):
    failed = failing()
    began = lineage(dir=home)[failed].created_at
    client = ScriptedClient([{"text": "Now.", "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}}])
    goes_on = continue_session_loop(failed.id, agent_provider=client.as_provider())
    goes_on.synchronize(20)
    node = lineage(dir=home)[failed.id]
    assert (node.status, node.verdict, node.usage.total_tokens, node.created_at) == ("completed", "complete", 4, began)
    assert lineage(goes_on)[goes_on].created_at == began
    further = answer(goes_on, persist=True)
    further.synchronize(10)
    assert len(lineage(dir=home).where(kind="op_session_loop")) == 2


def test_a_session_that_was_resumed_is_the_node_that_its_log_tells_of(home):
    made = answer(answer(create_user_session("Go."), persist=True).fork(), persist=True)
    made.synchronize(10)
    expected = lineage(made)
    resumed = resume_session(made.id)
    del made
    assert lineage(resumed)[resumed] == expected[resumed]
    assert lineage(resumed, dir=home).where(lambda node: node.id != resumed.id) == expected.where(
        lambda node: node.id != resumed.id
    )
    further = answer(resumed.user("More."), persist=True)
    further.synchronize(10)
    assert lineage(dir=home) == lineage(further, dir=home)


def test_a_run_that_broke_off_counts_as_what_somebody_went_on_from(home):
    failed = failing()
    resumed = resume_session(failed.id)
    assert lineage(dir=home)[failed].status == "unknown"
    further = answer(resumed.user("More."), persist=True)
    further.synchronize(10)
    node = lineage(dir=home)[failed]
    assert (node.status, node.verdict, node.rows) == ("completed", "open", 1)
    assert node == lineage(further)[failed]


def test_torn_and_damaged_logs_are_nodes_with_their_verdicts(home):
    made = family(persist=True)
    paths = {name: log_of(home, made[name].id) for name in ("a", "b", "end")}
    paths["a"].write_bytes(paths["a"].read_bytes()[:-20])
    paths["b"].write_bytes(b"\x00" * 100 + b"\n")
    paths["end"].write_bytes(paths["end"].read_bytes()[:100])
    (home / "sessions" / "notes.jsonl").write_text("hello\n")
    graph = lineage(dir=home)
    assert {name: graph[made[name]].verdict for name in paths} == {"a": "torn", "b": "damaged", "end": "torn"}
    assert graph[made["a"]].status == "unknown"
    assert (graph[made["b"]].label, graph[made["b"]].parents) == ("unreadable", ())
    assert all(node.path is None or node.path.name != "notes.jsonl" for node in graph)


def test_the_directory_may_be_the_home_its_sessions_or_none(home, tmp_path):
    assert len(lineage()) == 0
    made = family(persist=True)
    assert lineage(dir=home) == lineage(dir=home / "sessions") == lineage(dir=str(home)) == lineage() == lineage(made["end"])
    for wrong in (tmp_path / "no", log_of(home, made["a"].id)):
        with pytest.raises(PersistenceError, match="no directory"):
            lineage(dir=wrong)


def test_a_graph_of_logs_refreshes(home):
    graph = lineage()
    assert len(graph) == 0
    made = family(persist=True)
    assert graph.refresh() == lineage(made["end"])


# -- transcripts --------------------------------------------------------------------------------------------------------


def test_a_transcript_comes_from_the_log_of_a_session_that_is_gone(home):
    code = "import rath, sys; s = rath.session.run_session_loop(rath.session.create_user_session('x'), "
    code += "rath.session.create_system_session('y'), agent_provider=rath.Provider(model='scripted:' + sys.argv[1]), "
    code += "persist=True); s.synchronize(20); print(s.id)"
    home.mkdir()
    (home / "script.json").write_text('["Hello."]')
    done = subprocess.run([sys.executable, "-c", code, str(home / "script.json")], check=True, capture_output=True, text=True)
    session_id = UUID(done.stdout.strip())
    graph = lineage(dir=home)
    rows = graph.transcript(session_id)
    assert rows is not None
    assert [row.text for row in rows] == ["x", "Hello."]
    assert graph.transcript(graph.roots()[0]) is None
    assert [row["text"] for row in graph.tables("rows")] == ["x", "Hello."]
    path = log_of(home, session_id)
    path.write_bytes(path.read_bytes().replace(b"Hello", b"Jello"))
    assert graph.transcript(session_id) is None
    path.unlink()
    assert graph.transcript(session_id) is None
    with path.open("wb") as file:
        file.truncate(65 << 20)
    assert read_transcript(path) is None


# -- hostile ------------------------------------------------------------------------------------------------------------


def test_a_cycle_that_somebody_wrote_is_cut_above_its_earliest(home):
    a, b, c, d = (UUID(int=n) for n in range(1, 5))
    write(home, header(a, b, created_at="2026-01-02T00:00:00+00:00"))
    write(home, header(b, c))
    write(home, header(c, a))
    write(home, header(d, d, c))
    graph = lineage(dir=home)
    assert [node.id for node in graph] == [a, c, b, d]
    assert {(edge.parent, edge.child) for edge in graph.edges} == {(a, c), (c, b), (c, d)}
    rath.session.validate_acyclic(graph.by_id)


def test_ancestry_that_is_none_is_ignored(home):
    for number, wrong in enumerate(
        [
            5,
            {},
            [5],
            [{"id": "x"}],
            [{"id": str(UUID(int=9)), "created_at": "never"}],
            [{"id": str(UUID(int=9)), "created_at": "0001-01-01T00:00:00+14:00"}],
            [{"id": str(UUID(int=9)), "created_at": "2026-01-01T00:00:00Z", "rows": "many"}],
            [{"id": str(UUID(int=9)), "created_at": "2026-01-01T00:00:00Z", "extras": [[1]]}],
        ]
    ):
        write(home, header(UUID(int=100 + number), ancestry=wrong))
    graph = lineage(dir=home)
    assert len(graph) == 8
    good = {"id": str(UUID(int=9)), "created_at": "2026-01-01T00:00:00Z", "kind": "op_new", "rows": -1, "cost_usd": -5.0}
    good |= {"usage": {"total_tokens": "x"}, "digest": "zz", "status": "elsewhere", "operator": "o" * 1000}
    write(home, header(UUID(int=100), ancestry=[good]))
    node = lineage(dir=home)[UUID(int=9)]
    assert (node.kind, node.rows, node.usage, node.cost_usd, node.digest) == (LineageKind.UNKNOWN, None, None, None, None)
    assert (node.status, len(node.operator), node.created_at) == ("unknown", 200, datetime(2026, 1, 1, tzinfo=UTC))


def test_a_trailer_may_say_anything(home):
    session_id = UUID(int=7)
    trailer = {"record_type": "trailer", "final_chunk_count": -1, "cumulative_usage": [], "lineage_extras": [[1, 2, 3]]}
    for outcome in ({"status": ["x"], "duration_s": -1, "cost_usd": "1"}, 5, {"status": "salvaged", "duration_s": True}):
        write(home, header(session_id), {**trailer, "digest": 5, "outcome": outcome})
        node = lineage(dir=home)[session_id]
        assert (node.rows, node.usage, node.duration_s, node.cost_usd, node.digest) == (None, None, None, None, None)
        assert node.status == ("completed" if outcome == 5 else "unknown")
    write(home, header(session_id), {**trailer, "outcome": {}, "lineage_extras": [["k", "v" * 5000]]})
    assert lineage(dir=home)[session_id].extras == (("k", "v" * 5000),)
    write(home, header(session_id), {**trailer, "outcome": {}, "lineage_extras": [["k", "v" * 100_000]]})
    assert lineage(dir=home)[session_id].extras == ()


def test_of_two_logs_of_one_session_that_with_its_name_counts(home):
    session_id = UUID(int=7)
    write(home, header(session_id, lineage_operator="a copy"), name="0copy.jsonl")
    write(home, header(session_id))
    write(home, header(session_id, lineage_operator="another copy"), name="zcopy.jsonl")
    write(home, header(session_id, lineage_operator="half written"), name=f"{session_id}.jsonl.__partial__")
    (node,) = lineage(dir=home)
    assert node.operator == "Session.fork"


def test_a_header_of_a_million_bytes_leaves_nothing_of_its_extras_in_memory(home):
    write(home, header(UUID(int=7), lineage_extras=[["k", "v" * 500_000]]))
    assert read_nodes(home / "sessions")[UUID(int=7)].extras == ()


def test_no_secret_reaches_the_ancestry(home):
    secret = "hunter2-hunter2-hunter2"
    register_secret(secret)
    middle = create_user_session("Go.").fork().with_lineage((), f"by {secret}", LineageKind.OP_CUSTOM, (("key", secret),))
    answer(middle, persist=True).synchronize(10)
    assert all(secret.encode() not in path.read_bytes() for path in (home / "sessions").glob("*.jsonl"))
    assert lineage(dir=home)[middle].extras == (("key", REDACTED),)


@pytest.mark.slow
def test_ten_thousand_logs_are_a_graph_in_seconds(home):
    made = family(persist=True)
    template = log_of(home, made["end"].id).read_bytes()
    old = str(made["end"].id).encode()
    for _ in range(10_000):
        new = uuid4()
        head, _, rest = template.partition(b"\n")
        record = json.loads(head.replace(old, str(new).encode()))
        line, _ = build_line({k: v for k, v in record.items() if k not in ("seq", "h")}, 0, record["epoch"].encode())
        log_of(home, new).write_bytes(line + rest)
    taken_s = []
    for _ in range(5):
        began = time.process_time()
        graph = lineage(dir=home)
        taken_s.append(time.process_time() - began)
        assert len(graph) == 10_000 + 10
    # 0.7 s where nothing else runs; 2.3 to 3.4 s were seen on two cores with a load of 9 to 15, so the best counts.
    assert min(taken_s) < within(2)

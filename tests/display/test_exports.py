"""The lineage graph for other programs: each form is read by a reader that is not ours."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import networkx
import pyarrow.parquet
import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from rath import Session, lineage, run_session_loop
from rath.display.dot import lineage_dot
from rath.display.graphml import lineage_graphml
from rath.display.mermaid import lineage_mermaid
from rath.errors import UsageValueError
from rath.llm.types import RathLLMTokenUsage
from rath.session.graph.kind import LineageKind
from rath.session.graph.lineage import LineageNode
from rath.session.graph.model import SessionGraph
from rath.testing import Reply, ScriptedClient
from tests.display.support import CONTROL, HOSTILE

BEGAN = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def node(number: int, *parents: int, roles: tuple[str, ...] = (), **fields: object) -> LineageNode:
    roles = roles or ("parent",) * len(parents)
    return LineageNode(UUID(int=number), tuple(UUID(int=p) for p in parents), roles=roles, **fields)  # type: ignore[arg-type]


@pytest.fixture
def graph() -> SessionGraph:
    """Two loops of one prompt by one agent, merged; a third session that only shares the agent."""
    loop = {"kind": LineageKind.OP_SESSION_LOOP, "operator": "run_session_loop", "status": "completed"}
    timed = {"created_at": BEGAN, "duration_s": 1.5, "usage": RathLLMTokenUsage(10, 2, 12), "cost_usd": 0.25}
    return SessionGraph(
        [
            node(1, label="user", status="completed"),
            node(2, label="system", status="completed"),
            node(3, 1, 2, roles=("user", "system"), model="m-1", label="first", **loop, **timed),
            node(4, 1, 2, roles=("user", "system"), **(loop | {"status": "failed"}), created_at=BEGAN),
            node(5, 3, 4, roles=("parent", "merge"), kind=LineageKind.OP_MERGE, operator="Session.merge", status="failed"),
            node(6, label="user", status="completed"),
            node(7, 6, 2, roles=("user", "system"), **loop, created_at=BEGAN + timedelta(seconds=9), duration_s=0.5),
        ]
    )


@pytest.fixture
def hostile() -> SessionGraph:
    names = {"label": HOSTILE, "operator": HOSTILE, "model": HOSTILE, "sandbox": HOSTILE, "snapshot": HOSTILE}
    return SessionGraph([node(1, **names, path=Path("/tmp/" + "a\x1b[31mb"), extras=((HOSTILE, HOSTILE),)), node(2, 1, **names)])


def edges(graph: SessionGraph) -> set[tuple[str, str, str]]:
    return {(str(edge.parent), str(edge.child), edge.role) for edge in graph.edges}


def test_networkx_reads_the_graphml_with_every_number_and_role(graph: SessionGraph) -> None:
    read = networkx.parse_graphml(graph.to_graphml())
    assert {(a, b, data["role"]) for a, b, data in read.edges(data=True)} == edges(graph)
    first = read.nodes[str(UUID(int=3))]
    assert (first["label"], first["model"], first["total_tokens"], first["cost_usd"]) == ("first", "m-1", 12, 0.25)
    assert "cost_usd" not in read.nodes[str(UUID(int=4))]  # unknown is not 0


def test_graphml_of_hostile_text_is_xml_and_the_text_is_there(hostile: SessionGraph) -> None:
    text = hostile.to_graphml()
    assert CONTROL.search(text) is None
    read = networkx.parse_graphml(text)
    assert "<script>alert('x')</script>" in read.nodes[str(UUID(int=1))]["label"]


def test_dot_quotes_whatever_a_label_holds(hostile: SessionGraph, graph: SessionGraph) -> None:
    text = hostile.to_dot()
    assert CONTROL.search(text) is None
    for line in text.splitlines()[2:-1]:
        bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', line)
        assert re.fullmatch(r'  s\d+ (\[label="", tooltip=""[^"]*\]|-> s\d+( \[[^"]*\])?);', bare), line
    tricky = lineage_dot([node(1, label=r'\N \G "x\"', status="completed")])
    assert r'label="\\N \\G \"x\\\"' in tricky
    assert lineage_dot(graph.nodes).count("style=dotted") == 3  # from the agent's instructions


def test_mermaid_shows_roles_and_no_markup_of_others(hostile: SessionGraph, graph: SessionGraph) -> None:
    assert graph.to_mermaid().count("-.->") == 3
    text = lineage_mermaid(hostile.nodes)
    assert CONTROL.search(text) is None
    assert "<script" not in text


@pytest.mark.parametrize(("label", "inside"), [(r"a\new", "a#92;#8288;new"), ("$$x$$", "#36;#8288;#36;x#36;#8288;#36;"), ("fa:fa-user", "fa:#8288;fa-user")])
def test_what_mermaid_obeys_though_it_is_an_entity_is_kept_apart(label: str, inside: str) -> None:
    assert f'["{inside}<br/>' in lineage_mermaid([node(1, label=label)])


@pytest.mark.slow
def test_a_data_frame_takes_lone_surrogates() -> None:
    frame = SessionGraph([node(1, label="a\ud800b", operator="o")]).to_frame()
    assert (frame["label"][0], frame["operator"][0], frame["parents"][0]) == (r"a\ud800b", "o", [])


def test_spans_are_valid_otlp_and_hang_together_as_the_sessions_do(graph: SessionGraph, tmp_path: Path) -> None:
    path = tmp_path / "new" / "spans.json"
    made = graph.to_otlp(path)
    assert json.loads(path.read_text()) == made
    json_format.ParseDict(made, ExportTraceServiceRequest())  # raises for an unknown field or a wrong type
    spans = {s["attributes"][_at(s, "gen_ai.conversation.id")]["value"]["stringValue"]: s for s in _spans(made)}
    assert len(spans) == len({span["spanId"] for span in spans.values()}) == 7
    one, three, four, five, seven = (spans[str(UUID(int=n))] for n in (1, 3, 4, 5, 7))
    assert three["parentSpanId"] == four["parentSpanId"] == one["spanId"]
    assert five["parentSpanId"] == three["spanId"]
    assert [link["spanId"] for link in five["links"]] == [four["spanId"]]
    assert one["traceId"] == five["traceId"] != seven["traceId"]  # an agent that both asked is no common history
    assert all(re.fullmatch("[0-9a-f]{32}", s["traceId"]) and re.fullmatch("[0-9a-f]{16}", s["spanId"]) for s in spans.values())


def test_spans_have_the_names_of_the_conventions_and_the_times_of_the_runs(graph: SessionGraph) -> None:
    spans = _spans(graph.to_otlp())
    first = spans[2]
    facts = {a["key"]: next(iter(a["value"].values())) for a in first["attributes"]}
    assert first["name"] == "invoke_agent m-1"
    assert facts["gen_ai.operation.name"] == "invoke_agent"
    assert (facts["gen_ai.usage.input_tokens"], facts["gen_ai.usage.output_tokens"]) == ("10", "2")
    assert int(first["endTimeUnixNano"]) - int(first["startTimeUnixNano"]) == 1_500_000_000
    assert int(first["startTimeUnixNano"]) == int(BEGAN.replace(microsecond=0).timestamp()) * 10**9 + 678_901_000
    assert spans[3]["status"] == {"code": 2, "message": "failed"}
    # A merge takes no time: it is where its parents end.
    merge = {a["key"]: a["value"] for a in spans[4]["attributes"]}
    assert spans[4]["startTimeUnixNano"] == spans[4]["endTimeUnixNano"] == first["endTimeUnixNano"]
    assert merge["rath.time.estimated"] == {"boolValue": True}


def test_times_that_no_span_has_room_for_are_cut() -> None:
    late = node(1, created_at=datetime(9999, 12, 31, tzinfo=UTC), duration_s=9e14)
    early = node(2, 1, created_at=datetime(1, 1, 1, tzinfo=UTC), duration_s=9e14)
    json_format.ParseDict(SessionGraph([late, early]).to_otlp(), ExportTraceServiceRequest())


def test_hostile_text_in_spans_is_text(hostile: SessionGraph, tmp_path: Path) -> None:
    made = hostile.to_otlp(tmp_path / "spans.json")
    json_format.ParseDict(made, ExportTraceServiceRequest())
    assert CONTROL.search((tmp_path / "spans.json").read_text()) is None


def test_json_lines_are_the_table_of_sessions(graph: SessionGraph, hostile: SessionGraph, tmp_path: Path) -> None:
    text = graph.to_jsonl(tmp_path / "graph.jsonl")
    assert (tmp_path / "graph.jsonl").read_text() == text
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["id"] for row in rows] == [str(n.id) for n in graph.nodes]
    assert rows[2]["created_at"] == BEGAN.isoformat()
    assert all(json.loads(line)["id"] for line in hostile.to_jsonl().splitlines())


@pytest.mark.slow
def test_parquet_has_the_same_columns_and_types_for_every_graph(graph: SessionGraph, hostile: SessionGraph, tmp_path: Path) -> None:
    for name, made in (("a", graph), ("b", hostile), ("c", SessionGraph([]))):
        assert [path.stem for path in made.to_parquet(tmp_path / name)] == ["sessions", "edges", "rows", "calls"]
    for table in ("sessions", "edges", "rows", "calls"):
        schemas = [pyarrow.parquet.read_schema(tmp_path / name / f"{table}.parquet") for name in "abc"]
        assert schemas[0].equals(schemas[1])
        assert schemas[0].equals(schemas[2])
    rows = pyarrow.parquet.read_table(tmp_path / "a" / "sessions.parquet").to_pylist()
    assert rows[2]["created_at"] == BEGAN
    assert rows[2]["parents"] == [str(UUID(int=1)), str(UUID(int=2))]
    assert (rows[2]["cost_usd"], rows[3]["cost_usd"]) == (0.25, None)
    assert not list((tmp_path / "a").glob(".*"))


def test_what_runs_said_is_in_the_tables_of_rows_and_calls(tmp_path: Path) -> None:
    used = RathLLMTokenUsage(5, 5, 10)
    model = ScriptedClient([Reply(tool_calls=[{"name": "list_nothing", "arguments": {"n": 1}}], usage=used), "done \ud800"])
    run = run_session_loop(Session.from_user_message("go"), Session.from_agent_prompt("be"), agent_provider=model.as_provider())
    run.synchronize()
    lineage(run).to_parquet(tmp_path)
    calls = pyarrow.parquet.read_table(tmp_path / "calls.parquet").to_pylist()
    assert [(call["name"], call["ok"], call["error_kind"]) for call in calls] == [("list_nothing", False, "unknown_tool")]
    texts = pyarrow.parquet.read_table(tmp_path / "rows.parquet").column("text").to_pylist()
    assert "go" in texts
    assert any(text and text.startswith("done") for text in texts)


@pytest.mark.slow
def test_a_chain_of_twenty_thousand_is_exported_without_recursion() -> None:
    chain = [node(1)] + [node(n, n - 1) for n in range(2, 20_001)]
    graph = SessionGraph(chain)
    assert len({span["traceId"] for span in _spans(graph.to_otlp())}) == 1
    assert lineage_graphml(chain).count("<edge") == 19_999
    assert graph.to_dot().count("->") == 19_999


def test_an_unknown_table_is_a_clear_error(graph: SessionGraph) -> None:
    with pytest.raises(UsageValueError, match="no table 'runs'"):
        graph.tables("runs")


def _spans(made: dict[str, list[dict[str, list[dict[str, list[dict[str, object]]]]]]]) -> list[dict[str, object]]:
    return made["resourceSpans"][0]["scopeSpans"][0]["spans"]


def _at(span: dict[str, list[dict[str, object]]], key: str) -> int:
    return next(place for place, attribute in enumerate(span["attributes"]) if attribute["key"] == key)

"""Semantics 1: values."""

import copy
import dataclasses
import gc
import pickle
import sys
import time
from uuid import UUID

import pytest

from rath.errors import UsageTypeError, UsageValueError
from rath.llm.types import RathLLMTokenUsage
from rath.session import (
    ChunkKind,
    ChunkRow,
    ChunkTable,
    LineageKind,
    LineageRecorder,
    Session,
    create_system_session,
    create_user_session,
    lineage_journal_tracking,
    session_graph_mode_override,
    session_registry,
    system_text_chunk,
    tool_feedback_chunk,
    user_text_chunk,
)


def rows(count, prefix="row"):
    return tuple(user_text_chunk(f"{prefix} {i}") for i in range(count))


# -- rows -------------------------------------------------------------------------------------------------------------


def test_a_row_is_a_frozen_dataclass_of_kind_and_payload():
    row = ChunkRow(ChunkKind.USER, {"content": "hi"})
    assert dataclasses.is_dataclass(row)
    assert [f.name for f in dataclasses.fields(row)] == ["kind", "payload"]
    assert dataclasses.asdict(row) == {"kind": ChunkKind.USER, "payload": {"content": "hi"}}
    assert dataclasses.replace(row, payload={"content": "x"}).payload == {"content": "x"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.kind = ChunkKind.SYSTEM
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.payload = {}


def test_payload_is_a_fresh_dict_at_each_read_and_changing_it_changes_nothing():
    source = {"content": "hi", "nested": {"a": [1]}}
    row = ChunkRow(ChunkKind.USER, source)
    source["nested"]["a"].append(2)
    row.payload["nested"]["a"].append(3)
    assert row.payload == {"content": "hi", "nested": {"a": [1]}}


@pytest.mark.parametrize(
    "text",
    ["", "plain", "\u2028\u2029\u0085", "\ud800 lone", "nul \x00 bell \x07", "😀 ä 漢", '"quotes" \\ back', "x" * 1_000_000],
)
def test_any_text_round_trips_and_its_encoding_is_one_line(text):
    row = user_text_chunk(text)
    assert row.payload == {"content": text}
    assert row.text == text
    encoded = row.encoded.decode()
    assert len(encoded.splitlines()) == 1
    assert pickle.loads(pickle.dumps(row)) == row


@pytest.mark.parametrize("payload", [{"x": object()}, {"x": {1, 2}.__iter__()}, ["no", "mapping"], "text"])
def test_a_payload_that_is_no_json_object_is_refused(payload):
    with pytest.raises(UsageTypeError):
        ChunkRow(ChunkKind.USER, payload)


def test_rows_have_typed_accessors():
    row = tool_feedback_chunk("c1", "t", "body")
    assert (row.text, row.tool_call_id, row.tool_calls) == ("body", "c1", ())
    assert user_text_chunk("u").tool_call_id is None


def test_a_secret_stays_in_requests_and_out_of_digests_and_logs():
    from rath.core.redact import register_secret

    secret = "sk-very-secret-0123456789"
    register_secret(secret)
    row = user_text_chunk(f"my key is {secret}!")
    assert row.payload["content"] == f"my key is {secret}!"
    assert secret.encode() not in row.encoded
    assert row.encoded == user_text_chunk("my key is [redacted]!").encoded


# -- tables -----------------------------------------------------------------------------------------------------------


def test_a_table_is_a_frozen_dataclass_with_a_tuple_of_rows():
    table = ChunkTable(rows(3))
    assert [f.name for f in dataclasses.fields(table)] == ["rows"]
    assert type(table.rows) is tuple
    assert len(table) == 3
    assert list(table) == list(table.rows)
    assert table[0] == table.rows[0]
    assert table[-1] == table.rows[-1]
    assert table[1:] == table.rows[1:]
    assert dataclasses.replace(table, rows=table.rows[:1]) == ChunkTable(table.rows[:1])
    with pytest.raises(dataclasses.FrozenInstanceError):
        table.rows = ()
    with pytest.raises(UsageTypeError):
        ChunkTable(("no row",))
    with pytest.raises(IndexError):
        table[3]


def test_extend_leaves_the_original_and_branches_do_not_see_each_other():
    base = ChunkTable(rows(2))
    left, right = base.extend(user_text_chunk("left")), base.extend(user_text_chunk("right"))
    assert len(base) == 2
    assert left[-1].text == "left"
    assert right[-1].text == "right"
    assert left.concat(right).rows == left.rows + right.rows


def test_a_view_of_a_growing_list_keeps_its_length():
    base, growing = ChunkTable(rows(2)), list(rows(3, "new"))
    view = ChunkTable.growing(base, growing)
    longer = view.extend(user_text_chunk("after"))
    growing.extend(rows(5, "later"))
    assert view.rows == base.rows + tuple(growing[:3])
    assert [r.text for r in longer][-2:] == ["new 2", "after"]
    fresh = ChunkTable.growing(base, growing)
    assert fresh.digest == ChunkTable(fresh.rows).digest
    assert ChunkTable.growing(base, []) is base


def test_append_is_constant_time_whatever_the_length():
    row = user_text_chunk("x")
    small, large = ChunkTable(rows(10)), ChunkTable(rows(10) * 10_000)

    def cost(table):
        best = float("inf")
        for _ in range(20):
            began = time.perf_counter()
            for _ in range(200):
                table.extend(row)
            best = min(best, time.perf_counter() - began)
        return best

    assert cost(large) < 5 * cost(small) + 1e-4


@pytest.mark.slow
def test_a_long_chain_of_appends_flattens_and_dies_without_recursion():
    table = ChunkTable()
    for row in rows(100) * 1_000:
        table = table.extend(row)
    assert len(table.rows) == 100_000
    tip = table.extend(user_text_chunk("tip"))
    del table
    assert tip[-1].text == "tip"


def test_dropping_a_derived_table_frees_its_rows():
    base = ChunkTable(rows(1))
    derived = base.extend(*rows(50))
    assert len(derived.rows) == 51
    payload = derived.rows[25].encoded  # held by its row, which is held by the table
    held = sys.getrefcount(payload)
    del derived
    assert sys.getrefcount(payload) == held - 1


def test_equal_rows_have_equal_digests_whatever_way_they_were_put_together():
    parts = rows(7)
    whole = ChunkTable(parts)
    stepwise = ChunkTable()
    for row in parts:
        stepwise = stepwise.extend(row)
    merged = ChunkTable(parts[:3]).concat(ChunkTable(parts[3:]))
    flat_first = ChunkTable(parts[:5]).extend(*parts[5:])
    assert flat_first.rows == parts
    assert whole.digest == stepwise.digest == merged.digest == flat_first.digest
    assert whole.digest != ChunkTable(parts[:6]).digest
    assert len(whole.digest) == 16


def test_the_digest_of_a_new_prefix_costs_one_row():
    table = ChunkTable(rows(10) * 5_000)
    table.digest
    child = table.extend(user_text_chunk("one more"))
    assert child.digest_within(1) == child.digest
    assert ChunkTable(rows(100)).digest_within(50) is None


# -- sessions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["id", "chunk_table", "sandbox", "sandbox_backend", "lineage_operator", "parent_session_ids", "lineage", "new"]
)
def test_no_attribute_can_be_assigned_and_the_error_says_what_to_do(name):
    session = Session.from_user_message("hi")
    with pytest.raises(AttributeError, match=r"immutable.*session\.to"):
        setattr(session, name, None)
    with pytest.raises(AttributeError):
        delattr(session, "lineage")


def test_constructors():
    user, agent = Session.from_user_message("u"), Session.from_agent_prompt("a")
    assert [r.kind for r in user.chunk_table] == [ChunkKind.USER]
    assert [r.kind for r in agent.chunk_table] == [ChunkKind.SYSTEM]
    assert Session.create("user", "x").lineage_kind is LineageKind.LEAF_USER
    assert Session.create("system", "x").lineage_kind is LineageKind.LEAF_SYSTEM
    assert len(Session.create("empty").chunk_table) == 0
    with pytest.raises(UsageValueError, match="unknown kind"):
        Session.create("robot")
    with pytest.raises(UsageTypeError):
        Session.from_user_message(3)
    with pytest.raises(UsageTypeError):
        Session([])
    assert isinstance(user.id, UUID)
    assert user.id.version == 4


def test_create_functions_stamp_leaves():
    assert create_user_session("u").lineage_kind is LineageKind.LEAF_USER
    assert create_system_session("s").lineage_operator == "create_system_session"


def test_fork_shares_rows_and_has_one_parent():
    session = Session.from_user_message("hi")
    fork = session.fork()
    assert fork.chunk_table is session.chunk_table
    assert (fork.parent_session_ids, fork.lineage_kind, fork.lineage_operator) == (
        (session.id,), LineageKind.OP_FORK, "Session.fork",
    )
    assert fork.id != session.id


def test_detach_shares_rows_and_has_no_parents():
    session = Session.from_user_message("hi")
    detached = session.detach()
    assert detached.chunk_table == session.chunk_table
    assert (detached.parent_session_ids, detached.lineage_kind) == ((), LineageKind.OP_DETACH)


def test_append_and_user_continue_a_conversation():
    session = Session.from_user_message("hi")
    longer = session.user("more").append(system_text_chunk("s"))
    assert [r.text for r in longer.chunk_table] == ["hi", "more", "s"]
    assert longer.lineage_kind is LineageKind.OP_APPEND
    assert longer.lineage_operator == "Session.append"
    assert len(session.chunk_table) == 1
    with pytest.raises(UsageTypeError):
        session.append("text")


def test_merge_concatenates_rows_and_sums_usage():
    a = Session(ChunkTable(rows(2, "a")), cumulative_usage=RathLLMTokenUsage(1, 2, 3))
    b = Session(ChunkTable(rows(1, "b")), cumulative_usage=RathLLMTokenUsage(10, 20, 30))
    merged = a.merge(b)
    assert merged.chunk_table.rows == a.chunk_table.rows + b.chunk_table.rows
    assert merged.cumulative_usage == RathLLMTokenUsage(11, 22, 33)
    assert merged.parent_session_ids == (a.id, b.id)
    assert merged.lineage_kind is LineageKind.OP_MERGE


@pytest.mark.parametrize("derive", [Session.fork, Session.detach, lambda s: s.user("x")])
def test_fork_detach_and_append_have_no_usage_of_their_own(derive):
    session = Session(ChunkTable(), cumulative_usage=RathLLMTokenUsage(1, 2, 3))
    assert derive(session).cumulative_usage is None


def test_to_keeps_id_lineage_and_usage():
    session = Session(ChunkTable(rows(1)), cumulative_usage=RathLLMTokenUsage(1, 2, 3)).fork()
    placed = session.to("local")
    assert placed is not session
    assert (placed.id, placed.parent_session_ids, placed.cumulative_usage) == (
        session.id, session.parent_session_ids, session.cumulative_usage,
    )
    assert (session.sandbox_backend, placed.sandbox_backend) == (None, "local")


def test_stamping_returns_a_copy_and_is_journaled():
    session = Session.from_user_message("hi")
    parent = Session.from_user_message("p")
    with lineage_journal_tracking() as journal:
        stamped = LineageRecorder.stamp_new_session(
            session, parent_session_ids=(parent.id,), lineage_operator="mine", lineage_kind=LineageKind.OP_CREATE
        )
        fork = stamped.fork()
    assert (session.lineage_operator, stamped.lineage_operator, stamped.id) == ("implicit", "mine", session.id)
    assert journal.visit_order == [stamped.id, fork.id]


def test_stamping_can_be_switched_off():
    with session_graph_mode_override(False):
        fork = Session.from_user_message("hi").fork()
        created = Session.create("user", "x")
    assert (fork.parent_session_ids, fork.lineage_kind) == ((), LineageKind.UNKNOWN)
    assert created.lineage_kind is LineageKind.UNKNOWN


def test_the_registry_keeps_nothing_alive():
    session = Session.from_user_message("hi")
    session_registry().register(session)
    session_id = session.id
    assert session_registry().get(session_id) is session
    del session
    gc.collect()
    assert session_registry().get(session_id) is None


def test_fork_of_100_000_rows_takes_less_than_10_us():
    session = Session(ChunkTable(rows(100) * 1_000))
    best = float("inf")
    for _ in range(30):
        began = time.perf_counter()
        for _ in range(100):
            session.fork()
        best = min(best, (time.perf_counter() - began) / 100)
    assert best < 10e-6


def test_ancestors_live_on_as_records_without_rows():
    session = Session(ChunkTable(rows(1)))
    row = session.chunk_table.rows[0]
    child = session.fork().detach().user("x").fork()
    parent_id = child.parent_session_ids[0]
    del session
    gc.collect()
    assert child._record.parents[0].id == parent_id
    assert not any(isinstance(o, Session) for o in gc.get_referrers(row))


def test_copying_an_immutable_value_gives_the_value():
    session = Session.from_user_message("hi")
    assert copy.copy(session) is session
    assert copy.deepcopy(session) is session


def test_a_session_is_not_pickled_and_the_error_says_what_can_be():
    session = Session.from_user_message("hi")
    with pytest.raises(UsageTypeError, match=r"chunk_table.*load_session"):
        pickle.dumps(session)
    assert pickle.loads(pickle.dumps(session.chunk_table)) == session.chunk_table


def test_repr_shows_rows_and_never_waits():
    text = repr(Session.from_user_message("hello there"))
    assert "hello there" in text
    assert "rows=1" in text

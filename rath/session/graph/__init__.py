"""Lineage: how sessions descend from each other."""

from rath.core.lazy import lazy_exports

_here = __name__
__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Edge": f"{_here}.model",
        "FrozenLineageView": f"{_here}.traverse",
        "LineageConsistencyError": f"{_here}.kind",
        "LineageJournal": f"{_here}.recording",
        "LineageKind": f"{_here}.kind",
        "LineageNode": f"{_here}.lineage",
        "LineageRecord": f"{_here}.record",
        "LineageRecorder": f"{_here}.recording",
        "SessionGraph": f"{_here}.model",
        "SessionLineage": f"{_here}.kind",
        "Total": f"{_here}.sums",
        "ancestors_bfs": f"{_here}.traverse",
        "collect": f"{_here}.lineage",
        "descendants_dfs_preorder": f"{_here}.traverse",
        "edge_pairs": f"{_here}.traverse",
        "export_journal_jsonl": f"{_here}.export",
        "export_jsonl": f"{_here}.export",
        "export_jsonl_string": f"{_here}.export",
        "lineage_journal_optional": f"{_here}.recording",
        "lineage_journal_tracking": f"{_here}.recording",
        "lineage_view_dataclass": f"{_here}.traverse",
        "session_graph_mode": f"{_here}.recording",
        "session_graph_mode_override": f"{_here}.recording",
        "session_to_jsonl_row": f"{_here}.export",
        "total_usage": f"{_here}.lineage",
        "validate_acyclic": f"{_here}.traverse",
    },
)

"""The names and fields that existing code imports: every documented name is where it is documented, and is public once."""

import ast
import dataclasses
import importlib
import inspect
import pathlib
import subprocess
import sys

import pytest

import rath

NAMES = {
    "rath.session": """
        ChunkKind ChunkRow ChunkTable DefaultSessionLoopExecutor LineageConsistencyError LineageJournal LineageKind LineageRecorder PersistedSession PersistedSessionHeader PersistedSessionMeta PersistenceError Session SessionLineage SessionLoopExecutor SessionRegistry SessionWriter ancestors_bfs assistant_turn_chunk chunk_table_to_messages create_system_session create_user_session delete_session descendants_dfs_preorder detach_session edge_pairs fork_session format_chunk_row_brief lineage_journal_optional lineage_journal_tracking lineage_view_dataclass list_persisted_sessions load_session prune_sessions run_session_compress run_session_loop session_graph_mode session_graph_mode_override session_registry system_text_chunk tool_feedback_chunk user_text_chunk validate_acyclic
    """,
    "rath.session.session": """
        Session
    """,
    "rath.session.loop": """
        OnEventCb SessionLoopExecutor StreamingExecutor run_session_loop
    """,
    "rath.session.compress": """
        run_session_compress
    """,
    "rath.session.chunk": """
        ChunkKind ChunkRow ChunkTable assistant_turn_chunk chunk_table_to_messages format_chunk_row_brief system_text_chunk tool_feedback_chunk user_text_chunk
    """,
    "rath.session.primitives": """
        create_system_session create_user_session detach_session fork_session
    """,
    "rath.session.manager": """
        SessionRegistry session_registry
    """,
    "rath.session.provider_builtin": """
        DefaultSessionLoopExecutor
    """,
    "rath.session.graph": """
        FrozenLineageView LineageConsistencyError LineageJournal LineageKind LineageRecorder SessionLineage ancestors_bfs descendants_dfs_preorder edge_pairs export_journal_jsonl export_jsonl export_jsonl_string lineage_journal_optional lineage_journal_tracking lineage_view_dataclass session_graph_mode session_graph_mode_override session_to_jsonl_row validate_acyclic
    """,
    "rath.session.persistence": """
        CURRENT_SCHEMA_VERSION PersistedSession PersistedSessionHeader PersistedSessionMeta PersistenceError SESSIONS_DIR_NAME SESSION_FILE_SUFFIX SESSION_PARTIAL_SUFFIX SessionWriter delete_session ensure_sessions_dir list_persisted_sessions load_session prune_sessions register_chunk_migration register_header_migration session_file session_partial_file sessions_dir
    """,
    "rath.llm": """
        BudgetExceededError ChatClient ChatClientFactory Provider RathAnthropicChatClient RathLLMAssistantMessage RathLLMChatChoice RathLLMChatRequest RathLLMChatResponse RathLLMFinishReason RathLLMFunctionTool RathLLMMessage RathLLMRole RathLLMStreamDelta RathLLMTokenUsage RathLLMToolCallFunction RathLLMToolCallPart RathOpenAIChatClient StreamingChatClient add_usage build_anthropic_kwargs build_anthropic_stream_kwargs chat_client_for normalize_anthropic_response normalize_chat_completion register_chat_client registered_kinds to_create_kwargs
    """,
    "rath.llm.tool_args": """
        parse_tool_arguments
    """,
    "rath.backend": """
        Backend BackendError BackendNotFound BackendSandbox BackendSandboxClosed BackendSandboxSpec BackendTool BackendToolCodeRun BackendToolCommandRun BackendToolFilesExists BackendToolFilesList BackendToolFilesRead BackendToolFilesWrite Capabilities CodeResult CommandResult Event FileContent FileEntries FileEntry FileWriteResult Future IsolationLevel Stream ToolExecutionFailure ToolResult UnsupportedBackendTool current get get_class is_available list_names preferred register set_default
    """,
    "rath.flow": """
        Agent AgentParam Compressor Provider Workflow
    """,
    "rath.flow.tool": """
        FlowToolCall FlowToolCodeRun FlowToolCommandRun FlowToolFilesExists FlowToolFilesList FlowToolFilesRead FlowToolFilesWrite ToolNameConflictError flow_tool_code_run flow_tool_command_run flow_tool_files_exists flow_tool_files_list flow_tool_files_read flow_tool_files_write global_system_tools merge_tools_for_loop tools_dict_to_schemas
    """,
    "rath.utils.decoding": """
        decode_subprocess_output
    """,
}

DATACLASSES = {
    ("rath.session", "ChunkRow"): (True, "kind payload"),
    ("rath.session", "ChunkTable"): (True, "rows"),
    ("rath.session", "LineageJournal"): (False, "visit_order"),
    ("rath.session", "PersistedSession"): (True, "header chunk_table cumulative_usage closed path trailer_raw"),
    ("rath.session", "PersistedSessionHeader"): (
        True,
        "schema_version id created_at parent_session_ids lineage_operator lineage_kind lineage_extras sandbox_backend sandbox_spec sandbox_handle_id",
    ),
    ("rath.session", "PersistedSessionMeta"): (True, "id path created_at lineage_operator lineage_kind chunk_count closed"),
    ("rath.session", "SessionLineage"): (True, "producer_user_session_id producer_system_session_id operator"),
    ("rath.session", "SessionRegistry"): (False, ""),
    ("rath.session.graph", "FrozenLineageView"): (
        True,
        "session_id parent_session_ids lineage_operator lineage_kind_str lineage_extras",
    ),
    ("rath.llm", "Provider"): (
        True,
        "base_url api_key model temperature top_p max_completion_tokens max_tokens stop n seed frequency_penalty presence_penalty tool_choice parallel_tool_calls response_format logit_bias logprobs top_logprobs reasoning_effort verbosity metadata user store service_tier extra_create_args retry_max_attempts retry_base_seconds budget_total_tokens on_budget_exceeded provider_kind",
    ),
    ("rath.llm", "RathLLMAssistantMessage"): (
        True,
        "role content refusal reasoning_content tool_calls function_call annotations",
    ),
    ("rath.llm", "RathLLMChatChoice"): (True, "index finish_reason message logprobs"),
    ("rath.llm", "RathLLMChatRequest"): (
        True,
        "messages model tools tool_choice parallel_tool_calls response_format temperature top_p max_completion_tokens max_tokens stop n seed frequency_penalty presence_penalty logit_bias logprobs top_logprobs reasoning_effort verbosity metadata user store service_tier extra_create_args",
    ),
    ("rath.llm", "RathLLMChatResponse"): (
        True,
        "id choices created model object_type service_tier system_fingerprint usage raw",
    ),
    ("rath.llm", "RathLLMFunctionTool"): (True, "name parameters description strict"),
    ("rath.llm", "RathLLMMessage"): (True, "role content name tool_call_id tool_calls"),
    ("rath.llm", "RathLLMStreamDelta"): (
        True,
        "content_delta tool_call_index tool_call_id tool_call_name_delta tool_call_args_delta finish_reason usage",
    ),
    ("rath.llm", "RathLLMTokenUsage"): (
        True,
        "prompt_tokens completion_tokens total_tokens completion_tokens_details prompt_tokens_details",
    ),
    ("rath.llm", "RathLLMToolCallFunction"): (True, "name arguments arguments_parsed arguments_parse_error"),
    ("rath.llm", "RathLLMToolCallPart"): (True, "id type function"),
    ("rath.backend", "BackendSandbox"): (False, "backend handle spec closed"),
    ("rath.backend", "BackendSandboxSpec"): (False, "image entrypoint env timeout working_dir"),
    ("rath.backend", "BackendToolCodeRun"): (True, "code language timeout"),
    ("rath.backend", "BackendToolCommandRun"): (True, "cmd env cwd stdin timeout"),
    ("rath.backend", "BackendToolFilesExists"): (True, "path"),
    ("rath.backend", "BackendToolFilesList"): (True, "path"),
    ("rath.backend", "BackendToolFilesRead"): (True, "path encoding"),
    ("rath.backend", "BackendToolFilesWrite"): (True, "path data mode"),
    ("rath.backend", "Capabilities"): (
        True,
        "isolation supports_command supports_filesystem supports_code_interpreter cold_start_ms_p50 max_sandboxes",
    ),
    ("rath.backend", "CodeResult"): (True, "text stdout stderr error"),
    ("rath.backend", "CommandResult"): (True, "exit_code stdout stderr elapsed_ms"),
    ("rath.backend", "FileContent"): (True, "data"),
    ("rath.backend", "FileEntries"): (True, "entries"),
    ("rath.backend", "FileEntry"): (True, "name path is_dir"),
    ("rath.backend", "FileWriteResult"): (True, "bytes_written"),
    ("rath.backend", "ToolExecutionFailure"): (True, "kind message detail"),
    ("rath.flow", "AgentParam"): (False, "agent_session provider"),
}

ROOT = pathlib.Path(rath.__file__).parent


@pytest.mark.parametrize(("module", "name"), [(m, n) for m, names in NAMES.items() for n in names.split()])
def test_every_documented_name_is_there(module, name):
    assert getattr(importlib.import_module(module), name) is not None


@pytest.mark.parametrize(("module", "name"), DATACLASSES)
def test_documented_dataclasses_keep_their_fields_in_order(module, name):
    frozen, fields = DATACLASSES[module, name]
    cls = getattr(importlib.import_module(module), name)
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen is frozen
    assert [f.name for f in dataclasses.fields(cls)][: len(fields.split())] == fields.split()


@pytest.mark.parametrize("package", ["rath", *NAMES])
def test_everything_a_package_lists_can_be_loaded(package):
    module = importlib.import_module(package)
    for name in getattr(module, "__all__", ()):
        assert getattr(module, name) is not None, name


def test_run_session_loop_has_the_documented_parameters():
    from rath.session import run_session_compress, run_session_loop

    parameters = inspect.signature(run_session_loop).parameters
    assert list(parameters)[:2] == ["user_session", "agent_session"]
    expected = {
        "agent_provider",
        "tools",
        "executor",
        "max_tool_rounds",
        "on_event",
        "persist",
        "persist_path",
        "sandbox_handle_id",
        "lazy",
        "middleware",
        "timeout_s",
    }
    assert expected <= set(parameters)
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in expected)
    assert parameters["max_tool_rounds"].default == 64
    assert parameters["lazy"].default is True
    assert {"compress_instruction", "register_sessions"} <= set(inspect.signature(run_session_compress).parameters)


def sources():
    return [p for p in ROOT.rglob("*.py") if "data" not in p.relative_to(ROOT).parts]


def test_no_function_imports_a_rath_module():
    found = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for inner in ast.walk(node):
                    names = []
                    if isinstance(inner, ast.ImportFrom):
                        names = [inner.module or ""]
                    elif isinstance(inner, ast.Import):
                        names = [alias.name for alias in inner.names]
                    found += [f"{path}:{inner.lineno}" for name in names if name.split(".")[0] == "rath"]
    assert found == []


def test_nothing_in_the_library_prints_or_keeps_marks_of_unfinished_work():
    marks = ("TO" + "DO", "FIX" + "ME", "NotImplemented" + "Error")
    assert [str(p) for p in sources() for mark in marks if mark in p.read_text()] == []


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize(
    "imported",
    [
        "rath",
        "rath.session",
        "rath.llm",
        "rath.backend",
        "rath.flow",
        "rath.flow.tool",
        "rath.session.loop",
        "rath.runtime.engine",
    ],
)
def test_importing_loads_no_sdk_and_no_networkx(imported):
    loaded = run(f"import sys, {imported}; print(*sys.modules)")
    heavy = {"openai", "anthropic", "docker", "networkx", "pydantic", "typer", "rich"}
    assert heavy & {name.split(".")[0] for name in loaded} == set()


def test_import_rath_takes_at_most_150_ms():
    code = "import time; t = time.perf_counter(); import rath; print((time.perf_counter() - t) * 1000)"
    assert min(float(run(code)[0]) for _ in range(3)) <= 150

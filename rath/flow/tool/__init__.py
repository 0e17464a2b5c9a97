"""Tools: what a model may call, the built-in ones, and how to make your own."""

from rath.core.lazy import lazy_exports

_here = __name__
__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "FlowToolCall": f"{_here}.base",
        "FlowToolCodeRun": f"{_here}.builtin",
        "FlowToolCommandRun": f"{_here}.builtin",
        "FlowToolFilesEdit": f"{_here}.edit",
        "FlowToolFilesExists": f"{_here}.builtin",
        "FlowToolFilesList": f"{_here}.builtin",
        "FlowToolFilesRead": f"{_here}.builtin",
        "FlowToolFilesWrite": f"{_here}.builtin",
        "FlowToolResultRead": f"{_here}.result",
        "SandboxTool": f"{_here}.base",
        "ToolNameConflictError": "rath.errors",
        "coding_tools": f"{_here}.edit",
        "flow_tool_code_run": f"{_here}.builtin",
        "flow_tool_command_run": f"{_here}.builtin",
        "flow_tool_files_exists": f"{_here}.builtin",
        "flow_tool_files_list": f"{_here}.builtin",
        "flow_tool_files_read": f"{_here}.builtin",
        "flow_tool_files_write": f"{_here}.builtin",
        "flow_tool_result_read": f"{_here}.result",
        "global_system_tools": f"{_here}.builtin",
        "merge_tools_for_loop": f"{_here}.table",
        "tool": f"{_here}.function",
        "tools_dict_to_schemas": f"{_here}.table",
    },
)

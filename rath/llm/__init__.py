"""Models: what goes to them and comes back, how they are configured, and the clients that reach them."""

from rath.core.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "BudgetExceededError": "rath.errors",
        "ChatClient": "rath.llm.registry",
        "ChatClientFactory": "rath.llm.registry",
        "Provider": "rath.llm.provider",
        "RathAnthropicChatClient": "rath.llm.anthropic",
        "RathLLMAssistantMessage": "rath.llm.types",
        "RathLLMChatChoice": "rath.llm.types",
        "RathLLMChatRequest": "rath.llm.types",
        "RathLLMChatResponse": "rath.llm.types",
        "RathLLMFinishReason": "rath.llm.types",
        "RathLLMFunctionTool": "rath.llm.types",
        "RathLLMMessage": "rath.llm.types",
        "RathLLMRole": "rath.llm.types",
        "RathLLMStreamDelta": "rath.llm.types",
        "RathLLMTokenUsage": "rath.llm.types",
        "RathLLMToolCallFunction": "rath.llm.types",
        "RathLLMToolCallPart": "rath.llm.types",
        "RathOpenAIChatClient": "rath.llm.openai",
        "ScriptedClient": "rath.llm.scripted",
        "StreamingChatClient": "rath.llm.registry",
        "add_usage": "rath.llm.types",
        "build_anthropic_kwargs": "rath.llm.anthropic",
        "build_anthropic_stream_kwargs": "rath.llm.anthropic",
        "chat_client_for": "rath.llm.registry",
        "normalize_anthropic_response": "rath.llm.anthropic",
        "normalize_chat_completion": "rath.llm.openai",
        "register_chat_client": "rath.llm.registry",
        "registered_kinds": "rath.llm.registry",
        "to_create_kwargs": "rath.llm.openai",
    },
)

"""Role names of data sets: `role_of`."""

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
NAMES = {
    **dict.fromkeys(("human", "prompter", "question"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model", "ai", "assistant_message", "chatbot"), "assistant"),
    **dict.fromkeys(("observation", "function", "function_response", "function_result", "ipython"), "tool"),
    **dict.fromkeys(("tool_response", "tool_result", "tool_results", "tool_output", "function_output"), "tool"),
    "system_prompt": "system",
}
CALLS = frozenset({"function_call", "tool_call", "tool_calls"})  # roles whose content is a call, written as JSON


def role_of(name: str) -> str:
    """OpenAI's name for a role (`human` -> `user`); an unknown name is returned unchanged."""
    if name in ROLES:
        return name
    plain = name.strip().lower()
    return plain if plain in ROLES or plain in CALLS else NAMES.get(plain, name)

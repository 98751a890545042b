"""Messages and tools for probing a chat template; every text occurs only once."""

from typing import Any

from sft_hydra.records import Message

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "fnq",
            "description": "Dq1",
            "parameters": {
                "type": "object",
                "properties": {"kq": {"type": "string", "description": "Dq2"}},
                "required": ["kq"],
            },
        },
    }
]


def user(number: int) -> Message:
    """A user message with the content `Quser<number>`."""
    return {"role": "user", "content": f"Quser{number}"}


def assistant(number: int, **more: Any) -> Message:
    """An assistant message with the content `Qasst<number>` and the fields `more`."""
    return {"role": "assistant", "content": f"Qasst{number}", **more}


def caller(content: str) -> Message:
    """An assistant message with this content and one tool call."""
    function = {"name": "fnq", "arguments": {"kq": "vq7"}}
    call = {"id": "call00001", "type": "function", "function": function}
    return {"role": "assistant", "content": content, "tool_calls": [call]}


RESULT: Message = {"role": "tool", "content": "Qtool1", "tool_call_id": "call00001", "name": "fnq"}
SYSTEM: Message = {"role": "system", "content": "Qsyst1"}

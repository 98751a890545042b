"""Conversations whose turns hold a question and its answer in one object, as chat messages: `messages_of_pairs`.

Sources: MOSS and Firefly sets (`human`, `assistant`), xtuner (`system`, `input`, `output`, `output_with_loss`).
"""

from typing import Any

from sft_hydra.errors import RowError
from sft_hydra.records import Message

PAIRS = (("human", "assistant"), ("input", "output"))
SYSTEM, FLAG = "system", "output_with_loss"  # may stand beside a pair


def messages_of_pairs(turns: Any) -> Any:
    """Messages of turns that are pairs; anything else unchanged. RowError for a turn that lacks a part or has other keys."""
    pair = next((pair for pair in PAIRS if _is_pair(turns, pair)), None)
    if pair is None:
        return turns
    messages: list[Message] = []
    for index, turn in enumerate(turns):
        known = isinstance(turn, dict) and turn.keys() <= {*pair, SYSTEM, FLAG}
        if not known or not all(isinstance(turn.get(key), str) for key in pair) or (index and turn.get(SYSTEM)):
            raise RowError(
                "format",
                f"turn {index + 1} must have the texts {pair[0]} and {pair[1]}, and beside them only {FLAG} and, in the first "
                f"turn, {SYSTEM}",
            )
        if turn.get(SYSTEM):
            messages.append({"role": "system", "content": turn[SYSTEM]})
        flag = {"loss": turn[FLAG]} if turn.get(FLAG) is not None else {}
        messages += [
            {"role": "user", "content": turn[pair[0]]},
            {"role": "assistant", "content": turn[pair[1]], **flag},
        ]
    return messages


def _is_pair(turns: Any, pair: tuple[str, str]) -> bool:
    return (
        isinstance(turns, list) and bool(turns) and isinstance(turns[0], dict) and all(key in turns[0] for key in pair)
    )

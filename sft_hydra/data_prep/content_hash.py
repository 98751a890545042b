"""The content hash of a conversation: `content_hash`, and the JSON that it is computed from: `serialize`.

Invariant: the hash depends on the messages, tools and template variables of a row only, not on tokenizer or template. It
assigns splits and finds repeated rows, so a change of it changes every packed set.
"""

import hashlib
import json
from typing import Any

import orjson

from sft_hydra.errors import RowError
from sft_hydra.records import Conversation


def serialize(conversation: Conversation) -> bytes | None:
    """All texts of a conversation as JSON; None if orjson cannot write them."""
    try:
        return orjson.dumps(_content(conversation), option=orjson.OPT_SORT_KEYS)
    except TypeError:  # an integer of more than 64 bits, a lone surrogate, or NaN
        return None


def content_hash(conversation: Conversation, serialized: bytes | None) -> int:
    """64 bits of a conversation. `serialized`: what `serialize` returns for it. RowError with reason `unicode` or `number` if it
    is not valid JSON."""
    if serialized is None:
        serialized = _serialize_slowly(conversation)
    return int.from_bytes(hashlib.blake2b(serialized, digest_size=8).digest(), "little")


def _content(conversation: Conversation) -> list[Any]:
    if conversation.template_kwargs:
        return [conversation.messages, conversation.tools, conversation.template_kwargs]
    return [conversation.messages, conversation.tools]


def _serialize_slowly(conversation: Conversation) -> bytes:
    try:
        return json.dumps(_content(conversation), sort_keys=True, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise RowError("unicode", "contains a lone surrogate, which is not valid Unicode") from None
    except ValueError:
        raise RowError("number", "contains NaN or an infinite number, which is not valid JSON") from None

"""A transformers model as a chat on one process."""

from typing import Any

from sft_hydra.chat.tokenizer import ChatTokenizer
from sft_hydra.evaluation.chat import Chat
from sft_hydra.evaluation.language_model import BatchLimits, TransformersModel
from sft_hydra.schema.config import SftConfig


def chat_with(hf_model: Any, tokenizer: ChatTokenizer, cfg: SftConfig) -> Chat:
    limits = BatchLimits(cfg.eval.batch_size, cfg.eval.batch_tokens)
    return Chat(TransformersModel(hf_model, tokenizer.backend.decode, limits), tokenizer, cfg)

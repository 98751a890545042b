"""Chat generation: render messages as in serving, encode, generate, decode.

Invariant: control-token text in user and tool messages is encoded as plain text, as in training.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from sft_hydra.chat.render import Renderer
from sft_hydra.chat.tokenizer import ChatTokenizer
from sft_hydra.data_prep.control_tokens import ControlTokenEscaper
from sft_hydra.evaluation.language_model import Decoding, LanguageModel
from sft_hydra.evaluation.parse import parse_answer
from sft_hydra.evaluation.prompts import Execute
from sft_hydra.records import Conversation, Message
from sft_hydra.schema.config import SftConfig

MAX_ROUNDS = 4  # consecutive answers with tool calls before a conversation is ended


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation to be continued by the assistant, with its tools and thinking mode."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    thinking: bool = False


@dataclass(frozen=True, slots=True)
class Sampling:
    """Generation settings; `temperature` 0 is greedy."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0


class Chat:
    """One model with its tokenizer and template."""

    def __init__(self, model: LanguageModel, tokenizer: ChatTokenizer, cfg: SftConfig) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.cfg = cfg
        self.renderer = Renderer.of(tokenizer, cfg.data)
        self.guard = ControlTokenEscaper(tokenizer)

    def answer(
        self, prompts: list[Prompt], sampling: Sampling, after_batch: Callable[[int], None] = lambda done: None
    ) -> list[str]:
        """Text of the next assistant turn for each prompt, including a <think> that the generation prompt opens.

        `after_batch` is called with the number of prompts answered in each batch.
        """
        texts = [self._text(prompt) for prompt in prompts]
        decoding = Decoding(
            max_new_tokens=sampling.max_new_tokens,
            stop_ids=self.tokenizer.end_of_turn_ids,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=self.cfg.seed,
        )
        ids = [self._encode(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
        new_ids = self.model.generate(ids, range(len(ids)), decoding, after_batch)
        opened = ["<think>" if text.rstrip().endswith("<think>") else "" for text in texts]
        return [start + self._until_end(self.tokenizer.decode(ids)) for start, ids in zip(opened, new_ids, strict=True)]

    def _until_end(self, text: str) -> str:
        """An answer up to an end of turn that is not one token, at which generation does not stop."""
        for end in self.tokenizer.end_of_turn_strings:
            text = text.partition(end)[0]
        return text

    def converse(self, prompts: list[Prompt], execute: Execute | None, sampling: Sampling) -> list[list[Message]]:
        """Messages that follow each prompt: the answer, or tool calls, their results (if `execute` is set) and the answer."""
        conversations = [list(prompt.messages) for prompt in prompts]
        waiting = list(range(len(prompts)))
        for _ in range(MAX_ROUNDS):
            if not waiting:
                break
            texts = self.answer([replace(prompts[i], messages=conversations[i]) for i in waiting], sampling)
            for i, text in zip(waiting, texts, strict=True):
                message = parse_answer(text)
                results = [tool_result(call, execute) for call in message.get("tool_calls", [])] if execute else []
                conversations[i] += [message, *results]
            waiting = [i for i in waiting if conversations[i][-1]["role"] == "tool"]
        return [messages[len(prompt.messages) :] for messages, prompt in zip(conversations, prompts, strict=True)]

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Token ids of the rendered prompt, with the generation prompt."""
        return self._encode(prompt, self._text(prompt))

    def _text(self, prompt: Prompt) -> str:
        return self.renderer.prompt_text(prompt.messages, prompt.tools, prompt.thinking)

    def _encode(self, prompt: Prompt, text: str) -> list[int]:
        conversation = Conversation(prompt.messages, prompt.tools, "prompt", "prompt")
        if self.cfg.data.allow_special_in_content or not self.guard.is_needed(conversation):
            return self.tokenizer.encode(text)
        marked = self.guard.mark(conversation)
        return self.guard.encode(self.renderer.prompt_text(marked.messages, marked.tools, prompt.thinking))


def tool_result(call: dict[str, Any], execute: Execute) -> Message:
    """The tool message with the result of one call."""
    function = call["function"]
    content = execute(function["name"], function["arguments"])
    return {"role": "tool", "tool_call_id": call["id"], "name": function["name"], "content": content}

"""Our model as the lm-evaluation-harness asks it: log likelihoods and batched cached generation of a live model.

Imports lm_eval; load it through harness.py, which says what to install where that is missing. Invariant: the tuned model's
own template renders every chat, and what a prompt loses because it is too long is counted.
"""

from collections.abc import Callable
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from sft_hydra.errors import ConfigError, DataError
from sft_hydra.evaluation.chat import Chat
from sft_hydra.evaluation.likelihood import log_likelihoods
from sft_hydra.evaluation.sample import StopTexts, generate

KNOWN_SAMPLING = {"until", "max_gen_toks", "do_sample", "temperature", "top_p"}
MAX_NEW_TOKENS = 256  # where neither the config nor the task says
NO_LIMIT = 1 << 30  # tokens, of a model whose config names none
END_OF_THOUGHT = "</think>"


class HarnessModel(TemplateLM):  # type: ignore[misc]
    """`chat`: the model with its tokenizer and template. `thinking`: generate in the template's thinking mode."""

    def __init__(self, chat: Chat, *, thinking: bool, on_progress: Callable[[int, int, str], None]) -> None:
        super().__init__()
        self.chat = chat
        self.thinking = thinking
        self.on_progress = on_progress
        self.shortened = 0
        """Prompts that lost their beginning, because the model takes no more."""
        limit = getattr(chat.hf_model.config.get_text_config(), "max_position_embeddings", None)
        self.max_length = NO_LIMIT if limit is None else int(limit)

    @property
    def stop_ids(self) -> list[int]:
        """The tokenizer's end of text, and what closes a turn."""
        ids = [self.chat.tokenizer.eos_id, *self.chat.tokenizer.end_of_turn_ids]
        return list(dict.fromkeys(id_ for id_ in ids if id_ is not None))

    @property
    def eot_token_id(self) -> int:
        return self.stop_ids[0] if self.stop_ids else 0

    @property
    def prefix_token_id(self) -> int:
        bos = self.chat.tokenizer.bos_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return self.chat.tokenizer.fingerprint

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text; a text that is no rendered chat starts as the tokenizer starts texts."""
        tokenizer = self.chat.tokenizer
        ids = tokenizer.encode(string)
        prefix = tokenizer.bos_prefix
        is_chat = self.chat.cfg.eval.chat_template
        return ids if is_chat or add_special_tokens is False or ids[: len(prefix)] == prefix else prefix + ids

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt as it is served; a last message that is the start of an answer is written after it."""
        messages = [dict(message) for message in chat_history]
        start = "" if add_generation_prompt else messages.pop()["content"]
        return self.chat.renderer.prompt_text(messages, None, self.thinking) + start

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.chat.tokenizer.template

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return list(super().loglikelihood(requests, disable_tqdm=True))

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = []
        for _text, context, continuation in requests:
            room = self.max_length + 1 - len(continuation)
            if room < 1:
                raise DataError(
                    f"eval.tasks: a choice of {len(continuation)} tokens; the model takes {self.max_length}"
                )
            self.shortened += len(context) > room
            pairs.append((context[-room:], continuation))
        return log_likelihoods(
            self.chat.hf_model, pairs, self.chat.cfg.eval.batch_size, self._counter(len(pairs), "likelihoods")
        )

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        windows, owners = [], []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1):
                windows.append((("", ""), *make_disjoint_window(window)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for number, (value, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[number] += value
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        texts = [""] * len(requests)
        count = self._counter(len(requests), "answers")
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(number)
        for numbers in groups.values():
            wanted = requests[numbers[0]].args[1]
            found = self._generate([requests[number].args[0] for number in numbers], wanted, count)
            for number, text in zip(numbers, found, strict=True):
                texts[number] = text
        return texts

    def _generate(self, prompts: list[str], wanted: dict[str, Any], count: Callable[[int], None]) -> list[str]:
        """Answers to prompts that share their generation settings."""
        tokenizer, asked = self.chat.tokenizer, self.chat.cfg.eval
        settings = normalize_gen_kwargs(wanted, MAX_NEW_TOKENS)
        if unknown := sorted(settings.keys() - KNOWN_SAMPLING):
            raise ConfigError(
                f"eval.tasks: a task generates with {', '.join(f'{key}={settings[key]}' for key in unknown)}, which is not "
                f"supported here; there are: {', '.join(sorted(KNOWN_SAMPLING))}"
            )
        end_of_text = tokenizer.decode(self.stop_ids[:1]) if self.stop_ids else None
        until = handle_stop_sequences(settings["until"], eos=end_of_text)
        max_new_tokens = asked.max_new_tokens or settings["max_gen_toks"]
        room = self.max_length - max_new_tokens
        if room < 1:
            raise ConfigError(
                f"eval.max_new_tokens: {max_new_tokens} new tokens leave no room for a prompt in a model that takes "
                f"{self.max_length}"
            )
        ids = [self.tok_encode(prompt) for prompt in prompts]
        self.shortened += sum(len(prompt) > room for prompt in ids)
        new_ids = generate(
            self.chat.hf_model,
            [prompt[-room:] for prompt in ids],
            max_new_tokens=max_new_tokens,
            stop_ids=self.stop_ids,
            temperature=settings.get("temperature", 0.0) if settings.get("do_sample") else 0.0,
            top_p=settings.get("top_p", 1.0),
            batch_size=asked.batch_size,
            seed=self.chat.cfg.seed,
            # Reasoning may say anything; what ends an answer is looked for after it.
            stop_texts=None if self.thinking else StopTexts(tuple(until), tokenizer.backend.decode),
            after_batch=count,
        )
        end = END_OF_THOUGHT if self.thinking else None
        return [postprocess_generated_text(tokenizer.backend.decode(answer), until, end) for answer in new_ids]

    def _counter(self, total: int, what: str) -> Callable[[int], None]:
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            self.on_progress(done, total, what)

        return count

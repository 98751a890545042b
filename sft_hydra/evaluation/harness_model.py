"""The model interface of the lm-evaluation-harness: log likelihoods and batched generation with a KV cache.

Imports lm_eval; load it through harness.py, which checks that it is installed. Invariant: chats are rendered with the tuned
model's chat template, and prompts that are truncated are counted.
"""

from collections.abc import Callable
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from sft_hydra.errors import ConfigError, DataError
from sft_hydra.evaluation.chat import Chat
from sft_hydra.evaluation.language_model import Decoding

KNOWN_SAMPLING = {"until", "max_gen_toks", "do_sample", "temperature", "top_p"}
MAX_NEW_TOKENS = 256  # default if neither the config nor the task sets it
NO_LIMIT = 1 << 30  # tokens; for a model without max_position_embeddings
END_OF_THOUGHT = "</think>"


class HarnessModel(TemplateLM):  # type: ignore[misc]
    """`chat`: the model with its tokenizer and template. `thinking`: generate in the template's thinking mode."""

    def __init__(self, chat: Chat, *, thinking: bool, on_progress: Callable[[int, int, str], None]) -> None:
        super().__init__()
        self.chat = chat
        self.thinking = thinking
        self.on_progress = on_progress
        self.shortened = 0
        """Number of prompts truncated on the left to the model's context length."""
        self.max_length = chat.model.max_length or NO_LIMIT

    @property
    def stop_ids(self) -> list[int]:
        """Ids of the end-of-text and end-of-turn tokens."""
        ids = [self.chat.tokenizer.eos_id, *self.chat.tokenizer.end_of_turn_ids]
        return list(dict.fromkeys(id_ for id_ in ids if id_ is not None))

    @property
    def eot_token_id(self) -> int:
        """End-of-text id, as the harness names it."""
        return self.stop_ids[0] if self.stop_ids else 0

    @property
    def prefix_token_id(self) -> int:
        """Id before the first token of a rolling log likelihood: BOS, else end of text."""
        bos = self.chat.tokenizer.bos_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """Fingerprint of the tokenizer, for the harness's caches."""
        return self.chat.tokenizer.fingerprint

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text; text that is not a rendered chat gets the tokenizer's BOS prefix."""
        tokenizer = self.chat.tokenizer
        ids = tokenizer.encode(string)
        prefix = tokenizer.bos_prefix
        is_chat = self.chat.cfg.eval.chat_template
        return ids if is_chat or add_special_tokens is False or ids[: len(prefix)] == prefix else prefix + ids

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The rendered prompt as in serving, followed by the last message if it is the start of an answer."""
        messages = [dict(message) for message in chat_history]
        start = "" if add_generation_prompt else messages.pop()["content"]
        return self.chat.renderer.prompt_text(messages, None, self.thinking) + start

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The tokenizer's chat template."""
        return self.chat.tokenizer.template

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """(log probability in nats, whether greedy decoding gives it) of each request's continuation."""
        return list(super().loglikelihood(requests, disable_tqdm=True))

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = []
        for _text, context, continuation in requests:
            room = self.max_length + 1 - len(continuation)
            if room < 1:
                raise DataError(
                    f"eval.tasks: a choice has {len(continuation)} tokens, more than the model's context length "
                    f"{self.max_length}; remove the task"
                )
            self.shortened += len(context) > room
            pairs.append((context[-room:], continuation))
        return self.chat.model.log_likelihoods(pairs, self._counter(len(pairs), "likelihoods"))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Log probability in nats of each request's full text, in windows of the context length."""
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
        """Generated text of each request, cut at its stop texts. ConfigError for unsupported generation settings."""
        texts = [""] * len(requests)
        count = self._counter(len(requests), "answers")
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(number)
        for numbers in groups.values():
            arguments = requests[numbers[0]].args[1]
            answers = self._generate([requests[number].args[0] for number in numbers], arguments, count)
            for number, text in zip(numbers, answers, strict=True):
                texts[number] = text
        return texts

    def _generate(self, prompts: list[str], arguments: dict[str, Any], count: Callable[[int], None]) -> list[str]:
        """Answers to prompts with the same generation settings."""
        tokenizer, eval_cfg = self.chat.tokenizer, self.chat.cfg.eval
        settings = normalize_gen_kwargs(arguments, MAX_NEW_TOKENS)
        if unknown := sorted(settings.keys() - KNOWN_SAMPLING):
            raise ConfigError(
                f"eval.tasks: a task's generation_kwargs {', '.join(f'{key}={settings[key]}' for key in unknown)} are not "
                f"supported; supported: {', '.join(sorted(KNOWN_SAMPLING))}"
            )
        end_of_text = tokenizer.decode(self.stop_ids[:1]) if self.stop_ids else None
        until = handle_stop_sequences(settings["until"], eos=end_of_text)
        max_new_tokens = eval_cfg.max_new_tokens or settings["max_gen_toks"]
        room = self.max_length - max_new_tokens
        if room < 1:
            raise ConfigError(
                f"eval.max_new_tokens: {max_new_tokens} new tokens fill the model's context of {self.max_length} "
                "tokens, without room for a prompt; lower eval.max_new_tokens"
            )
        ids = [self.tok_encode(prompt) for prompt in prompts]
        self.shortened += sum(len(prompt) > room for prompt in ids)
        decoding = Decoding(
            max_new_tokens=max_new_tokens,
            stop_ids=self.stop_ids,
            temperature=settings.get("temperature", 0.0) if settings.get("do_sample") else 0.0,
            top_p=settings.get("top_p", 1.0),
            seed=self.chat.cfg.seed,
            # Stop texts apply to the answer only, not to the reasoning before it.
            stop_texts=() if self.thinking else tuple(until),
        )
        cut = [prompt[-room:] for prompt in ids]
        new_ids = self.chat.model.generate(cut, range(len(cut)), decoding, count)
        end = END_OF_THOUGHT if self.thinking else None
        return [postprocess_generated_text(tokenizer.backend.decode(answer), until, end) for answer in new_ids]

    def _counter(self, total: int, what: str) -> Callable[[int], None]:
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            self.on_progress(done, total, what)

        return count

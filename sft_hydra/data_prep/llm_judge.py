"""A language model as a filter: one request per conversation to an OpenAI-compatible endpoint; verdicts are cached.

Invariant: a verdict is appended to the cache before it is used, so that it is not requested again after a kill or by another
run; an endpoint that does not respond stops the preparation, so that rows are not dropped without a verdict.
"""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

from sft_hydra.errors import DataError, RowError
from sft_hydra.files import exists, read_text, unreadable
from sft_hydra.records import Conversation
from sft_hydra.schema.data import JudgeConfig

PAUSE = 0.5  # seconds before the first retry; doubled before each further one
ANSWER_TOKENS = 16


def _read_answers(cache: Path) -> dict[str, str]:
    """Key -> answer. An incomplete last line (after a kill) is ignored; DataError for any other invalid line."""
    fix = "repair that line, or delete the file to request the verdicts again"
    answers = {}
    for number, line in enumerate(read_text(cache, error=DataError, fix=fix).split("\n")[:-1], start=1):
        try:
            entry = json.loads(line)
            answers[str(entry["key"])] = str(entry["answer"])
        except (ValueError, LookupError, TypeError, RecursionError) as problem:
            raise unreadable(cache, f"line {number}: {problem!r}", DataError, fix) from None
    return answers


class LLMJudge:
    """Requests verdicts on conversations from `config.model`. `cache`: JSONL file of verdicts that several processes may append
    to. DataError if the cache is invalid."""

    def __init__(self, config: JudgeConfig, cache: Path) -> None:
        self.config = config
        self.cache = cache
        self.answers: dict[str, str] = {}
        if exists(cache):
            self.answers = _read_answers(cache)

    def ask(self, conversations: Iterable[Conversation]) -> None:
        """Request the verdicts on these conversations, `config.parallel` at a time. DataError if the endpoint does not respond."""
        prompts = {self._key(prompt): prompt for prompt in map(self._prompt, conversations)}
        new = {key: prompt for key, prompt in prompts.items() if key not in self.answers}
        if not new:
            return
        with ThreadPoolExecutor(self.config.parallel) as pool:
            futures = [pool.submit(self._learn, key, prompt) for key, prompt in new.items()]
            try:
                for future in futures:
                    future.result()
            except DataError:
                pool.shutdown(cancel_futures=True)  # requests in flight still finish and are cached
                raise

    def check(self, conversation: Conversation) -> None:
        """RowError with reason `judge` unless the verdict is yes; DataError if the endpoint does not respond."""
        prompt = self._prompt(conversation)
        key = self._key(prompt)
        if key not in self.answers:
            self._learn(key, prompt)
        answer = self.answers[key]
        if not answer.strip().lower().startswith("yes"):
            raise RowError("judge", f"{self.config.model} answered {answer[:80]!r}, not yes")

    def _key(self, prompt: str) -> str:
        return sha256(f"{self.config.model}\0{prompt}".encode("utf-8", "replace")).hexdigest()

    def _prompt(self, conversation: Conversation) -> str:
        lines = [f"tools: {json.dumps(conversation.tools, ensure_ascii=False)}"] if conversation.tools else []
        for message in conversation.messages:
            texts = [message.get("reasoning_content"), message.get("content")]
            texts += [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls", ())]
            lines.append(f"{message['role']}: " + "\n".join(text for text in texts if text))
        return f"{self.config.question}\nAnswer yes or no.\n\n" + "\n\n".join(lines)

    def _learn(self, key: str, prompt: str) -> None:
        answer = self._request(prompt)
        self.answers[key] = answer
        self.cache.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"key": key, "answer": answer}) + "\n"
        handle = os.open(self.cache, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            os.write(handle, line.encode())  # one write: lines of several processes do not mix
        finally:
            os.close(handle)

    def _request(self, prompt: str) -> str:
        problem: object = None
        for attempt in range(self.config.retries + 1):
            if attempt:
                time.sleep(PAUSE * 2 ** (attempt - 1))
            try:
                return self._post(prompt)
            except urllib.error.HTTPError as raised:
                raised.close()  # it holds the response
                problem = raised
                if raised.code < 500 and raised.code != 429:  # a retry would not help
                    break
            except (OSError, ValueError, LookupError, TypeError) as raised:  # no response, or an invalid one
                problem = raised
        raise DataError(
            f"data.filters.judge.url={self.config.url}: no verdict from {self.config.model} after {attempt + 1} attempts "
            f"({problem}). Check the endpoint and rerun the command; verdicts so far are kept in {self.cache}"
        )

    def _post(self, prompt: str) -> str:
        body: dict[str, Any] = {
            "model": self.config.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": ANSWER_TOKENS,
        }
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.config.api_key_env):
            headers["Authorization"] = f"Bearer {key}"
        url = f"{self.config.url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=self.config.timeout) as response:
            return str(json.load(response)["choices"][0]["message"]["content"])

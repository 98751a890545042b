"""Speed of generation against transformers' `generate`, on one device: the same prompts, batch size and number of new tokens.

    python benchmarks/generation.py MODEL_FOLDER PROMPTS.jsonl [--prompts 32] [--batch 8] [--new 64] [--repeat 3]

MODEL_FOLDER is a Hugging Face folder with a tokenizer, PROMPTS.jsonl has chats (`messages`); the first user message of each
is the prompt. Three ways take turns, the fastest of each counts: `generate` as it is called on batches in the order of the
file; our batches of transformers' model; our model with its own KV cache and Mamba states, as it answers over ranks. Greedy
answers of all three are compared. Writes benchmarks/results/generation.json.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig

from sft_hydra.checkpoint.load_hf_weights import load_weights
from sft_hydra.engine.sharded_model import ShardedModel
from sft_hydra.evaluation.language_model import BatchLimits, Decoding, LanguageModel, TransformersModel
from sft_hydra.models.build import as_transformers, build_model
from sft_hydra.models.decoder import FamilyModel

RESULTS = Path(__file__).parent / "results" / "generation.json"
NEVER = 3  # id of a token that models do not write: answers have their full length

Answers = list[list[int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("file", type=Path)
    for name, usual in (("prompts", 32), ("batch", 8), ("new", 64), ("repeat", 3), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    architecture = json.loads((arguments.model / "config.json").read_text())
    model = build_model(architecture, device, dtype)
    assert isinstance(model, FamilyModel)
    load_weights(model, str(arguments.model))
    theirs = as_transformers(model)
    prompts = read_prompts(arguments)
    limits = BatchLimits(arguments.batch, 1 << 17)
    ours: dict[str, LanguageModel] = {
        "our batches, transformers' model": TransformersModel(theirs, str, limits),
        "our model": ShardedModel(model, str, limits),
    }
    ways: dict[str, Callable[[], Answers]] = {
        "transformers' generate": lambda: by_transformers(theirs, prompts, arguments.batch, arguments.new)
    }
    ways |= {name: lambda one=one: by_us(one, prompts, arguments.new) for name, one in ours.items()}
    seconds, answers = measure(ways, arguments.repeat)
    report(arguments, device, seconds, answers)


def read_prompts(arguments: argparse.Namespace) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    rows = [json.loads(line) for line in arguments.file.read_text().splitlines()[: arguments.prompts]]
    texts = [next(message["content"] for message in row["messages"] if message["role"] == "user") for row in rows]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def by_transformers(model: Any, prompts: list[list[int]], size: int, new: int) -> Answers:
    answers: Answers = []
    config = GenerationConfig(max_new_tokens=new, eos_token_id=NEVER, pad_token_id=NEVER, use_cache=True)
    for first in range(0, len(prompts), size):
        batch = prompts[first : first + size]
        longest = max(map(len, batch))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in batch], device=model.device)
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch]).to(ids)
        answers += model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, longest:].tolist()
    return answers


def by_us(model: LanguageModel, prompts: list[list[int]], new: int) -> Answers:
    return model.generate(prompts, range(len(prompts)), Decoding(new, [NEVER]), lambda done: None)


def measure(ways: dict[str, Callable[[], Answers]], repeat: int) -> tuple[dict[str, float], dict[str, Answers]]:
    """The fastest processor seconds of each way (seconds by the clock on a GPU), and its answers."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    seconds, answers = dict.fromkeys(ways, float("inf")), {}
    for _ in range(repeat):
        for name, way in ways.items():
            started = clock()
            answers[name] = way()
            seconds[name] = min(seconds[name], clock() - started)
    return seconds, answers


def report(
    arguments: argparse.Namespace, device: torch.device, seconds: dict[str, float], answers: dict[str, Answers]
) -> None:
    theirs, tokens = "transformers' generate", arguments.prompts * arguments.new
    same = {name: sum(a == b for a, b in zip(found, answers[theirs], strict=True)) for name, found in answers.items()}
    result = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU",
        "threads": arguments.threads,
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "model": arguments.model.name,
        "prompts": arguments.prompts,
        "batch": arguments.batch,
        "new tokens": arguments.new,
        "fastest of": arguments.repeat,
        "new tokens per second": {name: round(tokens / value, 1) for name, value in seconds.items()},
        "times transformers' generate": {name: round(seconds[theirs] / value, 2) for name, value in seconds.items()},
        "equal answers": same,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

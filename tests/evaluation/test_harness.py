"""Our model asked by the lm-evaluation-harness answers as the harness's own Hugging Face backend does, item by item."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sft_hydra.config.schema import EvalConfig, SftConfig
from sft_hydra.config.schema_data import TokenizerConfig
from sft_hydra.data.tokenizer import ChatTokenizer, load_tokenizer
from sft_hydra.evaluation.chat import Chat
from sft_hydra.evaluation.harness import HarnessResult, run_harness
from sft_hydra.models.build import as_transformers, build_model
from sft_hydra.models.initial import init_weights

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*:RuntimeWarning")

ITEMS = {"mmlu": 57, "arc_challenge": 25, "gsm8k": 12, "humaneval": 6}  # a hundred
NEW_TOKENS = 12


def tiny(tokenizer: ChatTokenizer) -> Any:
    architecture = {
        "model_type": "qwen3", "vocab_size": tokenizer.vocab_size, "hidden_size": 16, "intermediate_size": 16,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
        "max_position_embeddings": 2048, "eos_token_id": tokenizer.end_of_turn_ids[0], "tie_word_embeddings": True,
    }  # fmt: skip
    model = build_model(architecture, "cpu", torch.float32)
    init_weights(model, seed=0, std=1.0)
    return as_transformers(model)


@pytest.fixture(scope="module")
def qwen(shared: Path) -> tuple[Any, ChatTokenizer]:
    path = str(shared / "assets/tokenizers/qwen3")
    tokenizer = load_tokenizer(SftConfig(tokenizer=TokenizerConfig(path=path)))
    return tiny(tokenizer), tokenizer


@pytest.fixture(scope="module")
def small() -> tuple[Any, ChatTokenizer]:
    """A model with the bundled tokenizer, which is fast."""
    tokenizer = load_tokenizer(SftConfig())
    return tiny(tokenizer), tokenizer


def asked(**wanted: Any) -> SftConfig:
    return SftConfig(eval=EvalConfig(batch_size=16, **wanted))


def run(model: tuple[Any, ChatTokenizer], cfg: SftConfig) -> HarnessResult:
    return run_harness(Chat(*model, cfg), cfg, lambda done, total, what: None, lambda text: None)


def their_samples(folder: Path, name: str, wanted: EvalConfig) -> list[dict[str, Any]]:
    """The same items, asked through the harness's own backend from a folder."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    from sft_hydra.evaluation.harness_tasks import load_suites

    (suite,) = load_suites(wanted)
    backend = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=16, enable_thinking=False)
    found = simple_evaluate(
        model=backend,
        tasks=suite.tasks,
        limit=ITEMS[name] // len(suite.tasks),
        num_fewshot=0,
        gen_kwargs={"max_gen_toks": NEW_TOKENS},
        apply_chat_template=True,
        fewshot_as_multiturn=True,
    )
    return [row for rows in found["samples"].values() for row in rows]


@pytest.mark.parametrize("name", ITEMS)
def test_answers_equal_those_of_the_hugging_face_backend(
    name: str, qwen: tuple[Any, ChatTokenizer], shared: Path, tmp_path: Path
) -> None:
    qwen[0].save_pretrained(tmp_path)
    qwen[1].save_files(tmp_path)
    cfg = asked(
        tasks=[name],
        data_dir=str(shared / "assets/eval"),
        max_items=ITEMS[name],
        num_fewshot=0,
        max_new_tokens=NEW_TOKENS,
        allow_code=True,
    )
    ours = run(qwen, cfg).answers[name]
    theirs = their_samples(tmp_path, name, cfg.eval)
    assert len(ours) == len(theirs)
    assert len({answer["question"] for answer in ours}) == ITEMS[name]
    for our, their in zip(ours, theirs, strict=True):
        assert our["question"] == their["arguments"][0][0]
        if "log_likelihoods" in our:
            values = [resps[0][0] for resps in their["resps"]]
            assert our["log_likelihoods"] == pytest.approx(values, abs=1e-4, rel=1e-6)
            assert our["answer"] == their["arguments"][values.index(max(values))][1]
        else:
            assert our["answer"] == their["resps"][0][0]
            assert our["answer"]

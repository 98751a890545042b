"""Our model asked by the lm-evaluation-harness answers as the harness's own Hugging Face backend does, item by item."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.answering import chat_with

from sft_hydra.chat.tokenizer import ChatTokenizer, load_tokenizer
from sft_hydra.errors import ConfigError, DataError
from sft_hydra.evaluation.harness import HarnessResult, run_harness
from sft_hydra.models.build import as_transformers, build_model
from sft_hydra.models.init_weights import init_weights
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.data import TokenizerConfig
from sft_hydra.schema.eval import EvalConfig

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
    return run_harness(chat_with(*model, cfg), cfg, lambda done, total, what: None, lambda text: None)


def their_samples(folder: Path, items: int, wanted: EvalConfig) -> list[dict[str, Any]]:
    """The same items, asked through the harness's own backend from a folder."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from sft_hydra.evaluation.harness_tasks import load_suites

    (suite,) = load_suites(wanted)
    backend = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=16, enable_thinking=False)
    found = simple_evaluate(
        model=backend,
        tasks=suite.tasks,
        task_manager=TaskManager(include_defaults=False),
        limit=items // len(suite.tasks),
        num_fewshot=0,
        gen_kwargs={"max_gen_toks": NEW_TOKENS},
        apply_chat_template=True,
        fewshot_as_multiturn=True,
    )
    return [row for rows in found["samples"].values() for row in rows]


def assert_equal_answers(model: tuple[Any, ChatTokenizer], name: str, items: int, folder: Path, data: Path) -> None:
    model[0].save_pretrained(folder)
    model[1].save_files(folder)
    cfg = asked(
        tasks=[name], data_dir=str(data), max_items=items, num_fewshot=0, max_new_tokens=NEW_TOKENS, allow_code=True
    )
    ours = run(model, cfg).answers[name]
    theirs = their_samples(folder, items, cfg.eval)
    assert len(ours) == len(theirs)
    assert len({answer["question"] for answer in ours}) == items
    for our, their in zip(ours, theirs, strict=True):
        assert our["question"] == their["arguments"][0][0]
        if "log_likelihoods" in our:
            values = [resps[0][0] for resps in their["resps"]]
            # sums over a hundred tokens in fp32: rounding differs between processors, 1.6e-6 without AVX-512
            assert our["log_likelihoods"] == pytest.approx(values, abs=1e-4, rel=5e-6)
            assert our["answer"] == their["arguments"][values.index(max(values))][1]
        else:
            assert our["answer"] == their["resps"][0][0]
            assert our["answer"]
        assert {metric: our[metric] for metric in their["metrics"]} == {m: their[m] for m in their["metrics"]}


@pytest.mark.parametrize(
    ("name", "items"),
    [pytest.param("arc_challenge", 12, marks=pytest.mark.slow), ("gsm8k", 8), ("humaneval", 3), ("spelling_bee", 8)],
)
def test_answers_equal_those_of_the_hugging_face_backend(
    name: str, items: int, small: tuple[Any, ChatTokenizer], shared: Path, tmp_path: Path
) -> None:
    assert_equal_answers(small, name, items, tmp_path, shared / "assets/eval")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "items"), ITEMS.items())
def test_a_hundred_answers_with_the_tokenizer_of_qwen3(
    name: str, items: int, qwen: tuple[Any, ChatTokenizer], shared: Path, tmp_path: Path
) -> None:
    assert_equal_answers(qwen, name, items, tmp_path, shared / "assets/eval")


CHOICE = """
task: fruit
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
WRITTEN = """
task: echo
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "Say {{{{choices[0]}}}}"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs: {{until: [], max_gen_toks: 4, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture
def own_tasks(tmp_path: Path) -> Path:
    """A folder with two task files of a user's."""
    rows = [{"question": f"Which is number {n}?", "choices": [f"{n}", "stone", "sea"], "answer": 0} for n in range(5)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, text in (("fruit", CHOICE), ("echo", WRITTEN)):
        (folder / f"{name}.yaml").write_text(text.format(file=tmp_path / "items.jsonl"))
    return folder


def test_task_files_of_a_user_alone_and_as_a_folder(small: tuple[Any, ChatTokenizer], own_tasks: Path) -> None:
    found = run(small, asked(tasks=[str(own_tasks / "fruit.yaml")], max_items=4))
    (fruit,) = found.scores
    assert (fruit.metric, fruit.items, fruit.of) == ("acc", 4, 5)
    assert fruit.baseline == pytest.approx(1 / 3)
    assert fruit.centred == pytest.approx((fruit.value - 1 / 3) / (2 / 3))
    assert fruit.value == sum(answer["acc"] for answer in found.answers["fruit"]) / 4
    together = run(small, asked(tasks=[str(own_tasks)]))
    assert {(score.task, score.metric) for score in together.scores} == {("fruit", "acc"), ("echo", "exact_match")}
    assert all(score.items == score.of for score in together.scores)


def test_bare_text_and_a_template_ask_differently(small: tuple[Any, ChatTokenizer], own_tasks: Path) -> None:
    task = str(own_tasks / "fruit.yaml")
    bare, chat = (run(small, asked(tasks=[task], chat_template=chosen)).answers["fruit"][0] for chosen in (False, True))
    assert bare["question"] == "Which is number 0?"
    assert bare["choices"][1] == " stone"
    assert chat["question"] == chat_with(*small, SftConfig()).renderer.prompt_text(
        [{"role": "user", "content": "Which is number 0?"}]
    )


def test_examples_before_a_question_are_turns_of_the_chat(small: tuple[Any, ChatTokenizer], shared: Path) -> None:
    wanted = {"tasks": ["mmlu_anatomy"], "data_dir": str(shared / "assets/eval"), "max_items": 1}
    (answer,) = run(small, asked(num_fewshot=2, **wanted)).answers["mmlu_anatomy"]
    assert answer["question"].count("<|im_start|>user") == 3
    with pytest.raises(DataError, match=r"train split of gsm8k.*gsm8k_train.*eval.num_fewshot=0"):
        run(small, asked(**wanted | {"tasks": ["gsm8k"]}))


def test_any_task_of_the_harness_that_is_yaml_alone_takes_local_rows(
    small: tuple[Any, ChatTokenizer], tmp_path: Path
) -> None:
    row = {"goal": "To make tea,", "sol1": "boil water.", "sol2": "boil stones.", "label": 0}
    (tmp_path / "piqa_val.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "label": 1}))
    found = run(small, asked(tasks=["piqa"], data_dir=str(tmp_path)))
    assert {(score.metric, score.value, score.baseline) for score in found.scores} >= {("acc", 0.5, 0.5)}
    assert found.scores[0].origin == "piqa_val.jsonl"
    assert found.answers["piqa"][0]["choices"] == ["boil water.", "boil stones."]


def test_prompts_that_are_too_long_are_counted(small: tuple[Any, ChatTokenizer], own_tasks: Path) -> None:
    task, longest = str(own_tasks / "fruit.yaml"), small[0].config.max_position_embeddings
    small[0].config.max_position_embeddings = 8
    try:
        assert run(small, asked(tasks=[task])).shortened == 15
    finally:
        small[0].config.max_position_embeddings = longest


def test_what_cannot_be_asked_is_refused(
    small: tuple[Any, ChatTokenizer], own_tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"gsm8kk is not a task .*did you mean gsm8k"):
        run(small, asked(tasks=["gsm8kk"]))
    with pytest.raises(ConfigError, match="mbpp executes code written by the model outside a sandbox"):
        run(small, asked(tasks=["mbpp"]))
    with pytest.raises(ConfigError, match="hellaswag uses Python functions"):
        run(small, asked(tasks=["hellaswag"], data_dir=str(own_tasks)))
    file = own_tasks / "echo.yaml"
    file.write_text(file.read_text().replace("do_sample: false", "num_beams: 4"))
    with pytest.raises(ConfigError, match="num_beams=4 are not supported"):
        run(small, asked(tasks=[str(file)]))
    file.write_text("task: [")
    with pytest.raises(DataError, match=r"echo.yaml cannot be loaded \(ParserError"):
        run(small, asked(tasks=[str(file)]))
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"pip install 'lm-eval"):
        run(small, asked(tasks=["gsm8k"]))


@pytest.mark.parametrize("thinking", [False, True])
def test_chats_are_rendered_as_transformers_renders_them(
    thinking: bool, small: tuple[Any, ChatTokenizer], shared: Path
) -> None:
    from transformers import AutoTokenizer

    from sft_hydra.evaluation.harness_model import HarnessModel

    folder = str(shared / "assets/tokenizers/qwen3")
    ours = load_tokenizer(SftConfig(tokenizer=TokenizerConfig(path=folder)))
    theirs = AutoTokenizer.from_pretrained(folder)
    model = HarnessModel(chat_with(small[0], ours, SftConfig()), thinking=thinking, on_progress=lambda *_: None)
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2 + 2?"},
    ]
    asked = {"tokenize": False, "enable_thinking": thinking}
    assert model.apply_chat_template(chat) == theirs.apply_chat_template(chat, add_generation_prompt=True, **asked)
    if not thinking:
        begun = [*chat, {"role": "assistant", "content": "It is"}]
        expected = theirs.apply_chat_template(begun, continue_final_message=True, **asked)
        assert model.apply_chat_template(begun, add_generation_prompt=False) == expected


def test_what_stands_before_the_end_of_a_thought_is_no_part_of_the_answer(
    small: tuple[Any, ChatTokenizer], own_tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sft_hydra.evaluation import harness_model

    wanted = asked(tasks=[str(own_tasks / "echo.yaml")], thinking=True, max_new_tokens=8)
    whole = run(small, wanted).answers["echo"][0]["answer"]
    assert harness_model.END_OF_THOUGHT not in whole
    middle = whole[len(whole) // 2 :][:2]
    monkeypatch.setattr(harness_model, "END_OF_THOUGHT", middle)  # a tiny model never says the real one
    assert run(small, wanted).answers["echo"][0]["answer"] == whole.split(middle)[-1].lstrip()

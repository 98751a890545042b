"""Rules about `eval`: each names the key, the value and the fix before anything is written."""

from collections.abc import Callable
from pathlib import Path

import pytest

Problems = Callable[..., list[str]]
EVALUATE = "runner=evaluate"

CASES = [
    (["eval.every=weekly"], "eval.every=weekly is neither a number of steps nor epoch"),
    (["train.early_stopping.metric=loss"], "loss is not measured at intervals of training: use val/loss"),
    (["eval.every=0", "train.early_stopping.metric=val/loss"], "set eval.every=100 or eval.every=epoch"),
    (["train.early_stopping.metric=eval/chatcore"], "is not measured while training; set eval.chatcore_every=100"),
    (["export.ema=true"], "there is no average of the weights without train.ema_decay"),
    (["eval.chatcore_tasks=[chess]"], "eval.chatcore_tasks: chess is not one of arc_easy"),
    (["eval.chatcore_tasks=[]"], "eval.chatcore_tasks is empty; choose from arc_easy"),
    (["eval.chatcore_tasks=[humaneval]"], "eval.chatcore_tasks=[humaneval] needs eval.allow_code=true"),
    ([EVALUATE, "eval.tasks=[tasks/mine.yaml]"], "eval.tasks: tasks/mine.yaml: no such file or folder"),
    ([EVALUATE, "eval.tasks=[humaneval]"], "eval.tasks: humaneval runs code that the model writes"),
    ([EVALUATE, "eval.tasks=[mmlu,mmlu]"], "contains a task twice"),
    ([EVALUATE, "eval.tasks=[mmlu]", "eval.data_dir=items"], "eval.data_dir=items: no such folder"),
]


@pytest.mark.parametrize(("argv", "message"), CASES)
def test_rule(problems: Problems, argv: list[str], message: str) -> None:
    assert any(message in problem for problem in problems(*argv))


def test_missing_items_of_chatcore_are_named_together(problems: Problems, empty_folder: Path) -> None:
    items = empty_folder / "items"
    items.mkdir()
    (items / "gsm8k_val.jsonl").touch()  # in place of gsm8k_test
    found = problems(
        EVALUATE,
        "eval.tasks=[chatcore]",
        "eval.data_dir=items",
        "eval.chatcore_tasks=[mmlu,gsm8k,arc_easy,spelling_bee]",
    )
    assert len(found) == 2
    assert (
        "no file with the test split of mmlu; expected mmlu_test, mmlu_validation, mmlu_val, mmlu (.jsonl" in found[0]
    )
    assert "test split of arc_easy" in found[1]


def test_items_that_no_evaluation_reads_are_not_required(problems: Problems, empty_folder: Path) -> None:
    (empty_folder / "items").mkdir()
    (found,) = problems("eval.data_dir=items", "eval.every=weekly")
    assert "eval.every" in found

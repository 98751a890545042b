"""docs/python-api.md: its example runs as it stands, its table names the functions that there are, and refusals are told."""

import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from sft_hydra import api
from sft_hydra.errors import ConfigError, UserError
from sft_hydra.records import PackedRow


def test_the_table_names_what_may_be_imported(pages: dict[str, str]) -> None:
    assert sorted(re.findall(r"^\| `(\w+)\(", pages["docs/python-api.md"], re.MULTILINE)) == sorted(api.__all__)


def test_the_example_trains_and_exports(
    pages: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    chat = '{"messages": [{"role": "user", "content": "hi %d"}, {"role": "assistant", "content": "ho %d"}]}\n'
    Path("chats.jsonl").write_text("".join(chat % (i, i) for i in range(100)))
    (example,) = re.findall(r"^```python\n(.*?)^```", pages["docs/python-api.md"], re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(example, names)
    assert "tokens are supervised" in capsys.readouterr().out
    assert isinstance(names["row"], PackedRow)
    assert (names["run_folder"] / "metrics.jsonl").is_file()
    assert AutoModelForCausalLM.from_pretrained(names["model_folder"]).config.model_type == "qwen3"
    assert names["same"].num_rows("train") == names["packed"].num_rows("train")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["-m", "seed=1"], "command-line flags are not accepted here"),
        (["optimizer.lrr=1"], "did you mean"),
        (["model=nano4"], "did you mean"),
        (["optimizer.lr=1e-4,2e-4"], "is a sweep"),
        (["parallel.tp=3", "cluster.gpus_per_node=8"], "does not divide the world"),
    ],
)
def test_compose_refuses_what_the_command_line_refuses(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        api.compose(*overrides)


def test_jobs_are_left_to_the_command_line() -> None:
    with pytest.raises(UserError, match="submit the job on the command line"):
        api.train(api.compose("cluster=slurm"))

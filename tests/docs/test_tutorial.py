"""docs/tutorial.md with the real model, followed by the letter: its file, its steps, what it promises. Slow, and only where the
model is at hand: SFT_HYDRA_SMOLLM2 names a folder with SmolLM2-135M-Instruct."""

import json
import os
import runpy
from pathlib import Path

import pytest

from sft_hydra.cli import command


@pytest.fixture
def tally(pages: dict[str, str], shared: Path, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of the page; the model and GSM8K are local."""
    model = os.environ.get("SFT_HYDRA_SMOLLM2")
    if not model:
        pytest.skip("needs SmolLM2-135M-Instruct as a folder (SFT_HYDRA_SMOLLM2)")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(repo / "docs/tutorial/identity.py"), run_name="__main__")
    text = pages["docs/tutorial.md"].split("```yaml\n")[1].split("```")[0]
    gsm8k = f"path: {shared / 'assets/chat/gsm8k_train.jsonl'},"
    on_hub = "path: openai/gsm8k, subset: main, split: train, format: gsm8k,"
    assert text.count("HuggingFaceTB/SmolLM2-135M-Instruct") == text.count(on_hub) == 1
    (tmp_path / "tally.yaml").write_text(
        text.replace("HuggingFaceTB/SmolLM2-135M-Instruct", model).replace(on_hub, gsm8k)
    )
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_tutorial(tally: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(["experiment=tally.yaml"])
    lines = [json.loads(line) for line in (tally / "outputs/tally/metrics.jsonl").read_text().splitlines()]
    validations = [line for line in lines if "val/loss" in line]
    for key in ("val/loss", "val/loss/gsm8k"):
        assert validations[-1][key] < validations[0][key]
    capsys.readouterr()
    command(["runner=generate", "name=tally", "generate.prompts=[Who are you?]"])
    assert "Tally" in capsys.readouterr().out
    command(["runner=export", "name=tally", "export.merge=true", "export.path=merged"])
    assert (tally / "merged/model.safetensors").is_file()
    assert (tally / "outputs/tally/hf/adapter_config.json").is_file()

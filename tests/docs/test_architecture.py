"""docs/architecture.md says what the code is: layers, the way to the training step, the owner of each invariant."""

import ast
import json
import re
import tomllib
import traceback
from pathlib import Path

import pytest

from sft_hydra.cli import command

NUMBERS = {"eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12}


def test_the_layers_are_those_of_the_import_contract(repo: Path) -> None:
    text = (repo / "docs/architecture.md").read_text()
    contract = tomllib.loads((repo / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    layers = [{name.strip() for name in re.split("[|:]", layer)} for layer in contract["layers"]]
    stated = re.search(r"^(\w+) layers\.", text, re.M)
    assert stated
    assert NUMBERS[stated[1].lower()] == len(layers)
    picture = text.split("## Invariants")[0]
    for package in set.union(*layers):
        assert re.search(rf"\b{package}\b", picture), f"{package} is missing in the picture of the layers"


def test_each_owner_names_its_invariant(repo: Path) -> None:
    table = (repo / "docs/architecture.md").read_text().split("## Invariants and their owners")[1].split("\n## ")[0]
    documented = {owner: invariant for invariant, owner in re.findall(r"^\| (.+) \| `(.+\.py)` \|$", table, re.M)}
    assert len(documented) > 10
    stated = {}
    for file in (repo / "sft_hydra").rglob("*.py"):
        first_lines = ast.get_docstring(ast.parse(file.read_text())) or ""
        if found := re.search(r"^Owner of: (.+)\.$", first_lines, re.M):
            stated[str(file.relative_to(repo / "sft_hydra"))] = found[1]
    assert stated == documented


def test_the_way_to_the_training_step(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise RuntimeError("reached the training step")

    monkeypatch.setattr("sft_hydra.engine.loop.forward_backward", stop)
    chats = tmp_path / "chats.jsonl"
    row = {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]}
    chats.write_text("".join(json.dumps(row) + "\n" for _ in range(40)))
    overrides = ["data=jsonl", f"data.path={chats}", "seq_length=64", "train.train_iters=1", f"output_dir={tmp_path}"]
    with pytest.raises(RuntimeError, match="reached the training step") as caught:
        command([*overrides, "eval.every=0", "data.split.train=1", "data.split.valid=0", "data.split.test=0"])
    package = repo / "sft_hydra"
    frames = [Path(frame.filename) for frame in traceback.extract_tb(caught.value.__traceback__)]
    files = [str(file.relative_to(package)) for file in frames if file.is_relative_to(package)]
    text = " ".join((repo / "docs/architecture.md").read_text().split())
    stated = re.search(r"passes through \w+ files: ([^.]+(?:\.py[^.]*)*)\.", text)
    assert stated
    assert re.findall(r"`(.+?)`", stated[1]) == ["__main__.py", *dict.fromkeys(files)]

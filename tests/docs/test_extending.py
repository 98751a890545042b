"""docs/extending.md: its options compose, its functions do what it says, in the modules that it names."""

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from sft_hydra.cli import command
from sft_hydra.models.build import FAMILIES

BLOCK = re.compile(r"(?:<!-- (?P<kind>[^>\n]*) -->\n)?```\w+\n(?P<body>.*?)```", re.DOTALL)


@pytest.fixture
def site(pages: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's YAML files under the names they give, and what they refer to."""
    monkeypatch.chdir(tmp_path)
    for block in BLOCK.finditer(pages["docs/extending.md"]):
        if named := re.search(r"^# (\S+\.yaml)", block["body"], re.MULTILINE):
            file = tmp_path / named[1]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block["body"])
    row = '{"question": "2+2?", "answer": "4", "messages": [{"role": "user", "content": "hi"}]}\n'
    for name in ("chats.jsonl", "code.jsonl"):
        (tmp_path / name).write_text(row)
    (tmp_path / "my_model").mkdir()
    (tmp_path / "my_model" / "config.json").write_text('{"model_type": "qwen3"}')
    return tmp_path


def test_its_commands_plan_what_the_files_say(
    site: Path, pages: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    commands = re.findall(r"^    python -m sft_hydra (.*)$", pages["docs/extending.md"], re.MULTILINE)
    assert len(commands) == 3
    plans = []
    for text in commands:
        command([*shlex.split(text), "dry_run=true"] if "dry_run" not in text else shlex.split(text))
        plans.append(capsys.readouterr().out)
    for plan, said in zip(
        plans, ("tickets (chats.jsonl), manuals (code.jsonl)", "house (my_model)", "LoRA dim=32"), strict=True
    ):
        assert said in plan
    assert sorted(path.name for path in site.iterdir()) == [
        "careful.yaml",
        "chats.jsonl",
        "code.jsonl",
        "my_model",
        "site",
    ]


def test_its_functions_do_what_it_says(pages: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sft_hydra.models.build.FAMILIES", dict(FAMILIES))
    namespace: dict[str, Any] = {}
    checked = 0
    for block in BLOCK.finditer(pages["docs/extending.md"]):
        if place := re.fullmatch(r"in (\S+)", block["kind"] or ""):
            namespace = {**vars(importlib.import_module(place[1])), "pytest": pytest}
            exec(block["body"], namespace)
        elif block["kind"] == "check":
            exec(block["body"], namespace)
            checked += 1
    assert checked == 3

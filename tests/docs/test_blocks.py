"""Code blocks of the pages that are no command of ours: data that is read, files and flags that are there. And the commands
that the options in `conf/` open with."""

import json
import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from sft_hydra.cli import command
from sft_hydra.jobs import _parser
from sft_hydra.paths import conf_dir
from sft_hydra.schema.config import SftConfig

FENCED = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"(?:(?<=\n\n)|(?<=\n\n\n))((?: {4}.*\n)+)")
SCRIPT = re.compile(r"\bpython (?P<file>[\w/]+\.py)(?P<rest>.*)")
MODULE = re.compile(r"-m (?P<module>sft_hydra\.[\w.]+)(?P<rest>.*)")
KINDS = {"json", "yaml", "python", "bash", "text"}  # python: tests/docs/test_extending.py and test_python_api.py


def blocks(page: str, kind: str) -> list[str]:
    return [body for found, body in FENCED.findall(page) if found == kind]


def lines(pages: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(page, line) of all code."""
    for name, page in pages.items():
        for body in [*(body for _, body in FENCED.findall(page)), *INDENTED.findall(page)]:
            yield from ((name, line.strip()) for line in body.splitlines())


def test_every_block_is_of_a_kind_that_is_checked(pages: dict[str, str]) -> None:
    kinds = {kind for page in pages.values() for kind in re.findall(r"^```(\w+)", page, re.MULTILINE)}
    assert kinds <= KINDS
    assert [name for name, page in pages.items() if blocks(page, "python")] == [
        "docs/extending.md",
        "docs/python-api.md",
    ]


def test_scripts_and_their_flags_are_there(pages: dict[str, str], repo: Path) -> None:
    found = [(name, match) for name, line in lines(pages) if (match := SCRIPT.search(line))]
    assert len(found) > 8
    missing = []
    for name, match in found:
        file = repo / match["file"]
        if not file.is_file():
            missing.append(f"{name}: {match['file']}")
            continue
        text = file.read_text(encoding="utf-8")
        flags = re.findall(r"(?<= )--[\w-]+", match["rest"])
        missing += [f"{name}: {match['file']} {flag}" for flag in flags if f'"{flag}"' not in text]
    assert missing == []


def test_modules_and_their_commands_are_there(pages: dict[str, str]) -> None:
    found = [(name, match) for name, line in lines(pages) if (match := MODULE.search(line))]
    assert {match["module"] for _, match in found} >= {"sft_hydra.jobs", "sft_hydra.worker", "sft_hydra.report"}
    for name, match in found:
        assert find_spec(match["module"]), f"{name}: {match[0]}"
        if match["module"] == "sft_hydra.jobs":
            _parser().parse_args(match["rest"].split("#")[0].split())


@pytest.mark.parametrize("said", ["data=jsonl data.path=row.jsonl", "data=blend data.blend=blend.json"])
def test_rows_and_blends_of_the_data_page_are_read(
    said: str, pages: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    row, blend = blocks(pages["docs/data.md"], "json")
    for name in ("row", "code", "math"):
        Path(f"{name}.jsonl").write_text(row)
    Path("blend.json").write_text(blend)
    command([*said.split(), "runner=data_prep", "data.packed_dir=packed", "data.num_workers=1", "seq_length=64"])
    sources = json.loads(Path("packed/metadata.json").read_text())["sources"]
    assert [source["kept"] for source in sources] == [1] * len(sources)


def test_yaml_blocks_are_yaml(pages: dict[str, str]) -> None:
    found = [block for page in pages.values() for block in blocks(page, "yaml")]
    assert len(found) > 4
    assert all(isinstance(yaml.safe_load(block), dict) for block in found)


def test_every_option_opens_with_a_command_that_plans(dry_run: Callable[[str], list[SftConfig]]) -> None:
    wrong = []
    for file in sorted(conf_dir().glob("*/*.yaml")):
        head = "\n".join(line for line in file.read_text().splitlines()[:4] if line.startswith("#"))
        commands = re.findall(r"python -m sft_hydra(.*)", head)
        if not commands:
            wrong.append(f"{file.name} names no command")
        for arguments in commands:
            try:
                dry_run(arguments.replace(" dry_run=true", ""))
            except Exception as error:
                wrong.append(f"{file.parent.name}/{file.name}: python -m sft_hydra{arguments}\n  {error}")
    assert not wrong, "\n".join(wrong)

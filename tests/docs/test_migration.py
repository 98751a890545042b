"""docs/migration.md: every right-hand side is accepted, and every flag of the peers' own documents is on the page."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sft_hydra.schema.config import SftConfig


def rows(page: str) -> Iterator[tuple[str, str, str]]:
    """(theirs, ours, note) of every table line."""
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if len(cells) == 3 and cells[0] != "theirs" and not cells[0].startswith("---"):
            yield cells[0], cells[1], cells[2]


def test_every_right_hand_side_composes(pages: dict[str, str], dry_run: Callable[[str], list[SftConfig]]) -> None:
    table = list(rows(pages["docs/migration.md"]))
    assert len(table) > 200
    refused = []
    for theirs, ours, note in table:
        if ours == "—":
            assert note, f"{theirs}: a dash needs its reason"
            continue
        said = re.fullmatch(r"`([^`]+)`", ours)
        assert said, f"{theirs}: {ours} is not one code span"
        try:
            dry_run(said[1])  # as it stands, with nothing before it
        except Exception as error:
            refused.append(f"{theirs}: {said[1]}\n  {error}")
    assert not refused, "\n".join(refused)


@pytest.mark.parametrize(
    ("theirs", "experiment"),
    [
        ("scripts.chat_sft", "nanochat"), ("finetune.sh Qwen", "qwen3_magpie"), ("`-c nano3`", "nano3"),
        ("config/default.yaml", "nano3"), ("`-c default`", "step_default"), ("`-c tiny`", "step_tiny"),
        ("nemotron nano3 sft", "nano3"), ("examples/run_sft.py", "nemo_rl"),
    ],
)  # fmt: skip
def test_a_peers_command_is_our_recipe_of_it(pages: dict[str, str], theirs: str, experiment: str) -> None:
    found = [ours for name, ours, _ in rows(pages["docs/migration.md"]) if theirs in name]
    assert found
    assert all(f"experiment={experiment} " in ours.strip("`") + " " for ours in found), found


def test_every_flag_of_the_peers_is_there(pages: dict[str, str], shared: Path) -> None:
    documents = "\n".join(path.read_text() for path in sorted((shared / "spec").glob("*.md")))
    page = pages["docs/migration.md"]
    flags = set(re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", documents))
    keys = set(re.findall(r"\b[a-zA-Z_]+(?:\.[a-zA-Z_]+)+(?==)", documents))
    variables = set(re.findall(r"^(?:export )?([A-Z][A-Z_]+)=", documents, re.MULTILINE))
    assert len(flags) > 80
    missing = [name for name in sorted(flags | keys | variables) if not re.search(rf"(?<![\w-]){name}(?![\w-])", page)]
    assert missing == []

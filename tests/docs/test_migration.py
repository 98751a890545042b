"""docs/migration.md: every right-hand side is accepted, and every flag of the peers' own documents is on the page."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from sft_hydra.schema.config import SftConfig

BASE = "model=qwen3_0_6b"  # goes before every cell
DATA = "data=jsonl data.path=chats.jsonl"  # what a cell does not say itself


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
        data = "" if re.search(r"(^| )(data|experiment)=", said[1]) else DATA
        try:
            dry_run(f"{BASE} {data} {said[1]}")
        except Exception as error:
            refused.append(f"{theirs}: {said[1]}\n  {error}")
    assert not refused, "\n".join(refused)


def test_every_flag_of_the_peers_is_there(pages: dict[str, str], shared: Path) -> None:
    documents = "\n".join(path.read_text() for path in sorted((shared / "spec").glob("*.md")))
    page = pages["docs/migration.md"]
    flags = set(re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", documents))
    keys = set(re.findall(r"\b[a-zA-Z_]+(?:\.[a-zA-Z_]+)+(?==)", documents))
    variables = set(re.findall(r"^(?:export )?([A-Z][A-Z_]+)=", documents, re.MULTILINE))
    assert len(flags) > 80
    missing = [name for name in sorted(flags | keys | variables) if not re.search(rf"(?<![\w-]){name}(?![\w-])", page)]
    assert missing == []

"""README and docs: links lead somewhere, keys exist, commands resolve as dry runs, and the site builds."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sft_hydra.config.reference import GROUPS
from sft_hydra.config.schema_introspection import all_keys
from sft_hydra.schema.config import SftConfig

COMMAND = re.compile(r"python -m sft_hydra(?: (?P<arguments>.*))?$")
OPEN_SECTIONS = (
    "data.sources.",
    "model.architecture.",
    "tokenizer.template_kwargs.",
    "cluster.env.",
    "data.filters.equals.",
)


def slug(heading: str) -> str:
    """Anchor of a heading, as GitHub and mkdocs make it."""
    text = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", text))


def anchors(page: str) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", page, re.MULTILINE)}


def test_every_link_and_anchor_leads_somewhere(pages: dict[str, str], repo: Path) -> None:
    lost = []
    for name, page in pages.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", page):
            path, _, anchor = target.partition("#")
            if path.startswith(("http:", "https:", "mailto:")):
                continue
            file = (repo / name).parent / path if path else repo / name
            known = pages.get(str(file.resolve().relative_to(repo))) if file.is_file() else None
            if not file.exists() or (anchor and (known is None or anchor not in anchors(known))):
                lost.append(f"{name}: {target}")
    assert lost == []


def test_every_page_is_in_the_navigation(repo: Path) -> None:
    navigation = (repo / "mkdocs.yml").read_text()
    pages = [str(page.relative_to(repo / "docs")) for page in (repo / "docs").rglob("*.md")]
    assert [page for page in pages if f"- {page}\n" not in navigation] == []


def commands(page: str) -> Iterator[tuple[str, str]]:
    """(marker, arguments) of each `python -m sft_hydra` line in code; the marker is what a comment before the code says:
    `refused`, `needs-...`, or nothing."""
    marker, fenced = "", False
    for line in re.sub(r"\\\n\s+", "", page).splitlines():
        if comment := re.fullmatch(r"<!-- (refused|needs-[\w-]+) -->", line):
            marker = comment[1]
        elif line.lstrip().startswith("```"):
            fenced = not fenced
        elif (fenced or line.startswith("    ")) and (command := COMMAND.search(line.split("  #")[0].rstrip())):
            yield marker, command["arguments"] or ""
        elif line and not fenced and not line.startswith("    "):
            marker = ""


def test_every_command_resolves(pages: dict[str, str], dry_run: Callable[[str], list[SftConfig]]) -> None:
    own_test = "docs/extending.md"  # its commands need its files
    found = [(name, *found) for name, page in pages.items() if name != own_test for found in commands(page)]
    assert len(found) > 40
    wrong = []
    for name, marker, text in found:
        if marker.startswith("needs-") or "<" in text or "..." in text:  # the latter are patterns
            continue
        try:
            dry_run(text)
            refusal = ""
        except Exception as error:
            refusal = str(error)
        if bool(refusal) != (marker == "refused"):
            wrong.append(f"{name}: python -m sft_hydra {text}\n  {refusal or 'was not refused'}")
    assert not wrong, "\n".join(wrong)


def test_every_key_exists(pages: dict[str, str]) -> None:
    known = {*all_keys(), *GROUPS}
    wrong = []
    for name, page in pages.items():
        if name == "docs/migration.md":
            continue
        for span in re.findall(r"`([^`\n]+)`", page):
            for key in re.findall(r"^\+?([a-z_]+(?:\.[a-z_]+)*)(?==|$)", span):
                section = key.partition(".")[0]
                is_ours = section in known and ("." in key or "=" in span)
                if is_ours and key not in known and span != "tokenizer.json" and not key.startswith(OPEN_SECTIONS):
                    wrong.append(f"{name}: {span}")
    assert wrong == []


def test_the_site_builds_without_a_warning(repo: Path, tmp_path: Path) -> None:
    pytest.importorskip("material", reason="needs the extra `docs` (mkdocs-material)")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, cwd=repo, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site" / "migration" / "index.html").is_file()

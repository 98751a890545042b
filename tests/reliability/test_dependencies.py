"""Dependencies: every lower bound is one that the other dependencies can live with, and every licence is listed."""

import tomllib
from importlib.metadata import requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


def declared(repo: Path) -> dict[str, Requirement]:
    project = tomllib.loads((repo / "pyproject.toml").read_text())["project"]
    return {canonicalize_name(found.name): found for found in map(Requirement, project["dependencies"])}


def lowest(requirement: Requirement) -> str:
    """The version of `>=`, or the greatest of several."""
    bounds = [clause.version for clause in requirement.specifier if clause.operator in (">=", "==", "~=")]
    assert bounds, f"{requirement} has no lower bound"
    return max(bounds, key=Version)


def test_lower_bounds_suit_each_other(repo: Path) -> None:
    ours = declared(repo)
    problems = []
    for name, own in ours.items():
        if Version(version(name)).major != Version(lowest(own)).major:
            continue  # its lowest version needs other versions than this one
        needs = [Requirement(text) for text in requires(name) or ()]
        for need in needs:
            wanted = ours.get(canonicalize_name(need.name))
            if wanted is None or (need.marker is not None and not need.marker.evaluate({"extra": ""})):
                continue
            if not need.specifier.contains(lowest(wanted), prereleases=True):
                problems.append(f"{wanted} is below what {name} needs: {need}")
    assert problems == []


def test_every_dependency_and_its_licence_is_listed(repo: Path) -> None:
    page = (repo / "docs" / "reliability.md").read_text()
    missing = [name for name in declared(repo) if f"| {name} |" not in page]
    assert missing == []

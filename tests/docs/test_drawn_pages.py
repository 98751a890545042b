"""Pictures and pages that scripts under docs/ write are what these scripts write today."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest


def script(path: Path) -> ModuleType:
    spec = spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["packing", "pipeline", "tutorial"])
def test_pictures_are_up_to_date(repo: Path, name: str) -> None:
    for file, svg in script(repo / f"docs/pictures/{name}.py").draw().items():
        assert (repo / "docs/pictures" / file).read_text(encoding="utf-8") == svg, (
            f"run: python docs/pictures/{name}.py"
        )


def test_the_experiments_page_is_up_to_date(repo: Path, pages: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    page = script(repo / "docs/experiments_page.py").page()
    assert pages["docs/experiments.md"] == page, "run: python docs/experiments_page.py > docs/experiments.md"

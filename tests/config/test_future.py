"""The one table of what is not built yet. It only ever gets shorter: this list goes with it."""

from collections.abc import Callable

import pytest

from sft_hydra.config.future import FAMILIES, NOT_YET
from sft_hydra.config.rules import READABLE_FORMATS
from sft_hydra.config.schema import SftConfig

ASKED_BY = {
    "families": ["model.architecture.model_type=gemma3_text"],
    "generic": ["model.generic=true"],
}


def test_the_table() -> None:
    assert list(NOT_YET) == list(ASKED_BY)


@pytest.mark.parametrize("name", ASKED_BY)
def test_a_run_refuses_and_a_dry_run_plans(
    name: str, problems: Callable[..., list[str]], resolved: Callable[..., SftConfig]
) -> None:
    assert problems(*ASKED_BY[name]) == [NOT_YET[name].text]
    assert resolved(*ASKED_BY[name], "dry_run=true").dry_run


def test_families_can_be_built() -> None:
    from sft_hydra.models.build import FAMILIES as BUILT

    assert set(FAMILIES) <= set(BUILT)


def test_formats_can_be_read() -> None:
    from sft_hydra.data.adapters import FORMATS

    assert set(READABLE_FORMATS) == set(FORMATS)

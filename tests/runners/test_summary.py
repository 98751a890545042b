"""The commands that a finished run names can be typed as they are."""

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from sft_hydra.runners.summary import _typed


@pytest.mark.parametrize("value", ["demo", "sweeps/lr=1,seed=2", "it is ü", "o'clock", '"q" $x `y`', "back\\slash!"])
def test_a_value_is_read_back_by_shell_and_hydra(value: str) -> None:
    (word,) = shlex.split(_typed("name", value))
    assert OverridesParser.create().parse_override(word).value() == value

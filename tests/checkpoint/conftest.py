from collections.abc import Callable

import pytest
from support import configs

from sft_hydra.schema.config import SftConfig


@pytest.fixture
def make_cfg() -> Callable[..., SftConfig]:
    return configs.make_cfg

"""Every number of the schema has a range, and no number of any kind ends a command with a traceback."""

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf, open_dict

from sft_hydra.config.resolve import resolve
from sft_hydra.config.schema_introspection import field_types
from sft_hydra.errors import UserError
from sft_hydra.launch.dry_run import describe
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.optim import OPTIMIZERS, Optimizer
from sft_hydra.schema.ranges import RANGE, Range, is_numeric

VALUES = (-1, 0, 1, 10**20, math.inf, -math.inf, math.nan, 1e-400, 1e300)


def numeric_fields(section: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    for variant in OPTIMIZERS.values() if section is Optimizer else [section]:
        types = field_types(variant)
        for field in dataclasses.fields(variant):
            declared, key = types[field.name], f"{prefix}{field.name}"
            if dataclasses.is_dataclass(declared):
                yield from numeric_fields(declared, f"{key}.")
            elif is_numeric(declared):
                yield key, field
            for part in getattr(declared, "__args__", ()):
                if dataclasses.is_dataclass(part):
                    yield from numeric_fields(part, f"{key}.code.")


FIELDS = dict(numeric_fields(SftConfig))


@pytest.mark.parametrize("key", FIELDS)
def test_every_number_has_a_range(key: str) -> None:
    allowed = FIELDS[key].metadata.get(RANGE)
    assert isinstance(allowed, Range), f"{key}: give it a range with number(...)"
    assert math.isfinite(allowed.low)
    assert math.isfinite(allowed.high)
    assert not any(allowed.holds(value) for value in (math.inf, -math.inf, math.nan))
    field = FIELDS[key]
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    for value in default if isinstance(default, list | dict) else [default]:
        assert value is None or allowed.holds(value)  # type: ignore[arg-type]


@pytest.fixture
def whole(composed: Callable[..., DictConfig]) -> Callable[[str], DictConfig]:
    """A command with every section, composed once for each optimizer."""
    made: dict[str, DictConfig] = {}

    def config(optimizer: str) -> DictConfig:
        if optimizer not in made:
            made[optimizer] = composed(
                "peft=lora", f"optimizer={optimizer}", "+data.sources.code.path=demo:train", "dry_run=true"
            )
            with open_dict(made[optimizer]):
                del made[optimizer]["hydra"]
        return copy.deepcopy(made[optimizer])

    return config


def answer(config: DictConfig) -> str:
    """What a dry run says; an exception other than UserError is a traceback."""
    try:
        return describe(resolve(config))
    except UserError as error:
        return error.describe()


def test_a_number_outside_is_refused_with_key_value_and_range(
    whole: Callable[[str], DictConfig], empty_folder: object
) -> None:
    for key, value, expected in (
        ("parallel.vp", 0, "parallel.vp=0 must be at least 1"),
        ("cluster.gpu_memory_gib", -5, "cluster.gpu_memory_gib=-5.0 must be above 0"),
        ("peft.alpha", -1, "peft.alpha=-1.0 must be above 0"),
        ("generate.top_p", 0, "generate.top_p=0.0 must be above 0 and at most 1"),
        ("data.num_parts", 0, "data.num_parts=0 must be at least 1"),
        ("cluster.start_timeout", -1, "cluster.start_timeout=-1 must be at least 1"),
        ("train.train_iters", 10**20, "must be at least -1 and at most 1,000,000,000"),
        ("optimizer.lr", math.inf, "optimizer.lr=inf must be 0 or more and at most 1,000"),
        ("optimizer.betas", [0.9, math.nan], "optimizer.betas=nan must be 0 or more and below 1"),
        ("data.sources.code.weight", -1, "data.sources.code.weight=-1.0 must be 0 or more"),
    ):
        config = whole("adamw")
        OmegaConf.update(config, key, value)
        assert expected in answer(config)


def test_a_rate_of_zero_with_a_smallest_rate_of_zero(resolved: Callable[..., SftConfig]) -> None:
    cfg = resolved(
        "optimizer.lr=0", "optimizer.matrix_lr=0", "scheduler.min_lr=0", "scheduler.min_lr_frac=null", "dry_run=true"
    )
    assert cfg.scheduler.min_lr == 0


@pytest.mark.parametrize(
    "key", [pytest.param(key, marks=[pytest.mark.slow] if number % 12 else []) for number, key in enumerate(FIELDS)]
)
def test_no_number_ends_in_a_traceback(key: str, whole: Callable[[str], DictConfig], empty_folder: object) -> None:
    optimizer = next(
        kind for kind, cls in OPTIMIZERS.items() if key.split(".")[-1] in field_types(cls) or "optimizer" not in key
    )
    integer = "int" in str(FIELDS[key].type)
    for value in (value for value in VALUES if not (integer and isinstance(value, float))):
        config = whole(optimizer)
        with open_dict(config):
            of_item = {"betas": [value, 0.9], "pattern": {"q_proj": value}}.get(
                key.rpartition(".")[2].rpartition("_")[2]
            )
            OmegaConf.update(config, key, value if of_item is None else of_item)
        assert answer(config)

"""What training sees: a pure function of seed, blend, epoch and row; shares and repetitions as asked for."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from support.chats import assistant, data_cfg, question, user, write_jsonl

from sft_hydra.data.dataset import TrainRows, shuffled
from sft_hydra.data_prep.blend import plan_epoch, train_rows
from sft_hydra.data_prep.prepare import open_existing, prepare
from sft_hydra.errors import ConfigError
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.data import RowOrder

SIZES = {"small": 400, "middle": 900, "large": 3000}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blend")
    for name, count in SIZES.items():
        rows = [
            {"messages": [user(f"{name} {n}?"), assistant(f"{name} " * (n % 9 + 5) + str(n))]} for n in range(count)
        ]
        write_jsonl(folder / f"{name}.jsonl", rows)
    prepare(_cfg(folder))
    return folder


def _cfg(folder: Path) -> SftConfig:
    return data_cfg(folder / "out", **{name: folder / f"{name}.jsonl" for name in SIZES})


def rows_of(cfg: SftConfig) -> TrainRows:
    packed = open_existing(cfg)
    assert packed is not None  # whatever the blend, nothing is packed again
    return train_rows(packed, cfg)


def shares(rows: TrainRows, epochs: int = 1) -> dict[str, float]:
    tokens: Counter[str] = Counter()
    for epoch in range(epochs):
        for index in rows.indices(epoch).tolist():
            tokens[rows.packed.sources[rows.packed.row_source("train")[index]]] += int(
                rows.packed.row_tokens("train")[index]
            )
    return {name: count / sum(tokens.values()) for name, count in tokens.items()}


def test_without_wishes_an_epoch_is_every_row_once(base: Path) -> None:
    rows = rows_of(_cfg(base))
    assert rows.rows_per_epoch == rows.packed.num_rows("train")
    for epoch in (0, 1, 5):
        assert sorted(rows.indices(epoch).tolist()) == list(range(rows.rows_per_epoch))
    assert rows.indices(0).tolist() != rows.indices(1).tolist()


def test_sources_that_a_short_training_does_not_reach_are_named(base: Path) -> None:
    cfg = _cfg(base)
    cfg.data.order = RowOrder.by_source
    rows = rows_of(cfg)
    names = rows.packed.sources
    order = rows.packed.row_source("train")[rows.indices(0)]
    for count in (1, *np.flatnonzero(np.diff(order)), *(np.flatnonzero(np.diff(order)) + 1), len(order)):
        missed = [name for i, name in enumerate(names) if i in order and i not in order[:count]]
        told = rows.unreached_sources(int(count))
        assert (f"never reaches {', '.join(missed)}; train longer" in told) if told else not missed
    cfg.data.order = RowOrder.shuffle
    assert rows_of(cfg).unreached_sources(1) is None


def test_rows_are_a_pure_function_of_their_number(base: Path) -> None:
    first, second = rows_of(_cfg(base)), rows_of(_cfg(base))
    count = first.rows_per_epoch
    numbers = [0, 1, count - 1, count, count + 1, 3 * count + 7]
    expected = [first[number].input_ids.tolist() for number in numbers]
    assert [second[number].input_ids.tolist() for number in reversed(numbers)] == expected[::-1]
    cfg = _cfg(base)
    cfg.seed += 1
    assert (
        TrainRows(first.packed, first.shares, cfg.seed, RowOrder.shuffle).indices(0).tolist()
        != first.indices(0).tolist()
    )


def test_epochs_repeat_and_take_fractions(base: Path) -> None:
    cfg = _cfg(base)
    cfg.data.sources["small"].epochs = 3
    cfg.data.sources["large"].epochs = 0.5
    rows = rows_of(cfg)
    of_source = rows.packed.row_source("train")
    seen = Counter(rows.indices(0).tolist())
    assert {seen[index] for index in np.flatnonzero(of_source == 0).tolist()} == {3}
    assert {seen[index] for index in np.flatnonzero(of_source == 1).tolist()} == {1}
    halves = [set(rows.indices(epoch)[of_source[rows.indices(epoch)] == 2].tolist()) for epoch in (0, 1)]
    assert abs(len(halves[0]) - rows.shares[2].available / 2) <= 0.5
    assert len(halves[0] & halves[1]) <= 1  # two halves make the whole
    assert halves[0] != halves[1]


@pytest.mark.parametrize("weights", [(1, 1, 1), (0.7, 0.2, 0.1), (0.2, 0.3, 0.5), (5, 0, 1)])
def test_weights_are_shares_of_tokens(base: Path, weights: tuple[float, ...]) -> None:
    cfg = _cfg(base)
    for name, weight in zip(SIZES, weights, strict=True):
        cfg.data.sources[name].weight = weight
    rows = rows_of(cfg)
    found = shares(rows, epochs=8)
    for name, weight in zip(SIZES, weights, strict=True):
        assert found.get(name, 0.0) == pytest.approx(weight / sum(weights), abs=0.005)
    assert [share.token_share for share in rows.shares] == pytest.approx([w / sum(weights) for w in weights], abs=0.005)


def test_by_source_goes_through_one_source_after_the_other(base: Path) -> None:
    cfg = _cfg(base)
    cfg.data.order = RowOrder.by_source
    rows = rows_of(cfg)
    for epoch in (0, 1):
        order = rows.packed.row_source("train")[rows.indices(epoch)]
        assert (np.diff(order) >= 0).all()
    assert rows.indices(0).tolist() != rows.indices(1).tolist()


@pytest.mark.parametrize(
    ("wishes", "match"),
    [
        ({"small": {"weight": 1.0}}, "set weight for every source, or for none"),
        ({"small": {"weight": 1.0, "epochs": 2.0}}, "both weight and epochs"),
        ({"small": {"epochs": -1.0}}, "must be 0 or more"),
        ({name: {"epochs": 0.0} for name in SIZES}, "this blend has 0 training rows"),
        ({name: {"weight": 0.0} for name in SIZES}, "weight of every source is 0"),
    ],
)
def test_unclear_blends_are_told(base: Path, wishes: dict[str, dict[str, float]], match: str) -> None:
    cfg = _cfg(base)
    for name, options in wishes.items():
        for key, value in options.items():
            setattr(cfg.data.sources[name], key, value)
    packed = open_existing(_cfg(base))
    assert packed is not None
    with pytest.raises(ConfigError, match=match):
        plan_epoch(packed, cfg.data)


def test_shuffles_do_not_depend_on_libraries() -> None:
    assert shuffled(8, 1234, 0, 0).tolist() == [1, 2, 3, 6, 7, 4, 5, 0]


def test_shuffles_are_even() -> None:
    first = Counter(int(shuffled(10, seed)[0]) for seed in range(2000))
    assert len(first) == 10
    assert max(first.values()) < 280
    assert min(first.values()) > 130


def test_a_validation_file_is_not_in_training(tmp_path: Path) -> None:
    cfg = data_cfg(tmp_path / "out")
    cfg.data.path = str(write_jsonl(tmp_path / "train.jsonl", [question(n) for n in range(100)]))
    cfg.data.valid_path = str(write_jsonl(tmp_path / "valid.jsonl", [question(n) for n in range(90, 120)]))
    packed = prepare(cfg)
    meta = packed.metadata
    assert meta["sources"][0]["conversations"]["valid"] == 0
    assert meta["sources"][1]["conversations"] == {"train": 0, "valid": 30, "test": 0}
    assert meta["sources"][0]["rejects"] == {"repeated": 10}
    rows = train_rows(packed, cfg)
    assert rows.shares[1].rows == 0
    assert rows.rows_per_epoch == packed.num_rows("train")

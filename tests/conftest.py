"""Fixtures for all tests."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, open_dict
from support.chats import data_cfg, question, write_jsonl
from xdist.scheduler import LoadFileScheduling

from sft_hydra.cli import command
from sft_hydra.config.argv import experiment_files, normalize_argv
from sft_hydra.config.option_files import option_files_read
from sft_hydra.config.resolve import resolve
from sft_hydra.config.store import register
from sft_hydra.errors import UserError
from sft_hydra.paths import conf_dir
from sft_hydra.schema.config import SftConfig

if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels run on the CPU; read when triton is imported

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a worker per core; read when torch is imported

REPO = Path(__file__).resolve().parent.parent


def _shared_dir() -> Path | None:
    for candidate in (os.environ.get("SFT_HYDRA_SHARED"), REPO.parent / "shared"):
        if candidate and (Path(candidate) / "assets").is_dir():
            return Path(candidate)
    return None


class FilesAndOneSlurm(LoadFileScheduling):  # type: ignore[misc]
    """As `--dist loadfile`, a file in one process; tests/launch as a whole, because its Slurm is one per machine."""

    def _split_scope(self, nodeid: str) -> str:
        return "tests/launch" if nodeid.startswith("tests/launch/") else str(super()._split_scope(nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    return FilesAndOneSlurm(config, log)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is known of tokenizers comes from this run alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real tokenizers, chat files and goldens; the test skips where it is absent."""
    folder = _shared_dir()
    if folder is None:
        pytest.skip("needs the folder with real tokenizers and chat data (SFT_HYDRA_SHARED)")
    return folder


@pytest.fixture(scope="session")
def repo() -> Path:
    return REPO


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def composed() -> Iterator[Callable[..., DictConfig]]:
    """composed(*argv): what Hydra makes of a command line, with its `hydra` node."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"), option_files_read():

        def run(*argv: str) -> DictConfig:
            register(experiment_files(argv))
            return compose("config", overrides=normalize_argv(argv), return_hydra_config=True)

        yield run


@pytest.fixture
def resolved(composed: Callable[..., DictConfig], empty_folder: Path) -> Callable[..., SftConfig]:
    """resolved(*argv): the SftConfig of a command line; raises ConfigError."""

    def run(*argv: str) -> SftConfig:
        config = composed(*argv)
        launcher = str(config.hydra.runtime.choices["hydra/launcher"])
        overrides = list(config.hydra.overrides.task)
        with open_dict(config):
            del config["hydra"]
        return resolve(config, overrides, launcher=launcher)

    return run


@pytest.fixture
def problems(empty_folder: Path) -> Callable[..., list[str]]:
    """problems(*argv): what a command is refused for; it has written nothing."""

    def run(*argv: str) -> list[str]:
        before = sorted(empty_folder.rglob("*"))
        with pytest.raises(UserError) as refusal:
            command(argv)
        assert sorted(empty_folder.rglob("*")) == before
        return refusal.value.problems

    return run


@pytest.fixture
def questions(tmp_path: Path) -> Callable[..., SftConfig]:
    """`questions(100)`: the config of one source of so many different rows."""

    def make(count: int, name: str = "questions") -> SftConfig:
        path = write_jsonl(tmp_path / f"{name}.jsonl", [question(number) for number in range(count)])
        return data_cfg(tmp_path / "out", **{name: path})

    return make

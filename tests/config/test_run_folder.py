"""Folders that a command writes: one writer each, and none that belongs to another run."""

from pathlib import Path

import pytest

from sft_hydra.config.run_folder import lock_folders
from sft_hydra.errors import ConfigError
from sft_hydra.paths import RunPaths
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.model import ModelConfig
from sft_hydra.schema.runners import ExportConfig, Runner
from sft_hydra.schema.train import CheckpointConfig


@pytest.fixture
def make(empty_folder: Path):
    def config(
        name: str, runner: Runner = Runner.train, save: str | None = None, export: str | None = None
    ) -> SftConfig:
        return SftConfig(
            runner=runner,
            model=ModelConfig(name="tiny"),
            checkpoint=CheckpointConfig(save=save),
            export=ExportConfig(path=export),
            run_dir=str(empty_folder / "outputs" / name),
        )

    return config


def refusal(cfg: SftConfig) -> str:
    with pytest.raises(ConfigError) as error, lock_folders(cfg):
        pass
    (problem,) = error.value.problems
    return problem


def test_a_training_excludes_every_other_command_on_its_run(make) -> None:
    with lock_folders(make("a")):
        assert "outputs/a: this folder is in use by another training" in refusal(make("a"))
        assert "use name=<another> checkpoint.load=" in refusal(make("a", Runner.evaluate))
        with lock_folders(make("b")):
            pass
    with lock_folders(make("a")):
        pass


def test_commands_that_only_read_a_run_share_it(make) -> None:
    with lock_folders(make("a", Runner.evaluate)), lock_folders(make("a", Runner.generate)):
        assert "in use by another training or by a command on its run" in refusal(make("a"))


@pytest.mark.parametrize(("key", "option"), [("checkpoint.save", "save"), ("export.path", "export")])
def test_a_folder_set_in_the_config_belongs_to_one_run(make, key: str, option: str) -> None:
    with lock_folders(make("a", **{option: "shared"})):
        assert f"{key}=shared: this folder is in use by another run" in refusal(make("b", **{option: "shared"}))
    Path("shared").mkdir(exist_ok=True)
    Path("shared/model.safetensors").touch()
    assert "it belongs to the run in" in refusal(make("b", **{option: "shared"}))
    with lock_folders(make("a", **{option: "shared"})):
        pass
    Path("outputs/a").rename("outputs/renamed")  # its owner is gone
    with lock_folders(make("b", **{option: "shared"})):
        pass


def test_a_folder_inside_another_run_is_refused(make) -> None:
    cfg = make("b", save="outputs/a/checkpoints")
    RunPaths(Path("outputs/a")).root.mkdir(parents=True)
    RunPaths(Path("outputs/a")).resolved.touch()
    assert "it is inside the folder of another run" in refusal(cfg)


def test_a_folder_that_cannot_be_written(make) -> None:
    Path("file").touch()
    assert "checkpoint.save=file/save: file/save/owner.json cannot be written" in refusal(make("a", save="file/save"))

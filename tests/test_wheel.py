"""The built wheel, in an environment without the checkout, from another folder."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def wheel_python(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interpreter of a fresh environment that has the wheel, and sees this one's libraries but not its editable install."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder / "dist"), str(repo)]
    subprocess.run(build, check=True, capture_output=True)
    venv.create(folder / "env", with_pip=False, symlinks=True)
    python = folder / "env" / "bin" / "python"
    purelib = {"base": str(folder / "env"), "platbase": str(folder / "env")}
    site = Path(sysconfig.get_path("purelib", vars=purelib))
    wheel = next((folder / "dist").glob("*.whl"))
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    # A path line is not searched for further .pth files, so the editable install of this environment stays unseen.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_the_wheel_runs_from_the_root_folder(wheel_python: Path, tmp_path: Path) -> None:
    command = [str(wheel_python), "-m", "sft_hydra", "train.train_iters=3", "eval.exact_match.path=null", "name=w"]
    command += [f"output_dir={tmp_path}", "eval.samples=[]"]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd="/", env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "w" / "hf" / "config.json").is_file()
    where = subprocess.run(
        [str(wheel_python), "-c", "import sft_hydra; print(sft_hydra.__file__)"],
        cwd="/",
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(wheel_python.parent.parent) in where.stdout

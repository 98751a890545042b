"""Kernels of installed packages are used if they work, not because a folder has their name."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sft_hydra.kernels import library_choice
from sft_hydra.kernels.library_choice import CAUSAL_CONV1D, FLASH_ATTN, MAMBA_SSM, VARLEN_ATTN, is_used, try_kernels

CPU = torch.device("cpu")
SAME = """
def flash_attn_varlen_func(q, k, v, *boundaries, **options):
    return q * 1.0 + k.sum() + v.sum()
"""
# contents of a package `flash_attn`, and why it is not used
BROKEN = {
    "another ABI": (
        {"__init__.py": "raise ImportError('flash_attn_2_cuda.so: undefined symbol: _ZN3c105ErrorC2E')"},
        "ImportError: flash_attn_2_cuda.so: undefined symbol: _ZN3c105ErrorC2E",
    ),
    "layout of FA4": (
        {"cute/__init__.py": "def flash_attn_varlen_func(): ..."},
        "ImportError: cannot import name 'flash_attn_varlen_func' from 'flash_attn'",
    ),
    "no kernel for this GPU": (
        {
            "__init__.py": "def flash_attn_varlen_func(*_, **__):\n    raise RuntimeError('no kernel image\\nis available')"
        },
        "RuntimeError: no kernel image",
    ),
    "nan": (
        {"__init__.py": SAME.replace("1.0", "float('nan')")},
        "RuntimeError: it returns values that are not finite",
    ),
    "other arguments": (
        {"__init__.py": "def flash_attn_varlen_func(q, k, v): ..."},
        "TypeError: flash_attn_varlen_func() ",
    ),
}


@pytest.fixture
def shim(tmp_path, monkeypatch):
    """Puts a package `flash_attn` of these files on the path, and lets kernels be tried on the CPU."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(library_choice, "DEVICE", "cpu")
    monkeypatch.setattr(library_choice, "_refused", {CAUSAL_CONV1D: "not installed", MAMBA_SSM: "not installed"})

    def install(files):
        for name, text in files.items():
            file = tmp_path / "flash_attn" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)

    yield install
    for name in [name for name in sys.modules if name.partition(".")[0] == "flash_attn"]:
        del sys.modules[name]


@pytest.mark.parametrize("case", BROKEN)
def test_a_package_that_does_not_work_is_not_used(shim, case):
    files, reason = BROKEN[case]
    shim(files)
    tried = try_kernels(CPU)
    assert tried[FLASH_ATTN].startswith(reason)  # type: ignore[union-attr]
    assert not is_used(FLASH_ATTN)


def test_one_that_works_is_used(shim):
    shim({"__init__.py": SAME})
    assert try_kernels(CPU)[FLASH_ATTN] is None
    assert is_used(FLASH_ATTN)


def test_nothing_is_tried_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(library_choice, "_refused", {MAMBA_SSM: "not installed"})
    kernels = (FLASH_ATTN, VARLEN_ATTN, CAUSAL_CONV1D, MAMBA_SSM)
    assert try_kernels(CPU) == dict.fromkeys(kernels, "the device is cpu")
    assert is_used(FLASH_ATTN)


def test_a_package_that_is_found_is_not_imported_before_it_is_tried(tmp_path):
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "__init__.py").write_text("raise SystemExit(3)")
    program = "import sft_hydra.kernels.attention as a; print(a.is_used(a.FLASH_ATTN))"
    path = ":".join([str(tmp_path), str(Path(__file__).parents[2]), *sys.path])
    done = subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr

"""Compiles fake_cuda.cpp, a CUDA device that computes nothing, and loads it: before torch is imported, since torch looks
for devices then."""

import ctypes
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

SOURCE = Path(__file__).parent / "fake_cuda.cpp"


def has_compiler() -> bool:
    """Whether the device can be compiled here."""
    return shutil.which("g++") is not None


def build(folder: Path) -> Path:
    """Compile the device into `folder` and return the library."""
    spec = find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    library, home = folder / "fake_cuda.so", Path(spec.origin).parent
    compiler = ["g++", "-std=c++20", "-fPIC", "-shared", f"-I{home / 'include'}", str(SOURCE)]
    libraries = [f"-L{home / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{home / 'lib'}"]
    subprocess.run([*compiler, "-o", str(library), *libraries], check=True)
    return library


def load(library: Path | str) -> None:
    """Register the device with this process."""
    ctypes.CDLL(str(library))

"""A command outlives whatever it prints to."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import subprocess, sys
from pathlib import Path
from sft_hydra.observe.terminal import outlive_terminal
outlive_terminal()
from sft_hydra.observe.console import Console
log = open(sys.argv[1], "w")
assert log.fileno() > 2  # no file gets the number of what is closed
with Console(Path(sys.argv[2])) as console:
    for number in range(3000):
        console.say(f"line {number} " + "é" * 40)
    console.table("t", ["a"], [["b"]])
subprocess.run([sys.executable, "-c", "print('x' * 100)"], check=True)  # what it starts can print, too
print("done", file=log, flush=True)
"""


@pytest.mark.parametrize(
    "end", [">/dev/full", ">/dev/full 2>&1", "| head -n 1", "2>&1 | true", ">&-", ">&- 2>&-", "<&- >&- 2>&-"]
)
def test_nothing_that_happens_to_the_output_ends_a_command(tmp_path: Path, end: str) -> None:
    if "/dev/full" in end and not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    (tmp_path / "program.py").write_text(PROGRAM)
    line = f"set -o pipefail; '{sys.executable}' program.py done.txt log.txt {end}"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "done.txt").read_text() == "done\n"
    log = (tmp_path / "log.txt").read_text()
    assert "line 2999 é" in log
    assert "Traceback" not in done.stderr

"""Generated programs: right ones pass, wrong ones say why, and nothing gets out."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sft_hydra.evaluation.chatcore_tasks import TASKS, Question
from sft_hydra.evaluation.code_sandbox import run_program, run_programs
from sft_hydra.evaluation.humaneval import program_of


@pytest.mark.parametrize(
    ("program", "verdict"),
    [
        ("import math, re, typing, collections\nassert math.gcd(6, 4) == 2", "passed"),
        ("print('x' * 10**6)", "passed"),
        ("assert 1 == 2, 'no'", "AssertionError: no"),
        ("def f(:", "SyntaxError"),
        ("import sys\nsys.exit(0)", "SystemExit"),
        ("import os\nos._exit(0)", "died"),
        ("def f(): f()\nf()", "RecursionError"),
        ("x = 'a' * (4 << 30)", "MemoryError"),
        ("input()", "EOFError"),
        ("while True: pass", "time limit"),
        ("import time\ntime.sleep(60)", "time limit"),
        ("open('x', 'w')", "PermissionError"),
        ("import os\nos.remove('x')", "PermissionError"),
        ("import os\nos.system('true')", "PermissionError"),
        ("import os\nos.fork()", "PermissionError"),
        ("import subprocess\nsubprocess.run(['true'])", "PermissionError"),
        ("import socket\nsocket.create_connection(('127.0.0.1', 80))", "PermissionError"),
        ("import ctypes\nctypes.CDLL(None)", "PermissionError"),
        ("import os\nassert not [name for name in os.environ if 'KEY' in name or 'HOME' in name]", "passed"),
    ],
)
def test_verdicts(program: str, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert run_program(program, seconds=1).startswith(verdict)


def test_raw_system_calls_cannot_write_a_file_either(tmp_path: Path) -> None:
    """Beyond Python's own hooks, the limit of the process holds: nothing can grow."""
    target = tmp_path / "target"
    child = Path(__file__).parents[2] / "sft_hydra/evaluation/code_sandbox_child.py"
    script = f"import runpy, os\nm = runpy.run_path({str(child)!r})\nm['limit'](1, 1 << 30)\n"
    script += f"fd = os.open({str(target)!r}, os.O_WRONLY | os.O_CREAT)\nos.write(fd, b'x')\n"
    subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert target.stat().st_size == 0


def test_verdicts_come_in_order() -> None:
    assert run_programs(["assert True", "assert False", "x = 1"]) == ["passed", "AssertionError: ", "passed"]


def test_solutions_of_humaneval_pass_in_whatever_form_they_are_given(shared: Path) -> None:
    lines = (shared / "assets/eval/humaneval.jsonl").read_text().splitlines()[28:44]
    rows = [json.loads(line) for line in lines]
    questions = [Question(row["prompt"], "", row=row) for row in rows]
    forms = (
        "{prompt}{canonical_solution}",
        "{canonical_solution}",
        "Here it is:\n```python\n{prompt}{canonical_solution}```\nIt is short.",
    )
    for form in forms:
        grades = TASKS["humaneval"].grade(questions, [form.format(**row) for row in rows])
        assert [right for right, _ in grades] == [True] * len(rows)
    assert not any(right for right, _ in TASKS["humaneval"].grade(questions, ["    return None"] * len(rows)))


def test_a_function_alone_gets_what_the_prompt_defines_before_it() -> None:
    row = {
        "prompt": "import math\ndef helper(x):\n    return math.sqrt(x)\n\ndef f(x):\n    '''Root.'''\n",
        "entry_point": "f",
        "test": "def check(f):\n    assert f(4) == 2",
    }
    assert run_program(program_of(row, "```python\ndef f(x):\n    return helper(x)\n```")) == "passed"

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


EVERYWHERE = "import os\nfor pipe in range(3, 32):\n  try: os.write(pipe, b'passed')\n  except OSError: pass\n"


@pytest.mark.parametrize(
    ("program", "verdict"),
    [
        (EVERYWHERE, "wrote to the verdict pipe"),
        (EVERYWHERE + "os._exit(0)", "wrote to the verdict pipe"),
        (f"while True:\n  {EVERYWHERE.replace(chr(10), chr(10) + '  ')}", "wrote too much to the verdict pipe"),
        ("class passed(BaseException): pass\nraise passed", "passed: "),
        ("import os\nos.mkfifo('x')", "AttributeError"),
        ("import sys\ndel sys.modules['posix']\nimport posix\nposix.mknod('x')", "PermissionError"),
        (
            "import importlib.util as u\nm = u.module_from_spec(u.find_spec('posix'))\n"
            "try: m.mkfifo('x')\nexcept OSError: pass\nassert not m.listdir('.')",
            "passed",
        ),
        (
            "import builtins, sys\nmain = vars(sys.modules['__main__'])\n"
            "for name in [name for name in main if name[0] != '_']: main[name] = None\n"
            "builtins.type = builtins.isinstance = lambda *_: False\nopen('x', 'w')",
            "PermissionError",
        ),
        ("import gc\ngc.unfreeze()\ngc.get_objects()", "PermissionError"),
        ("open('/proc/self/mem', 'rb')", "PermissionError"),
        ("open(b'../../../proc/self/mem', 'rb')", "PermissionError"),
        ("import sys\nsys._current_frames()", "PermissionError"),
        ("import sys\nsys.settrace(print)", "PermissionError"),
        ("import asyncio, dataclasses, random, typing, unittest\nclass A(typing.NamedTuple):\n  x: int\n", "passed"),
        ("from __future__ import annotations\nx: Nothing = 1", "passed"),
        (f"x = '{'a' * 3_000_000}'", "passed"),
    ],
)
def test_programs_that_want_to_pass(program: str, verdict: str) -> None:
    assert run_program(program, seconds=2).startswith(verdict)


def test_no_frame_below_a_program_holds_a_way_to_pass() -> None:
    """All variables that a program finds below itself: none is bytes, as the token is, nor something that can be called
    to make it pass."""
    look = "import sys\nframe, found = sys._getframe().f_back, []\nwhile frame:\n  found += frame.f_locals.items()\n"
    look += "  frame = frame.f_back\nodd = [(k, v) for k, v in found if type(v).__name__ in ('bytes', 'map', 'tuple_iterator')]\n"
    look += "assert found and not [(k, v) for k, v in odd if k[0] != '_'], odd"
    assert run_program(look) == "passed"


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

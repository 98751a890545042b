"""Resolves `eval.tasks` to tasks of the lm-evaluation-harness: its tasks (on hub data or local files), ours (`humaneval` in a
sandbox, `spelling_bee`), and users' YAML files.

Imports lm_eval; load it through harness.py. Invariant: code written by a model runs only in our sandbox.
"""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import datasets
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from sft_hydra.config.rules_eval import is_path
from sft_hydra.errors import ConfigError, DataError
from sft_hydra.evaluation.benchmarks import BENCHMARKS, WITHOUT_HUB, read_benchmark
from sft_hydra.evaluation.chatcore_tasks import SPELLING_NUMBER, last_number, spelling_questions
from sft_hydra.evaluation.code_sandbox import run_program
from sft_hydra.schema.eval import EvalConfig

OURS = ("chatcore", "humaneval", "spelling_bee")
HUMANEVAL_STOPS = ["\nclass", "\ndef", "\n#", "\nif", "\nprint"]
HUMANEVAL_PROMPT = (
    "Write a solution to the following problem and make sure that it passes the tests:\n```python\n{{ prompt }}\n```\n"
)
HUMANEVAL_PREFIX = "Here is the completed function:\n```python\n{{ prompt }}\n"


@dataclass(frozen=True, slots=True)
class Suite:
    """One entry of `eval.tasks`; most have one task, `mmlu` has 57."""

    name: str
    tasks: list[ConfigurableTask]
    origin: str
    """File or hub id of its items."""


def load_suites(settings: EvalConfig) -> list[Suite]:
    """The tasks of `eval.tasks`. ConfigError for unknown or unsupported tasks, DataError if items cannot be read."""
    check_names(settings)
    suites: list[Suite] = []
    for name in settings.tasks:
        folder = Path(name).expanduser()
        if is_path(name) and folder.is_dir():
            manager = TaskManager(include_path=str(folder), include_defaults=False)
            loaded = _loaded(name, manager, manager.all_subtasks)
            suites += [Suite(task.task_name, [task], str(task.DATASET_PATH)) for task in loaded.tasks]
        elif name != "chatcore":
            suites.append(_suite(name, settings))
    names = [suite.name for suite in suites]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"eval.tasks: duplicate task name(s) {', '.join(twice)}; rename one of them in its file")
    return suites


def check_names(settings: EvalConfig) -> None:
    """ConfigError for unknown names in `eval.tasks`."""
    names = [name for name in settings.tasks if name not in OURS and not is_path(name)]
    unknown = [name for name in names if name not in _all_tasks().task_index]
    problems = []
    for name in unknown:
        near = difflib.get_close_matches(name, _all_tasks().all_tasks, n=3)
        problems.append(
            f"eval.tasks: {name} is not a task of the lm-evaluation-harness"
            + (f"; did you mean {', '.join(near)}?" if near else "")
            + " (for your own task file, use a path that contains a / or .yaml)"
        )
    if problems:
        raise ConfigError(*problems)


def _suite(name: str, settings: EvalConfig) -> Suite:
    path = Path(name).expanduser()
    if name == "humaneval":
        return _humaneval(settings)
    if name == "spelling_bee":
        return Suite(name, [ConfigurableTask(config=_spelling_bee())], "generated")
    if is_path(name):
        found = _loaded(name, TaskManager(include_defaults=False), [str(path)])
        return replace(found, name=found.tasks[0].task_name if len(found.tasks) == 1 else path.stem)
    manager = _all_tasks()
    _refuse_code(name, [manager.task_index[name].cfg or {}])
    if settings.data_dir is None:
        return _loaded(name, manager, [name])
    leaves = list(dict.fromkeys(_leaves(name, manager)))
    _refuse_code(name, [manager.task_index[leaf].cfg or {} for leaf in leaves])
    local = [_local_task(manager.task_index[leaf], settings) for leaf in leaves]
    return Suite(name, [task for task, _ in local], ", ".join(dict.fromkeys(origin for _, origin in local)))


@cache
def _all_tasks() -> TaskManager:
    """The harness's task index. Reading its thousands of YAML files takes seconds."""
    return TaskManager()


def _leaves(name: str, manager: TaskManager) -> Iterator[str]:
    """Names of the tasks of a task, group or tag of the harness. ConfigError for a group with inline settings."""
    entry = manager.task_index[name]
    members = sorted(entry.tags) if entry.kind.name == "TAG" else (entry.cfg or {}).get("task")
    if entry.kind.name not in ("TAG", "GROUP"):
        yield name
    elif isinstance(members, list) and all(isinstance(member, str) for member in members):
        for member in members:
            yield from _leaves(member, manager)
    else:
        raise ConfigError(
            f"eval.tasks: {name} is a group with inline settings, which is not supported with eval.data_dir; list its tasks"
        )


def _loaded(name: str, manager: TaskManager, specs: list[str]) -> Suite:
    try:
        tasks = list(manager.load(specs)["tasks"].values())
    except Exception as problem:  # network, invalid YAML, Python code in it: the library raises many types
        text = f"eval.tasks: {name} cannot be loaded ({type(problem).__name__}: {problem})"
        raise DataError(text, *([] if is_path(name) else [f"{name}: {WITHOUT_HUB}"])) from None
    if not tasks:
        raise ConfigError(f"eval.tasks: {name} contains no tasks")
    _refuse_code(name, [{"unsafe_code": getattr(task, "UNSAFE_CODE", False)} for task in tasks])
    return Suite(name, tasks, ", ".join(dict.fromkeys(str(task.DATASET_PATH) for task in tasks)))


def _refuse_code(name: str, configs: list[dict[str, Any]]) -> None:
    if any(config.get("unsafe_code") for config in configs):
        raise ConfigError(
            f"eval.tasks: {name} executes code written by the model outside a sandbox; of such tasks only humaneval is "
            "supported. Run lm_eval on the export in hf/ instead"
        )


def _local_task(entry: Any, settings: EvalConfig) -> tuple[ConfigurableTask, str]:
    """A task of the harness's index on rows of `eval.data_dir`, and the file of its items. ConfigError if it needs Python
    functions."""
    config: dict[str, Any] = entry.cfg or {}
    name, subset = entry.name, config.get("dataset_name")
    if "dataset_path" not in config or f"{entry.yaml_path.parent}/" in str(
        config
    ):  # then it refers to Python functions
        raise ConfigError(
            f"eval.tasks: {name} uses Python functions that need its original data: remove eval.data_dir for it, or write a "
            "task file for your rows"
        )
    known = [key for key, benchmark in BENCHMARKS.items() if benchmark.hub == config["dataset_path"]]
    stem = next((key for key in known if BENCHMARKS[key].subset == subset), known[0] if known else name)

    def read(split: str) -> tuple[datasets.Dataset, str]:
        found = read_benchmark(stem, split, settings.data_dir)
        rows = [row for row in found.rows if stem != "mmlu" or subset in (None, "all", row["subject"])]
        if not rows:
            raise DataError(f"eval.data_dir: {found.origin} contains no rows for {name}")
        return datasets.Dataset.from_list(rows), found.origin

    tested = "test" if config.get("test_split") else "validation"
    items, origin = read(tested)
    splits = {config.get(f"{tested}_split"): items}
    shots = settings.num_fewshot if settings.num_fewshot is not None else config.get("num_fewshot") or 0
    fewshot = config.get("fewshot_split") or config.get("training_split") or config.get("validation_split")
    if shots and fewshot not in splits and "samples" not in (config.get("fewshot_config") or {}):
        splits[fewshot] = read(str(fewshot))[0]
    unset = {
        key: None for key in ("training_split", "validation_split", "fewshot_split") if config.get(key) not in splits
    }
    return ConfigurableTask(config={**config, **unset, "custom_dataset": lambda **_: splits}), origin


def _humaneval(settings: EvalConfig) -> Suite:
    """The harness's `humaneval`, with a chat template `humaneval_instruct`; programs run in our sandbox."""
    found = read_benchmark("humaneval", "test", settings.data_dir)
    chat = settings.chat_template
    config = {
        "task": "humaneval",
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(found.rows)},
        "test_split": "test",
        "output_type": "generate_until",
        "num_fewshot": 0,
        "doc_to_text": HUMANEVAL_PROMPT if chat else "{{prompt}}",
        "doc_to_target": "{{test}}\ncheck({{entry_point}})",
        **({"gen_prefix": HUMANEVAL_PREFIX} if chat else {}),
        "generation_kwargs": {"until": HUMANEVAL_STOPS, "max_gen_toks": 1024, "do_sample": False},
        "process_results": _passes,
        "metric_list": [{"metric": "pass@1", "aggregation": "mean", "higher_is_better": True}],
    }
    return Suite("humaneval", [ConfigurableTask(config=config)], found.origin)


def _passes(row: dict[str, Any], answers: list[str]) -> dict[str, float]:
    code = answers[0].partition("```")[0]
    program = f"{row['prompt']}{code}\n{row['test']}\ncheck({row['entry_point']})\n"
    return {"pass@1": float(run_program(program) == "passed")}


def _spelling_bee() -> dict[str, Any]:
    rows = [{"question": question.text, "answer": question.expected} for question in spelling_questions()]
    return {
        "task": "spelling_bee",
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(rows)},
        "test_split": "test",
        "output_type": "generate_until",
        "num_fewshot": 0,
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": [], "max_gen_toks": 256, "do_sample": False},
        "process_results": _same_number,
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }


def _same_number(row: dict[str, Any], answers: list[str]) -> dict[str, float]:
    return {"exact_match": float(last_number(SPELLING_NUMBER, answers[0]) == row["answer"])}

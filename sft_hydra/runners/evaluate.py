"""runner=evaluate: evaluates the run's model on held-out conversations and benchmarks; also used before, during and after
training.

Writes evaluation.json (one entry per moment: `before`, `after`, `evaluate`) and samples.json.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sft_hydra.chat.token_bytes import token_bytes
from sft_hydra.chat.tokenizer import ChatTokenizer, load_tokenizer
from sft_hydra.engine.validate import validate
from sft_hydra.evaluation.chat import Chat, Prompt, Sampling
from sft_hydra.evaluation.exact_match import ExactMatchResult, load_items, run_exact_match
from sft_hydra.evaluation.harness import check_tasks
from sft_hydra.evaluation.prompts import DEMO, load_tools
from sft_hydra.files import exists, read_object
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.observe.console import Console, Work, counted
from sft_hydra.observe.run_report import write_report
from sft_hydra.observe.transcript import as_text
from sft_hydra.parallel.collectives import rank0_first
from sft_hydra.parallel.rendezvous import start_process_group
from sft_hydra.paths import RunPaths
from sft_hydra.planning.recipe import recipe_of
from sft_hydra.process.rank import this_rank
from sft_hydra.process.signals import StoppedError
from sft_hydra.runners import benchmark_runs
from sft_hydra.runners.answering import chat_over_ranks
from sft_hydra.runners.build_model import start_machine, trained_model
from sft_hydra.runners.data_prep import prepared_set
from sft_hydra.schema.config import SftConfig

KEPT_MISSES = 5  # per task, in evaluation.json


def run(cfg: SftConfig) -> dict[str, float]:
    """Validation loss, exact match and `eval.tasks` of the run's latest checkpoint, else of its initial model. Returns the
    scores."""
    assert cfg.run_dir is not None
    paths = RunPaths(Path(cfg.run_dir))
    if _harness_tasks(cfg):
        check_tasks(cfg.eval)  # fails early
    device, first = start_machine(cfg), this_rank().rank == 0
    start_process_group(device, cfg.cluster.start_timeout)
    with Console(paths.log, speak=first) as console:
        with rank0_first():
            packed = prepared_set(cfg, console)
            with console.work("loading the tokenizer"):
                tokenizer = load_tokenizer(cfg)
        with console.work("loading the model"):
            built = trained_model(cfg, tokenizer, device)
        console.say(f"model      {built.origin}")
        with console.work("validation") as work:
            sizes = token_bytes(tokenizer, built.model.config.vocab_size)
            scores = validate(built.model, packed, recipe_of(cfg), cfg.eval.tokens, sizes, counted(work, "rows"))
        if scores:
            console.table("validation", ["", "loss"], [(name, f"{value:.4f}") for name, value in scores.items()])
        if first:
            _keep(paths.evaluation, "evaluate", {"model": built.origin, **scores})
        scores |= evaluate_model(built.model, cfg, tokenizer, console, paths=paths, when="evaluate")
        scores |= _evaluate_tasks(built.model, cfg, tokenizer, console, paths)
        if first and paths.metrics.is_file():  # a training: update its report
            write_report(paths)
        return scores


def evaluate_model(
    model: DecoderModel, cfg: SftConfig, tokenizer: ChatTokenizer, console: Console, *, paths: RunPaths, when: str
) -> dict[str, float]:
    """Exact match and answers to `eval.samples`, if configured; printed, and saved under `when`.

    Returns `eval/exact_match` and `eval/exact_match/<task>`; empty without exact match and on
    ranks other than the first. All ranks must call it. A stop signal skips the rest.
    """
    items_path = cfg.eval.exact_match.path
    if items_path is None and not cfg.eval.samples:
        return {}
    scores: dict[str, float] = {}
    with chat_over_ranks(model, cfg, tokenizer) as chat:
        if chat is None:
            return scores
        try:
            scores |= _answered(chat, cfg, console, paths, when)
        except StoppedError:
            console.say("evaluation skipped: stop signal received")
    return scores


def _answered(chat: Chat, cfg: SftConfig, console: Console, paths: RunPaths, when: str) -> dict[str, float]:
    items_path, scores = cfg.eval.exact_match.path, {}
    if items_path is not None:
        with console.work("exact match") as work:
            result = _exact_match(chat, cfg, items_path, work)
        kept = _keep(paths.evaluation, when, _as_json(result))
        _show_tasks(console, kept, when)
        scores = {"eval/exact_match": result.average}
        scores |= {f"eval/exact_match/{task}": score for task, score in result.tasks.items()}
    if cfg.eval.samples:
        with console.work("sample answers"):
            answers = _sample_answers(chat, cfg)
        _keep(paths.samples, when, answers)
        for answer in answers:
            console.say(f"{answer['prompt']}  ->  {_on_one_line(answer['text'])}")
    return scores


def evaluate_chatcore(
    model: DecoderModel, cfg: SftConfig, tokenizer: ChatTokenizer, console: Console, *, paths: RunPaths, when: str
) -> dict[str, float]:
    """ChatCORE scores during training; `before` and `after` training also saved in evaluation.json. All ranks must call it and
    generate; the first returns the scores. Empty on the others and after a stop signal."""
    with chat_over_ranks(model, cfg, tokenizer) as chat:
        if chat is None:
            return {}
        try:
            brief = when == "training"
            scores, entry = benchmark_runs.chatcore(chat, cfg, console, paths.answers / when, brief)
        except StoppedError:
            console.say("ChatCORE skipped: stop signal received")
            return {}
        if not brief:
            _keep(paths.evaluation, when, entry)
        return scores


def _evaluate_tasks(
    model: DecoderModel, cfg: SftConfig, tokenizer: ChatTokenizer, console: Console, paths: RunPaths
) -> dict[str, float]:
    """Scores and entry of `eval.tasks`; empty if there are none."""
    if not cfg.eval.tasks:
        return {}
    folder = paths.answers / "evaluate"
    scores: dict[str, float] = {}
    with chat_over_ranks(model, cfg, tokenizer) as chat:
        if chat is None:
            return scores
        for is_configured, evaluate in (
            ("chatcore" in cfg.eval.tasks, benchmark_runs.chatcore),
            (_harness_tasks(cfg), benchmark_runs.harness),
        ):
            if is_configured:
                found, entry = evaluate(chat, cfg, console, folder)
                scores |= found
                _keep(paths.evaluation, "evaluate", entry)
        console.say(f"answers    {folder}")
    return scores


def _harness_tasks(cfg: SftConfig) -> bool:
    return any(task != "chatcore" for task in cfg.eval.tasks)


def _exact_match(chat: Chat, cfg: SftConfig, path: str, work: Work) -> ExactMatchResult:
    wanted = cfg.eval.exact_match
    sampling = Sampling(wanted.max_new_tokens)
    execute = load_tools(DEMO).execute if path == DEMO else None
    items = load_items(path, wanted.max_items)
    turns, written = sum(message["role"] == "assistant" for item in items for message in item.messages), 0

    def after_batch(answered: int) -> None:
        nonlocal written
        written += answered
        work.update(written, turns, f"{written:,} of at most {turns:,} answers")

    return run_exact_match(items, lambda prompts: chat.answer(prompts, sampling, after_batch=after_batch), execute)


def _sample_answers(chat: Chat, cfg: SftConfig) -> list[dict[str, str]]:
    tools = load_tools(cfg.eval.tools)
    prompts = [Prompt([{"role": "user", "content": text}], tools.definitions) for text in cfg.eval.samples]
    talks = chat.converse(prompts, tools.execute, Sampling(cfg.eval.sample_tokens))
    return [{"prompt": text, "text": as_text(talk)} for text, talk in zip(cfg.eval.samples, talks, strict=True)]


def _as_json(result: ExactMatchResult) -> dict[str, Any]:
    misses: dict[str, list[dict[str, Any]]] = {}
    for transcript in result.transcripts:
        if transcript.expected is not None:
            misses.setdefault(transcript.task, []).append(asdict(transcript))
    first = [miss for task in misses.values() for miss in task[:KEPT_MISSES]]
    return {"tasks": result.tasks, "average": result.average, "misses": first}


def _show_tasks(console: Console, kept: dict[str, Any], when: str) -> None:
    """Print one line per task, with a column for each moment."""
    moments = [moment for moment in kept if "tasks" in kept[moment]]
    lines = [(task, *(_percent(kept[moment]["tasks"].get(task)) for moment in moments)) for task in kept[when]["tasks"]]
    average = ("average", *(_percent(kept[moment]["average"]) for moment in moments))
    console.table("exact match on held-out conversations", ["task", *moments], [*lines, average])


def _on_one_line(text: str, longest: int = 90) -> str:
    line = " | ".join(text.splitlines())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def _percent(score: float | None) -> str:
    return "" if score is None else f"{score:.1%}"


def read_kept(path: Path) -> dict[str, Any]:
    """The entries of earlier moments in evaluation.json or samples.json. ConfigError if it cannot be read."""
    return read_object(path, fix="delete it (earlier results are then lost)") if exists(path) else {}


def _keep(path: Path, when: str, value: Any) -> dict[str, Any]:
    """Add the entry of one moment to a JSON file, merged with an existing one; returns all entries."""
    kept = read_kept(path)
    kept[when] = {**kept.get(when, {}), **value} if isinstance(value, dict) else value
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)
    return kept

"""runner=generate: the run's model answers `generate.prompts`, the lines of `generate.prompt_file`, or prompts typed in the
terminal."""

from pathlib import Path

from sft_hydra.chat.tokenizer import load_tokenizer
from sft_hydra.errors import ConfigError, DataError
from sft_hydra.evaluation.chat import Chat, Prompt, Sampling
from sft_hydra.evaluation.prompts import Tools, load_tools, read_prompts
from sft_hydra.observe.console import Console
from sft_hydra.observe.transcript import show
from sft_hydra.parallel.rendezvous import start_process_group
from sft_hydra.paths import RunPaths
from sft_hydra.process.rank import this_rank
from sft_hydra.records import Message
from sft_hydra.runners.answering import chat_over_ranks
from sft_hydra.runners.build_model import start_machine, trained_model
from sft_hydra.schema.config import SftConfig


def run(cfg: SftConfig) -> None:
    """Print answers of the run's latest checkpoint, else of its initial model."""
    assert cfg.run_dir is not None
    wanted = cfg.generate
    if not (wanted.prompts or wanted.prompt_file or wanted.interactive):
        raise ConfigError(
            "no prompts: set 'generate.prompts=[...]', generate.prompt_file=<file> or generate.interactive=true"
        )
    tools = load_tools(wanted.tools or cfg.eval.tools)
    prompts = [_prompt([{"role": "user", "content": text}], cfg, tools) for text in wanted.prompts]
    if wanted.prompt_file is not None:
        prompts += [
            _prompt(line.messages, cfg, Tools(line.tools) if line.tools else tools)
            for line in read_prompts(wanted.prompt_file)
        ]
    if not prompts and not wanted.interactive:
        raise DataError(f"generate.prompt_file={wanted.prompt_file} contains no prompts")
    device = start_machine(cfg)
    start_process_group(device, cfg.cluster.start_timeout)
    with Console(RunPaths(Path(cfg.run_dir)).log, speak=this_rank().rank == 0) as console:
        with console.work("loading the tokenizer"):
            tokenizer = load_tokenizer(cfg)
        with console.work("loading the model"):
            built = trained_model(cfg, tokenizer, device)
        console.say(f"model      {built.origin}")
        with chat_over_ranks(built.model, cfg, tokenizer) as chat:
            if chat is None:  # not rank 0: it has answered its share of the prompts
                return
            with console.work(f"answering {len(prompts)} prompts"):
                talks = chat.converse(prompts, tools.execute, _sampling(cfg))
            for prompt, talk in zip(prompts, talks, strict=True):
                console.say(f"\n> {prompt.messages[-1]['content']}", style="bold cyan")
                show(console, talk)
            if wanted.interactive:
                _talk(console, chat, cfg, tools)


def _talk(console: Console, chat: Chat, cfg: SftConfig, tools: Tools) -> None:
    """One conversation in the terminal, until an empty line or the end of input."""
    console.say("An empty line ends the conversation.", style="dim")
    messages: list[Message] = []
    while text := _ask():
        prompt = _prompt([*messages, {"role": "user", "content": text}], cfg, tools)
        [talk] = chat.converse([prompt], tools.execute, _sampling(cfg))
        show(console, talk)
        messages = [*prompt.messages, *talk]


def _ask() -> str:
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        return ""


def _prompt(messages: list[Message], cfg: SftConfig, tools: Tools) -> Prompt:
    if cfg.generate.system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": cfg.generate.system}, *messages]
    return Prompt(messages, tools.definitions, cfg.generate.thinking)


def _sampling(cfg: SftConfig) -> Sampling:
    return Sampling(cfg.generate.max_new_tokens, cfg.generate.temperature, cfg.generate.top_p)

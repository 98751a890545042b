"""Bytes of single lines, mutated by atheris, which sees what code they reach: parsed, checked, rendered and encoded one by
one. Anything but a reject or success is a crash. Needs `pip install atheris`.

    PYTHONPATH=tests python tests/reliability/fuzz_coverage.py -runs=100000
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["sft_hydra.data"]):
    from support.chats import data_cfg, question, write_jsonl
    from support.hostile import Grammar

    from sft_hydra.chat.render import Renderer
    from sft_hydra.chat.tokenizer import load_tokenizer
    from sft_hydra.data_prep.control_tokens import ControlTokenEscaper
    from sft_hydra.data_prep.conversation import to_conversation
    from sft_hydra.data_prep.filters import Filters
    from sft_hydra.data_prep.sources import MalformedRow, files_of, read_rows, sources_of
    from sft_hydra.errors import RowError

SEEDS = 500  # lines of the grammar to begin with


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_jsonl(Path(folder) / "line.jsonl", [question(1)])
        cfg = data_cfg(Path(folder) / "out", hostile=path)
        cfg.data.filters.tool_schema = cfg.data.filters.repetition = True
        tokenizer = load_tokenizer(cfg)
        renderer, filters, guard = (
            Renderer.of(tokenizer, cfg.data),
            Filters(cfg.data.filters),
            ControlTokenEscaper(tokenizer),
        )
        (source,) = sources_of(cfg.data)
        (file,) = files_of(source)

        def one(data: bytes) -> None:
            path.write_bytes(data.replace(b"\n", b" "))
            for _, row in read_rows(file, source, 0, None):
                if isinstance(row, MalformedRow):
                    continue
                try:
                    talk = to_conversation(row, source.config, source.name, "line:1")
                    filters.check(talk)
                    if guard.is_needed(talk):
                        talk = guard.mark(talk)
                    for sequence in renderer.sequences(talk):
                        sequence.text.encode()
                        guard.encode(sequence.text)
                except (RowError, RecursionError, UnicodeEncodeError):  # each is a reject in a preparation
                    continue

        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        grammar = Grammar(0)
        for number in range(SEEDS):
            (corpus / str(number)).write_bytes(grammar.line())
        atheris.Setup([*sys.argv, "-max_len=4000", "-rss_limit_mb=8000", str(corpus)], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()

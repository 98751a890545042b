"""Packed rows in one file of a few MB, so that a machine without chats and tokenizer can train on them.

    python benchmarks/rows_file.py CHAT_FOLDER TOKENIZER_FOLDER rows.npz [--count 112] [--seq-length 4096]

benchmarks/train_step.py and on_gpu.py take it as --rows.
"""

import argparse
from pathlib import Path

import numpy as np

from sft_hydra.records import PackedRow


def main() -> None:
    from train_step_cases import Case, published, real_rows  # needs torch, reading the file does not

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chat", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=112)
    parser.add_argument("--seq-length", type=int, default=4096)
    arguments = parser.parse_args()
    case = Case(published("qwen3_0_6b"), arguments.seq_length, 1, 1, "cpu")
    rows, vocab = real_rows(case, arguments.chat, arguments.tokenizer, arguments.count)
    save_rows(arguments.out, rows, vocab)
    print(f"{arguments.out}: {len(rows)} rows, {arguments.out.stat().st_size / 2**20:.1f} MiB")


def save_rows(file: Path, rows: list[PackedRow], vocab: int) -> None:
    """Write rows and the number of ids of their tokenizer."""
    np.savez_compressed(
        file,
        vocab=np.array(vocab),
        tokens=np.array([len(row.input_ids) for row in rows]),
        documents=np.array([len(row.seq_start_id) for row in rows]),
        input_ids=np.concatenate([row.input_ids for row in rows]),
        loss_mask=np.concatenate([row.loss_mask for row in rows]),
        seq_start_id=np.concatenate([row.seq_start_id for row in rows]),
        source_id=np.concatenate([row.source_id for row in rows]),
    )


def load_rows(file: Path, vocab_size: int | None = None) -> tuple[list[PackedRow], int]:
    """Rows, and the number of ids of their tokenizer. Ids beyond `vocab_size`, the model's, are taken modulo it: what they
    mean is nothing to a benchmark."""
    with np.load(file, allow_pickle=False) as data:
        tokens, documents = data["tokens"].cumsum()[:-1], data["documents"].cumsum()[:-1]
        ids = data["input_ids"] if vocab_size is None else data["input_ids"] % vocab_size
        of_tokens = (np.split(values, tokens) for values in (ids, data["loss_mask"]))
        of_documents = (np.split(data[name], documents) for name in ("seq_start_id", "source_id"))
        rows = [PackedRow(*fields) for fields in zip(*of_tokens, *of_documents, strict=True)]
        return rows, int(data["vocab"])


if __name__ == "__main__":
    main()

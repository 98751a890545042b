"""A base gets new tokens by LoRA: trained, resumed, exported, loaded by the peft library, gone on from and merged."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from support.chats import question, write_jsonl
from support.commands import SMALL
from support.packed import ARCHITECTURES, make_model, oracle_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from sft_hydra.chat.tokenizer import BUNDLED
from sft_hydra.cli import command

TOKENS = ('tokenizer.add_tokens=["<note>"]', 'tokenizer.add_special_tokens=["<|tool|>"]')


@pytest.mark.slow
@pytest.mark.parametrize("how", ["peft.trainable_new_tokens=true", "peft.modules_to_save=[embed_tokens,lm_head]"])
def test_from_the_base_to_what_peft_loads(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    oracle_of(make_model(ARCHITECTURES["llama"] | {"vocab_size": 768})).save_pretrained("base")
    shutil.copytree(BUNDLED, "base", dirs_exist_ok=True)
    rows = write_jsonl(tmp_path / "rows.jsonl", [question(number) for number in range(60)])
    common = [part for part in SMALL if not part.startswith(("model.", "export."))] + [
        "data=jsonl",
        f"data.path={rows.name}",
    ]
    lora = [*common, "model.path=base", "peft=lora", how, *TOKENS]
    for steps in (1, 2):
        assert command([*lora, f"train.train_iters={steps}"]) == 0
    assert command([*lora, "train.train_iters=2", "runner=export", "export.merge=true", "export.path=merged"]) == 0
    theirs = AutoPeftModelForCausalLM.from_pretrained("outputs/run/hf").eval()
    merged = AutoModelForCausalLM.from_pretrained("merged").eval()
    tokenizer = AutoTokenizer.from_pretrained("outputs/run/hf")
    ids = tokenizer("see <note> and <|tool|>", return_tensors="pt").input_ids
    assert {768, 769} <= set(ids[0].tolist())
    with torch.no_grad():
        assert torch.allclose(theirs(ids).logits, merged(ids).logits, atol=1e-4)
    assert merged.config.vocab_size == len(tokenizer) == 770
    assert command([*common, "name=more", "peft.path=outputs/run/hf", "train.train_iters=1"]) == 0
    assert AutoTokenizer.from_pretrained("outputs/more/hf").convert_tokens_to_ids("<|tool|>") == 769

"""On a CPU nothing is multiplied in bf16, which most of them do slowly, unless train.precision=bf16 asks for it: not in
training, LoRA, evaluation, generation or the check of the export, and not where the files of the model are bf16."""

from typing import Any

import pytest
import torch
from support.packed import ARCHITECTURES
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from sft_hydra.cli import command

PRODUCTS = {
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "addmv",
    "mv",
    "_scaled_dot_product_flash_attention_for_cpu",
    "convolution",
}


class ProductsInBf16(TorchDispatchMode):
    """Names of the products that are computed from tensors in bf16 while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.products = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in PRODUCTS:
            self.products += 1
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            if any(tensor.dtype is torch.bfloat16 for tensor in tensors):
                self.found.add(name)
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model whose files are bf16."""
    architecture = {key: value for key, value in ARCHITECTURES["qwen3"].items() if key != "vocab_size"}
    config = AutoConfig.for_model(**architecture, vocab_size=1024)
    folder = tmp_path_factory.mktemp("base")
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def products_of(folder, *arguments):
    with ProductsInBf16() as mode:
        assert command([
            f"output_dir={folder}", "name=run", "seq_length=256", "data=jsonl", "data.path=demo:train", "data.sample=80",
            "data.num_workers=1", "data.split={train:0.8,valid:0.2,test:0.0}", "tokenizer.path=demo", "train.train_iters=2",
            "train.global_batch_size=2", "eval.exact_match.path=demo", "eval.exact_match.max_items=1",
            "eval.exact_match.max_new_tokens=4", "eval.samples=[Hello]", "eval.sample_tokens=4", *arguments,
        ]) == 0  # fmt: skip
    assert mode.products > 0
    return mode.found


@pytest.mark.parametrize("how", [["optimizer=muon"], ["peft=lora"], ["peft=lora", "export.merge=true"]])
def test_of_a_model_in_bf16_nothing_is_multiplied_in_bf16(base, tmp_path, how):
    assert not products_of(tmp_path, "model=hf", f"model.path={base}", *how)


def test_it_is_where_it_is_asked_for(base, tmp_path):
    assert products_of(tmp_path, "model=hf", f"model.path={base}", "train.precision=bf16")

"""What benchmarks/train_step.py compares: training steps of sft_hydra and of its peers, one at a time, on the same rows.

Every party has `step()`, which does one optimizer step with all that belongs to it and returns its loss. Trainers
run `train()` in a thread of their own, which waits after each step until it is its turn again.
"""

import copy
import gc
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from threading import Semaphore, Thread
from typing import Any, Protocol

import torch
from train_step_cases import Case, lengths, make_cfg

from sft_hydra.engine.loop import TrainState, optimizer_step
from sft_hydra.engine.materialize import materialize_on_mesh
from sft_hydra.engine.optimizer import build_optimizer
from sft_hydra.kernels.library_choice import FLASH_ATTN, is_used
from sft_hydra.models.build import build_model, merged_state, transformers_model
from sft_hydra.models.decoder import DecoderModel
from sft_hydra.models.init_weights import init_weights
from sft_hydra.models.lora import add_adapters, init_adapters
from sft_hydra.planning.layout import Layout
from sft_hydra.planning.recipe import recipe_of
from sft_hydra.records import IGNORE_INDEX, PackedRow


class Party(Protocol):
    def step(self) -> float:
        """The loss of the next step."""

    def close(self) -> None: ...


def make_party(name: str, case: Case, rows: list[PackedRow]) -> Party:
    """A party by its name, with the same initial weights as every other."""
    makers: dict[str, Callable[[Case, list[PackedRow]], Party]] = {
        "sft_hydra": Ours,
        "trl": trl_party,
        "transformers": transformers_party,
    }
    return makers[name](case, rows)


class Ours:
    def __init__(self, case: Case, rows: list[PackedRow]) -> None:
        self.cfg, self.rows, self.state = make_cfg(case), rows, TrainState()
        self.model = our_model(case)
        self.optimizer = build_optimizer(self.model, self.cfg.optimizer, self.cfg.train.precision)

    def step(self) -> float:
        return optimizer_step(self.model, self.optimizer, self.rows, self.state, recipe_of(self.cfg), 10**6).loss

    def close(self) -> None:
        del self.model, self.optimizer
        gc.collect()  # blocks refer to themselves


def our_model(case: Case) -> DecoderModel:
    cfg, device = make_cfg(case), torch.device(case.device)
    frozen = torch.bfloat16 if case.device == "cuda" else torch.float32
    model = build_model(case.architecture, "meta", frozen if case.lora else torch.float32)
    if cfg.peft is not None:
        add_adapters(model, cfg.peft)
    materialize_on_mesh(model, cfg.train, Layout(), device)
    if device.type == "cuda":
        start_on_device(model)
    else:
        init_weights(model, cfg.seed, cfg.model.init_std)
    if cfg.peft is not None:
        init_adapters(model, cfg.seed)
    return model


@torch.no_grad()
def start_on_device(model: DecoderModel) -> None:
    """Weights such as init_weights draws, but by the device: the CPU takes minutes for billions of them."""
    torch.cuda.manual_seed(0)
    for buffer in model.buffers():
        buffer.zero_()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, 0.02)
        elif name.endswith("A_log"):
            parameter.copy_(torch.arange(1, len(parameter) + 1).log())
        else:  # norms, skips and biases, among them that of Mamba's steps
            parameter.fill_({"bias": 0.0, "dt_bias": -4.6}.get(name.rpartition(".")[2], 1.0))


class TrainerParty:
    """A transformers Trainer, step by step."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        from transformers import TrainerCallback
        from transformers.trainer_callback import PrinterCallback

        self.go, self.done = Semaphore(0), Semaphore(0)
        self.loss, self.error, self.stopping = float("nan"), None, False
        party = self

        class OneStepATurn(TrainerCallback):
            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
                if party.stopping:
                    return
                party.loss = float(logs["loss"])
                party.done.release()
                party.go.acquire()
                control.should_training_stop = party.stopping

        trainer = make(OneStepATurn())
        trainer.remove_callback(PrinterCallback)
        self.thread = Thread(target=self._train, args=(trainer,), daemon=True)

    def _train(self, trainer: Any) -> None:
        self.go.acquire()
        try:
            trainer.train()
        except Exception as error:
            self.error = error
        self.done.release()

    def step(self) -> float:
        if not self.thread.is_alive():
            self.thread.start()
        self.go.release()
        self.done.acquire()
        if self.error is not None:
            raise self.error
        return self.loss

    def close(self) -> None:
        self.stopping = True
        self.go.release()
        self.thread.join()
        gc.collect()


def trl_party(case: Case, rows: list[PackedRow]) -> Party:
    """SFTTrainer as its documentation recommends for speed: packed rows without padding, no recompute, fused AdamW."""
    from transformers import AutoTokenizer  # noqa: F401  (trl imports it lazily; a clear error here if it is missing)
    from trl import SFTConfig, SFTTrainer

    data = [row_fields(row) | {"seq_lengths": lengths(row).tolist()} for row in rows]

    def make(callback: Any) -> Any:
        return SFTTrainer(
            their_model(case),
            SFTConfig(
                packing=True, max_length=case.seq_length, dataset_kwargs={"skip_prepare_dataset": True}, **common(case)
            ),
            train_dataset=as_dataset(data),
            processing_class=any_tokenizer(),
            peft_config=their_lora(case),
            callbacks=[callback],
        )

    return TrainerParty(make)


def transformers_party(case: Case, rows: list[PackedRow]) -> Party:
    """Trainer on packed rows; a collator concatenates them with positions that restart for each."""
    from transformers import Trainer, TrainingArguments

    data = [row_fields(row) | {"seq_lengths": lengths(row).tolist()} for row in rows]

    def make(callback: Any) -> Any:
        model = their_model(case)
        if case.lora:
            from peft import get_peft_model

            model = get_peft_model(model, their_lora(case))
        return Trainer(
            model,
            TrainingArguments(remove_unused_columns=False, **common(case)),
            train_dataset=as_dataset(data),
            data_collator=flat,
            callbacks=[callback],
        )

    return TrainerParty(make)


def common(case: Case) -> dict[str, Any]:
    cuda = case.device == "cuda"
    cfg = make_cfg(case)
    return {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": case.micro,
        "gradient_accumulation_steps": case.rows // case.micro,
        "max_steps": 10**6,
        "learning_rate": cfg.optimizer.lr,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused",
        "bf16": cuda,
        "use_cpu": not cuda,
        "gradient_checkpointing": False,
        "use_liger_kernel": cuda and find_spec("liger_kernel") is not None,
        "train_sampling_strategy": "sequential",
        "dataloader_pin_memory": cuda,
        "logging_steps": 1,
        "disable_tqdm": True,
        "save_strategy": "no",
        "report_to": "none",
    }


def their_model(case: Case) -> Any:
    """The transformers implementation with weights of its own, equal to ours."""
    model = our_model(case)
    state = {name: tensor.detach().clone() for name, tensor in merged_state(model).items()}
    theirs = transformers_model(copy.deepcopy(model.config), state).to(case.device)
    flash = case.device == "cuda" and is_used(FLASH_ATTN)
    theirs.set_attn_implementation("flash_attention_2" if flash else "sdpa")
    theirs.config.use_cache = False
    return theirs.requires_grad_(True).train()


def their_lora(case: Case) -> Any:
    if not case.lora:
        return None
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", exclude_modules=["lm_head"])


def row_fields(row: PackedRow) -> dict[str, list[int]]:
    """Ids and labels that are not shifted: the trainers shift them."""
    labels = torch.full((len(row.input_ids),), IGNORE_INDEX)
    trained = torch.from_numpy(row.loss_mask[:-1].astype(bool))
    ids = torch.from_numpy(row.input_ids.astype("int64"))
    labels[1:][trained] = ids[1:][trained]
    return {"input_ids": ids.tolist(), "labels": labels.tolist()}


def flat(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    ids = torch.tensor([token for row in rows for token in row["input_ids"]])
    labels = torch.tensor([token for row in rows for token in row["labels"]])
    positions = torch.cat([torch.arange(length) for row in rows for length in row["seq_lengths"]])
    return {"input_ids": ids[None], "labels": labels[None], "position_ids": positions[None]}


def as_dataset(rows: list[dict[str, list[int]]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(rows)


def any_tokenizer() -> Any:
    """SFTTrainer wants one for its pad token, though the rows are ids already and are not padded."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<pad>": 0}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<pad>")

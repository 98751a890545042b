"""docs/config.md is what the dataclasses say today."""

from sft_hydra.config.reference import reference


def test_the_config_reference_is_up_to_date(pages: dict[str, str]) -> None:
    assert pages["docs/config.md"] == reference(), "run: python -m sft_hydra.config.reference > docs/config.md"


def test_it_has_keys_of_every_kind() -> None:
    page = reference()
    for line in (
        "| `seq_length` | integer, at least 1 and at most 100,000,000 | `4096` | Tokens of a packed sequence, in the packed set and in training. |",
        "| `train.precision` | `bf16`, `fp32` | `null` | null: bf16 on CUDA, fp32 on a CPU. Master weights and reductions are fp32 either way. |",
    ):
        assert line in page
    for key in (
        "data.sources.<name>.weight",
        "optimizer.lr",
        "optimizer.matrix_lr",
        "peft.dim",
        "logger.wandb.project",
    ):
        assert page.count(f"| `{key}` |") == 1

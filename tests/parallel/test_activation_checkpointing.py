"""What blocks compute again changes memory and nothing else."""

import pytest
import torch
from support.memory import peak_bytes
from support.packed import ARCHITECTURES, make_model, make_row

from sft_hydra.engine.batch import make_batch
from sft_hydra.engine.microbatches import forward_loss
from sft_hydra.parallel.activation_checkpointing import checkpoint_activations

WIDE = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 6, "head_dim": 32}


def run(family, kind, **architecture):
    """The loss, the gradients, and the most that a step holds beyond the weights."""
    model = make_model(ARCHITECTURES[family] | architecture)
    batch = make_batch([make_row([150, 30, 1, 219])], "cpu")
    for block in model.blocks:
        checkpoint_activations(block, kind)
    loss = []

    def step():
        loss.append(forward_loss(model, batch)[0])
        loss[0].backward()

    peak = peak_bytes(step)
    return loss[0].detach(), {n: p.grad for n, p in model.named_parameters()}, peak


@pytest.mark.parametrize("family", ["qwen3", "nano", "qwen3_moe"])
@pytest.mark.parametrize("kind", ["selective", "full"])
def test_loss_and_gradients_stay_as_they_are(family, kind):
    loss, gradients, _ = run(family, "none")
    again, same, _ = run(family, kind)
    assert torch.equal(loss, again)
    assert all(torch.equal(gradients[name], same[name]) for name in gradients)


def test_what_is_computed_again_is_not_kept():
    whole, selective, full = (run("qwen3", kind, **WIDE)[2] for kind in ("none", "selective", "full"))
    assert full < 0.5 * whole
    assert full < selective < 0.7 * whole

"""Training in fp8: emulated here, on the device where there is one; refused by name elsewhere."""

import pytest
import torch
from support.packed import ARCHITECTURES, RowList, make_model, make_row, relative
from torch.profiler import ProfilerActivity, profile

from sft_hydra.engine.batch import make_batch
from sft_hydra.engine.fp8 import check_fp8, use_fp8
from sft_hydra.engine.loop import TrainState, train_loop
from sft_hydra.engine.microbatches import forward_loss
from sft_hydra.engine.optimizer import build_optimizer
from sft_hydra.errors import ConfigError
from sft_hydra.parallel import compiled_blocks
from sft_hydra.parallel.mesh import SINGLE
from sft_hydra.parallel.parallelize import Options, parallelize
from sft_hydra.planning.recipe import recipe_of

WIDE = ARCHITECTURES["qwen3"] | {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


@pytest.fixture
def torchao():
    return pytest.importorskip("torchao.float8", reason="needs torchao (the extra `speed`)")


def losses(make_cfg, fp8, steps, device="cpu", **train):
    cfg = make_cfg(train=train)
    model = make_model(WIDE)
    if fp8:
        use_fp8(model, emulate=device == "cpu")
    model.to(device)
    model.rounds_to = torch.bfloat16 if train.get("precision") == "bf16" else None
    rows = RowList(make_row([5 + i, 20, 3, 1 + 2 * i], seed=i % 4) for i in range(4 * steps))
    found = []
    train_loop(
        model, build_optimizer(model, cfg.optimizer, cfg.train.precision), rows, TrainState(), recipe_of(cfg), steps,
        after_step=lambda result: found.append(result.loss), should_stop=lambda: False,
    )  # fmt: skip
    return found


def test_refused_on_a_cpu_by_name():
    with pytest.raises(ConfigError, match=r"train\.fp8=true: cpu does not support fp8"):
        check_fp8(torch.device("cpu"))


def test_names_stay_and_the_loss_is_nearly_the_same(torchao):
    plain, model = make_model(WIDE), make_model(WIDE)
    use_fp8(model, emulate=True)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert type(model.blocks[0].mlp.up_proj).__name__ == "Float8Linear"
    batch = make_batch([make_row([30, 21, 4, 42])], "cpu")
    ours, theirs = forward_loss(model, batch)[0].detach(), forward_loss(plain, batch)[0].detach()
    assert 0 < relative(ours, theirs) < 0.05


def test_refused_where_no_layer_can_be_converted(torchao):
    with pytest.raises(ConfigError, match=r"train\.fp8=true: no linear layer .* multiples of 16"):
        use_fp8(make_model(WIDE | {"hidden_size": 40, "intermediate_size": 40, "head_dim": 8}), emulate=True)


def backward(recompute, compiled):
    """What a backward pass of one block of fp8 layers does; what is compiled is compiled before."""
    model = make_model(WIDE | {"num_hidden_layers": 1})
    use_fp8(model, emulate=True)
    parallelize([model], model.blocks, SINGLE, Options(compile=compiled, recompute=recompute))
    return forward_loss(model, make_batch([make_row([30, 21, 4, 42])], "cpu"))[0].backward


@pytest.mark.parametrize(("recompute", "again"), [("selective", 0), ("full", 7)])
def test_products_are_computed_again_under_full_recompute_alone(torchao, monkeypatch, recompute, again):
    from torchao.float8 import float8_ops

    product, called = torch.ops.aten.mm.default, []
    compute = float8_ops.FLOAT8_OPS_TABLE[product]
    monkeypatch.setitem(float8_ops.FLOAT8_OPS_TABLE, product, lambda *args: called.append(1) or compute(*args))
    counts = []
    for work in (backward("none", False), backward(recompute, False)):
        called.clear()
        work()
        counts.append(len(called))
    assert counts == [14, 14 + again]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at it
@pytest.mark.parametrize(("recompute", "again"), [("selective", 0), ("full", 7)])
def test_the_same_in_compiled_blocks(torchao, monkeypatch, recompute, again):
    monkeypatch.setattr(compiled_blocks, "BACKEND", "aot_eager_decomp_partition")
    torch._dynamo.reset()
    work = backward(recompute, True)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        work()
    assert sum(event.name == "aten::mm" for event in profiler.events()) == 14 + again


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_ends_where_it_ends_without(make_cfg, torchao, precision):
    plain, fp8 = (losses(make_cfg, fp8, 8, precision=precision) for fp8 in (False, True))
    assert plain[-1] < 0.9 * plain[0]
    assert fp8 == pytest.approx(plain, rel=0.1)
    assert fp8 != plain


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_on_the_device_ends_where_it_ends_without(make_cfg, torchao):
    check_fp8(torch.device("cuda"))
    plain, fp8 = (losses(make_cfg, fp8, 8, "cuda", precision="bf16") for fp8 in (False, True))
    assert fp8 == pytest.approx(plain, rel=0.1)

"""A run that was saved under one layout goes on under any other as if nothing had happened."""

import json

import pytest
from safetensors import safe_open
from support.checkpoints import latest_in
from support.packed import relative
from support.ranks import run_ranks
from support.training import Case, make_cfg, placed_model, training_rows

from sft_hydra.checkpoint.state import Saver, load
from sft_hydra.engine.loop import TrainState, train_loop
from sft_hydra.engine.optimizer import build_optimizer
from sft_hydra.parallel.dtensor import full_tensor
from sft_hydra.planning.layout import Layout
from sft_hydra.planning.recipe import recipe_of
from sft_hydra.schema.peft import LoraConfig

SAVED_AFTER, STEPS = 2, 4
HYBRID = {
    "one": (1, {}),
    "fsdp": (2, {}),
    "hsdp": (4, {"dp_replicate": 2, "ep": 2}),
    "tensor": (4, {"tp": 2, "cp": 2, "ep": 4}),
    "pipeline": (4, {"pp": 2, "tp": 2, "ep": 2}),
    "three": (3, {}),
    "eight": (8, {"pp": 2, "cp": 2, "tp": 2, "ep": 2}),
}


def train(case, layout, folder, *, resume, until, async_save):
    """Train up to step `until`, from the latest checkpoint in `folder` or from the start; save after SAVED_AFTER."""
    cfg = make_cfg(case)
    cfg.checkpoint.async_save = async_save
    model = placed_model(case, cfg, layout)
    optimizer = build_optimizer(model, cfg.optimizer, cfg.train.precision)
    state = load(latest_in(folder), model, optimizer) if resume else TrainState()
    saver = Saver(folder, recipe_of(cfg), cfg.checkpoint)
    losses = []

    def after_step(result):
        losses.append(result.loss)
        if result.step == SAVED_AFTER:
            saver.save(model, optimizer, state)  # in the background, the next step begins while it writes

    train_loop(
        model,
        optimizer,
        training_rows(),
        state,
        recipe_of(cfg),
        STEPS,
        after_step=after_step,
        should_stop=lambda: state.step == until,
    )
    saver.wait()
    tensors = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            tensors[name] = full_tensor(parameter)
            tensors |= {f"{name}/{key}": full_tensor(value) for key, value in optimizer.state_of(parameter).items()}
    return losses, state, tensors


def run(case, shape, folder, **options):
    world, sizes = shape
    layout = Layout(gpus_per_node=world, **sizes)
    if world == 1:
        return train(case, layout, folder, **options)
    answers = run_ranks(world, train, case, layout, folder, **options)
    return answers[0][0], answers[0][1], {name: value for answer in answers for name, value in answer[2].items()}


def check(case, saved, resumed, folder, async_save):
    straight, _, expected = run(case, (1, {}), folder / "straight", resume=False, until=STEPS, async_save=False)
    begun, _, _ = run(case, saved, folder, resume=False, until=STEPS, async_save=async_save)
    assert begun == pytest.approx(straight, rel=1e-6)
    losses, state, tensors = run(case, resumed, folder, resume=True, until=STEPS, async_save=False)
    assert losses == pytest.approx(straight[SAVED_AFTER:], rel=1e-6)
    assert (state.step, state.rows_consumed) == (STEPS, 4 * STEPS)
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        assert relative(tensors[name], value) < 1e-4, name


@pytest.mark.parametrize(
    ("saved", "resumed", "async_save"),
    [
        ("tensor", "pipeline", True),
        pytest.param("pipeline", "one", False, marks=pytest.mark.distributed),
        pytest.param("one", "eight", False, marks=pytest.mark.distributed),
        pytest.param("eight", "three", True, marks=pytest.mark.distributed),
        pytest.param("fsdp", "hsdp", True, marks=pytest.mark.distributed),
        pytest.param("hsdp", "tensor", False, marks=pytest.mark.distributed),
        pytest.param("three", "fsdp", False, marks=pytest.mark.distributed),
    ],
)
def test_resumes_under_another_layout(tmp_path, saved, resumed, async_save):
    check(Case("nano", steps=STEPS), HYBRID[saved], HYBRID[resumed], tmp_path, async_save)


@pytest.mark.distributed
@pytest.mark.parametrize("resumed", [(1, {}), (4, {"tp": 2, "cp": 2}), (4, {"pp": 2})])
def test_adapters_and_tied_embeddings_resume_under_another_layout(tmp_path, resumed):
    lora = Case("llama", lora=LoraConfig(dim=4), steps=STEPS)
    check(lora, (4, {"pp": 2, "tp": 2}), resumed, tmp_path / "lora", True)
    check(Case("qwen3", steps=STEPS), (2, {"pp": 2}), resumed, tmp_path / "tied", False)


@pytest.mark.distributed
def test_every_number_is_written_once_and_no_rank_writes_what_another_holds(tmp_path):
    case = Case("nano", steps=STEPS)
    run(case, HYBRID["hsdp"], tmp_path, resume=False, until=SAVED_AFTER, async_save=False)
    expected = placed_model(case, make_cfg(case), Layout()).state_dict()
    written = dict.fromkeys(expected, 0)
    for file in sorted((tmp_path / f"step_{SAVED_AFTER}").glob("model-*.safetensors")):
        with safe_open(file, framework="pt") as part:
            starts = json.loads(part.metadata()["parts"])
            for name in part.keys():  # noqa: SIM118 (not a dictionary)
                assert starts[name]["whole"] == list(expected[name].shape)
                written[name] += part.get_tensor(name).numel()
    assert written == {name: tensor.numel() for name, tensor in expected.items()}

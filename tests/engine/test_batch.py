"""Batches on their way to a CUDA device, which a mode stands in for."""

import torch
from support.packed import make_row
from torch.overrides import TorchFunctionMode

from sft_hydra.engine.batch import make_batch
from sft_hydra.parallel.mesh import SINGLE


class Device(TorchFunctionMode):
    """Records copies to a device; tensors stay where they are."""

    def __init__(self):
        super().__init__()
        self.pinned, self.copies = set(), []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.Tensor.pin_memory:
            copy = args[0].clone()
            self.pinned.add(id(copy))
            self.copies.append(copy)  # alive, so that no other tensor gets its id
            return copy
        if function is torch.Tensor.to and len(args) > 1 and getattr(args[1], "type", "") == "cuda":
            assert id(args[0]) in self.pinned, "a copy from memory that is not pinned waits for the device"
            assert kwargs == {"non_blocking": True}
            return args[0]
        return function(*args, **kwargs)


def test_a_batch_is_copied_from_pinned_memory():
    batch = make_batch([make_row([11, 30, 23])], "cpu")
    with Device() as device:
        part = batch.part(SINGLE, torch.device("cuda"))
    assert len(device.copies) == 6
    assert torch.equal(part.input_ids, batch.input_ids)
    assert torch.equal(part.trained, batch.trained)

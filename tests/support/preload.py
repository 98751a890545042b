"""What every rank would import for itself, slowly; see ranks.py."""

import torch.distributed.fsdp
import torch.distributed.pipelining
import torch.distributed.tensor  # noqa: F401
from support import training  # noqa: F401
from support.packed import ARCHITECTURES

from sft_hydra.models.build import read_config

for architecture in ARCHITECTURES.values():
    read_config(architecture)

"""What torch's CUDA allocator reads from the environment when it is first used; to be set before torch is. Torch-free."""

import os

NAMES = (
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_HIP_ALLOC_CONF",
)  # the current name, then the older ones


def use_expandable_segments() -> None:
    """Let the allocator grow its segments, unless the user has configured it: packed batches differ in their numbers of
    documents and supervised tokens, and segments of a fixed size fragment."""
    if not any(name in os.environ for name in NAMES):
        os.environ[NAMES[0]] = "expandable_segments:True"

"""Silences log messages of libraries that do not concern users: `quiet_third_party_logs`."""

import logging

# torchao warns about compiled kernels that do not fit this torch, and through torch's pytree about its own enums. None of
# them is used here; errors are still shown.
NOISY = ("torchao", "torch.utils._pytree")


def quiet_third_party_logs() -> None:
    """Show only errors of the libraries in NOISY. Called before they are imported, because they warn on import."""
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)

"""Summary of sequence lengths: `percentiles`."""

import numpy as np
from numpy.typing import NDArray

PERCENTILES = (5, 25, 50, 75, 95, 99, 100)


def percentiles(lengths: NDArray[np.int64]) -> dict[str, int]:
    """{"p50": tokens, ...}; empty without sequences."""
    if not len(lengths):
        return {}
    values = np.percentile(lengths, PERCENTILES, method="inverted_cdf")
    return {f"p{percent}": int(value) for percent, value in zip(PERCENTILES, values, strict=True)}

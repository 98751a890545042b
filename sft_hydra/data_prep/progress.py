"""Progress of a preparation: `Progress`, and `Reporter`, which sums the counts that workers report."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from sft_hydra.data_prep.plan import Plan


@dataclass(slots=True)
class Progress:
    """Progress of a preparation. `stage`: tokenize or pack; `shards` are those of the stage; `trained_tokens`: supervised
    tokens; `seconds` since its beginning."""

    stage: str
    rows: int
    total_rows: int
    tokens: int
    trained_tokens: int
    rejected: int
    shards: int
    total_shards: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Mean rate since the beginning; 0 if no time has passed."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


OnProgress = Callable[[Progress], None]


class Reporter:
    """Sums the counts that workers report and passes a copy to `on_progress`."""

    def __init__(self, plan: Plan, on_progress: OnProgress | None) -> None:
        self.on_progress = on_progress
        self.began = time.monotonic()
        self.now = Progress("tokenize", 0, plan.total_rows, 0, 0, 0, 0, len(plan.shards), 0.0)

    def stage(self, name: str) -> Callable[[], None]:
        """Begin a stage (tokenize or pack). Returns the function to call when a shard is done."""
        self.now.stage, self.now.shards = name, 0

        def shard_done() -> None:
            self.now.shards += 1
            self.add(0, 0, 0, 0)

        return shard_done

    def add(self, rows: int, tokens: int, trained: int, rejected: int) -> None:
        """Add counts of rows, tokens, supervised tokens and rejected rows."""
        now = self.now
        now.rows += rows
        now.tokens += tokens
        now.trained_tokens += trained
        now.rejected += rejected
        now.seconds = time.monotonic() - self.began
        if self.on_progress is not None:
            self.on_progress(Progress(**asdict(now)))

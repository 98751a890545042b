"""Errors for people: what is wrong, where, the value, the fix. `UserError` and its kinds end a command with exit code 2
and no traceback; everything else is a bug or a broken machine and keeps its traceback (exit code 1)."""

from sft_hydra.secret_text import hidden


class UserError(Exception):
    """Something the user can put right. One message may name several problems, one a line.

    Built from strings only, because these cross process borders as text. A secret in them is not shown.
    """

    code = "error"

    def __init__(self, *problems: str) -> None:
        self.problems = [hidden(problem) for problem in problems]
        super().__init__("\n".join(self.problems))

    def describe(self) -> str:
        """All problems as they are shown to people."""
        heading = "Invalid config" if self.code == "config" else f"Stopped ({self.code})"
        return "\n".join([f"{heading}:", *(f"  - {problem}" for problem in self.problems)])


class ConfigError(UserError):
    """The command or a YAML file asks for something that cannot be."""

    code = "config"


class DataError(UserError):
    """Input rows, templates or tokenizers that cannot be used as they are."""

    code = "data"


class RowError(Exception):
    """One row of data that is not used: `reason` is a short fixed word that is counted, `detail` tells more. It ends no
    command; it becomes a line of rejects.jsonl."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class MissingPackedDataError(DataError):
    """The packed data set that the run needs is not there."""

    code = "missing_packed_data"


class TokenizerMismatchError(DataError):
    """The packed data was made with another tokenizer or template than the run uses."""

    code = "tokenizer_mismatch"


class SeqLengthMismatchError(DataError):
    """The packed data was made for another `seq_length`."""

    code = "seq_length_mismatch"


class CheckpointError(UserError):
    """A checkpoint that is missing, incomplete, of another format, or of another run."""

    code = "checkpoint"


class ModelError(UserError):
    """A model folder or architecture that cannot be used."""

    code = "model"


class NonFiniteLossError(UserError):
    """A loss or gradient that is not a number; the step was not taken."""

    code = "non_finite_loss"


class OutOfMemoryError(UserError):
    """The memory of a device is not enough for this run."""

    code = "oom"


class TrackerError(UserError):
    """A tracker whose package is not installed, or that refuses the run."""

    code = "tracker"


class ClusterError(UserError):
    """Slurm is not there, refuses the job, or does not know it; or the ranks of a run do not find each other."""

    code = "cluster"

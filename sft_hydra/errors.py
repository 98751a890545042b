"""Errors for users: what is wrong, where, the value, the fix. `UserError` and its subclasses end a command with exit code 2
and without a traceback; everything else is a bug or a system failure and keeps its traceback (exit code 1)."""

from sft_hydra.secret_text import hidden


class UserError(Exception):
    """An error that the user can fix. One error may list several problems, one per line.

    Built from strings only, because these cross process borders as text. A secret in them is not shown.
    """

    code = "error"

    def __init__(self, *problems: str) -> None:
        self.problems = [hidden(problem) for problem in problems]
        super().__init__("\n".join(self.problems))

    def describe(self) -> str:
        """All problems as shown to the user."""
        heading = "Invalid config" if self.code == "config" else f"Stopped ({self.code})"
        return "\n".join([f"{heading}:", *(f"  - {problem}" for problem in self.problems)])


class ConfigError(UserError):
    """Invalid setting in the command or a YAML file."""

    code = "config"


class DataError(UserError):
    """Input rows, templates or tokenizers that cannot be used."""

    code = "data"


class RowError(Exception):
    """A rejected row of data: `reason` is a short fixed word that is counted, `detail` a description. It does not end the
    command; it becomes a line of rejects.jsonl."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class MissingPackedDataError(DataError):
    """The packed set of the run does not exist and may not be prepared."""

    code = "missing_packed_data"


class TokenizerMismatchError(DataError):
    """The packed set was prepared with a tokenizer or template other than the run's."""

    code = "tokenizer_mismatch"


class SeqLengthMismatchError(DataError):
    """The packed set was prepared for another `seq_length`."""

    code = "seq_length_mismatch"


class CheckpointError(UserError):
    """A checkpoint that is missing, incomplete, of another format, or of another run."""

    code = "checkpoint"


class ModelError(UserError):
    """A model folder or architecture that cannot be used."""

    code = "model"


class NonFiniteLossError(UserError):
    """The loss or gradient is not finite; the model was not updated."""

    code = "non_finite_loss"


class OutOfMemoryError(UserError):
    """The device or the host has too little memory for this run."""

    code = "oom"


class TrackerError(UserError):
    """A tracker whose package is not installed, or that rejects the run."""

    code = "tracker"


class ClusterError(UserError):
    """Slurm is not installed or rejects the job, a job is not found, or the ranks of a run cannot connect."""

    code = "cluster"

"""Standard output and error that a command outlives: `outlive_terminal()` at the start of a process.

Owns that a run never ends because nobody reads what it prints: a closed descriptor, a reader that has gone (`| head -1`), a full
disk behind `> file`. What cannot be printed any more is dropped; log.txt has it all.
"""

import os
import sys
from errno import EPIPE
from typing import Any, TextIO

DESCRIPTORS = (0, 1, 2)


def outlive_terminal() -> None:
    """From now on `print` never fails in this process. Descriptors 0 to 2 that are closed lead nowhere, so that no other file
    gets their number."""
    for descriptor in DESCRIPTORS:
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 (as long as the process)
    sys.stdout = _Lasting(sys.stdout or _writer(1), 1)  # type: ignore[assignment]
    sys.stderr = _Lasting(sys.stderr or _writer(2), 2)  # type: ignore[assignment]


def _writer(descriptor: int) -> TextIO:
    return open(descriptor, "w", encoding="utf-8", errors="backslashreplace", closefd=False)


class _Lasting:
    """A text stream whose writes cannot fail: when one does, its descriptor leads nowhere from then on."""

    def __init__(self, stream: TextIO, descriptor: int) -> None:
        self._stream, self._descriptor = stream, descriptor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            return self.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError) as problem:
            self._give_up(problem)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as problem:
            self._give_up(problem)

    def _give_up(self, problem: OSError | ValueError) -> None:
        """What waits in the stream goes nowhere as well, and so does what this process's children print there."""
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._descriptor)
            os.close(nowhere)
            self._stream.flush()
        except (OSError, ValueError):
            pass
        if (
            self._descriptor == 1 and getattr(problem, "errno", EPIPE) != EPIPE
        ):  # a reader that has gone wants no message
            print(f"standard output cannot be written ({problem}); the command goes on without it", file=sys.stderr)

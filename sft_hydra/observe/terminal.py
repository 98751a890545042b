"""Standard output and error whose writes never fail: `outlive_terminal()` at the start of a process.

Owns that a run does not end because its output cannot be written: a closed descriptor, a reader that has exited (`| head -1`), a
full disk behind `> file`. Such output is dropped; log.txt has all of it.
"""

import os
import sys
from errno import EPIPE
from typing import Any, TextIO

DESCRIPTORS = (0, 1, 2)


def outlive_terminal() -> None:
    """From now on `print` never fails in this process. Closed descriptors 0 to 2 are opened on /dev/null, so that other files
    do not get their numbers."""
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
    """A text stream whose writes cannot fail: after an error its descriptor is redirected to /dev/null."""

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
        """Redirect the descriptor to /dev/null, for buffered text and for child processes too."""
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._descriptor)
            os.close(nowhere)
            self._stream.flush()
        except (OSError, ValueError):
            pass
        if (
            self._descriptor == 1 and getattr(problem, "errno", EPIPE) != EPIPE
        ):  # EPIPE: the reader has exited on purpose
            print(f"standard output cannot be written ({problem}); the command continues without it", file=sys.stderr)

"""Console output of a run: live progress on a terminal, plain periodic lines elsewhere, everything in log.txt.

Only rank 0 prints; other ranks get a silent console.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

LOG_WIDTH = 120
QUIET_SECONDS = 5.0  # between two plain lines of a long task
FIRST_SECONDS = 2.0  # after which a task that is still going on is named, and again after so many:
SILENT_SECONDS = 30.0


class Console:
    """Prints to the terminal and to the run's log. `log=None`: terminal only. `speak=False`: no output."""

    def __init__(self, log: Path | None = None, *, speak: bool = True) -> None:
        width = None if sys.stdout is not None and sys.stdout.isatty() else LOG_WIDTH
        self._screen = RichConsole(quiet=not speak, highlight=False, width=width, soft_wrap=width is not None)
        self._file = None
        if log is not None and speak:
            log.parent.mkdir(parents=True, exist_ok=True)
            self._file = log.open("a", encoding="utf-8")
        self._log = RichConsole(file=self._file, width=LOG_WIDTH, highlight=False) if self._file else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file:
            self._file.close()
            self._file, self._log = None, None

    @property
    def live(self) -> bool:
        """Whether the output is a terminal (and not silent)."""
        return self._screen.is_terminal and not self._screen.quiet

    def say(self, text: str = "", style: str | None = None) -> None:
        """One line (or several) of plain text; square brackets are not markup."""
        self._screen.print(text, style=style, markup=False)
        self.note(text)

    def print(self, text: Text) -> None:
        """Styled text."""
        self._screen.print(text)
        self.note(text.plain)

    def note(self, text: str) -> None:
        """Write to the log only."""
        if self._log and self._file:
            self._log.print(text, markup=False, soft_wrap=True)
            self._file.flush()

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table; the first column is left-aligned, the others right-aligned."""
        table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
        for index, column in enumerate(columns):
            table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*(_plain(cell) for cell in row))
        self._screen.print(table)
        if self._log:
            self._log.print(table)

    @contextmanager
    def steps(self, total: int, done: int, every: int) -> Iterator["Steps"]:
        """Progress of training: bar and metrics on a terminal, a line every `every` steps elsewhere."""
        with _progress(self._screen, self.live, MofNCompleteColumn(), TextColumn("{task.fields[figures]}")) as progress:
            task = progress.add_task("training", total=total, completed=done, figures="")
            yield Steps(self, progress, task, total, every)

    @contextmanager
    def work(self, name: str, total: int | None = None) -> Iterator["Work"]:
        """Progress of another long task; `total` in the caller's unit, None if unknown."""
        with _progress(self._screen, self.live, TextColumn("{task.fields[figures]}")) as progress:
            task = progress.add_task(name, total=total, figures="")
            work = Work(self, progress, task, name)
            with work.shown_while_it_lasts():
                yield work


class Steps:
    """Progress of training, from `Console.steps`."""

    def __init__(self, console: Console, progress: Progress, task: object, total: int, every: int) -> None:
        self._console, self._progress, self._task, self._total, self._every = console, progress, task, total, every
        self._start = time.monotonic()
        self._first: int | None = None

    def update(self, step: int, figures: str) -> None:
        """After step number `step` (1-based)."""
        self._progress.update(self._task, completed=step, figures=figures)  # type: ignore[arg-type]
        self._first = step - 1 if self._first is None else self._first
        if step % self._every and step != self._total:
            return
        left = (time.monotonic() - self._start) / (step - self._first) * (self._total - step)
        line = f"step {step}/{self._total}  {figures}  left {_clock(left)}"
        if self._console.live:
            self._console.note(line)
        else:
            self._console.say(line)


class Work:
    """Progress of a long task, from `Console.work`."""

    def __init__(self, console: Console, progress: Progress, task: object, name: str) -> None:
        self._console, self._progress, self._task, self._name = console, progress, task, name
        self._started = self._last = time.monotonic()
        self._figures = self._shown = ""

    def update(self, completed: float, total: float | None, figures: str) -> None:
        """Show the new state; without a terminal as a line, at most every QUIET_SECONDS."""
        self._progress.update(self._task, completed=completed, total=total, figures=figures)  # type: ignore[arg-type]
        self._figures = figures
        if not self._console.live and time.monotonic() - self._last > QUIET_SECONDS:
            self._say(figures)

    def stage(self, what: str) -> None:
        """Name the current part of a task whose length is unknown."""
        self.update(0, None, what)

    @contextmanager
    def shown_while_it_lasts(self) -> Iterator[None]:
        """Without a terminal: print the name of the task if it takes long and prints nothing itself."""
        if self._console.live:
            yield
            return
        over = threading.Event()
        watch = threading.Thread(target=self._watch, args=(over,), daemon=True)
        watch.start()
        try:
            yield
        finally:
            over.set()
            watch.join()

    def _watch(self, over: threading.Event) -> None:
        pause = FIRST_SECONDS
        while not over.wait(max(0.0, self._last + pause - time.monotonic())):
            if time.monotonic() - self._last >= pause:  # otherwise something was printed meanwhile
                self._say(self._figures)
            pause = SILENT_SECONDS

    def _say(self, figures: str) -> None:
        self._last = time.monotonic()
        seconds = self._last - self._started
        news = [figures] if figures else []
        if figures == self._shown:  # without news, at least the time
            news.append(f"{seconds:.0f} s so far")
        self._shown = figures
        self._console.say(f"{self._name}: {', '.join(news)}")


def counted(work: Work, unit: str) -> Callable[[int, int], None]:
    """A callback (done, total) that shows how far a task is."""
    return lambda done, total: work.update(done, total, f"{done:,} of {total:,} {unit}")


def _progress(screen: RichConsole, live: bool, *figures: object) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        *figures,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=screen, disable=not live, transient=True)  # type: ignore[arg-type]


def _plain(cell: str) -> str:
    return cell.replace("[", "\\[")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

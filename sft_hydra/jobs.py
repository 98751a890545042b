"""`python -m sft_hydra.jobs list|logs|cancel|wait <run>`: manages submitted runs. <run> is a run's folder, or a folder of runs
(a sweep, `outputs`). Torch-free; exit code 0, 1 if a job did not succeed, 2 for an invalid command."""

import argparse
import sys
from pathlib import Path

from sft_hydra.errors import ClusterError, UserError
from sft_hydra.launch.job import SlurmJob, find_jobs, job_states
from sft_hydra.launch.job_log import attach, follow, wait
from sft_hydra.observe.console import Console
from sft_hydra.observe.terminal import outlive_terminal


def main() -> None:
    outlive_terminal()
    arguments = _parser().parse_args()
    try:
        succeeded = arguments.command(arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    sys.exit(0 if succeeded else 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sft_hydra.jobs", description="List, follow, cancel or wait for submitted runs."
    )
    commands = parser.add_subparsers(required=True, metavar="list|logs|cancel|wait")
    for command, text in (
        (_list, "show job, state and folder of every run"),
        (_logs, "print the output of the job"),
        (_cancel, "cancel the job; its last checkpoint is kept"),
        (_wait, "wait until the job has ended; exit code 0 if it succeeded"),
    ):
        sub = commands.add_parser(command.__name__[1:], help=text)
        sub.set_defaults(command=command)
        optional = command is _list
        sub.add_argument(
            "run",
            type=Path,
            nargs="?" if optional else None,
            default=Path("outputs") if optional else None,
            help="a run's folder, or a folder of runs",
        )
        if command is _logs:
            sub.add_argument(
                "-f", "--follow", action="store_true", help="follow until the job has ended; Ctrl-C does not cancel it"
            )
    return parser


def _handles(run: Path) -> list[SlurmJob]:
    handles = find_jobs(run.resolve())
    if not handles:
        reason = "contains no submitted run" if run.is_dir() else "no such folder"
        raise ClusterError(f"{run}: {reason}; `python -m sft_hydra.jobs list` shows those in outputs/")
    return handles


def _list(arguments: argparse.Namespace) -> bool:
    handles = _handles(arguments.run)
    root = arguments.run.resolve()
    rows = [
        (str(handle.folder.relative_to(root)), handle.job_id, str(state), handle.submitted)
        for handle, state in zip(handles, job_states(handles), strict=True)
    ]
    Console().table(str(arguments.run), ["run", "job", "state", "submitted"], rows)
    return True


def _logs(arguments: argparse.Namespace) -> bool:
    handles = _handles(arguments.run)
    if len(handles) > 1:
        raise ClusterError(
            f"{arguments.run} contains {len(handles)} runs; choose one:", *(f"  {h.folder}" for h in handles)
        )
    if arguments.follow:
        return attach(handles, _say)
    follow(handles[0], _say, to_end=False)
    return True


def _cancel(arguments: argparse.Namespace) -> bool:
    for handle in _handles(arguments.run):
        handle.cancel()
        print(f"cancelled job {handle.job_id} of {handle.folder}; rerun its command to resume from the last checkpoint")
    return True


def _wait(arguments: argparse.Namespace) -> bool:
    succeeded = True
    for handle in _handles(arguments.run):
        state = wait(handle)
        print(f"job {handle.job_id}: {state}  {handle.folder}", flush=True)
        succeeded = succeeded and state.name == "COMPLETED"
    return succeeded


def _say(text: str) -> None:
    print(text, end="", flush=True)


if __name__ == "__main__":
    main()

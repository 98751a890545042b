"""The process that code_sandbox.py starts: it drops privileges, then runs a generated program.

Run by file name, without imports from this package: the program is read from stdin, the verdict written to stdout, `passed`
or its exception. It protects against mistakes in generated code, not against hostile code (use a container for that).
"""

import os
import resource
import sys

DENIED = (
    "os.",
    "shutil.",
    "subprocess.",
    "socket.",
    "ctypes.",
    "pty.",
    "mmap.",
    "sqlite3.",
    "signal.",
    "webbrowser.",
    "tempfile.",
)
HARMLESS = ("os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.add_dll_directory")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
NEW_USER_AND_NETWORK = 0x10000000 | 0x40000000  # CLONE_NEWUSER | CLONE_NEWNET


def limit(seconds: int, memory: int) -> None:
    """Set resource limits: processor time (s), memory (bytes), no file writes, no child processes."""
    for kind, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(kind, (most, most))


def leave_network() -> None:
    """Enter an empty network namespace, if the kernel allows it."""
    import ctypes

    ctypes.CDLL(None).unshare(NEW_USER_AND_NETWORK)


def watch(event: str, arguments: tuple[object, ...]) -> None:
    """Audit hook (cannot be removed): PermissionError for file writes, new processes and network access."""
    if event == "open":
        mode, flags = arguments[1], arguments[2]
        if (isinstance(mode, str) and set(mode) & set("wax+")) or (isinstance(flags, int) and flags & WRITING):
            raise PermissionError(f"sandbox: {arguments[0]!r} may not be written")
    elif event.startswith(DENIED) and event not in HARMLESS:
        raise PermissionError(f"sandbox: {event} is not allowed")


def main() -> None:
    """Run the program from stdin under the limits of the command line."""
    seconds, memory = int(sys.argv[1]), int(sys.argv[2])
    program = sys.stdin.read()
    output = os.dup(1)
    silent = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silent, stream)
    leave_network()
    limit(seconds, memory)
    sys.addaudithook(watch)
    try:
        exec(compile(program, "answer.py", "exec"), {"__name__": "__main__"})
        verdict = "passed"
    except BaseException as error:
        verdict = f"{type(error).__name__}: {error}"[:300]
    os.write(output, verdict.encode("utf-8", "replace"))
    os._exit(0)


if __name__ == "__main__":
    main()

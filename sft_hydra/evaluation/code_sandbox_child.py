"""The process that code_sandbox.py starts: it drops privileges, then runs a generated program.

Run by file name, with nothing of this package: a token and the program come in on stdin, the verdict goes out on stdout:
the token if the program ran to its end, else what it raised. What must stay out of the program's reach (the token, the
hook, what comes after the program) is held by C code alone, in no variable, frame or module that Python shows.

Not a prison for hostile code (a container is), but for what a model writes by mistake, or to be graded well.
"""

import _posixsubprocess
import gc
import os
import resource
import sys
from collections import deque
from functools import partial
from operator import call

NEW_USER_AND_NETWORK = 0x10000000 | 0x40000000  # CLONE_NEWUSER | CLONE_NEWNET
MADE_WITHOUT_OPENING = ("mkfifo", "mknod")  # files that no limit of size and no audit event keeps from being made
# By machine, the calls that seccomp refuses: mknod, mknodat, ptrace, process_vm_readv, process_vm_writev, execve, execveat,
# fork, vfork, and what makes or removes names of files.
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
REFUSED_CALLS = {
    "x86_64": (133, 259, 101, 310, 311, 59, 322, 57, 58, 82, 83, 84, 86, 87, 88, 258, 263, 264, 265, 266, 316),
    "aarch64": (33, 117, 270, 271, 221, 281, 34, 35, 36, 37, 38, 276),
}


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


def give_up_by_kernel() -> None:
    """Into a network of its own, which reaches nothing, and without the calls above, where the kernel lets us; what this
    process holds in memory is closed to other processes of the user."""
    import ctypes
    import struct

    libc = ctypes.CDLL(None)
    libc.unshare(NEW_USER_AND_NETWORK)
    libc.prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
    machine = os.uname().machine
    if machine not in REFUSED_CALLS:
        return
    # A BPF program: (code, jump if true, jump if false, value) each. Load the machine, then the number of the call.
    numbers = REFUSED_CALLS[machine]
    program = [(0x20, 0, 0, 4), (0x15, 1, 0, AUDIT_ARCH[machine]), (0x06, 0, 0, 0x7FFF0000), (0x20, 0, 0, 0)]
    program += [(0x15, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    program += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050000 | 1)]  # allow; refuse with EPERM
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    filters = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    libc.prctl(22, 2, filters, 0, 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def make_hook():  # type: ignore[no-untyped-def] # noqa: C901 (what it calls would be within reach)
    """An audit hook, which cannot be taken off: no files are written, nothing is started, no network, no look into other
    frames of this process. What it looks at are constants in its code and its own arguments' defaults."""

    def hook(event, arguments, text=str, raw=bytes, number=int, kind=type, refuse=PermissionError):  # type: ignore[no-untyped-def]
        if event == "open":
            path, mode, flags = arguments
            if mode is not None and (
                kind(mode) is not text or "w" in mode or "a" in mode or "x" in mode or "+" in mode
            ):
                raise refuse("sandbox: files may not be written")
            # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_APPEND on Linux
            if kind(flags) is number and flags & 0o3303:
                raise refuse("sandbox: files may not be written")
            if kind(path) is text:
                if ("/proc/" in path or "/dev/" in path) and path not in ("/dev/null", "/dev/urandom"):
                    raise refuse("sandbox: processes and devices may not be read")
            elif kind(path) is raw:
                if b"/proc/" in path or b"/dev/" in path:
                    raise refuse("sandbox: processes and devices may not be read")
            elif kind(path) is not number:
                raise refuse("sandbox: files are opened by name")
        elif event == "import":
            if arguments[0] in ("posix", "_posixsubprocess", "_testcapi", "_testinternalcapi"):
                raise refuse("sandbox: this module may not be loaded again")
        elif event.startswith((
            "os.", "shutil.", "subprocess.", "socket.", "ctypes.", "pty.", "mmap.", "sqlite3.", "signal.", "webbrowser.",
            "tempfile.", "gc.", "sys._current_", "sys.settrace", "sys._settrace", "sys.setprofile", "sys._setprofile",
            "sys.monitoring", "syslog.", "fcntl.", "resource.", "msvcrt.", "sys.remote_exec", "cpython.remote",
        )) and event not in ("os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.add_dll_directory"):  # fmt: skip
            raise refuse("sandbox: " + event + " is not allowed")

    return hook


def prepare(seconds: int, memory: int, verdict: int):  # type: ignore[no-untyped-def]
    """What is called, one after the other: the program, then the token's way out, then the end of the process."""
    token, program = b"".join(iter(partial(os.read, 0, 1 << 20), b"")).split(b"\n", 1)
    silent = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silent, stream)
    os.close(silent)
    give_up_by_kernel()
    limit(seconds, memory)
    end = (partial(os.write, verdict, token), partial(os._exit, 0))
    for module in (os, sys.modules["posix"]):
        for name in MADE_WITHOUT_OPENING:
            delattr(module, name)
    _posixsubprocess.fork_exec = refuse  # type: ignore[assignment]
    code = compile(program.decode("utf-8", "replace"), "answer.py", "exec", dont_inherit=True)
    sys.addaudithook(make_hook())
    gc.collect()
    gc.freeze()  # what is here is not found by those who ask the garbage collector
    return map(call, (partial(exec, code, {"__name__": "__main__"}), *end))  # type: ignore[arg-type]


def refuse(*_: object) -> None:
    raise PermissionError("sandbox: no process is started")


def main(write=os.write, leave=os._exit) -> None:  # type: ignore[no-untyped-def]
    """The defaults are what a program that empties this module cannot take away."""
    verdict = os.dup(1)
    try:
        # no variable holds the steps: the frames that the program can see know nothing
        deque(prepare(int(sys.argv[1]), int(sys.argv[2]), verdict), 0)
    except BaseException as error:
        why = f"failed {error.__class__.__name__}: {error}"[:300]
        write(verdict, why.encode("utf-8", "replace"))
    leave(0)


if __name__ == "__main__":
    main()

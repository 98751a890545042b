"""The process that code_sandbox.py starts: it drops privileges, then runs a generated program.

Run by file name, without importing this package. It reads a token and the program from stdin and writes the verdict to
stdout: the token if the program ran to its end, else the exception. What the program must not reach (the token, the hook, the
code that runs after the program) is referenced only from C code, not from a variable, frame or module visible in Python.

It contains mistakes of a model and attempts to fake a passing grade. It does not contain hostile code; use a container for that.
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
MADE_WITHOUT_OPENING = ("mkfifo", "mknod")  # they create files despite the size limit and without an audit event
# Machine -> system calls that seccomp refuses: mknod, mknodat, ptrace, process_vm_readv, process_vm_writev, execve, execveat,
# fork, vfork, and those that create, rename or remove files.
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
REFUSED_CALLS = {
    "x86_64": (133, 259, 101, 310, 311, 59, 322, 57, 58, 82, 83, 84, 86, 87, 88, 258, 263, 264, 265, 266, 316),
    "aarch64": (33, 117, 270, 271, 221, 281, 34, 35, 36, 37, 38, 276),
}


def limit(seconds: int, memory: int) -> None:
    """Set resource limits: processor time (s), address space (bytes), and zero for written file size and child processes."""
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
    """Where the kernel permits: enter an empty network namespace and refuse the system calls above. Other processes of the user
    cannot read this process's memory."""
    import ctypes
    import struct

    libc = ctypes.CDLL(None)
    libc.unshare(NEW_USER_AND_NETWORK)
    libc.prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
    machine = os.uname().machine
    if machine not in REFUSED_CALLS:
        return
    # A BPF program of (code, jump if true, jump if false, value): load the machine, then the system call number.
    numbers = REFUSED_CALLS[machine]
    program = [(0x20, 0, 0, 4), (0x15, 1, 0, AUDIT_ARCH[machine]), (0x06, 0, 0, 0x7FFF0000), (0x20, 0, 0, 0)]
    program += [(0x15, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    program += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050000 | 1)]  # allow; refuse with EPERM
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    filters = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    libc.prctl(22, 2, filters, 0, 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def make_hook():  # type: ignore[no-untyped-def] # noqa: C901 (a helper would be reachable from the program)
    """An audit hook (it cannot be removed) that refuses writing files, starting processes, network access, and access to other
    frames. It uses only constants in its code and its argument defaults, which the program cannot change."""

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
    """An iterator that runs the program, writes the token, and exits the process, one step per item."""
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
    gc.freeze()  # hides these objects from gc.get_objects
    return map(call, (partial(exec, code, {"__name__": "__main__"}), *end))  # type: ignore[arg-type]


def refuse(*_: object) -> None:
    """Raises PermissionError; replaces fork_exec."""
    raise PermissionError("sandbox: no process is started")


def main(write=os.write, leave=os._exit) -> None:  # type: ignore[no-untyped-def]
    """Run the program from stdin. The argument defaults stay available if the program clears this module."""
    verdict = os.dup(1)
    try:
        # the steps are not in a variable, so the program cannot find them in frames
        deque(prepare(int(sys.argv[1]), int(sys.argv[2]), verdict), 0)
    except BaseException as error:
        why = f"failed {error.__class__.__name__}: {error}"[:300]
        write(verdict, why.encode("utf-8", "replace"))
    leave(0)


if __name__ == "__main__":
    main()

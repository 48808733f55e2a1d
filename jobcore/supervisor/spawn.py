"""
Starts the process of a command, with a clean process state whatever the host's was.

It uses `fork` instead of `posix_spawn`, because only code between fork and exec can ask the
kernel to kill the command if its supervisor dies. An error there is reported as stage and
errno, through a pipe that exec closes.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct

from jobcore.supervisor import frames, job_directory, progress, system_calls, values

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable
    from typing import NoReturn
else:
    import _signal

# The steps at which starting a command can fail.
PIPE, TERMINAL, STDOUT, FORK, CHDIR, STDIN, EXEC, INTERPRETER = (
    "pipe",
    "terminal",
    "stdout",
    "fork",
    "chdir",
    "stdin",
    "exec",
    "interpreter",
)
_STAGES = (CHDIR, STDIN, EXEC, INTERPRETER)
_REPORT = struct.Struct("<Bi")

# Exit codes by shell convention. The child really exits with them, so that the wait status
# comes from the kernel.
_NOT_FOUND = 127
_NOT_STARTED = 126
_LONGEST_NAME = 255  # bytes of a file name, on every file system of Linux
#: Errors of `stat` that mean that an entry of PATH lacks the program, as in `execvp`. EACCES is
#: one of them: PATH often has a directory that this user may not search.
_MISSING = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG,
    errno.ESTALE, errno.ENODEV, errno.ETIMEDOUT,
)  # fmt: skip

#: Signals that a supervisor ignores, because they would end it, and its job would be lost. They
#: may be for all programs of a name or of a terminal. A command must not inherit that. SIGTERM
#: is handled.
IGNORED = (
    _signal.SIGINT, _signal.SIGHUP, _signal.SIGQUIT, _signal.SIGPIPE, _signal.SIGXFSZ,
    _signal.SIGUSR1, _signal.SIGUSR2, _signal.SIGALRM, _signal.SIGVTALRM, _signal.SIGPROF,
    _signal.SIGIO, _signal.SIGPWR, _signal.SIGXCPU,
)  # fmt: skip

_PR_SET_PDEATHSIG = 1
_CLOSE_RANGE = 436  # the same on every architecture but alpha
_LAST = 0xFFFFFFFF
_SIZE = struct.pack("4H", 24, 80, 0, 0)  # lines and columns of a terminal
_END_OF_INPUT = b"\x04"  # Ctrl-D
_ABOVE = 10  # above the numbers of all descriptors that a command gets

# Created at import, so that the child has less to do and copies less memory.
_libc = ctypes.CDLL(None, use_errno=True)
_prctl = _libc.prctl
_prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
_close_range = _libc.syscall
_close_range.argtypes = [ctypes.c_long, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint]


class StartError(Exception):
    """
    The command could not be started.

    Attributes:
        stage: The step that failed, such as `fork` or `exec`.
        errno: The reason.
    """

    def __init__(self, stage: str, number: int) -> None:
        super().__init__(stage, number)
        self.stage = stage
        self.errno = number


class Program:
    """The program to run: the part of a request that the new process needs."""

    __slots__ = (
        "argv", "cwd", "env", "hands_over", "pty", "separate_streams", "stdin", "stdout_to",
        "umask", "warm",
    )  # fmt: skip

    def __init__(
        self,
        argv: list[bytes],
        env: dict[bytes, bytes],
        cwd: bytes,
        stdin: tuple[str, bytes] | None,
        umask: int,
        *,
        separate_streams: bool,
        stdout_to: bytes | None = None,
        pty: bool = False,
        hands_over: tuple[str, ...] = (),
        warm: list[bytes] | None = None,
    ) -> None:
        self.argv = argv
        self.env = env
        self.cwd = cwd
        self.stdin = stdin
        self.umask = umask
        self.separate_streams = separate_streams
        self.stdout_to = stdout_to
        self.pty = pty
        self.hands_over = hands_over  # the names of its values, as in `values`
        self.warm = warm  # the command line of an interpreter that may fork it; None: none may


class Child:
    """
    A forked process that will become the command.

    Attributes:
        pid: Its pid, which soon is also the id of its process group.
        report: Non-blocking read end of the pipe that reports why the command could not
            start. It reaches its end if the command has started.
        outputs: Non-blocking read ends of the output pipes, each with its stream.
        reports: Non-blocking read end of the pipe for progress reports.
        terminal: The command's end of its terminal, which is its output; negative: it has none.
        values: Non-blocking read ends of the pipes for the values that it hands over, by name.
    """

    __slots__ = ("outputs", "pid", "report", "reports", "terminal", "values")

    def __init__(
        self,
        pid: int,
        report: int,
        outputs: list[tuple[int, int]],
        reports: int,
        terminal: int = -1,
        values: dict[str, int] | None = None,
    ) -> None:
        self.values = values or {}
        self.pid = pid
        self.report = report
        self.outputs = outputs
        self.reports = reports
        self.terminal = terminal


def make_subreaper(*, on: bool = True) -> bool:
    """Make this process the parent of orphans of its jobs. A forked child is no subreaper."""
    return bool(_prctl(36, on, 0, 0, 0) == 0)


def spawn(
    program: Program,
    *,
    directory: int | None = None,
    oom_score: bytes | None = None,
    forks: Callable[[Program, Start], int] | None = None,
) -> Child:
    """
    Start the command. When this returns, the process may not have reached its exec yet.

    Args:
        directory: A descriptor of a directory for a temporary FIFO; None: do not use one.
        oom_score: The value for the command's `oom_score_adj`; None: leave it.
        forks: Makes the process; None: `fork`.

    Raises:
        StartError: No process could be created.
    """
    opened: list[int] = []
    stage = PIPE
    terminal, control = -1, 0
    try:
        report, report_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        opened += (report, report_writer)
        if program.pty:
            stage = TERMINAL
            reader, terminal, control = _open_terminal(opened, has_input=program.stdin is not None)
            writer = error_writer = terminal
            outputs = [(reader, frames.OUTPUT)]
        else:
            outputs, writer, error_writer = _open_pipes(program, directory, opened)
        stage = PIPE
        reports, reports_writer = os.pipe2(os.O_CLOEXEC)
        opened += (reports, reports_writer)
        os.set_blocking(reports, False)
        program.env[progress.VARIABLE] = b"%d" % progress.DESCRIPTOR
        given: dict[int, int] = {progress.DESCRIPTOR: reports_writer}
        handed = {}
        for name in program.hands_over:
            handed[name], value_writer = os.pipe2(os.O_CLOEXEC)
            opened += (handed[name], value_writer)
            os.set_blocking(handed[name], False)
            given[values.DESCRIPTORS[name]] = value_writer
            program.env[values.VARIABLES[name]] = b"%d" % values.DESCRIPTORS[name]
        stdin = terminal
        if program.stdin is not None and program.stdin[0] == "data":
            stage = STDIN
            stdin = make_stdin(program.stdin[1], opened)
        stage = FORK
        given.update({0: stdin, 1: writer, 2: error_writer})
        pid = (forks or fork)(program, Start(given, report_writer, oom_score, control))
    except OSError as error:
        for descriptor in opened:
            os.close(descriptor)
        raise StartError(stage, error.errno or 0) from error
    readers = {report, reports, terminal, *handed.values(), *(one for one, _ in outputs)}
    for descriptor in opened:
        if descriptor not in readers:
            os.close(descriptor)
    return Child(pid, report, outputs, reports, terminal, handed)


def fork(program: Program, start: Start) -> int:
    """Fork the process of a command, and return its pid."""
    candidates = _candidates(program)  # the child would copy memory to join the paths
    # Block the only signal that may have a handler, which must not run in the child.
    mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, (_signal.SIGTERM,))
    try:
        pid = os.fork()
        if pid == 0:
            _run_in_child(program, start, candidates)
        return pid
    finally:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)


def _open_pipes(
    program: Program, directory: int | None, opened: list[int]
) -> tuple[list[tuple[int, int]], int, int]:
    """Return the read ends of the output pipes with their streams, and the two write ends."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    opened += (reader, writer)
    os.set_blocking(reader, False)
    if not program.separate_streams:
        reader, writer, error_writer = _open_twice(reader, writer, directory, opened)
        return [(reader, frames.OUTPUT)], writer, error_writer
    error_reader, error_writer = os.pipe2(os.O_CLOEXEC)
    opened += (error_reader, error_writer)
    os.set_blocking(error_reader, False)
    return [(reader, frames.STDOUT), (error_reader, frames.STDERR)], writer, error_writer


def _open_terminal(opened: list[int], *, has_input: bool) -> tuple[int, int, int]:
    """
    Return our end and the command's end of a new terminal, and the request to control it.

    Args:
        opened: Every opened descriptor is appended to it.
        has_input: Whether the command has another standard input. If not, it is the terminal,
            where nobody types: the first read finds the end of the input.
    """
    import termios  # noqa: PLC0415 - only for commands that need a terminal

    reader, terminal = os.openpty()
    opened += (reader, terminal)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, _SIZE)
    os.set_blocking(reader, False)
    if not has_input:
        os.write(reader, _END_OF_INPUT)
    return reader, terminal, termios.TIOCSCTTY


def _open_twice(
    reader: int, writer: int, directory: int | None, opened: list[int]
) -> tuple[int, int, int]:
    """
    Return one read end and two write ends of the pipe for stdout and stderr.

    Each write end is a separate open file description. So a program that makes its stderr
    non-blocking, as node does, does not change the stdout of other processes. And because
    there is one pipe, the order of all writes is preserved.

    Args:
        reader, writer: The pipe. If it cannot be opened again, a FIFO is used instead.
        directory: The directory for the FIFO.
        opened: Every opened descriptor is appended to it.
    """
    # Opening a pipe may block, so open it non-blocking and make the writers blocking later.
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        opened.append(os.open(f"/proc/self/fd/{writer}", flags))
        os.set_blocking(opened[-1], True)
        return reader, writer, opened[-1]
    except OSError:
        pass  # no /proc
    if directory is None:
        return reader, writer, writer
    name = f"output-{os.getpid()}"
    try:
        os.mkfifo(name, 0o600, dir_fd=directory)
        try:
            first = os.open(name, flags & ~os.O_WRONLY, dir_fd=directory)  # writers need a reader
            opened.append(first)
            for _ in range(2):
                descriptor = os.open(name, flags, dir_fd=directory)
                opened.append(descriptor)
                os.set_blocking(descriptor, True)
        finally:
            os.unlink(name, dir_fd=directory)
    except OSError:
        return reader, writer, writer
    return opened[-3], opened[-2], opened[-1]


def read_report(descriptor: int) -> StartError | None:
    """Return why the command could not start; None at the end of the pipe: it started or died."""
    data = os.read(descriptor, _REPORT.size)
    if len(data) < _REPORT.size:
        return None
    stage, number = _REPORT.unpack(data)
    return StartError(_STAGES[stage], number)


def encode_report(stage: str, number: int) -> bytes:
    """Return the report of a failed start, stage and errno, as bytes for the pipe."""
    return _REPORT.pack(_STAGES.index(stage), number)


def exit_code_of(stage: str, number: int) -> int:
    """Return the exit code of a command that could not start, by shell convention."""
    return _NOT_FOUND if stage == EXEC and number == errno.ENOENT else _NOT_STARTED


def explain(program: Program, stage: str, number: int, mask: Callable[[bytes], bytes]) -> str:
    """Return the log line for a failed start; `mask` masks secret values in it."""
    # Mask before quoting, which may escape characters of a value.
    name, directory = (repr(os.fsdecode(mask(one))) for one in (program.argv[0], program.cwd))
    code = errno.errorcode.get(number, str(number))
    words = os.strerror(number).lower()
    if stage == CHDIR:
        words = f"cannot enter its directory {directory}: {words}"
    elif stage == STDOUT:
        path = repr(os.fsdecode(mask(program.stdout_to or b"")))
        words = "not a regular file" if number == errno.EINVAL else words
        words = f"cannot write its output to {path}: {words}"
    elif stage == STDIN:
        words = f"cannot provide its standard input: {words}"
    elif stage == INTERPRETER:
        words = "the interpreter it asks for was not found"
    elif stage == EXEC:
        words = {
            errno.ENOENT: "program not found",
            errno.EACCES: "not executable",
            errno.ENOEXEC: "not a program, and no interpreter named in it",
            errno.E2BIG: "arguments and environment are too long",
        }.get(number, words)
    else:
        words = f"no {stage}: {words}"
    return f"cannot start {name}: {words} ({code})"


def make_stdin(data: bytes, opened: list[int]) -> int:
    """Return a descriptor for stdin with `data`: a file, because writing to a pipe could block."""
    descriptor = system_calls.make_memory_file("stdin")
    opened.append(descriptor)
    job_directory.write_all(descriptor, data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


class Start:
    """The facts that the child needs besides the command, prepared before the fork."""

    __slots__ = ("control", "given", "oom_score", "parent", "report")

    def __init__(
        self,
        given: dict[int, int],
        report: int,
        oom_score: bytes | None,
        control: int,
        parent: int | None = None,
    ) -> None:
        self.control = control  # the ioctl that gives a session its terminal; 0: it has none
        self.given = given  # descriptors by their number in the command; negative: inherit
        self.report = report
        self.oom_score = oom_score
        self.parent = os.getpid() if parent is None else parent  # the supervisor


def _run_in_child(program: Program, start: Start, candidates: list[bytes]) -> NoReturn:
    """Run the command in the child. It never returns, so the child runs no other code."""
    stage = EXEC
    number = 0
    try:
        _reset(start)
        os.umask(program.umask)
        stage = CHDIR
        os.chdir(program.cwd)
        if program.stdin is not None and program.stdin[0] == "file":
            stage = STDIN
            descriptor = os.open(program.stdin[1], os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
            os.dup2(descriptor, 0)
        stage = EXEC
        _exec_found(program, candidates)
        stage, number = _exec(program)
    except OSError as error:
        number = error.errno or 0
    except BaseException:  # noqa: BLE001 - such as a NUL byte in an argument, or MemoryError
        number = errno.EINVAL
    report_failure(start, stage, number)


def report_failure(start: Start, stage: str, number: int) -> NoReturn:
    """Report from the child why the command could not start, and end it."""
    try:
        os.write(start.report, encode_report(stage, number))
    finally:
        os._exit(exit_code_of(stage, number))


def _reset(start: Start) -> None:
    """Reset in the child everything that belongs to the supervisor."""
    take_place(start)
    for number in (*IGNORED, _signal.SIGTERM):
        _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    if start.oom_score is not None:
        set_oom_score(start.oom_score)


def take_place(start: Start) -> None:
    """Have a process group, and the descriptors of a command; die with the supervisor."""
    # A process group, but no session, unless it has a terminal. The first terminal that a session
    # leader opens becomes its controlling terminal, and closing that would end the command.
    if start.control:
        os.setsid()  # this creates a process group, too
    else:
        os.setpgid(0, 0)
    _prctl(_PR_SET_PDEATHSIG, _signal.SIGKILL, 0, 0, 0)
    if os.getppid() != start.parent:
        os._exit(_NOT_STARTED)  # the supervisor died before the line above
    _install_descriptors(start)
    # Before anything that can block, because the lock and the sockets are among them.
    close_others(*start.given, start.report)


def _install_descriptors(start: Start) -> None:
    """Put the descriptors at their numbers in the command, and set its terminal."""
    # No descriptor that is still needed may have a number that another one gets.
    if start.report in start.given:
        start.report = fcntl.fcntl(start.report, fcntl.F_DUPFD_CLOEXEC, _ABOVE)
    for target, descriptor in start.given.items():
        if descriptor in start.given and descriptor != target:
            start.given[target] = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _ABOVE)
    for target, descriptor in start.given.items():
        if descriptor == target:
            os.set_inheritable(target, True)
        elif descriptor >= 0:
            os.dup2(descriptor, target)
    if start.control:
        fcntl.ioctl(1, start.control, 0)


def close_others(*keep: int) -> None:
    """Close all descriptors except those in `keep`."""
    first = 0
    for descriptor in (*sorted(keep), _LAST + 1):
        if first < descriptor and _close_range(_CLOSE_RANGE, first, descriptor - 1, 0) != 0:
            # The kernel is older than 5.9, or a filter forbids the call.
            system_calls.close_all_but(keep)
            return
        first = descriptor + 1


def set_oom_score(score: bytes) -> None:
    """Set this process's `oom_score_adj`, if that is possible."""
    try:
        descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        os.write(descriptor, score)
        os.close(descriptor)
    except OSError:
        pass  # then the OOM killer spares the command like its supervisor


def _candidates(program: Program) -> list[bytes]:
    """Return the paths to try, by PATH of the command's own environment, in order."""
    name = program.argv[0]
    if b"/" in name:
        return [name]
    path = program.env.get(b"PATH", b"/bin:/usr/bin")
    return [os.path.join(part, name) for part in path.split(b":")]


def _exec_found(program: Program, candidates: list[bytes]) -> None:
    """
    Execute the first candidate that exists; return if that fails, or if none seems to exist.

    Nearly always it works. It costs less than `_exec`, which finds out what is wrong: here a
    missing candidate makes no exception.
    """
    if os.access not in os.supports_effective_ids:
        return  # with the real ids it could miss a candidate that this process can execute
    for candidate in candidates:
        if os.access(candidate, os.F_OK, effective_ids=True):
            try:
                os.execve(candidate, program.argv, program.env)  # noqa: S606
            except OSError:
                return


def _exec(program: Program) -> tuple[str, int]:
    """
    Execute the first candidate that works; return stage and errno if none does.

    The search runs in the child. If a file system hangs, it blocks a process that can be
    killed, and not the supervisor.
    """
    searched = b"/" not in program.argv[0]
    if searched and len(program.argv[0]) > _LONGEST_NAME:
        # POSIX requires `execvp` to fail like this. A shell reports 127, but only because it never
        # tries to execute such a name. `env`, `nohup` and `timeout` end with 126, as jobcore does.
        return EXEC, errno.ENAMETOOLONG
    stage, number = EXEC, errno.ENOENT
    unread = 0  # why an entry of PATH could not be searched
    for candidate in _candidates(program):
        # As in a shell, skip files that `stat` does not find. A failed exec would cost more,
        # because it builds arguments and environment each time.
        if searched and (missing := _look(candidate)):
            unread = unread or (0 if missing in _MISSING else missing)
            continue
        try:
            os.execve(candidate, program.argv, program.env)  # noqa: S606
        except FileNotFoundError:
            # If the file exists, the interpreter in its first line does not.
            if number == errno.ENOENT and _look(candidate) == 0:
                stage = INTERPRETER
        except PermissionError as error:
            stage, number = EXEC, error.errno or errno.EACCES
        except OSError as error:
            return EXEC, error.errno or 0
    if (stage, number) == (EXEC, errno.ENOENT) and unread:
        return EXEC, unread  # it may be there
    return stage, number


def _look(path: bytes) -> int:
    """Return 0 if the path exists and is not a directory, or else why not, as an errno."""
    try:
        return errno.EISDIR if stat.S_ISDIR(os.stat(path).st_mode) else 0
    except OSError as error:
        return error.errno or errno.ENOENT

"""Other processes for tests: a forked child that answers, and a fresh interpreter."""

from __future__ import annotations

import atexit
import ctypes
import errno
import gc
import os
import pickle
import re
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

#: Seconds after which a test gives up. Never the time that something takes. Less for who
#: runs tests that are to fail, and has to wait for it.
PATIENCE = float(os.environ.get("JOBCORE_TEST_PATIENCE", "30"))

_PTRACE_ATTACH = 16  # of <sys/ptrace.h>

_forked = []  # by the current test


def until(condition, what="the condition", patience=PATIENCE):
    """Return what `condition` returns once that is true; fail after `patience` seconds."""
    begun = time.monotonic()
    deadline = begun + patience
    while not (answer := condition()):
        now = time.monotonic()
        if now > deadline:
            raise AssertionError(f"{what} did not come true within {patience} s")
        # A look through all processes takes milliseconds: what is awaited needs the core, too.
        # What has not come for a second need not be seen within milliseconds.
        waited = now - (deadline - patience)
        time.sleep(max(0.002, 2 * (now - begun), min(waited / 20, 0.1)))
        begun = time.monotonic()
    return answer


def join(*threads):
    """Wait for the end of these threads, which must not take for ever."""
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), f"{thread.name} did not end within {PATIENCE} s"


def open_gate(path):
    """Wait until a process opens a FIFO to read, and let it go on."""

    def opened():
        try:
            return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:  # no reader yet
                raise
            return None

    os.close(until(opened, f"a reader of {path}"))


def hear(descriptor):
    """Read one byte from a pipe; fail if none comes."""
    assert select.select([descriptor], [], [], PATIENCE)[0], "nothing was said"
    return os.read(descriptor, 1)


class Child:
    """
    A forked child that runs one function; leave the block by `result()`.

    It waits for `go()` before it begins if it was made with `held=True`.
    """

    def __init__(self, function, *args, held=False):
        self._answer, answer = os.pipe()
        gate, self._gate = os.pipe()
        with warnings.catch_warnings():
            # A host with threads may fork; that we do so here is the point.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            os.close(self._answer)
            os.close(self._gate)
            _be_child(function, args, answer, gate if held else None)
        os.close(answer)
        self._wait_at = gate  # ours too, so that `go` never finds nobody
        if not held:
            self.go()

    def go(self):
        """Let it begin; told twice is harmless."""
        if self._gate >= 0:
            # A byte, not the end of file: later children hold copies of our end.
            os.write(self._gate, b"!")
            os.close(self._gate)
            os.close(self._wait_at)
            self._gate = -1

    def kill(self):
        """SIGKILL it, and reap it."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.go()
        os.close(self._answer)

    def result(self, patience=PATIENCE):
        """Return what the function returned; raise what it raised, with the child's traceback."""
        self.go()
        deadline = time.monotonic() + patience
        data = b""
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._answer], [], [], left)[0]:
                self.kill()
                raise AssertionError(f"the child did not answer within {patience} s")
            chunk = os.read(self._answer, 65536)
            if not chunk:
                break
            data += chunk
        os.close(self._answer)
        _, status = os.waitpid(self.pid, 0)
        assert data, f"the child died without an answer, wait status {status}"
        returned, raised, told = pickle.loads(data)
        if raised is not None:
            raise raised from AssertionError(told)
        assert told is None, told
        return returned


def _be_child(function, args, answer, gate):
    try:
        if gate is not None:
            os.read(gate, 1)
        report = (function(*args), None, None)
    except BaseException as error:  # noqa: BLE001 - told to the parent, whatever it is
        report = (None, error, traceback.format_exc())
    try:
        data = pickle.dumps(report)
    except Exception:  # noqa: BLE001 - an answer that cannot be sent: say so instead
        data = pickle.dumps((None, None, report[2] or repr(report[0])))
    try:
        while data:
            data = data[os.write(answer, data) :]
    finally:
        os._exit(0)


def in_child(function, *args):
    """Return what `function` returns in a forked child."""
    return Child(function, *args).result()


def forked(function, env, **options):
    """
    Return a fork of this process that calls a function, as an interpreter would its program.

    All that the tests have loaded is there; an interpreter takes half a second for it.

    Args:
        function: It has the process to itself, and may exit.
        env: Its environment.
        options: Those of Popen.
    """
    options["preexec_fn"] = partial(_be_an_interpreter, function, env)
    with warnings.catch_warnings():
        # A host with threads may fork; a child of ours needs none of them.
        warnings.simplefilter("ignore", DeprecationWarning)
        process = subprocess.Popen(["python"], env=env, **options)
    _forked.append(process)
    return process


def end_forked():
    """End the processes that `forked` has returned since the last call, for a failed test."""
    end(*_forked)
    _forked.clear()


def end(*processes):
    """SIGKILL processes of `Popen` that still run, and close their pipes."""
    for process in processes:
        process.kill()  # does nothing if it has been waited for
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with suppress(OSError):  # unwritten data does not matter
                    pipe.close()


def hear_a_terminal():
    """Be ended by what a terminal sends, also where `nohup` or a shell's `&` runs the tests."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _be_an_interpreter(function, env):
    code = 1
    try:
        hear_a_terminal()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the time limit of a test
        for one in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(one, signal.SIG_IGN)  # Popen takes back what interpreters set
        gc.freeze()  # what the tests have made is not walked again
        _let_go_of_descriptors()
        warnings.resetwarnings()
        atexit._clear()  # those of the tests
        os.environ.clear()
        os.environ.update(env)
        time.tzset()
        encoding, _, errors = env.get("PYTHONIOENCODING", "").partition(":")
        streams = ((0, "r", errors), (1, "w", errors), (2, "w", "backslashreplace"))
        sys.stdin, sys.stdout, sys.stderr = (  # to be left open to the end
            os.fdopen(number, mode, encoding=encoding or None, errors=how or None, closefd=False)
            for number, mode, how in streams
        )
        sys.__stdout__ = sys.stdout
        try:
            function()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except BaseException:  # noqa: BLE001 - as an interpreter does
        traceback.print_exc()
    finally:
        os._exit(code)


def _let_go_of_descriptors():
    """
    Put /dev/null in the place of each descriptor, and of the pipe on which Popen waits for an exec.

    None is closed: an object of the tests that goes away later closes its number, which by then
    might be that of a database.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/proc/self/fd"):
        if (number := int(name)) > 2 and number != null:
            with suppress(OSError):  # that of the listing itself
                os.fstat(number)
                os.dup2(null, number, inheritable=False)


def at_once(function, arguments):
    """Call `function` in one forked child for each tuple of arguments, all let go together."""
    children = [Child(function, *args, held=True) for args in arguments]
    for child in children:
        child.go()
    return [child.result() for child in children]


def end_of_python(source, *args, flags=(), patience=PATIENCE):
    """Return how a fresh interpreter ended that ran `source`, and what it said."""
    return subprocess.run(
        [sys.executable, *flags, "-c", source, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=patience,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )


def run_python(source, *args, flags=(), patience=PATIENCE):
    """Return what a fresh interpreter prints that runs `source`; its errors fail the test."""
    done = end_of_python(source, *args, flags=flags, patience=patience)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def read_elsewhere(path):
    """Return the bytes of a database's file; closing it in this process would drop its locks."""
    return subprocess.run(["cat", path], capture_output=True, check=True, timeout=PATIENCE).stdout


def own_threads():
    """Return the names of jobcore's threads in this process, in order."""
    names = (thread.name for thread in threading.enumerate())
    return sorted(name for name in names if name.startswith("jobcore-"))


class Undelayed:
    """
    Measures how long a block takes, without the time for which its threads wait for a processor.

    `seconds` is the result: on a busy machine, a thread may wait for half a second to be run.
    """

    def __enter__(self):
        self._begun, self._delays = time.monotonic(), _delays()
        return self

    def __exit__(self, *_):
        delayed = sum(now - self._delays.get(thread, 0) for thread, now in _delays().items())
        self.seconds = time.monotonic() - self._begun - delayed


def _delays():
    """Return the seconds for which each thread of this process has waited for a processor."""
    found = {}
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError):  # the thread has ended
            found[path.parent.name] = int(path.read_bytes().split()[1]) / 1e9
    return found


def descriptors():
    """Return what the open descriptors of this process lead to, by number."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            pass  # that of the listing itself
    return found


def left_open(before):
    """Return those of `descriptors()` that were not in `before`, an earlier answer of it."""
    # Those of the same number and target were there; SQLite's are gone with its connections.
    return {number: to for number, to in descriptors().items() if before.get(number) != to}


def state(pid):
    """Return the letter that the kernel has for the state of a process; X: it is gone."""
    try:
        return _stat(pid)[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def stop(pid):
    """Stop a process by SIGSTOP, and wait until each of its threads is stopped."""
    os.kill(pid, signal.SIGSTOP)
    tasks = Path(f"/proc/{pid}/task")
    until(
        lambda: all(state(f"{pid}/task/{thread.name}") == "T" for thread in tasks.iterdir()),
        f"the stop of process {pid}",
    )


def stop_host(pid, database):
    """
    Stop a process with SIGSTOP, at a moment when no other process waits for it.

    In the middle of a write it would keep SQLite's lock, and no other process could write.
    """

    def is_stopped():
        stop(pid)
        if not _holds_locks_of_a_moment(pid, database):
            return True
        os.kill(pid, signal.SIGCONT)
        return False

    until(is_stopped, f"a moment without locks of process {pid}")


def _holds_locks_of_a_moment(pid, database):
    """Tell whether a process holds a lock for a short time, such as for a write."""
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        to = os.readlink(entry)
        locks = re.findall(
            r"^lock:.* WRITE .* (\d+) \S+$",
            Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text("ascii"),
            re.MULTILINE,
        )
        if to.startswith(f"{database}.jobs/"):
            # The locks of its owner file and of running jobs, from byte 2 on, are held for long.
            locks = [first for first in locks if int(first) < 2 and "/.owner-" not in to]
        elif not to.startswith(database):
            continue
        if locks:
            return True
    return False


def children():
    """Return the children of this process, with their states."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = _stat(entry.name)
            except OSError:
                continue
            if int(fields[1]) == os.getpid():
                found[int(entry.name)] = fields[0]
    return found


def _stat(pid):
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()


def carrying(*texts):
    """Return the pids of processes whose environment contains one of `texts`."""
    wanted = [text.encode() for text in texts]
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/environ", "rb", buffering=0) as file:
                    environment = file.read()
            except OSError:
                continue
            if any(text in environment for text in wanted):
                found.append(int(name))
    return found


def debug(pid):
    """Attach to a process, which stops it, and stay."""
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = [ctypes.c_long] * 4
    if ptrace(_PTRACE_ATTACH, pid, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")
    signal.pause()

"""A host in small: it prepares job directories, and speaks with real supervisors."""

from __future__ import annotations

import contextlib
import io
import os
import select
import signal
import time

from jobcore.embedding.locks import GATE
from jobcore.engine.launch import encode_request
from jobcore.engine.launcher import ProcessLauncher
from jobcore.engine.supervisor_pool import SupervisorPool
from jobcore.supervisor import frames, job_directory, system_calls
from jobcore.supervisor.messages import ENDED, READY
from tests.processes import PATIENCE, until


def is_alive(pid):
    """Tell whether the process runs: neither gone nor a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def processes_of(token):
    """Return the living processes whose environment names the run."""
    entry = b"JOBCORE_RUN=" + token.encode()
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as file:
            if entry in file.read().split(b"\0") and is_alive(int(name)):
                found.append(int(name))
    return found


def parent_of(pid):
    """Return the pid of a process's parent; None: it is gone."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[1])


class Run:
    """One run of one job, as the host sees it."""

    def __init__(self, host, argv, **fields):
        self.host = host
        self.token = os.urandom(16).hex()
        self.notices = []
        self.directory = job_directory.open_directory(self.token, parent=host.root, create=True)
        self.lock = job_directory.open_lock(self.directory, create=True)
        assert job_directory.try_lock(self.lock, job_directory.PREPARING)
        job_directory.make_control(self.directory)
        env = {"PATH": os.environ["PATH"], "JOBCORE_RUN": self.token, **fields.pop("env", {})}
        request = encode_request(
            {
                "version": 1,
                "token": self.token,
                "job": self.token,
                "argv": [os.fsencode(part) for part in argv],
                "env": {os.fsencode(key): os.fsencode(value) for key, value in env.items()},
                "cwd": b"/",
                "stdin": None,
                "timeout": None,
                "grace": 10.0,
                "linger": 2.0,
                "stop_signal": signal.SIGTERM.value,
                "stop_scope": "main",
                "output_limit": None,
                "separate_streams": False,
                "redact": [],
                "umask": 0o022,
                **fields,
            }
        )
        self.request = system_calls.make_memory_file("request")
        job_directory.write_all(self.request, request)

    def send(self, supervisor):
        """Hand it over, and close our copies."""
        answer = supervisor.send(self.token, self.lock, self.directory, self.request)
        self.let_go()
        return answer

    def let_go(self):
        """Close what was prepared, as a host does that has sent it, or died."""
        if self.request >= 0:
            GATE.close(self.request)
            os.close(self.lock)
            self.request = -1

    @property
    def locked(self):
        """Whether anybody prepares or runs the job."""
        probe = job_directory.open_lock(self.directory)
        try:
            return job_directory.is_locked(probe)
        finally:
            os.close(probe)

    @property
    def exit(self):
        """The exit record, or None."""
        return job_directory.read_exit(self.directory, self.token)

    @property
    def started(self):
        """Whether the command may have started."""
        return job_directory.read_record(self.directory, job_directory.RUN) is not None

    @property
    def frames(self):
        """Every frame there is, with its lines."""
        found, offset = [], 0
        while data := job_directory.read_spool(self.directory, offset, 1 << 26):
            whole = list(frames.scan(data))
            found += [(frame, list(io.BytesIO(data[frame.start : frame.end]))) for frame in whole]
            if not whole:
                break
            offset += whole[-1].end
        return found

    def output(self, *streams):
        """Return the bytes of the command's streams, or of those named."""
        wanted = streams or (frames.OUTPUT, frames.STDOUT, frames.STDERR)
        return b"".join(
            line for frame, lines in self.frames if frame.stream in wanted for line in lines
        )

    @property
    def system(self):
        """What jobcore itself says in the log."""
        return self.output(frames.SYSTEM).decode()

    def wait_for_output(self, text=b"ready\n"):
        """Wait until the command has written `text`."""
        until(lambda: text in self.output(), f"{text!r} in {self.output()!r}")

    def stop(self, grace, who="test", why=""):
        """Ask for a stop, as a host does."""
        job_directory.write_record(
            self.directory,
            job_directory.STOP,
            {"grace_ms": int(grace * 1000), "who": who, "why": why},
        )
        job_directory.send_control(self.directory)

    def close(self):
        """Close every descriptor."""
        self.let_go()
        os.close(self.directory)


class Host:
    """A pool, and the runs it has."""

    def __init__(self, root):
        self.root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        # Another interpreter than the one of the tests, to try all that are supported.
        self.pool = SupervisorPool(ProcessLauncher(os.environ.get("JOBCORE_TEST_PYTHON")))
        self.pids = set()
        self.runs = {}

    def supervisor(self):
        """Start a supervisor, and wait until it is ready."""
        supervisor = self.pool.spawn()
        self.wait_for(supervisor, lambda: supervisor.ready)
        return supervisor

    def wait_for(self, supervisor, condition):
        """Read its notices until `condition()`, or until it is gone."""
        give_up = time.monotonic() + PATIENCE
        while not condition() and not supervisor.gone:
            assert time.monotonic() < give_up, "waited in vain for a notice"
            select.select([supervisor], [], [], 1.0)
            for notice in supervisor.receive():
                if notice.kind == READY:
                    self.pids.add(notice.number)
                else:
                    self.runs[notice.token].notices.append(notice)

    def prepare(self, argv, **fields):
        """Do all that a host does before it sends."""
        run = Run(self, argv, **fields)
        self.runs[run.token] = run
        return run

    def start(self, argv, supervisor=None, **fields):
        """Start a run, with a new supervisor if none is given."""
        run = self.prepare(argv, **fields)
        run.supervisor = supervisor or self.supervisor()
        assert run.send(run.supervisor) == "sent"
        return run

    def wait_for_start(self, run):
        """Wait until the command runs, and return its pid."""

        def found():
            self.wait_for(run.supervisor, lambda: run.supervisor.pid is not None)
            return [pid for pid in processes_of(run.token) if parent_of(pid) == run.supervisor.pid]

        until(found, "the command")
        return found()[0]

    def finish(self, run):
        """Wait for the end of a run, and return its exit record."""
        self.wait_for(run.supervisor, lambda: any(n.kind == ENDED for n in run.notices))
        assert run.exit is not None, "the supervisor is gone, and left no exit record"
        return run.exit

    def run(self, argv, supervisor=None, **fields):
        """Run to the end."""
        run = self.start(argv, supervisor, **fields)
        self.finish(run)
        return run

    def close(self):
        """Let go of everything; no process of this host outlives it."""
        for run in self.runs.values():
            for pid in processes_of(run.token):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.pool.close()
        until(lambda: not any(map(is_alive, self.pids)), "the supervisors to leave")
        for run in self.runs.values():
            run.close()
        os.close(self.root)

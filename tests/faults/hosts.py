"""Hosts: processes that use jobcore and are killed, forked from the one that has it loaded."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
import traceback
from contextlib import contextmanager

from jobcore import JobManager
from jobcore.engine.executors import CommandExecutor, PipelineExecutor


class Refuses:
    """An executor that cannot say what to run."""

    def command(self, _job):
        raise ValueError("no")


#: What runs the jobs of a host that is ended at every step: the usual, and one that refuses.
EXECUTORS = {"COMMAND": CommandExecutor(), "PIPELINE_RUN": PipelineExecutor(), "BAD": Refuses()}


class Host:
    """A forked process that runs `work`; what it says comes through a pipe."""

    def __init__(self, work, *arguments):
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.close(reader)
                work(lambda text: os.write(writer, text.encode() + b"\n"), *arguments)
                code = 0
            except BaseException:  # noqa: BLE001 - told on stderr, whatever it is
                traceback.print_exc()
                sys.stderr.flush()
            finally:
                # An interrupt just here would have the child go on as pytest.
                while True:
                    try:
                        os._exit(code)
                    except BaseException:  # noqa: BLE001 - as above
                        continue
        os.close(writer)
        self._reader = os.fdopen(reader)
        self._reaped = False
        self._said = b""
        self.done = False

    def fileno(self):
        """Return the descriptor through which it speaks."""
        return self._reader.fileno()

    def hear(self):
        """Return the next line it says, or an empty text when it says no more."""
        return self._reader.readline().strip()

    def kill(self):
        """SIGKILL it and wait for its end."""
        if not self._reaped:
            os.kill(self.pid, signal.SIGKILL)
        self.end()

    def live(self, seconds):
        """Let it live so long from now on, or until it is done or dead."""
        until = time.monotonic() + seconds
        while not self.done and (left := until - time.monotonic()) > 0:
            # That moment is an instant of death, not a wait for anything.
            if select.select([self._reader], [], [], left)[0]:
                heard = os.read(self._reader.fileno(), 65536)
                self._said += heard
                self.done = not heard or self._said.endswith(b"done\n")

    def kill_after(self, seconds):
        """SIGKILL it when it is done, or after so long; return all lines that it has said."""
        self.live(seconds)
        os.kill(self.pid, signal.SIGKILL)
        self._said += self._reader.buffer.read()
        self.end()
        return self._said.decode().split("\n")[:-1]

    def end(self):
        """Wait for its end and return its exit code."""
        if self._reaped:
            return self.code
        _, status = os.waitpid(self.pid, 0)
        self._reaped = True
        self._reader.close()
        self.code = os.waitstatus_to_exitcode(status)
        return self.code


@contextmanager
def host(work, *arguments):
    """Give a host; whatever happens, it is dead afterwards."""
    process = Host(work, *arguments)
    try:
        yield process
    finally:
        process.kill()


def serve(say, database, slots=2):
    """Run the queue until killed; say when it does."""
    with JobManager(database, slots=slots):
        say("serving")
        signal.pause()


def submit_and_serve(say, database, command, options=None):
    """Submit one command, say its id, and run it until killed."""
    with JobManager(database, slots=2) as jobs:
        say(str(jobs.submit(command, **(options or {})).id))
        signal.pause()

"""A supervisor without a process, at the other end of a host's socket pair."""

from __future__ import annotations

import logging
import math
import os
import select
from collections.abc import Callable, Generator
from uuid import UUID

from jobcore.clock import Clock
from jobcore.embedding import telemetry
from jobcore.embedding.failpoints import Crashed
from jobcore.supervisor import messages
from jobcore.supervisor.execution import Execution, Identity
from jobcore.supervisor.host_channel import HostChannel
from jobcore.supervisor.request import Request, accept
from jobcore.supervisor.stop_requests import Shutdown
from jobcore.testing.script import Script
from jobcore.testing.scripted_process import ScriptedMachine


class ScriptedSupervisor:
    """
    One supervisor, which takes requests and runs them one at a time, step by step.

    It uses the modules of the real supervisor for everything except the command, which is a
    script. Its owner calls `step` when one of `events` occurs, or when `due` is reached.

    Attributes:
        job_id: The job that it runs, or None.
        token: The run of that job, or None.
    """

    def __init__(
        self,
        descriptor: int,
        clock: Clock,
        identity: Identity,
        script_of: Callable[[UUID], Script | None],
    ) -> None:
        """
        Args:
            descriptor: Its end of the socket pair. This object closes it.
            clock: The clock for all times.
            identity: The facts that it records about itself.
            script_of: Returns the script for a job.

        Raises:
            OSError: Too few file descriptors are free. `descriptor` is closed.
        """
        self.job_id: UUID | None = None
        self.token: str | None = None
        self._clock = clock
        self._identity = identity
        self._script_of = script_of
        self._machine: ScriptedMachine | None = None
        self._execution: Execution | None = None
        self._rounds: Generator[float, None, None] | None = None
        self._due = math.inf
        self._leaving = False
        self._closed = False
        self._channel = HostChannel(descriptor)
        try:
            self._shutdown = Shutdown()
        except BaseException:
            self._channel.close()
            raise
        self._channel.post(messages.READY, number=identity.pid)

    @property
    def gone(self) -> bool:
        """Whether the supervisor has exited or died."""
        return self._closed

    @property
    def events(self) -> dict[int, int]:
        """The descriptors that it waits for, each with its poll events."""
        if self._closed:
            return {}
        if self._execution is not None:
            return self._execution.watch.events
        return {self._channel.fileno(): select.POLLIN}

    @property
    def due(self) -> float | None:
        """The monotonic time at which it continues; None: it does not wait for the clock."""
        if self._rounds is None:
            return None
        processes = None if self._machine is None else self._machine.processes
        played = None if processes is None else processes.due()
        due = self._due if played is None else min(self._due, played)
        return None if due == math.inf else due

    def step(self) -> bool:
        """Do one thing that is due or has arrived; tell whether there was one."""
        if self._closed:
            return False
        try:
            return self._wait_for_request() if self._rounds is None else self._continue()
        except (Exception, Crashed) as error:  # noqa: BLE001 - it dies, as a process would
            telemetry.event(
                logging.ERROR, "scripted supervisor died", job=str(self.job_id), error=repr(error)
            )
            self.die()
            return True
        except BaseException:
            self.die()
            raise

    def shut_down(self) -> None:
        """Act as after SIGTERM: end the job with reason `shutdown`, and take no other job."""
        if not self._closed:
            self._shutdown.request()

    def die(self) -> None:
        """End at once, as by SIGKILL: locks are released, and there is no exit record."""
        if self._closed:
            return
        self._closed = True
        try:
            self._drop_run()
        finally:
            self._channel.close()
            self._shutdown.close()

    # --- between two jobs -------------------------------------------------------

    def _wait_for_request(self) -> bool:
        if self._shutdown.requested and not self._leaving:
            self._channel.refuse()
            self._leaving = True
        self._channel.flush()
        request = self._channel.receive()
        if request is not None:
            self._begin(*request)
            return True
        if self._leaving or self._channel.dead:
            self.die()  # it is idle, so nothing is lost
            return True
        return False

    def _begin(self, message: messages.Notice, descriptors: list[int]) -> None:
        request = accept(message, descriptors)
        if request is None:
            self.die()  # another process runs the job: report nothing and exit
            return
        try:
            self.token, self.job_id = request.token, _job_of(request)
            self._machine = ScriptedMachine(self._clock, self._script_of(self.job_id))
            self._execution = Execution(
                request, self._channel, self._shutdown, self._identity, self._machine
            )
        except BaseException:
            os.close(request.lock)
            os.close(request.directory)
            raise
        self._rounds = self._execution.rounds()
        self._next_round()

    # --- during one -------------------------------------------------------------

    def _continue(self) -> bool:
        assert self._execution is not None  # noqa: S101 - for the type checker alone
        processes = None if self._machine is None else self._machine.processes
        acted = processes is not None and processes.act()
        # After `act`, so that its output is read before anything else happens.
        called = self._execution.watch.wait(0) or (processes is not None and processes.orphaned)
        if called or self._clock.monotonic() >= self._due:
            self._next_round()
            return True
        if processes is not None and processes.fatal and not acted:
            self.die()
            return True
        return acted

    def _next_round(self) -> None:
        assert self._rounds is not None  # noqa: S101 - for the type checker alone
        assert self._execution is not None  # noqa: S101 - for the type checker alone
        due = next(self._rounds, None)
        if due is not None:
            self._due = due
            return
        clean = self._execution.clean
        self._drop_run()
        if not clean:
            self.die()

    def _drop_run(self) -> None:
        rounds, machine = self._rounds, self._machine
        self._rounds = self._execution = self._machine = None
        self._due = math.inf
        self.token = self.job_id = None
        try:
            if rounds is not None:
                rounds.close()
        finally:
            if machine is not None and machine.processes is not None:
                machine.processes.close()


def _job_of(request: Request) -> UUID:
    """Return the job's id, from the environment of its command."""
    return UUID(request.program.env[b"JOBCORE_JOB_ID"].decode())

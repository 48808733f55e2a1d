"""A supervisor without a process, at the other end of a host's socket."""

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
from jobcore.supervisor.host_channel import HostChannel, Request
from jobcore.supervisor.request import Order, accept
from jobcore.supervisor.shutdown import Shutdown
from jobcore.testing.script import Script
from jobcore.testing.scripted_process import Stage


class StandIn:
    """
    One supervisor: it takes requests and runs them, one at a time, a step at a time.

    All that it does is done by the modules of the real one, but for the command,
    which is a script. Whoever has it calls `step` when one of `events` has
    come, or `due` has.

    Attributes:
        job_id: The job that it runs, else None.
        token: That run, else None.
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
            descriptor: Its end of the socket; it is closed with it.
            clock: Tells the time.
            identity: What it tells of itself.
            script_of: Tells what the command of a job does.

        Raises:
            OSError: There are not as many descriptors. `descriptor` is closed.
        """
        self.job_id: UUID | None = None
        self.token: str | None = None
        self._clock = clock
        self._identity = identity
        self._script_of = script_of
        self._stage: Stage | None = None
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
        """Whether it has left, or died."""
        return self._closed

    @property
    def events(self) -> dict[int, int]:
        """What it waits for beside the clock: descriptors, and the events of poll."""
        if self._closed:
            return {}
        if self._execution is not None:
            return self._execution.watch.events
        return {self._channel.fileno(): select.POLLIN}

    @property
    def due(self) -> float | None:
        """When it goes on by the clock, monotonic; None: by that it never does."""
        if self._rounds is None:
            return None
        play = None if self._stage is None else self._stage.play
        played = None if play is None else play.due()
        due = self._due if played is None else min(self._due, played)
        return None if due == math.inf else due

    def step(self) -> bool:
        """Do one thing that is due or has come; tell whether there was any."""
        if self._closed:
            return False
        try:
            return self._wait_for_request() if self._rounds is None else self._go_on()
        except (Exception, Crashed) as error:  # noqa: BLE001 - it dies of it, as its process would
            telemetry.event(
                logging.ERROR, "scripted supervisor died", job=str(self.job_id), error=repr(error)
            )
            self.die()
            return True
        except BaseException:
            self.die()
            raise

    def shut_down(self) -> None:
        """Take a SIGTERM: the job is ended with reason `shutdown`, and no other one is taken."""
        if not self._closed:
            self._shutdown.request()

    def die(self) -> None:
        """Be gone at once, as by SIGKILL: its locks are free, there is no verdict."""
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
            self._begin(request)
            return True
        if self._leaving or self._channel.dead:
            self.die()  # idle: nothing is lost by it
            return True
        return False

    def _begin(self, request: Request) -> None:
        order = accept(request)
        if order is None:
            self.die()  # somebody else runs it: nothing to say about it, but a reason to go
            return
        try:
            self.token, self.job_id = order.token, _job_of(order)
            self._stage = Stage(self._clock, self._script_of(self.job_id))
            self._execution = Execution(
                order, self._channel, self._shutdown, self._identity, self._stage
            )
        except BaseException:
            os.close(order.lock)
            os.close(order.directory)
            raise
        self._rounds = self._execution.rounds()
        self._next_round()

    # --- during one -------------------------------------------------------------

    def _go_on(self) -> bool:
        assert self._execution is not None  # noqa: S101 - for the type checker alone
        play = None if self._stage is None else self._stage.play
        acted = play is not None and play.act()
        # Behind the act, so that what it wrote is read before anything else happens.
        called = self._execution.watch.wait(0) or (play is not None and play.orphaned)
        if called or self._clock.monotonic() >= self._due:
            self._next_round()
            return True
        if play is not None and play.fatal and not acted:
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
        rounds, stage = self._rounds, self._stage
        self._rounds = self._execution = self._stage = None
        self._due = math.inf
        self.token = self.job_id = None
        try:
            if rounds is not None:
                rounds.close()
        finally:
            if stage is not None and stage.play is not None:
                stage.play.close()


def _job_of(order: Order) -> UUID:
    """Return whose run it is: as the command would be told."""
    return UUID(order.command.env[b"JOBCORE_JOB_ID"].decode())

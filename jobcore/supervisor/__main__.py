"""
The supervisor process: it runs one job at a time, and outlives the host that started it.

It sets up a clean process state, tells the host that it is ready, and takes requests until
the host is gone, a job has left processes behind, or SIGTERM arrives.
"""

from __future__ import annotations

import gc
import os
import select

from jobcore.embedding import failpoints
from jobcore.supervisor import messages, spawn, system_calls
from jobcore.supervisor.execution import Execution, Identity
from jobcore.supervisor.host_channel import HostChannel
from jobcore.supervisor.request import accept
from jobcore.supervisor.stop_requests import Shutdown

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable
    from typing import NoReturn

    from jobcore.supervisor.messages import Notice
else:
    import _signal

_OOM_SCORE = b"-500"  # the OOM killer should prefer the command; setting it needs a privilege

_LOOK_MS = 1000  # milliseconds between two checks for the host, if there is no pidfd for it


def main(descriptor: int) -> NoReturn:
    """Run a supervisor for the host at the other end of the socket `descriptor`. Never returns."""
    run_detached(descriptor, supervise)


def run_detached(descriptor: int, run: Callable[[int], None]) -> NoReturn:
    """Call `run` with `descriptor` in a process that is no child of the host, and exit."""
    code = 1
    try:
        _begin_clean(descriptor)
        if os.fork() > 0:
            # The host reaps this short-lived process, so it need not reap the other one.
            os._exit(0)
        run(descriptor)
        code = 0
    finally:
        # Skip traceback and interpreter shutdown: stderr is /dev/null, and nothing needs them.
        os._exit(code)


def supervise(descriptor: int) -> None:
    """Be a supervisor in a process that was forked just now, until there is a reason to exit."""
    # After the fork, because a child inherits neither.
    spawn.make_subreaper()
    channel = HostChannel(descriptor)
    shutdown = Shutdown()
    shutdown.request_by_sigterm()
    identity = _identify()
    # The garbage collector would write to memory that is shared with children, and copy it.
    gc.freeze()
    channel.post(messages.READY, number=os.getpid())
    _serve(channel, shutdown, identity)


def _begin_clean(descriptor: int) -> None:
    """Reset signals, session, current directory and standard streams inherited from the host."""
    for number in _signal.valid_signals() - {_signal.SIGKILL, _signal.SIGSTOP}:
        ignored = number in spawn.IGNORED
        _signal.signal(number, _signal.SIG_IGN if ignored else _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    try:
        os.setsid()
    except PermissionError:
        pass  # already a session leader
    os.chdir("/")
    os.set_inheritable(descriptor, False)
    # Replace stderr, too: a program that captures the host's stderr would wait for us to close
    # it. Commands inherit stdin, so it must not be writable.
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.close(null)
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.close(null)


def _identify() -> Identity:
    """Return the facts that are the same for all jobs, and lower this process's OOM score."""
    oom_score = None
    try:
        with open("/proc/self/oom_score_adj", "r+b", buffering=0) as file:
            inherited = file.read().strip()
            if int(inherited) > int(_OOM_SCORE):
                file.seek(0)
                file.write(_OOM_SCORE)
                oom_score = inherited
    except OSError:
        pass  # not privileged
    return Identity(system_calls.boot_id(), system_calls.pid_namespace(), oom_score)


def _serve(channel: HostChannel, shutdown: Shutdown, identity: Identity) -> None:
    """Take requests one after the other, until there is a reason to exit."""
    poll = select.poll()
    poll.register(shutdown.fileno(), select.POLLIN)
    poll.register(channel.fileno(), select.POLLIN)
    if channel.pidfd is not None:
        poll.register(channel.pidfd, select.POLLIN)

    def run(message: Notice, descriptors: list[int]) -> bool:
        if failpoints.armed:
            failpoints.reach(failpoints.REQUEST_RECEIVED)
        request = accept(message, descriptors)
        # If another process runs the job, report nothing and exit.
        return request is not None and Execution(request, channel, shutdown, identity).run()

    while not shutdown.requested:
        poll.modify(channel.fileno(), select.POLLIN | (select.POLLOUT if channel.pending else 0))
        ready = identity.warm.wait(poll, _LOOK_MS if channel.must_look else None)
        if shutdown.fileno() in ready:
            continue  # `shutdown.requested` reads it
        if channel.pidfd in ready:
            channel.mark_dead()
        channel.look_for_host()
        channel.flush()
        # Run a queued request even if the host is dead: no other process has it.
        request = channel.receive()
        if request is None and channel.dead:
            return
        if request is not None and not run(*request):
            break
    channel.refuse()
    # On a shutdown, end each request that is still queued; it starts nothing.
    while shutdown.requested and (request := channel.receive()) is not None:
        run(*request)

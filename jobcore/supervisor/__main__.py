"""
The process that runs one job at a time, and outlives the host that started it.

It begins with a clean state of its own, tells the host that it is ready, and
takes requests until the host is gone, a job left something behind, or it gets
SIGTERM.
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
from jobcore.supervisor.shutdown import Shutdown

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from typing import NoReturn

    from jobcore.supervisor.host_channel import Request
else:
    import _signal

_OOM_SCORE = b"-500"  # less likely a victim than the command; needs a privilege to set

_LOOK_MS = 1000  # between two looks for the host, where no pidfd tells of its end


def main(descriptor: int) -> NoReturn:
    """Be a supervisor for the host at the other end of the socket `descriptor`; never returns."""
    code = 1
    try:
        _begin_clean(descriptor)
        if os.fork() > 0:
            # The host has only this short-lived process to reap.
            os._exit(0)
        # Behind the fork, for it would inherit neither.
        spawn.make_subreaper()
        channel = HostChannel(descriptor)
        shutdown = Shutdown()
        shutdown.come_with_sigterm()
        identity = _identify()
        # The collector would touch, and so copy, the memory shared with every child.
        gc.freeze()
        channel.post(messages.READY, number=os.getpid())
        _serve(channel, shutdown, identity)
        code = 0
    finally:
        # Nobody reads a traceback, and nothing needs the interpreter's own end.
        os._exit(code)


def _begin_clean(descriptor: int) -> None:
    """Shed what the host's signals, session, directory and descriptors would do to us."""
    for number in _signal.valid_signals() - {_signal.SIGKILL, _signal.SIGSTOP}:
        ignored = number in spawn.IGNORED
        _signal.signal(number, _signal.SIG_IGN if ignored else _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    try:
        os.setsid()
    except PermissionError:
        pass  # already the first of a session
    os.chdir("/")
    os.set_inheritable(descriptor, False)
    # Also an inherited stderr would hang a caller that captures the host's.
    # What stdin is here is what commands get, so it must not be writable.
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.close(null)
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.close(null)


def _identify() -> Identity:
    """Find out what stays the same for all jobs, and make ourselves a less likely OOM victim."""
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
    """Take requests, one after the other, until there is a reason to go."""
    poll = select.poll()
    poll.register(shutdown.fileno(), select.POLLIN)
    poll.register(channel.fileno(), select.POLLIN)
    if channel.pidfd is not None:
        poll.register(channel.pidfd, select.POLLIN)

    def run(request: Request) -> bool:
        failpoints.reach(failpoints.REQUEST_RECEIVED)
        order = accept(request)
        # Somebody else runs it: nothing to say about it, but a reason to go.
        return order is not None and Execution(order, channel, shutdown, identity).run()

    while not shutdown.requested:
        poll.modify(channel.fileno(), select.POLLIN | (select.POLLOUT if channel.pending else 0))
        ready = {descriptor for descriptor, _ in poll.poll(_LOOK_MS if channel.must_look else None)}
        if shutdown.fileno() in ready:
            continue  # to where that is taken in
        if channel.pidfd in ready:
            channel.mark_dead()
        channel.look_for_host()
        channel.flush()
        # What is queued is run also when the host is dead: only we know of it.
        request = channel.receive()
        if request is None and channel.dead:
            return
        if request is not None and not run(request):
            break
    channel.refuse()
    # Each of these is told that nothing will be run any more.
    while shutdown.requested and (request := channel.receive()) is not None:
        run(request)

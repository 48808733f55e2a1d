"""
Nursery: supervisors forked from a process that has everything loaded.

A supervisor takes 50 ms of a processor to start, nearly all of it Python's own
start. Campaigns of a thousand rounds fork theirs from one that is kept, and
have them do something at a failpoint if they like. Run as a program, this file
is that process; it imports what a supervisor does, and little else.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
import time

#: What to do at a failpoint.
KILL_SELF, KILL_HOST, PAUSE = "kill self", "kill host", "pause"
PAUSED_FOR = 0.2  # seconds


class Nursery:
    """The process, and the way to it; forked hosts may share it."""

    def __init__(self, package):
        import subprocess  # noqa: PLC0415 - not in the process itself

        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, str(theirs.fileno()), package],
                pass_fds=(theirs.fileno(),),
            )

    def launcher(self, trap=None):
        """Return a launcher for a `JobManager`; its first supervisor gets the trap."""
        return NurseryLauncher(self._socket, trap)

    def close(self):
        """End it; supervisors live on."""
        self._socket.close()
        assert self._process.wait(30) == 0


class NurseryLauncher:
    """Starts supervisors by asking the nursery for them."""

    def __init__(self, way, trap):
        self._way = way
        self._trap = trap

    def start(self, descriptor):
        """Send the descriptor; there is nothing to be reaped here."""
        trap, self._trap = self._trap, None
        socket.send_fds(self._way, [trap.told() if trap else b"-"], [descriptor])


class Trap:
    """
    What happens when a failpoint is reached for the `nth` time.

    Callable as a failpoint's callback; it acts once.
    """

    def __init__(self, point, action, nth=1, host=0):
        self._point = point
        self._action = action
        self._left = nth
        self._host = host

    def told(self):
        """Return it as bytes."""
        return "\n".join((self._point, self._action, str(self._left), str(self._host))).encode()

    def __call__(self, point, _host=None):
        """Act, if this is the moment."""
        if point != self._point:
            return
        self._left -= 1
        if self._left != 0:
            return
        if self._action == PAUSE:
            time.sleep(PAUSED_FOR)
        else:
            os.kill(os.getpid() if self._action == KILL_SELF else self._host, signal.SIGKILL)


def main(descriptor, package):
    """Fork a supervisor for each descriptor that comes, until nobody is there to send one."""
    bare = type(sys)("jobcore")  # as in a supervisor: without all that `jobcore` itself imports
    bare.__path__ = [package]
    sys.modules["jobcore"] = bare
    from jobcore.supervision import failpoints, supervisor  # noqa: PLC0415 - by the line above

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # what is forked here is reaped by nobody
    with socket.socket(fileno=descriptor) as way:
        while True:
            told, rights, _, _ = way.recvmsg(4096, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
            if not told:
                return
            (given,) = struct.unpack("i", rights[0][2])
            if os.fork() == 0:
                way.close()
                if told != b"-":
                    point, action, nth, host = told.decode().split("\n")
                    failpoints.arm(Trap(point, action, int(nth), int(host)))
                supervisor.main(given)
            os.close(given)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])

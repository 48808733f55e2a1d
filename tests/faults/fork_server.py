"""
A server that forks supervisors: it has everything loaded.

A supervisor takes 50 ms of a processor to start, nearly all of it Python's own
start. Campaigns of a thousand rounds fork theirs from one that is kept, and
have them do something at a failpoint if they like. Run as a program, this file
is that process; it imports what a supervisor does, and little else.
"""

from __future__ import annotations

import functools
import os
import signal
import socket
import struct
import sys
import time

#: What to do at a failpoint.
KILL_SELF, KILL_HOST, PAUSE = "kill self", "kill host", "pause"
PAUSED_FOR = 0.2  # seconds


class ForkServer:
    """
    The process, and the socket to it, which forked hosts may share.

    Attributes:
        tuned: Seconds that its supervisors wait, by their names in `jobcore.supervisor`.
    """

    def __init__(self, package):
        import subprocess  # noqa: PLC0415 - not in the process itself

        self.tuned = {}
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, str(theirs.fileno()), package],
                pass_fds=(theirs.fileno(),),
            )

    def launcher(self, trap=None):
        """Return a launcher for a `JobManager`; its first supervisor gets the trap."""
        return ForkServerLauncher(self._socket, trap, self.tuned)

    def close(self):
        """End it; supervisors live on."""
        self._socket.close()
        assert self._process.wait(30) == 0


class ForkServerLauncher:
    """Starts supervisors by asking the fork server for them."""

    def __init__(self, connection, trap, tuned):
        self._socket = connection
        self._trap = trap
        self._tuned = tuned

    def start(self, descriptor):
        """Send the descriptor; there is nothing to be reaped here."""
        trap, self._trap = self._trap, None
        told = trap.told(host=os.getpid()) if trap else b"-"
        tuned = "\n".join(f"{name} {seconds}" for name, seconds in self._tuned.items())
        socket.send_fds(self._socket, [told + b"\0" + tuned.encode()], [descriptor])


class Trap:
    """
    What happens when a failpoint is reached for the `nth` time: a failpoint's callback.

    Args:
        action: One of the constants above, or what is to be called.
        mark: A file to be made at that moment, so that others know that it was reached.
        host: The pid of the host, where that is not this process.
    """

    def __init__(self, point, action, nth=1, mark="", host=0):
        self._point = point
        self._action = action
        self._left = nth
        self._mark = mark
        self._host = host

    def told(self, host):
        """Return it as bytes, for `host`."""
        told = (self._point, self._action, str(self._left), self._mark, str(host))
        return "\n".join(told).encode()

    @classmethod
    def heard(cls, told):
        """Return it out of bytes."""
        point, action, nth, mark, host = told.decode().split("\n")
        return cls(point, action, int(nth), mark, int(host))

    def __call__(self, point, _whose=None):
        """Act, if this is the moment."""
        if point != self._point:
            return
        self._left -= 1
        if self._left != 0:
            return
        if self._mark:
            os.close(os.open(self._mark, os.O_WRONLY | os.O_CREAT, 0o600))
        if self._action == PAUSE:
            time.sleep(PAUSED_FOR)
        elif self._action == KILL_SELF:
            os.kill(os.getpid(), signal.SIGKILL)
        elif self._action == KILL_HOST:
            os.kill(self._host, signal.SIGKILL)
        else:
            self._action()


def main(descriptor, package):
    """Fork a supervisor for each descriptor that comes, until nobody is there to send one."""
    bare = type(sys)("jobcore")  # as in a supervisor: without all that `jobcore` itself imports
    bare.__path__ = [package]
    sys.modules["jobcore"] = bare
    from jobcore.embedding import failpoints  # noqa: PLC0415 - by the line above
    from jobcore.supervisor.__main__ import main as supervise  # noqa: PLC0415

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # what is forked here is reaped by nobody
    with socket.socket(fileno=descriptor) as connection:
        while True:
            told, rights, _, _ = connection.recvmsg(
                4096, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC
            )
            if not told:
                return
            (given,) = struct.unpack("i", rights[0][2])
            if os.fork() == 0:
                connection.close()
                told, _, tuned = told.partition(b"\0")
                for line in tuned.decode().splitlines():
                    name, seconds = line.split()
                    module, *parents, name = name.split(".")
                    owner = sys.modules[f"jobcore.supervisor.{module}"]
                    setattr(functools.reduce(getattr, parents, owner), name, float(seconds))
                if told != b"-":
                    failpoints.arm(Trap.heard(told))
                supervise(given)
            os.close(given)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])

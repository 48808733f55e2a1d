"""What hosts ask of a running job, through the FIFO and the `stop` file."""

from __future__ import annotations

import os

from jobcore.supervisor import NewerProtocol, job_directory


class Wish:
    """
    That the job be stopped.

    Attributes:
        grace: Seconds from SIGTERM to SIGKILL; 0: kill now.
        words: For the log: who asks, and why.
    """

    __slots__ = ("grace", "words")

    def __init__(self, grace: float, words: str) -> None:
        self.grace = grace
        self.words = words


class Wishes:
    """The wishes of one job."""

    def __init__(self, directory: int, grace: float) -> None:
        """
        Open the FIFO.

        Args:
            directory: The job directory.
            grace: The command's own, where a wish names none.
        """
        self._directory = directory
        self._grace = grace
        job_directory.clear_control(directory)
        job_directory.make_control(directory)  # unless it is there
        self._control = job_directory.open_control(directory)
        self._letters = job_directory.DOORBELL  # a wish may have come before us

    def fileno(self) -> int:
        """Return the FIFO, to be polled for reading."""
        return self._control

    def reopen(self) -> None:
        """Listen to the FIFO that now has the name, by the same descriptor."""
        control = job_directory.open_control(self._directory)
        os.dup2(control, self._control, inheritable=False)
        os.close(control)
        self._letters += job_directory.DOORBELL  # a wish may have been written meanwhile

    def listen(self) -> None:
        """Take the letters out of the FIFO."""
        self._letters += os.read(self._control, 4096)

    def take(self) -> Wish | None:
        """Return the wish that letters since the last call speak of, or None."""
        letters, self._letters = self._letters, b""
        if not letters:
            return None
        grace: float | None = None
        words = "stopping: asked by a host"
        try:
            stop = job_directory.read_record(self._directory, job_directory.STOP)
        except NewerProtocol:
            stop = {}  # whatever else a newer host says in it, it asks to stop
        except OSError:
            stop = None  # hosts ring again; a letter that is itself the wish counts all the same
        if stop is not None:
            asked = stop.get("grace_ms")
            grace = asked / 1000 if isinstance(asked, int) else self._grace
            if stop.get("who"):
                words = f"stopping: asked by {stop['who']}"
            if stop.get("why"):
                words += f": {stop['why']}"
        # For when there is no space for a file.
        if job_directory.KILL_NOW in letters:
            grace = 0.0
        elif job_directory.STOP_NOW in letters:
            grace = self._grace if grace is None else min(grace, self._grace)
        return None if grace is None else Wish(grace, words)

    def close(self) -> None:
        """Close the FIFO."""
        os.close(self._control)

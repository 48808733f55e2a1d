"""Stop requests of hosts for a running job, received through the FIFO and the `stop` file."""

from __future__ import annotations

import os

from jobcore.supervisor import NewerProtocol, job_directory


class Wish:
    """
    A stop request.

    Attributes:
        grace: Seconds from SIGTERM to SIGKILL; 0: kill now.
        words: The line for the log: who asks, and why.
    """

    __slots__ = ("grace", "words")

    def __init__(self, grace: float, words: str) -> None:
        self.grace = grace
        self.words = words


class Wishes:
    """Receives the stop requests for one job."""

    def __init__(self, directory: int, grace: float) -> None:
        """
        Open the FIFO.

        Args:
            directory: The job directory.
            grace: The command's grace in seconds, for requests that contain none.
        """
        self._directory = directory
        self._grace = grace
        job_directory.clear_control(directory)
        job_directory.make_control(directory)  # no-op if it exists
        self._control = job_directory.open_control(directory)
        self._letters = job_directory.DOORBELL  # a request may have been stored before

    def fileno(self) -> int:
        """Return the descriptor of the FIFO, to poll it for reading."""
        return self._control

    def reopen(self) -> None:
        """Open the FIFO again, after it was replaced, under the same descriptor number."""
        control = job_directory.open_control(self._directory)
        os.dup2(control, self._control, inheritable=False)
        os.close(control)
        self._letters += job_directory.DOORBELL  # a request may have come in the meantime

    def listen(self) -> None:
        """Read the FIFO, in which each request is one letter."""
        self._letters += os.read(self._control, 4096)

    def take(self) -> Wish | None:
        """Return the stop request that came since the last call, or None."""
        letters, self._letters = self._letters, b""
        if not letters:
            return None
        grace: float | None = None
        words = "stopping: asked by a host"
        try:
            stop = job_directory.read_record(self._directory, job_directory.STOP)
        except NewerProtocol:
            stop = {}  # a newer host asks to stop; its details cannot be read
        except OSError:
            stop = None  # hosts ask again; the letters below count without the file
        if stop is not None:
            asked = stop.get("grace_ms")
            grace = asked / 1000 if isinstance(asked, int) else self._grace
            if stop.get("who"):
                words = f"stopping: asked by {stop['who']}"
            if stop.get("why"):
                words += f": {stop['why']}"
        # Hosts send these letters if the disk is too full for the file.
        if job_directory.KILL_NOW in letters:
            grace = 0.0
        elif job_directory.STOP_NOW in letters:
            grace = self._grace if grace is None else min(grace, self._grace)
        return None if grace is None else Wish(grace, words)

    def close(self) -> None:
        """Close the FIFO."""
        os.close(self._control)

"""A logging handler and a file-like writer whose output becomes a task's log."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Callable

from jobcore.errors import Stopped

#: The logger of jobcore's own events. They are about the database that the log is stored in, so
#: an event about a failed write would cause the next one.
_OWN = "jobcore"


class TaskLogHandler(logging.Handler):
    """
    Appends each record to a task's log; see `Task.handler`.

    Args:
        append: Appends lines to the log.
        level: The least level of the records.
    """

    def __init__(self, append: Callable[[str], object], level: int | str) -> None:
        super().__init__(level)
        self._append = append

    def emit(self, record: logging.LogRecord) -> None:
        """Append a record to the log, formatted; after the end of the job, do nothing."""
        if record.name == _OWN or record.name.startswith(f"{_OWN}."):
            return
        try:
            self._append(self.format(record))
        except Stopped:
            return  # a call that only logs must not end the body: `check` does
        except Exception:  # noqa: BLE001 - as logging's own handlers do
            self.handleError(record)


class TaskWriter(io.TextIOBase):
    """
    A text file whose lines are appended to a task's log; see `Task.writer`.

    Args:
        append: Appends lines to the log.
        prefix: A text that each line begins with.
    """

    def __init__(self, append: Callable[[str], object], prefix: str = "") -> None:
        super().__init__()
        self._append_lines = append
        self._prefix = prefix
        self._lock = threading.RLock()  # re-entrant: a signal handler may print
        self._rest = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the log."""
        return "utf-8"

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, text: str, /) -> int:
        """
        Append the whole lines of the text so far, and keep the rest until its line ends.

        Returns:
            The length of the text.

        Raises:
            Stopped: The job is over.
            ValueError: The writer is closed.
        """
        if self.closed:
            raise ValueError("the writer is closed")
        if not isinstance(text, str):
            raise TypeError(f"a writer takes text, not {type(text).__name__}")
        with self._lock:
            whole, newline, rest = (self._rest + text).rpartition("\n")
            self._rest = rest
            if newline:
                self._append(whole + newline)
        return len(text)

    def close(self) -> None:
        """
        Append a line that has not ended, and close the writer.

        Raises:
            Stopped: The job is over, and there was such a line.
        """
        if self.closed:
            return
        with self._lock:
            rest, self._rest = self._rest, ""
        super().close()
        if rest:
            self._append(rest)

    def _append(self, text: str) -> None:
        if self._prefix:
            # Not `splitlines`: a log line ends at a newline only.
            text = self._prefix + text.removesuffix("\n").replace("\n", f"\n{self._prefix}")
        self._append_lines(text)

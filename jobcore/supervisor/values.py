"""
JSON values that a command hands over through descriptors: its result, and its pipeline's state.

The supervisor reads them from pipes while the command runs. If the command is COMPLETE, it
writes them into the job directory before the exit record, so a process that finds the record also
finds them all.
"""

from __future__ import annotations

import os

from jobcore.supervisor.capture import read_now
from jobcore.supervisor.result_file import MOST_HANDED, RESULT, STATE, parse

#: The variables with the numbers of the descriptors.
VARIABLES = {RESULT: b"JOBCORE_RESULT_FD", STATE: b"JOBCORE_STATE_FD"}
#: Constants with one digit, as for progress reports. Scripts rarely use 6 and 7.
DESCRIPTORS = {RESULT: 7, STATE: 6}
_READ_SIZE = 65536  # bytes; the default capacity of a pipe


class ValueReader:
    """
    What a command has written so far to one of these descriptors.

    Attributes:
        name: Which value it is.
        descriptor: The read end of the pipe; negative: it has ended.
    """

    def __init__(self, name: str, descriptor: int) -> None:
        self.name = name
        self.descriptor = descriptor
        self._data = b""
        self._largest = MOST_HANDED[name]

    @property
    def variable(self) -> str:
        """The name of the variable with the number of the descriptor."""
        return VARIABLES[self.name].decode()

    def read(self) -> bool:
        """Read once; False: end of file, and the pipe is now closed."""
        try:
            data = os.read(self.descriptor, _READ_SIZE)
        except BlockingIOError:
            return True
        if data:
            self._take(data)
            return True
        self.close()
        return False

    def end(self) -> None:
        """Read what the pipe contains now, and close it."""
        if self.descriptor >= 0:
            for data in read_now(self.descriptor):
                self._take(data)
            self.close()

    def close(self) -> None:
        """Close the pipe without reading it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _take(self, data: bytes) -> None:
        # One byte more than is allowed shows that it is too large; drop the rest.
        self._data += data[: self._largest + 1 - len(self._data)]

    def value(self) -> bytes | None:
        """
        Return the JSON text; None: nothing was written.

        Raises:
            ValueError: It is not valid JSON, or too large; the message says what is wrong.
        """
        if not self._data.strip():
            return None
        if len(self._data) > self._largest:
            raise ValueError(f"it is larger than {self._largest} bytes")
        try:
            parse(self._data)
        except (ImportError, OSError):
            # `json` cannot be loaded now. The process that settles the job checks the text, too.
            pass
        return self._data.strip()

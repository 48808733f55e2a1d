"""
JSON values that a command hands over through descriptors: its result, and its pipeline's state.

The supervisor reads them from pipes while the command runs. If the command is COMPLETE, it
writes each into the job directory before the exit record, so that who settles the job stores
both or neither.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: The values, by the names of their files in the job directory.
RESULT, STATE = "result", "next-state"

#: The variables with the numbers of the descriptors.
VARIABLES = {RESULT: b"JOBCORE_RESULT_FD", STATE: b"JOBCORE_STATE_FD"}
#: Constants with one digit, as for progress reports. Scripts rarely use 6 and 7.
DESCRIPTORS = {RESULT: 7, STATE: 6}
#: Maximum bytes of the JSON texts. A result is for facts about the job, not for its payload.
#: The state of a pipeline may have an entry for each of many tables.
LARGEST = {RESULT: 64 * 1024, STATE: 1024 * 1024}

_READ_SIZE = 65536  # bytes; the default capacity of a pipe
#: The deepest nesting. The reader's stack may be fuller than the one of the check.
_DEEPEST = 100


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
        self._largest = LARGEST[name]

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
            from jobcore.supervisor.capture import read_now  # noqa: PLC0415 - hosts do not need it

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
        parse(self._data)
        return self._data.strip()


def parse(data: bytes) -> Any:
    """
    Return the value of a JSON text.

    Raises:
        ValueError: It is not valid JSON in UTF-8, or nested too deeply.
    """
    import json  # noqa: PLC0415 - only for jobs that hand something over

    def refuse(constant: str) -> None:
        raise ValueError(f"it is not valid JSON: {constant} is no JSON value")

    try:
        value = json.loads(data.decode("utf-8"), parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not valid JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"it is nested deeper than {_DEEPEST} levels") from None
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    level, depth = [value], 0
    while level := [one for one in level if isinstance(one, dict | list)]:
        depth += 1
        if depth > _DEEPEST:
            raise ValueError(f"it is nested deeper than {_DEEPEST} levels")
        level = [item for one in level for item in (one.values() if isinstance(one, dict) else one)]
    return value

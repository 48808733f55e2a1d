"""
Encodes arguments and return values as bytes, and decodes them.

It uses JSON if JSON preserves the value exactly: operators can read JSON, and so can any
version of Python and of the program. All other values are pickled. The interpreter of
function jobs loads this module, so it uses the standard library only.
"""

from __future__ import annotations

import json
import sys
from types import FunctionType

from jobcore.functions.names import kind_of, why_unfindable, why_unimportable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Environment variable with the job directory. It is removed before the function is called.
DIRECTORY = "JOBCORE_FUNCTION"

#: The version of the payload's format.
VERSION = 1

JSON = "json"
PICKLE = "pickle"

#: Maximum nesting of lists and objects in JSON. Its reader recurses, on top of the caller's
#: stack; the reader of pickles does not.
DEEPEST = 100
#: Maximum bits of an integer in JSON. Python's limit on conversions, which users can set, is
#: never below 640 digits; this many bits need fewer.
LONGEST_NUMBER = 2048
#: The newest protocol that every supported Python reads.
PROTOCOL = 5

_INFINITY = float("inf")


class Unstorable(Exception):
    """A value cannot be encoded. The text says why, and contains nothing of the value."""


def this_python() -> list[str]:
    """Return a value that identifies this installation of Python."""
    return [str(sys.implementation.cache_tag), sys.prefix, sys.exec_prefix]


def encode(value: Any) -> tuple[str, bytes]:
    """
    Return the name of the encoding, `JSON` or `PICKLE`, and the encoded value.

    Raises:
        Unstorable: The value cannot be pickled, or another interpreter could not unpickle it.
    """
    if is_json(value):
        return JSON, json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")
    return PICKLE, _pickled(value)


def decode(encoding: str, data: bytes) -> Any:
    """
    Return the value that was encoded.

    Unpickling imports classes and runs code. Call it only for data from a trusted source.

    Raises:
        Exception: Anything that importing a class or restoring an object raises.
    """
    if encoding == JSON:
        return json.loads(data)
    import pickle  # noqa: PLC0415 - most values do not need it

    return pickle.loads(data)  # noqa: S301 - documented above


def is_json(value: Any) -> bool:
    """
    Tell whether a round trip through JSON preserves `value`, its types included.

    So the value contains no tuples, no keys other than strings, no NaN, no lone surrogates,
    and no list or dict twice, because JSON would turn it into two.
    """
    seen = set()
    todo = [(value, 0)]
    while todo:
        one, depth = todo.pop()
        kind = type(one)
        if kind is list or kind is dict:
            if depth == DEEPEST or id(one) in seen:
                return False
            seen.add(id(one))
            members = one
            if kind is dict:
                if not all(type(key) is str and _is_text(key) for key in one):
                    return False
                members = one.values()
            todo.extend((member, depth + 1) for member in members)
        elif not _is_simple(one, kind):
            return False
    return True


def _is_simple(one: Any, kind: type) -> bool:
    if kind is str:
        return _is_text(one)
    if kind is int:
        return int(one).bit_length() <= LONGEST_NUMBER
    if kind is float:
        return bool(abs(one) < _INFINITY)  # also False for NaN
    return one is None or kind is bool


def _is_text(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False  # JSON would join two lone surrogates into one character
    return True


def _pickled(value: Any) -> bytes:
    import io  # noqa: PLC0415 - most values do not need it
    import pickle  # noqa: PLC0415

    class Pickler(pickle.Pickler):
        """Remembers the object it failed at; refuses objects that only this process could load."""

        last: Any = value

        def reducer_override(self, one: Any) -> Any:
            self.last = one
            if isinstance(one, (type, FunctionType)):
                module = one.__module__
                if module == "__main__":
                    raise Unstorable(why_unfindable(one))
                if module in sys.modules and (why := why_unimportable(module)) is not None:
                    raise Unstorable(why)
            return NotImplemented

    buffer = io.BytesIO()
    pickler = Pickler(buffer, PROTOCOL)
    try:
        pickler.dump(value)
    except (Unstorable, MemoryError):
        raise
    except RecursionError:
        raise Unstorable("it is nested too deeply to be pickled") from None
    except Exception as error:  # noqa: BLE001 - objects define how they are pickled
        # Not chained: pickle's error texts quote the object, which may contain a secret.
        raise Unstorable(_why_unpicklable(pickler.last, error)) from None
    return buffer.getvalue()


def _why_unpicklable(one: Any, error: Exception) -> str:
    """Return why pickle failed at `one`, the last object that it tried."""
    if isinstance(one, (type, FunctionType)):
        reason = why_unfindable(one)
        if reason is not None:
            return reason
    reason = f"an object of type {kind_of(one)} cannot be pickled"
    if isinstance(error, TypeError) and not str(error).startswith("cannot pickle "):
        return f"{reason}: {error}"  # the class's own text, such as what to store instead
    return reason

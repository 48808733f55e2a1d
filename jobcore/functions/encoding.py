"""
Arguments and return values as bytes, and back.

JSON where that keeps a value exactly, so that an operator can read it and any
version of Python and of the program; pickle for the rest. The interpreter that
calls functions loads this, too, so it needs the standard library alone.
"""

from __future__ import annotations

import json
import sys
from types import FunctionType

from jobcore.functions.names import kind_of, why_unfindable, why_unimportable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

JSON = "json"
PICKLE = "pickle"

#: Levels of lists and objects in JSON: its reader recurses, on top of whatever
#: stack it is called with, where that of pickles does not.
DEEPEST = 100
#: Bits of a number in JSON: with 640 digits or fewer no limit on the conversion can be set.
LONGEST_NUMBER = 2048
#: The newest protocol that every supported Python reads.
PROTOCOL = 5

_INFINITY = float("inf")


class Unstorable(Exception):
    """A value has no form in bytes. The text says why, and shows nothing of the value."""


def encode(value: Any) -> tuple[str, bytes]:
    """
    Return how `value` is encoded, and the bytes.

    Raises:
        Unstorable: It cannot be pickled, or could not be unpickled elsewhere.
    """
    if is_json(value):
        return JSON, json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")
    return PICKLE, _pickled(value)


def decode(encoding: str, data: bytes) -> Any:
    """
    Return the value that `encode` was given.

    Raises:
        Exception: Whatever a class raises that is imported, or an object that is made anew.
    """
    if encoding == JSON:
        return json.loads(data)
    import pickle  # noqa: PLC0415 - most values need none

    return pickle.loads(data)  # noqa: S301 - that this runs what its writer wanted is documented


def is_json(value: Any) -> bool:
    """
    Tell whether JSON gives `value` back as it is: of the same types, and equal.

    So there are no tuples, no keys but texts, no NaN, no half of a surrogate
    pair, and no list that is in two places, as it would be two of them then.
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
        return bool(abs(one) < _INFINITY)  # NaN is not, either
    return one is None or kind is bool


def _is_text(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False  # two halves of a pair would come back as one character
    return True


def _pickled(value: Any) -> bytes:
    import io  # noqa: PLC0415 - most values need none of this
    import pickle  # noqa: PLC0415

    class Pickler(pickle.Pickler):
        """Knows what it failed at, and refuses what only this very program could unpickle."""

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
    except Exception as error:  # noqa: BLE001 - objects have their own ways to be pickled
        # Not chained: pickle's own texts quote the object, and perhaps a secret in it.
        raise Unstorable(_why_unpicklable(pickler.last, error)) from None
    return buffer.getvalue()


def _why_unpicklable(one: Any, error: Exception) -> str:
    """Return why pickle failed at an object, the last one that it looked at."""
    if isinstance(one, (type, FunctionType)):
        reason = why_unfindable(one)
        if reason is not None:
            return reason
    reason = f"an object of type {kind_of(one)} cannot be pickled"
    if isinstance(error, TypeError) and not str(error).startswith("cannot pickle "):
        return f"{reason}: {error}"  # its own words, such as what to store instead
    return reason

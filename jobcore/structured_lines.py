"""Structured log lines: the fields of a line that is a JSON object."""

from __future__ import annotations

import json
import re
from typing import Any

#: The most levels of nesting that are accepted. Log lines have a few; JSON libraries fail
#: somewhere between a hundred and a thousand.
DEEPEST = 100

_SPACE = " \t\r\n"  # the whitespace that JSON allows around a value
#: A text that begins with another character is not a JSON object.
BEGINNINGS = frozenset("{" + _SPACE)


def object_in(text: str) -> dict[str, Any] | None:
    """
    Return the JSON object that `text` contains, or None if it is anything else. Never raises.

    An object also counts as something else if parsing would change it: if it has a
    duplicate key, NaN, a number too large for a float, a lone surrogate, or more levels
    of nesting than `DEEPEST`.
    """
    if text[:1] not in BEGINNINGS:  # first, because this rules out nearly every line
        return None
    bare = text.strip(_SPACE)
    if bare[:1] != "{" or bare[-1:] != "}":
        return None
    try:
        found: dict[str, Any]
        found, end = _DECODER.raw_decode(bare)
        if end != len(bare):
            return None
        if "\\u" in bare:
            json.dumps(found, ensure_ascii=False).encode()  # fails for a lone surrogate
    except (ValueError, RecursionError):
        return None
    if len(bare) > 2 * DEEPEST and bare.count("{") + bare.count("[") > DEEPEST and is_deep(found):
        return None
    return found


_TEXT = r'"[^"\\\x00-\x1f]*"'
_VALUE = rf"(?:{_TEXT}|true|false|null|0|-?[1-9][0-9]{{0,30}})"
#: Objects that parsing and writing leaves as they are, if their keys differ: without nesting,
#: escapes or fractions, with the spaces that `json.dumps` writes.
_AS_WRITTEN = re.compile(rf"\{{{_TEXT}: {_VALUE}(?:, {_TEXT}: {_VALUE})*\}}")


def object_json(text: str) -> str | None:
    """Return the object of `object_in` as JSON, as `json.dumps` writes it without escapes."""
    if _AS_WRITTEN.fullmatch(text):  # twice as fast as parsing and writing it
        parts = text.split('"')  # in turn what is between texts, and texts
        keys = [one for one, after in zip(parts[1::2], parts[2::2], strict=True) if after[0] == ":"]
        if len(set(keys)) == len(keys):
            return text
    found = object_in(text)
    return None if found is None else ENCODER.encode(found)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError("a number is too large")
    return number


def _refuse(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


#: Stricter than json.loads, which accepts NaN and 1e999, and of two equal keys keeps the last.
_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_refuse)


#: One encoder for all lines. `json.dumps` would create one per line, a sixth of the time.
ENCODER = json.JSONEncoder(ensure_ascii=False)


def is_deep(value: Any) -> bool:
    """Tell whether a value parsed from JSON has more levels of nesting than `DEEPEST`."""
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return False
    return True

"""Structured log lines: the fields of a line that is a JSON object."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
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
    if _keys_as_written(text):  # twice as fast as parsing and writing it
        return text
    found = object_in(text)
    return None if found is None else ENCODER.encode(found)


def _keys_as_written(text: str) -> list[str]:
    """Return the keys of an object that parsing and writing leaves as it is; [] for others."""
    if not _AS_WRITTEN.fullmatch(text):
        return []
    parts = text.split('"')  # in turn what is between texts, and texts
    keys = [one for one, after in zip(parts[1::2], parts[2::2], strict=True) if after[0] == ":"]
    return keys if len(set(keys)) == len(keys) else []


class ObjectFinder:
    """
    Finds the lines of a log that are JSON objects.

    Most objects of a log have one of a few lists of keys, here called kinds. Once a kind is known,
    its objects are found by a regular expression alone, in a fifth of the time of `object_json`.
    """

    #: The most kinds that are known. One with ten keys takes a few milliseconds to learn.
    MOST_KINDS = 4
    #: The longest regular expression of a kind. One for a thousand keys would take most of a
    #: second, in which no other thread of the host runs, and megabytes in the cache of `re`.
    LONGEST_KIND = 3000
    #: After so many objects of no known kind, the kind of the last one is learned. Learning takes
    #: less time than these objects have taken.
    LEARN_AFTER = 500

    def __init__(self) -> None:
        self._kinds: list[str] = []
        self._unknown = 0
        self._pattern = _lines_with_objects(self._kinds)

    def find(self, lines: bytes) -> Iterator[tuple[int, bytes]]:
        """
        Yield each object, as `object_json` returns it, after the offset of its line's end.

        Args:
            lines: The lines, in UTF-8, with an LF before the first and after each of them.
        """
        if b"{" not in lines:
            return
        for match in self._pattern.finditer(lines):
            known: bytes | None = match[1]
            if known is not None:
                yield match.end(), known
                continue
            text = match[0][1:].decode("utf-8")
            found = object_json(text)
            if found is not None:
                self._note(text)
                yield match.end(), found.encode("utf-8")

    def _note(self, text: str) -> None:
        """Count an object of no known kind, and learn its kind if there were many."""
        self._unknown += 1
        if self._unknown < self.LEARN_AFTER or len(self._kinds) == self.MOST_KINDS:
            return
        self._unknown = 0
        keys = _keys_as_written(text)
        if keys:
            members = ", ".join(f'"{re.escape(key)}": {_VALUE}' for key in keys)
            if len(members) <= self.LONGEST_KIND:
                self._kinds.append(rf"\{{{members}\}}")
                self._pattern = _lines_with_objects(self._kinds)


def _lines_with_objects(kinds: list[str]) -> re.Pattern[bytes]:
    """
    Return a pattern of the lines that may be objects, with the LF before them.

    Group 1 is an object of these kinds; it takes part in no other match.
    """
    any_line = r"[ \t\r]*\{[^\n]*"
    known = "|".join(kinds) or "(?!)"
    return re.compile(rf"\n(?:({known})(?=\n)|{any_line})".encode())


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

"""SQLite's GLOB in Python, for what is compared outside of statements."""

from __future__ import annotations

import re
from functools import lru_cache


def matches(pattern: str, value: str | None) -> bool:
    """Tell whether `value GLOB pattern` is true in SQLite."""
    return value is not None and _compiled(pattern).fullmatch(value) is not None


@lru_cache(64)
def _compiled(pattern: str) -> re.Pattern[str]:
    parts, at = [], 0
    while at < len(pattern):
        if pattern[at] == "[":
            found = _SET.match(pattern, at)
            if found is None:
                return _NEVER  # the set has no end
            parts.append(_set(found["not"], found["members"]))
            at = found.end()
            continue
        parts.append({"*": ".*", "?": "."}.get(pattern[at]) or re.escape(pattern[at]))
        at += 1
    return re.compile("".join(parts), re.DOTALL)


_NEVER = re.compile(r"(?!)")
#: A set; a `]` that comes first is one of its members.
_SET = re.compile(r"\[(?P<not>\^|(?!\^))(?P<members>(?:\]|(?=[^\]]))[^\]]*)\]", re.DOTALL)


def _set(inverted: str, members: str) -> str:
    parts, low, at = [], "", 0
    while at < len(members):
        if members[at] == "-" and low and at + 1 < len(members):
            high, at = members[at + 1], at + 2
            parts += [f"{re.escape(low)}-{re.escape(high)}"] if low <= high else []
            low = ""  # the end of a range does not begin another one
            continue
        low = members[at] if at or members[at] != "]" else ""
        parts.append(re.escape(members[at]))
        at += 1
    return f"[{inverted}{''.join(parts)}]"

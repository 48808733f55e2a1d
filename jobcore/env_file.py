"""Environment files: lines such as `KEY=VALUE`, which give a command variables."""

from __future__ import annotations

import re

from jobcore.errors import CommandError

#: The most bytes of a file: more than Linux gives to a command.
MOST_BYTES = 2 * 2**20

_LINE = re.compile(r"(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]*)[ \t]*=[ \t]*(.*)")
#: What stands for a character in a value in double quotes.
_ESCAPED = {"n": "\n", "t": "\t"}


def read(path: str) -> dict[str, str]:
    r"""
    Return the variables of a file.

    Empty lines and those that begin with `#` are left out, and `export` before a name is allowed.
    A value ends with its line, without the blanks around it. Quotes around the whole value are
    removed: between single ones, everything is as it is written; between double ones, a backslash
    makes `\n` a newline, `\t` a tab, and any other character itself. No variable is replaced.

    Raises:
        CommandError: A line is not of this form; the message has the path and the line, and no
            value. Or the file is too large, or not UTF-8 text.
        OSError: The file cannot be read.
    """
    with open(path, "rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise CommandError(f"{path} is larger than {MOST_BYTES} bytes")
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise CommandError(f"{path} is not UTF-8 text") from None  # the cause shows the bytes
    found = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = _LINE.fullmatch(text)
        value = None if match is None else _value(match[2])
        if match is None or value is None or "\0" in value:
            # Without the line, which may hold a secret.
            raise CommandError(f"{path}:{number}: it must be KEY=VALUE, with matching quotes")
        found[match[1]] = value
    return found


def _value(text: str) -> str | None:
    """Return a value without its quotes; None: they do not match."""
    quote = text[:1]
    if quote not in ("'", '"'):
        return text
    if len(text) < 2 or text[-1] != quote:
        return None
    inner = text[1:-1]
    if quote == "'":
        return None if "'" in inner else inner
    if re.fullmatch(r'(?:[^"\\]|\\.)*', inner) is None:
        return None
    return re.sub(r"\\(.)", lambda match: _ESCAPED.get(match[1], match[1]), inner)

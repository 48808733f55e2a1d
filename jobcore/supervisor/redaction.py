"""
Masks secret values in a stream of bytes, before anything reaches the disk.

A value is masked literally and in the forms in which programs write it: as JSON at any depth
of nesting and with any choice of escapes, as the `repr` of a text or of bytes, URL-encoded,
quoted for a shell, CSV or SQL, and within base64. Escapes are decoded both in the stream and
in the values, so no complete list of encoders is needed.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re
    from typing import Any

MASK = b"***"

#: Minimum bytes of a value for masking all its forms. The base64 of a shorter value would occur
#: by chance in other data, so it is masked only literally and as JSON.
SHORTEST = 6

#: Bytes that `_Finder` reads as one number, and the minimum bytes of a word that always contains
#: a whole number at an even offset, wherever the word begins.
_GRAM, _LEAST = 4, 5

#: How many bytes from the end an incomplete escape is searched. A longer run of backslashes
#: is cut there.
_REACH = 64

# One escape; `_HEX` is a hexadecimal digit. JSON within JSON doubles backslashes at each level,
# and a URL within a URL writes `%25` for `%`. So any number of them counts as one.
_HEX = rb"[0-9A-Fa-f]"
_PERCENT = rb"%(?:25)*"
_RUN = rb"(?:\\|" + _PERCENT + rb"5[Cc])+"
_HIGH, _LOW = rb"u([Dd][89ABab]" + _HEX + rb"{2})", rb"u([Dd][C-Fc-f]" + _HEX + rb"{2})"
# A character from U+0080 to U+00FF as the two bytes of its UTF-8.
_LEAD = rb"(?:([\xc2\xc3])|" + _RUN + rb"(?:x([Cc][23])|(30[23]))|" + _PERCENT + rb"([Cc][23]))"
_REST = (
    rb"(?:([\x80-\xbf])|" + _RUN + rb"(?:x([89ABab]" + _HEX + rb")|(2[0-7]{2}))|"
    + _PERCENT + rb"([89ABab]" + _HEX + rb"))"
)  # fmt: skip
_ESCAPE = (
    rb"(?=[\\%\xc2\xc3])(?:"  # for speed: at nearly all positions only this is tried
    + _LEAD + _REST + rb"|" + _RUN + rb"(?:" + _HIGH + _RUN + _LOW
    + rb"|u(" + _HEX + rb"{4})|[ux]\{(" + _HEX + rb"{1,6})\}|U(" + _HEX + rb"{8})"
    + rb"|x(" + _HEX + rb"{2})|([0-3][0-7]{2})|([abeEfnrtv0]))?"
    + rb"|" + _PERCENT + rb"(" + _HEX + rb"{2}))"
)  # fmt: skip
# The groups of `_ESCAPE`.
_LEADS, _RESTS, _PAIR, _OCTALS, _LETTER = (1, 2, 3, 4), (5, 6, 7, 8), (9, 10), (3, 7, 15), 16
#: An incomplete escape at the end of the data.
_PART = (
    rb"(?:" + _RUN + rb"(?:[ux]\{" + _HEX + rb"{0,6}|u" + _HEX + rb"{0,3}|U" + _HEX + rb"{0,7}|x"
    + _HEX + rb"?|[0-3][0-7]?|" + _PERCENT + _HEX + rb"?)?|" + _PERCENT + _HEX + rb"?)"
)  # fmt: skip
_BEGINNING = (
    rb"(?:(?:(?:" + _RUN + rb")?" + _LEAD + rb"|" + _RUN + _HIGH + rb")" + _PART + rb"?|" + _PART
    + rb")\Z"
)  # fmt: skip
_LETTERS = {
    b"a": b"\a", b"b": b"\b", b"e": b"\x1b", b"E": b"\x1b", b"f": b"\f", b"n": b"\n", b"r": b"\r",
    b"t": b"\t", b"v": b"\v", b"0": b"\0",
}  # fmt: skip
#: A quote, and how a shell, CSV or SQL writes it within quotes.
_QUOTES = ((b"'", b"'\\''"), (b"'", b"'\"'\"'"), (b"'", b"''"), (b'"', b'""'))


class Values:
    """
    Values to mask, prepared for searching in any number of streams.

    Args:
        values: The values; empty ones are ignored.
    """

    def __init__(self, values: list[bytes]) -> None:
        # Import `re` before the command starts: during a run its file may have been removed.
        _patterns()
        plain: set[bytes] = set()
        bare: set[bytes] = set()  # forms with escapes decoded
        for value in filter(None, values):
            plain.add(value)
            text = self._unescape(value)[0]
            if len(value) >= SHORTEST:
                bare |= _as_base64(value)
            if len(value) < SHORTEST or len(text) < _LEAST:
                plain |= _as_json(value)
            else:
                # A backslash before a value that begins with `n` decodes to a line end, and a
                # percent sign before one that begins with `ba` to a byte. Search these, too.
                bare |= {
                    self._unescape(before + form)[0]
                    for form in _as_quoted(value)
                    for before in (b"", b"\\", b"%")
                }
        self._plain, self._bare, self._both = _Finder(plain), _Finder(bare), _Finder(plain | bare)
        self._has_forms = bool(bare)

    def mask(self, data: bytes) -> bytes:
        """Return `data` masked. Nothing precedes or follows it."""
        return self.redactor().feed(data, final=True)

    def redactor(self) -> Redactor:
        """Return a new redactor for one stream."""
        return Redactor(self)

    def find(
        self, data: bytes, *, final: bool, start: int = 0
    ) -> tuple[list[tuple[int, int]], int, int]:
        """
        Find values in `data`.

        Args:
            final: Nothing comes after `data`, so its end is not open.
            start: The third result of the call before, when `data` had fewer bytes at its end.

        Returns:
            The begin and end of each value, sorted; the offset from which the end is open,
            because a value or an escape may continue; and the earliest offset at which the end
            of `data` may cut a value without escapes. More bytes at the end move the last one
            only forward.
        """
        size = len(data)
        if not self._has_forms:
            open_end = size if final else self._plain.begins(data, start)
            return self._plain.find(data), open_end, open_end
        begun = size if final else self._cut(data)
        whole = data if begun == size else data[:begun]
        text, escapes = self._unescape(whole)
        if text == data:
            open_end = size if final else self._both.begins(data)
            return self._both.find(data), open_end, open_end
        found = self._plain.find(data)
        found += [(escapes.begin(begin), escapes.end(end)) for begin, end in self._bare.find(text)]
        found.sort()
        if final:
            return found, size, size
        plain = self._plain.begins(data, start)
        open_end = min(escapes.align(plain), escapes.begin(self._bare.begins(text)), begun)
        return found, open_end, plain

    def _cut(self, data: bytes) -> int:
        """Return the offset of an escape that the end of `data` cuts, or the size of `data`."""
        size = len(data)
        tail = data[-_REACH:]
        if b"\\" not in tail and b"%" not in tail and tail[-1:] not in (b"\xc2", b"\xc3"):
            return size  # the usual case
        match = _patterns()[1].search(tail)
        return size if match is None else size - len(tail) + match.start()

    def _unescape(self, data: bytes) -> tuple[bytes, _Escapes]:
        """Return `data` with escapes decoded and `+` as a space, and where the escapes were."""
        escapes = _Escapes()
        data = data.replace(b"+", b" ")
        if b"\\" not in data and b"%" not in data and data.isascii():
            return data, escapes
        pieces: list[bytes] = []
        position = size = 0
        add = escapes.add
        for match in _patterns()[0].finditer(data):
            begin, end = match.span()
            kind = match.lastindex
            bare = b"" if kind is None else _meaning(match, kind)
            pieces += (data[position:begin], bare)
            size += begin - position
            add((size, len(bare), begin, end))
            size += len(bare)
            position = end
        pieces.append(data[position:])
        return b"".join(pieces), escapes


class Redactor:
    """
    Masks values in one stream, however it is divided into pieces.

    Every byte of a value is masked. Overlapping values share one mask.
    """

    def __init__(self, values: Values) -> None:
        self._values = values
        self._held = b""
        self._covered = 0  # bytes of `_held` for which a mask was returned already
        self._start = 0  # offset in `_held` from which a value without escapes may begin

    def feed(self, data: bytes, *, final: bool = False) -> bytes:
        """
        Add data, and return the masked part of the stream that is certain by now.

        If the end may be the beginning of a value, it is held back until more bytes decide,
        or until `final` tells that there are none.
        """
        buffer = self._held + data if self._held else data
        found, open_end, plain = self._values.find(buffer, final=final, start=self._start)
        position = self._covered
        pieces: list[bytes] = []
        for begin, end in found:
            if begin >= open_end:
                break
            if begin >= position:
                pieces += (buffer[position:begin], MASK)
                position = end
            elif end > position:
                position = end
        if position < open_end:
            pieces.append(buffer[position:open_end])
        self._held = buffer[open_end:]
        self._covered = max(position - open_end, 0)
        self._start = plain - open_end
        return b"".join(pieces)


class _Escapes:
    """Maps offsets in a decoded text to offsets in the text with escapes."""

    __slots__ = ("_found", "add")

    def __init__(self) -> None:
        # For each escape: offset and size of its meaning in the decoded text, and its begin
        # and end in the text with escapes.
        self._found: list[tuple[int, int, int, int]] = []
        self.add = self._found.append

    def begin(self, place: int) -> int:
        """Return where the decoded character at `place` begins, including its backslashes."""
        number = _count_before(self._found, (place,))
        if number < len(self._found) and self._found[number][0] == place:
            return self._found[number][2]
        if number == 0:
            return place
        at, size, begin, end = self._found[number - 1]
        return begin if place < at + size else end + place - at - size

    def end(self, place: int) -> int:
        """Return where the decoded character before `place` ends."""
        number = _count_before(self._found, (place,))
        if number == 0:
            return place
        at, size, _, end = self._found[number - 1]
        return end + max(place - at - size, 0)

    def align(self, place: int) -> int:
        """Return an offset in the text with escapes, or the begin of the escape it is inside."""
        for _, _, begin, end in reversed(self._found):
            if end <= place:
                break
            if begin < place:
                return begin
        return place


class _Finder:
    """
    Finds all occurrences of many words in a text, in a time that hardly depends on their number.

    The text is read as numbers of four bytes. Wherever a word of seven or more bytes begins,
    it contains a whole number, at most three bytes after its beginning. So the table has each
    word under the numbers at its first four offsets, and words are compared only where the
    text has one of these numbers. Words of five or six bytes use numbers at every second byte.
    """

    def __init__(self, words: set[bytes]) -> None:
        self._sorted = sorted(words)
        self._longest = max(map(len, words), default=0)
        self._prefixes = {word[:_GRAM] for word in words}
        self._short = [word for word in words if len(word) < _LEAST]
        self._tables: list[tuple[int, frozenset[int], dict[int, list[tuple[int, bytes]]]]] = []
        for step, size in ((_GRAM, range(2 * _GRAM - 1, self._longest + 1)), (2, range(5, 7))):
            table: dict[int, list[tuple[int, bytes]]] = {}
            for word in words:
                for shift in range(step if len(word) in size else 0):
                    gram = int.from_bytes(word[shift : shift + _GRAM], sys.byteorder)
                    table.setdefault(gram, []).append((shift, word))
            if table:
                self._tables.append((step, frozenset(table), table))

    def find(self, text: bytes) -> list[tuple[int, int]]:
        """Return begin and end of all words in a text, sorted, including overlapping ones."""
        found: list[tuple[int, int]] = []
        for word in self._short:
            at = text.find(word)
            while at >= 0:
                found.append((at, at + len(word)))
                at = text.find(word, at + 1)
        for step, grams, table in self._tables:
            for offset in range(0, _GRAM, step):
                numbers = memoryview(text)[offset : offset + (len(text) - offset) // 4 * 4]
                numbers = numbers.cast("I")
                if grams.isdisjoint(numbers):  # the usual case, which costs nothing more
                    continue
                for place, number in enumerate(numbers):
                    for shift, word in table.get(number, ()):
                        begin = offset + place * _GRAM - shift
                        if begin >= 0 and text.startswith(word, begin):
                            found.append((begin, begin + len(word)))
        found.sort()
        return found

    def begins(self, text: bytes, start: int = 0) -> int:
        """Return the smallest offset at which the end of the text may cut a word, or its size."""
        size = len(text)
        for begin in range(max(start, size - self._longest + 1), size):
            if size - begin >= _GRAM and text[begin : begin + _GRAM] not in self._prefixes:
                continue
            end = text[begin:]
            number = _count_before(self._sorted, end)
            if number < len(self._sorted) and self._sorted[number].startswith(end):
                return begin
        return size


def _count_before(items: list[Any], item: Any) -> int:
    """Return the number of sorted items that are less than or equal to `item`."""
    low, high = 0, len(items)
    while low < high:
        middle = (low + high) // 2
        if item < items[middle]:
            high = middle
        else:
            low = middle + 1
    return low


_compiled: list[re.Pattern[bytes]] = []


def _patterns() -> list[re.Pattern[bytes]]:
    """Return the compiled patterns for an escape, and for an incomplete one at the end."""
    if not _compiled:
        # Imported here, because most jobs have nothing to mask and do not need it.
        import re  # noqa: PLC0415

        _compiled.extend(map(re.compile, (_ESCAPE, _BEGINNING)))
    return _compiled


def _meaning(escape: re.Match[bytes], kind: int) -> bytes:
    """
    Return the meaning of an escape. `kind` is the group that has matched last.

    If no group has matched, the escape is backslashes before an ordinary character, and has
    no meaning. A character below U+0100 becomes one byte, because programs may also write it
    as Latin-1.
    """
    if kind in _RESTS:
        return bytes([_code(escape, _LEADS) << 6 & 0xC0 | _code(escape, _RESTS) & 0x3F])
    if kind in _PAIR:
        high, low = (int(escape[number], 16) & 0x3FF for number in _PAIR)
        return chr(0x10000 + (high << 10 | low)).encode()
    if kind == _LETTER:
        return _LETTERS[escape[kind]]
    code = int(escape[kind], 8 if kind in _OCTALS else 16)
    if code > sys.maxunicode:
        return escape[0]
    if 0xDC80 <= code <= 0xDCFF:
        code &= 0xFF  # Python's `surrogateescape` of a byte that is not UTF-8
    if code < 0x100:
        return {0x2B: b" ", 0x5C: b""}.get(code, bytes([code]))
    return chr(code).encode("utf-8", "surrogatepass")


def _code(escape: re.Match[bytes], groups: tuple[int, ...]) -> int:
    """Return the number in the one of these groups that has matched."""
    group = next(group for group in groups if escape[group] is not None)
    word = escape[group]
    if group in (_LEADS[0], _RESTS[0]):
        return word[0]
    return int(word, 8 if group in _OCTALS else 16)


def _as_json(value: bytes) -> set[bytes]:
    """Return the forms of a value in the output of JSON encoders."""
    text = value.decode("utf-8", "surrogateescape")
    forms = set()
    for escaped in (" ~", " \U0010ffff"):  # with and without escaping all but ASCII
        for form in ("u%04x", "u%04X"):
            for slash in ("/", "\\/"):
                words = []
                for letter in text:
                    short = {'"': '"', "\\": "\\", "\n": "n", "\r": "r", "\t": "t"}.get(letter)
                    if short is not None:
                        words.append("\\" + short)
                    elif escaped[0] <= letter <= escaped[1]:
                        words.append(slash if letter == "/" else letter)
                    else:
                        units = letter.encode("utf-16-be", "surrogatepass")
                        words += [
                            "\\" + form % int.from_bytes(units[at : at + 2], "big")
                            for at in range(0, len(units), 2)
                        ]
                forms.add("".join(words).encode("utf-8", "surrogateescape"))
    return forms


def _as_quoted(value: bytes) -> set[bytes]:
    """Return a value, and how it is written within quotes; a quote at its end stays single."""
    forms = {value}
    for quote, written in _QUOTES:
        # Or the quote that ends a JSON string would be taken for a part of the value.
        middle = value.strip(quote)
        begin = value.find(middle)
        end = begin + len(middle)
        forms.add(value[:begin] + middle.replace(quote, written) + value[end:])
    return forms


def _as_base64(value: bytes) -> set[bytes]:
    """Return the texts that the base64 of any data containing the value has, `+` as a space."""
    import binascii  # noqa: PLC0415 - as `re`

    forms = set()
    for before in range(3):
        text = binascii.b2a_base64(bytes(before) + value, newline=False)
        # Without the characters that also depend on neighbouring bytes.
        bare = text[-(-before * 4 // 3) : (before + len(value)) * 4 // 3]
        forms |= {bare.replace(b"+", b" "), bare.translate(_URL_SAFE)}
    return forms


_URL_SAFE = bytes.maketrans(b"+/", b"-_")

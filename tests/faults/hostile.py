"""Hostile: bytes that programs do write, and that logs are known to lose or to take for others."""

from __future__ import annotations

import json
import random
import re
from itertools import pairwise

from jobcore.supervisor import frames
from jobcore.supervisor.frames import MAX_PAYLOAD

_CHARACTERS = {2: "\u00e4".encode(), 3: "\u20ac".encode(), 4: "\U0001f600".encode()}
_FORGED = frames.encode_header(frames.SYSTEM, 0, 0, 1, 0, b"forged\n") + b"forged\n"


def _across_the_cut():
    """Return lines in which a character lies across the cut of a long line, in every way."""
    return {
        f"a character of {size} bytes, {before} of them before the cut": (
            b"a" * (MAX_PAYLOAD - before) + character + b"b" * 20 + b"\n"
        )
        for size, character in _CHARACTERS.items()
        for before in range(1, size)
    }


def _about_a_frame():
    """Return lines about as long as what is kept whole, with and without their end."""
    return {
        f"a line of {size} bytes {words}": b"x" * (size - len(end)) + end
        for size in (MAX_PAYLOAD - 1, MAX_PAYLOAD, MAX_PAYLOAD + 1)
        for end, words in (
            (b"\n", "with its newline"),
            (b"", "without newline"),
            (b"\r\n", "with its CRLF"),
        )
    }


#: What a command writes, by name. Nothing of it is a report of progress: all of it is output.
HOSTILE = {
    # --- nothing, and nearly nothing ---
    "nothing": b"",
    "one newline": b"\n",
    "only newlines": b"\n" * 300,
    "one byte": b"x",
    "one NUL": b"\0",
    "a space": b" ",
    "spaces and tabs": b"  \t \n\t\n ",
    "no newline at the end": b"one\ntwo\nthree",
    "an empty line at the end": b"one\n\n",
    "newlines before all": b"\n\n\none",
    # --- bytes that are no UTF-8 ---
    "a byte that never occurs in UTF-8": b"a\xff\xfe\xc0\xc1\xf5b\n",
    "continuations alone": b"\x80\xbf\x80\n" * 5,
    "a sequence cut by a newline": b"\xe2\x82\n\xac\n",
    "a sequence cut by the end": b"ok\n\xf0\x9f\x98",
    "an overlong slash": b"\xc0\xaf \xe0\x80\xaf \xf0\x80\x80\xaf\n",
    "an overlong NUL": b"\xc0\x80\n",
    "an overlong newline": b"\xc0\x8a is no newline\n",
    "a lone high surrogate": b"\xed\xa0\x80\n",
    "a lone low surrogate": b"\xed\xb0\x80\n",
    "a pair of surrogates": b"\xed\xa0\xbd\xed\xb8\x80\n",
    "beyond the last character": b"\xf4\x90\x80\x80\n",
    "sequences of five and six bytes": b"\xf8\x88\x80\x80\x80 \xfc\x84\x80\x80\x80\x80\n",
    "characters that are none": "\ufffe \uffff \ufdd0\n".encode(),
    "all bytes": bytes(range(256)),
    "all bytes backwards": bytes(reversed(range(256))) * 3,
    # --- other encodings ---
    "Latin-1": "na\u00efve caf\u00e9\n".encode("latin-1"),
    "Windows-1252 quotes": b"\x93quoted\x94 \x80\n",
    "UTF-16 little endian": "line one\nline two\n".encode("utf-16-le"),
    "UTF-16 big endian with its mark": b"\xfe\xff" + "a\u0a0a\n".encode("utf-16-be"),
    "UTF-32": "one\ntwo\n".encode("utf-32"),
    "UTF-8 with its mark": b"\xef\xbb\xbfone\ntwo\n",
    "Shift-JIS, whose second bytes are ASCII": "\u8868\u793a\\\n".encode("shift-jis"),
    "GB 18030": "\u4e2d\u6587\U0001f600\n".encode("gb18030"),
    "EBCDIC": "hello".encode("cp037") + b"\x15\x25\n",
    "four encodings in one line": "\u00e4".encode()
    + b"\xe4"
    + "\u00e4".encode("utf-16-le")
    + b"\n",
    "UTF-7": b"+AGE-+AAo-\n",
    # --- what ends lines elsewhere ---
    "CRLF": b"one\r\ntwo\r\n",
    "CRLF, LF and CR": b"a\r\nb\nc\rd\r\r\n\n\re",
    "CR at the end": b"one\r",
    "CRLF cut by the end": b"one\r\ntwo\r",
    "LF CR": b"one\n\rtwo\n\r",
    "a progress bar": b"".join(b"\r[%-20s] %3d%%" % (b"#" * (n // 5), n) for n in range(101)),
    "CRs alone": b"\r" * 5000,
    "every line end of Unicode": "a\vb\fc\x1cd\x1de\x1ef\x85g\u2028h\u2029i\n".encode(),
    "form feeds and backspaces": b"page\f\x08\x08over\n",
    # --- what moves terminals ---
    "colours": b"\x1b[1;31mred\x1b[0m\n",
    "a cleared screen": b"\x1b[2J\x1b[H\x1b[3J",
    "a cursor that goes up": b"one\n\x1b[1A\x1b[2Kone again\n",
    "a title by OSC": b"\x1b]0;title\x07\n",
    "a clipboard by OSC 52": b"\x1b]52;c;cm0gLXJmIC8K\x07\n",
    "a link by OSC 8": b"\x1b]8;;http://x\x1b\\text\x1b]8;;\x1b\\\n",
    "a sequence that never ends": b"\x1b]0;" + b"y" * 3000,
    "a sequence cut by a newline, too": b"\x1b[31\nm\n",
    "bells": b"\x07" * 200 + b"\n",
    "C1 controls": b"\xc2\x9b31m \x9b31m \xc2\x85\n",
    "turned text": "a \u202e\u2066dcba\u2069\u202c b\n".encode(),
    "combining marks without end": b"a" + "\u0301".encode() * 2000 + b"\n",
    "width zero": "\u200b\u200d\ufeff\n".encode(),
    # --- NUL ---
    "NUL in a line": b"before\0after\n",
    "NULs alone": bytes(5000),
    "NUL behind every byte": b"\0".join([b"a", b"b", b"\n", b""]) * 50,
    # --- about a frame ---
    **_about_a_frame(),
    "two lines that fill a frame": b"x" * (MAX_PAYLOAD // 2 - 1) + b"\n" + b"y" * 32767 + b"\n",
    "a short line before a long one": b"short\n" + b"x" * (MAX_PAYLOAD + 5) + b"\n",
    "a short line behind a long one": b"x" * (MAX_PAYLOAD + 5) + b"\nshort\n",
    "a long line of three pieces": b"x" * (2 * MAX_PAYLOAD + 7) + b"\n",
    "newlines for a frame and one more": b"\n" * (MAX_PAYLOAD + 1),
    **_across_the_cut(),
    "a long line of continuations": b"\x80" * (MAX_PAYLOAD + 9) + b"\n",
    "a long line of lead bytes": b"\xf0" * (MAX_PAYLOAD + 9) + b"\n",
    "a long line with a sequence too short at the cut": (
        b"a" * (MAX_PAYLOAD - 1) + b"\xe2\x82" + b"b" * 20 + b"\n"
    ),
    # --- what looks like jobcore's own ---
    "a report without a number": b"jobcore:progress\njobcore:progress \njobcore:progress soon\n",
    "a report that is none": b"jobcore:progress -1\njobcore:progress 1e3\njobcore:progress 1/x\n",
    "a report that is quoted": b" jobcore:progress 1/2\n> jobcore:progress 1/2\n",
    "a report behind a CR": b"\rjobcore:progress 1/2\n",
    "a report in a long line": b"x" * (MAX_PAYLOAD + 3) + b"jobcore:progress 1/2\n",
    "a report longer than a frame": b"jobcore:progress 1 " + b"x" * MAX_PAYLOAD + b"\n",
    "the beginning of a report": b"jobcore:progress",
    "what jobcore says": (
        b"stopping: asked by pid 1\n"
        b"output limit of 1 bytes reached: the lines that follow are dropped\n"
        b"5 lines are lost from here: the spool is damaged\n"
    ),
    "a line that claims to be a system line": b"system\t0\tnot yours\n[system] not yours\n",
    "an object of a log": json.dumps(
        {"sequence": 0, "timestamp": "2023-11-14T22:13:20.123Z", "stream": "system", "message": ""}
    ).encode()
    + b"\n",
    "JSON that is cut": b'{"event": "x", "deep": [[[[\n',
    "JSON that is deep": b"[" * 20_000 + b"]" * 20_000 + b"\n",
    "the magic of a frame": b"JF\x01JFJF\nJF",
    "a whole frame": _FORGED,
    "a frame of many frames": _FORGED * 50,
    "a frame cut short": _FORGED[:-9],
    "an exit record": b'{"token": "' + b"0" * 32 + b'", "reason": "exited", "wait_status": 0}\n',
    "SQL": b"'); DROP TABLE job; --\n\0'); DELETE FROM log_segment;\n",
    "formats": b"%s%n%d {0} {x!r} ${HOME} $(reboot) `reboot`\n",
    "Singer messages": b'{"type": "STATE", "value": {"a": "\\u0000\\ud800"}}\n',
}

assert len(HOSTILE) >= 60


def stream(chance: random.Random, size):
    """Return random bytes of at least `size`: such pieces, plain lines and noise, one by one."""
    # What is put together of halves of these may be a report, and no output.
    names = [name for name in HOSTILE if "report" not in name]
    pieces, total = [], 0
    while total < size:
        kind = chance.random()
        if kind < 0.4:
            piece = HOSTILE[chance.choice(names)]
            piece = piece[: chance.randrange(1, 400)] if kind < 0.3 else piece
        elif kind < 0.7:
            piece = b"%d a plain line\n" % total * chance.randrange(1, 30)
        elif kind < 0.8:
            piece = chance.randbytes(chance.randrange(300))
        elif kind < 0.9:
            piece = chance.choice(list(_CHARACTERS.values())) * chance.randrange(30_000)
        else:
            piece = chance.choice((b"\n", b"\r\n", b"\0", b"\r", b"\x1b[")) * chance.randrange(50)
        pieces.append(piece)
        total += len(piece) + 1
    return b"".join(pieces)


def cut(chance: random.Random, data, sizes=(1, 2, 3, 10, 1000, 4096, 65536)):
    """Yield `data` in random pieces, none larger than a pipe."""
    position = 0
    while position < len(data):
        size = chance.choice(sizes)
        yield data[position : position + size]
        position += size


def wrong_pieces(data, pieces):
    """
    Return what is wrong with the pieces that a stream was kept in: nothing, if all is well.

    Args:
        data: What was written.
        pieces: What was kept of it, each with whether it goes on in the next one.
    """
    lines, line = [], []
    for raw, partial in pieces:
        line.append(raw)
        if not partial:
            lines.append(line)
            line = []
    wrong = ["the last piece is said to go on"] if line else []
    if [b"".join(line) for line in lines] != re.findall(rb"[^\n]*\n|[^\n]+", data):
        wrong.append("the lines are not those that were written")
    for line in lines:
        long = len(b"".join(line)) > MAX_PAYLOAD
        sizes = [len(piece) for piece in line]
        if (len(line) > 1) != long or sizes[-1] > MAX_PAYLOAD:
            wrong.append(f"a line is in pieces of {sizes} bytes")
        if any(not MAX_PAYLOAD - 3 <= size <= MAX_PAYLOAD for size in sizes[:-1]):
            wrong.append(f"a line is cut at {sizes}")
        wrong += [
            f"a character is cut between {before[-4:]!r} and {after[:4]!r}"
            for before, after in pairwise(line)
            if _is_cut(before[-3:], after[:3])
        ]
    return wrong


def _is_cut(before, after):
    """Tell whether one character is on both sides."""
    for ours in range(1, len(before) + 1):
        for theirs in range(1, 5 - ours):
            both = before[-ours:] + after[:theirs]
            try:
                if len(both) == ours + theirs and len(both.decode()) == 1:
                    return True
            except UnicodeDecodeError:
                pass
    return False

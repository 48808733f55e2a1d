"""Redaction: a value is masked in every form that programs write, wherever reads cut it."""

from __future__ import annotations

import base64
import json
import random
import re
from urllib.parse import quote, quote_plus

import pytest

from jobcore.supervisor.redaction import Values
from tests.cases import each, every
from tests.masks import masked

#: Values with everything that some encoder escapes.
SECRETS = [
    "plain-Value_1",
    'pa"ss\\w\u00f6rd',
    'it\'s "both" / and\\more',
    "two\nlines\r\n\ttab",
    "C:\\new\\table\\x41",
    "<a href='b'>&amp;+</a>",
    "100%25 of it + more%",
    "\u20ac \u4e2d\u6587 \U0001f600 \u00e9\u00fc",
    "\u00a0non\u2028breaking\x7f\x1b[0m",
    'nse"cret',
    'u00e4"bc',
    "-----BEGIN KEY-----\n" + "MIIEow+/IBAAKCAQEA7" * 40 + "\n-----END KEY-----\n",
    "postgres://me:s3cr%40et+/=@db:5432/x?y=z&w",
    'ab"\\cd',
    '\u00e4\u00f6\u00fc\u00df\u00e9"',
]


def in_upper_case(text):
    return re.sub(r"\\u[0-9a-f]{4}", lambda found: "\\u" + found[0][2:].upper(), text)


def as_csharp(text):
    """System.Text.Json escapes what HTML could mistake, too, in upper case."""
    return "".join(
        f"\\u{ord(one):04X}" if one in "\"'<>&+`" else json.dumps(one)[1:-1] for one in text
    )


def with_every_letter(form):
    return lambda text: "".join(form % unit for unit in text.encode("utf-8"))


def as_units(text):
    """Every character is escaped, the letters as well."""
    data = text.encode("utf-16-be")
    return "".join(f"\\u{data[at]:02x}{data[at + 1]:02x}" for at in range(0, len(data), 2))


JSON = {
    "json": lambda text: json.dumps(text)[1:-1],
    "json utf-8": lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    "json with slashes": lambda text: json.dumps(text)[1:-1].replace("/", "\\/"),
    "json in upper case": lambda text: in_upper_case(json.dumps(text)[1:-1]),
    "json of C#": as_csharp,
    "json in json": lambda text: json.dumps(json.dumps(text))[3:-3],
    "json in json in json": lambda text: json.dumps(json.dumps(json.dumps(text)))[7:-7],
    "json, all escaped": as_units,
}
SHELL_ESCAPES = str.maketrans(
    {"'": "\\'", "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\x1b": "\\E"}
)
FORMS = {
    "as it is": str,
    **JSON,
    "url": quote,
    "url, no exception": lambda text: quote(text, safe=""),
    "url of a form": quote_plus,
    "url in lower case": lambda text: re.sub(
        "%[0-9A-F]{2}", lambda found: found[0].lower(), quote_plus(text)
    ),
    "url in url": lambda text: quote_plus(quote_plus(text)),
    "url, all escaped": with_every_letter("%%%02X"),
    "json in url": lambda text: quote_plus(json.dumps(text)[1:-1]),
    "json in json in url": lambda text: quote(json.dumps(json.dumps(text)[1:-1])[1:-1], safe=""),
    "url in json": lambda text: json.dumps(quote_plus(text))[1:-1],
    "repr": lambda text: repr(text)[1:-1],
    "repr of bytes": lambda text: repr(text.encode())[2:-1],
    "ascii": lambda text: ascii(text)[1:-1],
    "repr in json": lambda text: json.dumps(repr(text)[1:-1])[1:-1],
    "repr of json": lambda text: repr(json.dumps(text)[1:-1])[1:-1],
    "hexadecimal": with_every_letter("\\x%02x"),
    "octal": with_every_letter("\\%03o"),
    "braces": lambda text: "".join(f"\\u{{{ord(one):x}}}" for one in text),
    "braces of Perl": lambda text: "".join(f"\\x{{{ord(one):x}}}" for one in text),
    "escapes of a shell": lambda text: text.translate(SHELL_ESCAPES),
    "what the terminal lacks": lambda text: text.encode("ascii", "backslashreplace").decode(),
}
#: How many bytes at both ends of a value are each followed by a cut: any escape is shorter.
EDGE = 14
#: They escape letters and digits as well.
ALL_ESCAPED = (
    "json, all escaped",
    "url, all escaped",
    "hexadecimal",
    "octal",
    "braces",
    "braces of Perl",
)


#: How a quote is written within quotes.
QUOTED = {
    "trace of a shell": ("'", "'\\''"),
    "shlex.quote": ("'", "'\"'\"'"),
    "SQL": ("'", "''"),
    "CSV": ('"', '""'),
}


def whole(values, data):
    return values.mask(data)


def in_pieces(values, pieces):
    redactor = values.redactor()
    return b"".join([*map(redactor.feed, pieces), redactor.feed(b"", final=True)])


def cuts(data, written):
    """
    Return where data is cut in two: around both ends of a value, and here and there within it.

    Before the value nothing is held. In its middle one escape follows another, and chance
    finds each place in one; where all bytes are pieces, all places are cut as well.
    """
    begin = data.index(written)
    end = begin + len(written)
    inner = range(begin + EDGE, end - EDGE)
    middle = random.Random(data).sample(inner, len(inner) // 5)
    return sorted({*range(begin - 2, begin + EDGE), *middle, *range(end - EDGE, len(data))})


@every(form=FORMS, secret=SECRETS)
def test_a_value_is_masked_in_the_form_that_a_program_writes(form, secret):
    """All of it is masked and nothing else, in one, two and many pieces."""
    values = Values([secret.encode()])
    if form in ALL_ESCAPED and re.search("[%\\\\][0-9x]", secret):
        return  # what is itself an escape, letter by letter, is no form of any encoder
    written = FORMS[form](secret).encode()
    data = b'{"x": "y", "password": "' + written + b'"}\n'
    masked = whole(values, data)

    assert masked == data.replace(written, b"***")
    for cut in cuts(data, written) if len(data) < 999 else ():
        assert in_pieces(values, [data[:cut], data[cut:]]) == masked
    size = 1 if len(data) < 999 else 97
    assert in_pieces(values, [data[at : at + size] for at in range(0, len(data), size)]) == masked


@every(
    form=QUOTED,
    around=["as it is", "json", "url", "repr"],
    secret=[*SECRETS, "it's", "'quoted', \"too\"", "a''b\"\"c", "'" * 8],
)
def test_a_value_with_quotes_is_masked_within_quotes(form, around, secret):
    """All of it but quotes at its ends, which may be those around it."""
    values = Values([secret.encode()])
    quote, written = QUOTED[form]
    data = FORMS[around](f"login {quote}{secret.replace(quote, written)}{quote} end").encode()
    masked = whole(values, data)

    if secret.strip(quote) and len(secret) >= 6:
        left = masked.decode().replace("***", "", 1)
        assert re.sub(r"""[\\'" ]|%[0-9A-F]{2}""", "", left) == "loginend", left
    for cut in cuts(data, data) if len(data) < 99 else ():
        assert in_pieces(values, [data[:cut], data[cut:]]) == masked


@every(form=JSON)
def test_quote_at_the_end_of_json_stays(form):
    """A value that ends with a quote is followed by another one, which is not a part of it."""
    for secret in ('"secret', 'secret"', '"s"cret"', "'secret'"):
        data = b'{"password": "' + JSON[form](secret).encode() + b'"}'
        assert whole(Values([secret.encode()]), data) == b'{"password": "***"}'


@every(form=FORMS)
def test_a_backslash_at_the_end_of_a_value_may_stay(form):
    """Only the writer knows which of the backslashes there is of the value; JSON stays JSON."""
    written = FORMS[form]("trailing back\\slash\\").encode()
    masked = whole(Values([b"trailing back\\slash\\"]), b'"' + written + b'"')

    assert masked.startswith(b'"***')
    assert b"slash" not in masked


@every(
    form=["as it is", "json with slashes", "url, no exception"],
    encode=[base64.b64encode, base64.urlsafe_b64encode],
    before=range(4),
    secret=SECRETS,
)
def test_a_value_is_masked_within_base64(form, encode, before, secret):
    """Wherever it begins in the encoded text; characters that it shares with others stay."""
    values = Values([secret.encode()])
    written = FORMS[form](encode(b"u:/"[:before] * (before > 0) + secret.encode() + b"@h").decode())
    masked = whole(values, b"Authorization: Basic " + written.encode() + b"\n")

    head, tail = re.fullmatch(rb"Authorization: Basic (.*)\*\*\*(.*)\n", masked).groups()
    assert len(head) <= before * 4 // 3 + 1
    assert len(tail) <= 12
    data = written.encode()
    trickled = in_pieces(values, [data[at : at + 1] for at in range(len(data))])
    assert trickled == head + b"***" + tail


@each("secret", ['pa"s', "\u00e4/\\", "a\nb", '"""""', "\u00e4\u00f6\u00fc"])
@each("form", ["as it is", "json", "json utf-8", "json in upper case"])
def test_a_short_value_is_masked_as_it_is_and_as_json(form, secret):
    """Below six bytes these are the forms, so no object of a log line gives the value back."""
    written = FORMS[form](secret).encode()
    masked = whole(Values([secret.encode()]), b'"' + written + b'!"')

    assert masked == b'"***!"' or secret == '"""""'
    assert secret.encode() not in masked
    assert written not in masked


def test_a_short_value_is_not_found_in_base64():
    """Four letters are in the base64 of anything."""
    assert whole(Values([b"abc"]), base64.b64encode(b"abcabc")) == base64.b64encode(b"abcabc")


@pytest.mark.parametrize(
    "text",
    [
        b"no value here: C:\\new\\table 100% of %41 + \\u00e4 \xc3\xa4 \xff \\",
        b"secret-valu\\u0064 secret-value ecret-values %73ecret-",
        b"\\\\\\\\ %25%25 \\",
        bytes(range(256)) * 3,
    ],
)
def test_text_without_values_is_unchanged(text):
    """However many escapes there are, only a text with a value changes."""
    values = Values([b"secret-values", b"n\xc3\xa4chstes"])

    assert whole(values, text) == text
    assert in_pieces(values, [text[at : at + 1] for at in range(len(text))]) == text


@pytest.mark.parametrize("form", ["url", "url of a form", "json in url"])
@pytest.mark.parametrize("secret", ["ba==/A_=", "0d0a0d+/", "AA/C==_"])
def test_a_percent_sign_before_a_value_is_not_part_of_it(form, secret):
    """As in `user%password`, where the password begins with hexadecimal digits."""
    values = Values([secret.encode()])

    assert values.mask(b"user%" + FORMS[form](secret).encode()).endswith(b"***")


@pytest.mark.parametrize("secret", ["\\bxa\\0", "b\\\\cbb", "%'\\/ \\"])
def test_base64_of_a_value_that_is_mostly_escapes_is_masked(secret):
    """Without its own escapes it would be too short to be looked for; it has 6 bytes or more."""
    values = Values([secret.encode()])

    assert values.mask(base64.b64encode(b"abc" + secret.encode())).startswith(b"YWJj***")


def test_text_that_cannot_begin_a_value_is_passed_on():
    """A prompt is passed on to its last byte, unless a value may begin there."""
    redactor = Values([b"secret-value", b"hunter-2"]).redactor()

    assert redactor.feed(b"Continue? [y/N] ") == b"Continue? [y/N] "
    assert redactor.feed(b"name: sec") == b"name: "
    assert redactor.feed(b"ond\rC:\\Users\\h") == b"second\rC:\\Users"
    assert redactor.feed(b"ello 100%") == b"\\hello 100"
    assert redactor.feed(b"\n") == b"%\n"


@every(seed=range(200))
def test_values_that_overlap(seed):
    """Prefixes, suffixes and repetitions of each other, of all lengths, in one piece or several."""
    rng = random.Random(seed)
    letters = rng.choice((b"ab", b"abc\n"))
    values = {
        bytes(rng.choices(letters, k=rng.randrange(1, rng.choice((6, 20)))))
        for _ in range(rng.randrange(1, 9))
    }
    data = bytes(rng.choices(letters, k=600))
    pieces, rest = [], data
    while rest:
        size = rng.choice((1, 2, 3, 8, 100))
        pieces.append(rest[:size])
        rest = rest[size:]

    assert in_pieces(Values(list(values)), pieces) == masked(data, values)
    assert whole(Values(list(values)), data) == masked(data, values)


#: More than the largest piece has, and short enough to be escaped and read byte by byte.
LONG = 120


@every(seed=range(200))
def test_escapes_in_any_pieces(seed):
    """Whatever mixture of escapes, values and halves of both comes, reads change nothing."""
    rng = random.Random(seed)
    secrets = rng.sample([one[:LONG] for one in SECRETS[:12]], 3)
    values = Values([one.encode() for one in secrets])
    words = []
    for _ in range(30):
        written = rng.choice(list(FORMS.values()))(rng.choice(secrets)).encode()
        words.append(rng.choice((written, written, written[: rng.randrange(len(written))])))
        words.append(rng.choice((b"\\", b"%", b"%2", b"\\u00", b"\\\\n", b" ", b"\xc3", b"\\x4")))
    data = b"".join(words)
    pieces, rest = [], data
    while rest:
        size = rng.choice((1, 2, 3, 8, 100))
        pieces.append(rest[:size])
        rest = rest[size:]
    masked = whole(values, data)

    assert in_pieces(values, pieces) == masked
    for secret in secrets:
        assert secret.encode() not in masked


def test_a_hundred_values_are_each_found():
    """One by one among many, with and without escapes, at every place of four."""
    rng = random.Random(1)
    secrets = [f'{rng.getrandbits(64):x}"{number}'.encode() for number in range(100)]
    values = Values(secrets)
    for number, secret in enumerate(secrets):
        for form in (secret, secret.replace(b'"', b'\\"'), secret.replace(b'"', b"%22")):
            data = b"x" * (number % 4) + b"<" + form + b">" + b"y" * 9

            assert whole(values, data) == data.replace(form, b"***")

"""Fields: lines that are JSON objects keep their fields, everything else is text."""

from __future__ import annotations

import json
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jobcore import LogLine, wire
from jobcore.structured_lines import DEEPEST, object_in, object_json
from tests.cases import each

TIME = 1_700_000_000_123_456_789


def line(raw, **options):
    """Return a line of output."""
    return LogLine(0, TIME, "output", raw if isinstance(raw, bytes) else raw.encode(), **options)


def sent(one):
    """Return the object that stands for a line in NDJSON."""
    (data,) = wire.ndjson([one])
    assert data.endswith(b"\n")
    assert data.count(b"\n") == 1
    return json.loads(data, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


@each(
    ("text", "fields"),
    [
        ('{"event": "loaded", "rows": 200}', {"event": "loaded", "rows": 200}),
        ("{}", {}),
        (' \t{"a": [1, {"b": null}]} ', {"a": [1, {"b": None}]}),
        ('{"a":1,\r"b":-1.5e3}', {"a": 1, "b": -1500.0}),
        ('{"sequence": -1, "message": "m", "fields": {}}',
         {"sequence": -1, "message": "m", "fields": {}}),
        ('{"": "\\u00e9\\ud83d\\ude00\\n\u2028"}', {"": "é\U0001f600\n\u2028"}),
        ('{"n": 123456789012345678901234567890}', {"n": 123456789012345678901234567890}),
    ],
)  # fmt: skip
@each("end", ["", "\n", "\r\n"])
def test_an_object_keeps_its_fields(text, fields, end):
    """A line with a JSON object has `fields`, and its text stays unchanged."""
    one = line(text + end)

    assert one.fields == fields
    assert sent(one)["fields"] == fields
    assert sent(one)["message"] == one.text == text
    assert list(sent(one)) == ["sequence", "timestamp", "stream", "message", "fields"]


DEEP = DEEPEST + 1


@each(
    "text",
    [
        "", " ", "\n", "plain text", "{", "}", "{}}", "{} {}", "{}x", "x{}", "[]", '[{"a": 1}]',
        '"{}"', "1", "null", "true",
        "{'a': 1}", "{a: 1}", '{"a": 1,}', '{"a": 01}', '{"a": +1}', '{"a": "\t"}', "{1: 2}",
        '\ufeff{"a": 1}', '{"a": "\\x"}', '\x0c{"a": 1}', '\xa0{"a": 1}',
    ],
)  # fmt: skip
def test_line_without_a_json_object_is_text(text):
    """Other JSON, and text that only resembles an object, stay text."""
    assert line(text).fields is None
    assert "fields" not in sent(line(text))
    assert sent(line(text))["message"] == line(text).text


@each(
    "text",
    [
        '{"a": 1, "a": 1}', '{"a": {"b": 1, "c": 2, "b": 3}}', '{"a": 1, "\\u0061": 2}',
        '{"a": NaN}', '{"a": [Infinity]}', '{"a": -Infinity}',
        '{"a": 1e999}', '{"a": -1e999}', '{"a": ' + "9" * 400 + ".0}",
        '{"a": "\\ud800"}', '{"\\udc00": 1}', '{"a": ["\\uDBFF\\u0041"]}',
        '{"a": ' + "[" * DEEP + "]" * DEEP + "}",
        '{"a": ' * DEEP + "1" + "}" * DEEP,
        '{"a": ' + "[" * 30_000 + "]" * 30_000 + "}",
        '{"a": ' * 10_000 + "1" + "}" * 10_000,
    ],
)  # fmt: skip
def test_an_object_that_cannot_be_read_without_loss_is_text(text):
    """Duplicate keys, invalid numbers, lone surrogates and deep nesting stay text."""
    assert line(text).fields is None
    assert "fields" not in sent(line(text))
    assert sent(line(text))["message"] == text


@pytest.mark.skipif(
    not hasattr(sys, "get_int_max_str_digits"), reason="this Python reads integers of any length"
)
def test_an_integer_that_python_refuses_is_text():
    """A number of more digits than the interpreter takes is text, and does not raise."""
    digits = "9" * (sys.get_int_max_str_digits() + 1)

    assert line(f'{{"a": {digits}}}').fields is None
    assert "fields" not in sent(line(f'{{"a": {digits}}}'))


def test_nesting_up_to_the_limit_is_kept():
    """An object of as many levels as allowed has its fields, however many stand side by side."""
    deepest = '{"a": ' * (DEEPEST - 1) + "{}" + "}" * (DEEPEST - 1)
    wide = {"a": [{}] * 3 * DEEPEST}

    assert object_in(deepest) == json.loads(deepest)
    assert object_in('{"a": ' + deepest + "}") is None
    assert object_in(json.dumps(wide)) == wide


@each("depth", range(1, 3000, 97))
def test_no_depth_raises(depth):
    """Whatever the nesting, a line is sent."""
    assert sent(line('{"a":' + "[" * depth + "]" * depth + "}"))["sequence"] == 0


def test_a_piece_of_a_line_has_no_fields():
    """A piece of a line is not an object, even if it looks like one."""
    one = line('{"a": 1}', partial=True)

    assert one.fields is None
    assert "fields" not in sent(one)
    assert sent(one)["partial"] is True


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), JSON, max_size=4), st.booleans())
def test_every_object_comes_back(fields, ascii_only):
    """Whatever object a program writes as a line of JSON is what `fields` has."""
    text = json.dumps(fields, ensure_ascii=ascii_only)

    assert line(text.encode("utf-8") + b"\n").fields == fields
    assert sent(line(text))["fields"] == fields


@given(
    st.binary(max_size=40)
    | st.text('{}[]":,\\u0123456789abcdeEdD+-. \t\rNaInfty', max_size=40).map(
        lambda some: b"{" + some.encode() + b"}"
    )
)
@example(b'{"\xff": 1}')
def test_no_bytes_make_it_raise(raw):
    """Any bytes give a line of NDJSON whose `fields`, if there, are what its message says."""
    form = sent(line(raw))

    assert form.get("fields") == line(raw).fields
    if "fields" in form:
        assert form["fields"] == json.loads(form["message"])


#: What JSON is made of, and what is nearly JSON.
PARTS = st.sampled_from(
    [
        '"a"', '"b"', '"é\u2028"', '"\x7f"', '"\t"', '"a: "', '"a, "', '""', '"\\n"', '"\\ud800"',
        '"', "{", "}", "{}", "[", "]", ": ", ":", ", ", ",", " ", "\r", "\x00", "\\",
        "0", "-0", "-1", "01", "17", "1.5", "1e3", "9" * 40, "9" * 5000,
        "true", "false", "null", "NaN",
    ]
)  # fmt: skip
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just("é")
)
OBJECTS = st.one_of(
    st.dictionaries(st.text(max_size=3), VALUES).map(json.dumps),
    st.dictionaries(st.sampled_from("abcd"), VALUES).map(
        lambda one: json.dumps(one, ensure_ascii=False)
    ),
    st.lists(st.tuples(st.sampled_from(['"a"', '"b"', '"c"', '"é"']), PARTS), max_size=4).map(
        lambda pairs: "{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}"
    ),
)


@given(st.one_of(OBJECTS, st.lists(PARTS, max_size=12).map("".join)))
@example('{"a": 1, "a": 1}')
@example('{"a": "b", "b": "a"}')
@example('{"a": -0}')
@example('{"a": 1}\n')
@example('{"a": ' + "9" * 31 + "}")
def test_object_is_written_as_json_dumps_writes_it(text):
    """Whether it is copied or written again, the JSON of an object is the same."""
    fields = object_in(text)
    expected = None if fields is None else json.dumps(fields, ensure_ascii=False)

    assert object_json(text) == expected

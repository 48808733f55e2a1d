"""Values: what goes in comes out, of the same types; what cannot go in says why."""

from __future__ import annotations

import collections
import datetime as dt
import enum
import json
import math
import pickle
import sys
import threading
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobcore.functions import encoding
from jobcore.functions.encoding import JSON, PICKLE, Unstorable
from tests import functions
from tests.cases import each

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
EXACT = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
)
WHOLE = st.text(st.characters(exclude_categories=[]))  # half characters, too
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WHOLE
OBJECTS = st.binary() | st.dates() | st.decimals(allow_nan=False)
KEYS = st.integers() | st.text() | st.tuples(st.integers())
ANY = st.recursive(
    SCALARS | OBJECTS,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner),
)


class Colour(enum.IntEnum):
    """Numbers, and more than that."""

    RED = 1


class Text(str):
    """A text, and more than that."""

    __slots__ = ()


def same(one, other):
    """Tell whether two values are equal, of the same types throughout."""
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(map(same, one, other)) == [True] * max(len(one), len(other)) and all(
            same(one[key], other[key]) for key in one
        )
    if isinstance(one, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    return one == other


@given(EXACT)
def test_values_that_json_keeps_are_sent_as_json(value):
    """Texts, numbers, lists and objects with text keys go as JSON and come back equal."""
    form, data = encoding.encode(value)

    assert form == JSON
    assert same(json.loads(data), value)
    assert same(encoding.decode(form, data), value)


@given(ANY)
def test_everything_comes_back_as_it_was(value):
    """Whatever the encoding is, the value comes back equal, with the same types throughout."""
    assert same(encoding.decode(*encoding.encode(value)), value)


@given(st.text(st.characters(exclude_categories=[]) | st.sampled_from("\ud83d\ude00")))
@settings(max_examples=300)
def test_halves_of_characters_stay_halves(text):
    """Two surrogates side by side do not come back as one character."""
    assert len(encoding.decode(*encoding.encode([text, {text: 1}]))[0]) == len(text)


SHARED = [1]
NESTED = []
for _ in range(encoding.DEEPEST):
    NESTED = [NESTED]


@each(
    "value",
    [
        (1, 2), [(1,)], {"a": (1,)}, {1: 2}, {None: 1}, {True: 1}, {Text("a"): 1}, {1, 2},
        math.nan, math.inf, -math.inf, [math.nan], b"bytes", Colour.RED, Text("a"), Decimal(1),
        dt.date(2024, 1, 2), collections.OrderedDict(a=1), 2**encoding.LONGEST_NUMBER,
        [SHARED, SHARED], "\ud83d\ude00", {"\ud83d": 1}, NESTED, 1j, print, Colour,
    ],
)  # fmt: skip
def test_values_that_json_would_change_are_pickled(value):
    """A value whose type or shape JSON would change is pickled."""
    assert encoding.encode(value)[0] == PICKLE


@pytest.mark.parametrize(
    "value", [NESTED[0], 2**encoding.LONGEST_NUMBER - 1, -0.0, 1e-323, {"": []}, "é\0\n", [[], []]]
)
def test_json_goes_as_far_as_it_is_exact(value):
    """Values at the documented limits go as JSON."""
    form, data = encoding.encode(value)

    assert form == JSON
    assert same(encoding.decode(form, data), value)


def test_a_list_in_two_places_is_one_list():
    """A list that occurs twice is one list afterwards, too."""
    first, second = encoding.decode(*encoding.encode([SHARED, SHARED]))

    assert first is second


def test_long_number_is_encoded_under_any_digit_limit():
    """Not even the tightest limit on the conversion of numbers keeps one from being stored."""
    limit = sys.get_int_max_str_digits() if hasattr(sys, "get_int_max_str_digits") else None
    try:
        if limit is not None:
            sys.set_int_max_str_digits(640)
        for number in (2**encoding.LONGEST_NUMBER - 1, 10**5000):
            assert encoding.decode(*encoding.encode(number)) == number
    finally:
        if limit is not None:
            sys.set_int_max_str_digits(limit)


def test_pickles_are_of_a_protocol_that_every_python_reads():
    """Python 3.10 can read pickles of any later version."""
    _, data = encoding.encode((1,))

    assert data[:2] == bytes([0x80, encoding.PROTOCOL])
    assert encoding.PROTOCOL <= 5


def deep(levels):
    made = None
    for _ in range(levels):
        made = (made,)
    return made


def in_main():
    """Return a function as the program itself would define one."""
    namespace = {"__name__": "__main__"}
    exec("def f(): pass\nclass C: pass", namespace)
    return namespace


@each(
    ("value", "reason"),
    [
        (threading.Lock(), "an object of type _thread.lock cannot be pickled"),
        ([{"a": threading.Lock()}], "an object of type _thread.lock cannot be pickled"),
        (lambda: 1, "a lambda has no name: write a function in a module"),
        (functions.a_lambda, "a lambda has no name: write a function in a module"),
        (
            functions.makes_a_local(),
            (
                "tests.functions:makes_a_local.<locals>.local is defined inside a function: "
                "move it to the top of its module"
            ),
        ),
        (
            functions.makes_a_local_object(),
            (
                "tests.functions:makes_a_local_object.<locals>.Local is defined inside a function: "
                "move it to the top of its module"
            ),
        ),
        (
            functions.was_replaced,
            ("tests.functions:replaced now names another object, which has replaced the given one"),
        ),
        (
            in_main()["f"],
            (
                "f is defined in __main__, the program itself, "
                "which a fresh interpreter does not run: move it into a module"
            ),
        ),
        (
            [in_main()["C"]()],
            (
                "C is defined in __main__, the program itself, "
                "which a fresh interpreter does not run: move it into a module"
            ),
        ),
        (
            functions.TellsWhyNot(),
            (
                "an object of type tests.functions.TellsWhyNot cannot be pickled: "
                "send the address of the connection instead"
            ),
        ),
        (
            functions.QuotedByPickle("s3cret"),
            "an object of type tests.functions.QuotedByPickle cannot be pickled",
        ),
        ((n for n in "ab"), "an object of type generator cannot be pickled"),
        (deep(100_000), "it is nested too deeply to be pickled"),
    ],
)
def test_unstorable_value_names_the_reason(value, reason):
    """Each error has the type or name of the part, and no value."""
    with pytest.raises(Unstorable) as caught:
        encoding.encode(value)

    assert str(caught.value) == reason
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_pickle_runs_what_its_writer_wanted():
    """Decoding a pickle calls what it names: the docstrings say whom to trust."""
    assert encoding.decode(PICKLE, pickle.dumps(Evaluates())) == 42


class Evaluates:
    """Comes back as something else."""

    def __reduce__(self):
        return eval, ("6 * 7",)

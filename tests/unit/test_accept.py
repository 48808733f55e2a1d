"""Negotiation: which form of a log an Accept header gets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobcore import NotAcceptable
from jobcore.wire.accept import LOG_TYPES, log_type
from tests.cases import each

TEXT, NDJSON, STREAM, EVENTS = LOG_TYPES

WEIGHTS = st.integers(0, 1000).map(lambda n: n / 1000)
RANGES = st.sampled_from(
    [*LOG_TYPES, "*/*", "text/*", "application/*", "application/json", "image/*"]
)
HEADERS = st.lists(st.tuples(RANGES, WEIGHTS), min_size=1, max_size=8, unique_by=lambda r: r[0])


def written(ranges):
    """Return ranges as a header."""
    return ", ".join(f"{name};q={weight:g}" for name, weight in ranges)


def quality(offered, ranges):
    """Return the weight of a type as RFC 9110 has it: that of the range closest to it."""
    weights = dict(ranges)
    for name in (offered, offered.partition("/")[0] + "/*", "*/*"):
        if name in weights:
            return weights[name]
    return 0


@each(
    ("accept", "expected"),
    [
        (None, TEXT),
        ("", TEXT),
        (" , ,", TEXT),
        ("*/*", TEXT),
        ("*", TEXT),
        ("text/plain", TEXT),
        ("text/*", TEXT),
        ("TEXT/Plain", TEXT),
        ("text/plain; charset=utf-8", TEXT),
        ("application/x-ndjson", NDJSON),
        ("application/stream+json", STREAM),
        ("application/*", NDJSON),
        ("text/event-stream", EVENTS),
        ("text/event-stream, text/plain;q=0.9", EVENTS),
        # The weight decides, wherever it stands.
        ("text/plain;q=0.4, application/stream+json;q=0.5", STREAM),
        ("text/plain;q=0.5, application/x-ndjson;q=0.4", TEXT),
        ("application/x-ndjson;q=0.001, */*;q=0", NDJSON),
        ("application/x-ndjson ; Q=0.9 , text/plain ; q=1.000", TEXT),
        # Of equal weights, the closer name, then the earlier one.
        ("*/*, application/x-ndjson", NDJSON),
        ("application/*, application/stream+json", STREAM),
        ("text/*, text/plain, application/stream+json", TEXT),
        ("application/stream+json, text/plain", STREAM),
        ("application/stream+json, application/x-ndjson", STREAM),
        # The closest range gives the weight, also a lower one, and 0 excludes.
        ("*/*;q=1, text/plain;q=0.1", NDJSON),
        ("application/*, application/x-ndjson;q=0", STREAM),
        ("*/*, text/plain;q=0, application/x-ndjson;q=0", STREAM),
        ("text/*;q=0, */*;q=0.1", NDJSON),
        # What is beside it is not looked at.
        ("application/json, text/html;q=0.9, */*;q=0.1", TEXT),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8", TEXT),
        ("text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2", TEXT),
        ('text/html;a="x, text/plain;q=1", application/x-ndjson;q=0.1', NDJSON),
        (r'text/plain;a="\"", application/x-ndjson;q=0.5', TEXT),
        # A weight that is no number counts as none was given, and none is above 1.
        ("application/x-ndjson;q=high, text/plain;q=0.9", NDJSON),
        ("application/x-ndjson;q=, text/plain;q=0.9", NDJSON),
        ("application/x-ndjson;q, text/plain;q=0.9", NDJSON),
        ("application/x-ndjson;q=nan, text/plain;q=0.9", NDJSON),
        ("application/x-ndjson;q=1e-9, text/plain;q=0.9", NDJSON),
        ("text/plain, application/x-ndjson;q=7", TEXT),
        ("text/plain;q=0.33333, application/x-ndjson;q=0.3333", TEXT),
        ("text/plain;q=.5, application/x-ndjson;q=0.", TEXT),
        # The first weight is the weight.
        ("text/plain;q=0.2;q=1, application/x-ndjson;q=0.3", NDJSON),
        ("text/plain;level=1;q=0.2, application/x-ndjson;q=0.3", NDJSON),
    ],
)
def test_preferred_type_of_the_header_is_chosen(accept, expected):
    """The type that the header prefers is the one that is sent."""
    assert log_type(accept) == expected


@each(
    "accept",
    [
        "application/json", "text/html", "image/*", "text", "text/", "/plain", "*/plain", "junk",
        "text/plain;q=0", "*/*;q=0", "*/*;q=0.000", "text/*;q=0, application/*;q=0.0",
        "application/x-ndjson;q=0, application/json", "text/plainx", "text /plain", ";q=1, a",
        '"text/plain"', "text/plain\0",
    ],
)  # fmt: skip
def test_unavailable_types_raise_not_acceptable(accept):
    """If a header names no available type, the error lists the available ones."""
    with pytest.raises(NotAcceptable) as caught:
        log_type(accept)

    assert (caught.value.status, caught.value.accept) == (406, accept)
    assert [name for name in LOG_TYPES if name not in str(caught.value)] == []


@given(HEADERS)
def test_no_other_type_has_a_higher_weight(ranges):
    """The type with the highest weight of RFC 9110 is chosen; 406 only if all are 0."""
    weights = {offered: quality(offered, ranges) for offered in LOG_TYPES}
    try:
        chosen = log_type(written(ranges))
    except NotAcceptable:
        assert max(weights.values()) == 0
    else:
        assert weights[chosen] == max(weights.values()) > 0


@given(HEADERS, st.randoms())
def test_different_weights_need_no_order(ranges, random):
    """If all weights differ, the order in the header does not matter."""
    weights = [quality(offered, ranges) for offered in LOG_TYPES]
    shuffled = random.sample(ranges, len(ranges))
    if len(set(weights)) == len(LOG_TYPES) and max(weights) > 0:
        assert log_type(written(shuffled)) == log_type(written(ranges))


@given(st.text() | st.text(alphabet='*/,;q=01. "\\textplain'))
def test_any_header_has_an_answer(accept):
    """Whatever a client sends, it gets a type or the typed error."""
    try:
        chosen = log_type(accept)
    except NotAcceptable:
        chosen = None

    assert chosen in {*LOG_TYPES, None}


@pytest.mark.parametrize("piece", ['"', '\\"', ",", ";", "text/plain;q=0.", "*/*,", '"\\', "q="])
def test_long_header_is_read_in_linear_time(piece):
    """A header of a megabyte is read; in quadratic time, that would take hours."""
    try:
        chosen = log_type(piece * (10**6 // len(piece)))
    except NotAcceptable:
        chosen = None

    assert chosen in {*LOG_TYPES, None}

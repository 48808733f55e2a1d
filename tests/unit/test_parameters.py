"""Query: numbers out of query strings, or the typed error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobcore import InvalidParameter
from jobcore.checks import LARGEST_INTEGER
from jobcore.wire.parameters import page, unsigned
from tests.cases import each


@given(st.integers(0, LARGEST_INTEGER), st.integers(0, 40))
def test_digits_are_their_number(number, zeros):
    """An unsigned integer is read, also with leading zeros."""
    assert unsigned("0" * zeros + str(number), "sequence") == number
    assert unsigned(number, "sequence") == number


@pytest.mark.parametrize(
    "text", [str(LARGEST_INTEGER + 1), str(2**64), "9" * 10_000, LARGEST_INTEGER + 1, 2**70]
)
def test_beyond_the_largest_is_the_largest(text):
    """A larger number than any line can have is no error, because no line comes after it."""
    assert unsigned(text, "sequence") == LARGEST_INTEGER


@each(
    "value",
    ["", " ", "-1", "+1", " 1", "1 ", "1\n", "1.0", "1e3", "0x1", "1_0", "x", "²", "٣", "1\0",
     "NaN", -1, True, False, 1.0, None, b"1"],
)  # fmt: skip
def test_invalid_unsigned_integer_is_refused(value):
    """Anything else is refused as a mistake of the client, by its name."""
    with pytest.raises(InvalidParameter) as caught:
        unsigned(value, "before")

    assert (caught.value.status, caught.value.name, caught.value.value) == (400, "before", value)
    assert "before" in str(caught.value)


@given(st.text())
def test_any_text_has_an_answer(text):
    """Whatever a client sends, it gets a number or the typed error, of a bearable length."""
    try:
        told, number = "", unsigned(text, "limit")
    except InvalidParameter as error:
        told, number = str(error), 0

    assert 0 <= number <= LARGEST_INTEGER
    assert len(told) < 200


def test_page():
    """It is as requested, within bounds; by default, it is the first 100."""
    assert page({}) == {"limit": 100, "before": None}
    assert page({"limit": "7", "before": "12", "other": "x"}) == {"limit": 7, "before": 12}
    assert page({"limit": "5000"})["limit"] == 1000
    assert page({"limit": "50"}, most=10)["limit"] == 10
    for wrong in ({"limit": "-1"}, {"before": ""}):
        with pytest.raises(InvalidParameter):
            page(wrong)


def test_largest_accepted_numbers_can_be_queried(jobs):
    """The largest accepted numbers can be used in a query."""
    job = jobs.create_job("TASK")
    largest = unsigned("9" * 30, "sequence")

    assert list(jobs.logs(job.id, largest)) == []
    assert jobs.list_jobs(limit=largest, before=largest) == [job]

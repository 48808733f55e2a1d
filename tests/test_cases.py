"""One test of many cases runs all of them, and names each that fails."""

from __future__ import annotations

import pytest

from tests.cases import each, every


def test_every_combination_is_run():
    """Each value of one axis with each of the other, in order."""
    seen = []
    every(a=[1, 2], b="xy")(lambda a, b: seen.append((a, b)))()

    assert seen == [(1, "x"), (1, "y"), (2, "x"), (2, "y")]


def test_every_failure_is_named():
    """A failing case does not end the others; its error and values are printed."""
    seen = []

    def check(number):
        seen.append(number)
        assert number != 1, "not one"
        return 1 / (number - 3)

    with pytest.raises(AssertionError) as caught:
        every(number=range(5))(check)()

    assert seen == [0, 1, 2, 3, 4]
    told = str(caught.value)
    assert told.startswith("2 cases failed")
    assert "{'number': 1}:\nAssertionError: not one" in told
    assert "{'number': 3}:\nZeroDivisionError: division by zero" in told


def test_arguments_are_those_of_parametrize():
    """One name with its values, or several with tuples; one over the other is a product."""
    seen = []
    each("a", [1, 2])(each(("b", "c"), [(3, 4), (5, 6)])(lambda a, b, c: seen.append((a, b, c))))()

    assert seen == [(1, 3, 4), (1, 5, 6), (2, 3, 4), (2, 5, 6)]


@every(number=[1, 2])
def test_cases_share_the_fixtures(tmp_path, number):
    """A function may take fixtures beside its cases."""
    (tmp_path / str(number)).touch()

    assert len(list(tmp_path.iterdir())) == number


def test_empty_list_of_cases_fails():
    """An empty list would pass whatever it is about."""
    with pytest.raises(AssertionError, match="there are no cases"):
        every(number=[])

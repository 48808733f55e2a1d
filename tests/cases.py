"""Cases: one test of many small ones, which tells of each that fails."""

from __future__ import annotations

import functools
import inspect
import itertools

#: How many failures are told in full.
SHOWN = 20


def every(**axes):
    """
    Make one test of a function: it is called for each combination of these values.

    For hundreds of cases of less than a millisecond each: as tests of their own they take
    several, as every worker collects all of them and reports its own. All cases share the
    fixtures that the function takes. All run; the message names each one that failed, and its
    error.
    """
    assert all(axes.values()), "there are no cases"
    return _one_test(axes, [*itertools.product(*axes.values())])


def each(names, values):
    """Make one test of a function, as `every`, with the arguments of `pytest.mark.parametrize`."""
    assert values, "there are no cases"
    if isinstance(names, str):
        return _one_test([names], [(value,) for value in values])
    return _one_test(names, values)


def _one_test(names, cases):
    def decorate(function):
        @functools.wraps(function)
        def test(**fixtures):
            failures = []
            for values in cases:
                case = dict(zip(names, values, strict=True))
                try:
                    function(**fixtures, **case)
                except Exception as error:  # noqa: BLE001 - of any kind: this case has failed
                    failures.append((case, error))
            if failures:
                told = [
                    f"{case}:\n{type(error).__name__}: {error}" for case, error in failures[:SHOWN]
                ]
                count = f"{len(failures)} cases failed"
                raise AssertionError("\n\n".join([count, *told])) from failures[0][1]

        del test.__wrapped__  # or pytest takes the cases for fixtures
        taken = inspect.signature(function).parameters.values()
        test.__signature__ = inspect.Signature([one for one in taken if one.name not in names])
        return test

    return decorate

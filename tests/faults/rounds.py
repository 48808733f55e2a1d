"""
Rounds: how often a campaign does what it does, with chances that can be had again.

`smoke` rounds run with every test run, `full` ones with `pytest -m faults`. Both
are the same test; what a report says of one campaign is what the other does less often.

JOBCORE_TEST_SEED: the seed of all campaigns, as a failure has printed it.
JOBCORE_TEST_ROUND: only this round of each campaign, for the one that failed.
JOBCORE_TEST_SOAK: a factor for the full rounds: hours instead of minutes, by hand.
"""

from __future__ import annotations

import os
import random
from itertools import islice, zip_longest

import pytest

SEED = int(os.environ.get("JOBCORE_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
os.environ["JOBCORE_TEST_SEED"] = str(SEED)  # for processes that share the tests among them
ONLY = os.environ.get("JOBCORE_TEST_ROUND")
SOAK = float(os.environ.get("JOBCORE_TEST_SOAK", "1"))

TIERS = ("smoke", "full")


def in_rounds(*, smoke, full, long=False):
    """
    Give the argument `rounds` to a test: iterate over it, once for each round.

    Args:
        smoke: How many rounds there are with every test run.
        full: And with `pytest -m faults`.
        long: Whether those take minutes, where others take seconds.
    """
    marks = [pytest.mark.faults, *([pytest.mark.long] * long)]
    return pytest.mark.parametrize(
        "rounds",
        [
            pytest.param(smoke, id="smoke"),
            pytest.param(max(1, round(full * SOAK)), id="full", marks=marks),
        ],
        indirect=True,
    )


def spread(items):
    """
    Return tests in an order in which no process is the last one to have much to do.

    Each is given two in the beginning, and each other one a test before it is needed: the
    longest begin first, each with the shortest there is behind it, which are the mutants.
    """
    campaigns = [item for item in items if item.get_closest_marker("faults")]
    others = [item for item in items if item not in campaigns]
    long = [item for item in campaigns if item.get_closest_marker("long")]
    short = [item for item in campaigns if "rounds" not in item.fixturenames]
    rest = [item for item in campaigns if item not in long and item not in short]
    pairs = [one for pair in zip_longest(long, short[: len(long)]) for one in pair if one]
    return [*others, *pairs, *rest, *short[len(long) :]]


def sample(numbers, most):
    """Return all numbers of a range, or at most so many from all its parts; None: all."""
    if most is None:
        return list(numbers)
    print(f"JOBCORE_TEST_SEED={SEED}")  # shown where it failed: how to have the same numbers
    chance = random.Random(SEED)
    step = max(1, -(-len(numbers) // most))
    return [chance.choice(numbers[first : first + step]) for first in range(0, len(numbers), step)]


def campaign(function, case):
    """
    Return what the report calls a test with rounds.

    Args:
        function: The name of the test function.
        case: What stands behind it in brackets: its parameters, and the tier.
    """
    name = function.removeprefix("test_").replace("_", " ")
    others = [part for part in case.split("-") if part not in TIERS]
    return f"{name} ({', '.join(others)})" if others else name


class Rounds:
    """
    The rounds of one campaign: an iterator of `random.Random`, one for each round.

    Each has a seed of its own, so that a round can be had again without those before it.

    Attributes:
        total: How many there are to be; a test that does all at once takes just this.
        number: Of the round under way.
        facts: For the report: what was done so far.
    """

    def __init__(self, name, total):
        self.name = name
        self.total = total
        self.number = 0
        self.facts = {"name": name, "rounds": 0, "seed": SEED}

    def __iter__(self):
        for number in self.numbers():
            self.number = self.facts["round"] = number
            yield self.chance(number)
            self.facts["rounds"] += 1

    def batches(self, size):
        """Iterate over iterators of so many rounds each: what they share is checked behind each."""
        numbers = self.numbers()
        rounds = iter(self)
        for _ in range(0, len(numbers), size):
            yield islice(rounds, size)
        next(rounds, None)  # or the last one would not be counted

    def numbers(self):
        return range(self.total) if ONLY is None else [int(ONLY)]

    def chance(self, number=0):
        """Return what decides in round `number`."""
        return random.Random(f"{SEED} {self.name} {number}")

    def did(self, rounds):
        """Count rounds that were not iterated over."""
        self.facts["rounds"] += rounds

"""What follows from an ending: retries and their delays, and the status of a pipeline."""

from __future__ import annotations

import itertools
from uuid import UUID, uuid4

import pytest

from jobcore import ArgumentError, Reason, Retries, Status
from jobcore.errors import DatabaseCorrupt
from jobcore.lifecycle import configured_as
from jobcore.retries import allows, checked_retries, delay_after
from tests.cases import each

#: Attempt and retries allowed: whether an ERROR is tried again.
AGAIN = [
    (1, 0, False),
    (1, 1, True),
    (2, 1, False),
    (1, 3, True),
    (2, 3, True),
    (3, 3, True),
    (4, 3, False),
    (1000, 1000, True),
    (1001, 1000, False),
    (7, 2, False),  # the allowance was lowered meanwhile, or its user tried again himself
]
#: The endings by the word of `on` that retries them.
ENDINGS = {
    "error": [
        (Status.ERROR, reason) for reason in (Reason.EXITED, Reason.SIGNALED, Reason.SPAWN_FAILED)
    ],
    "timeout": [(Status.STOPPED, Reason.TIMEOUT)],
    "lost": [(Status.ERROR, Reason.LOST), (Status.ERROR, Reason.NEVER_STARTED)],
}
NEVER = [
    (Status.COMPLETE, Reason.EXITED),
    *((Status.STOPPED, reason) for reason in Reason if reason is not Reason.TIMEOUT),
]


@each(("attempt", "most", "again"), AGAIN)
def test_an_error_is_retried_as_often_as_allowed(attempt, most, again):
    """The first attempt and `max` more, of a job that ends ERROR each time."""
    assert allows(Retries(most), Status.ERROR, Reason.EXITED, attempt=attempt) is again


@pytest.mark.parametrize(
    "on", [set(words) for n in (1, 2, 3) for words in itertools.combinations(ENDINGS, n)]
)
def test_on_names_the_endings_that_are_retried(on):
    """Each word covers its endings, and no other."""
    policy = Retries(5, on=tuple(on))
    for word, endings in ENDINGS.items():
        for status, reason in endings:
            assert allows(policy, status, reason, attempt=1) is (word in on), (status, reason)
            assert not allows(policy, status, reason, attempt=1, stop_requested=True)
    for status, reason in NEVER:
        assert not allows(policy, status, reason, attempt=1)


@each(
    ("attempt", "seconds"),
    [
        (1, 10), (2, 20), (3, 40), (4, 80), (5, 160), (6, 320), (7, 640), (8, 1280), (9, 2560),
        (10, 3600), (11, 3600), (33, 3600), (1000, 3600), (10**9, 3600), (-5, 10),
    ],
)  # fmt: skip
def test_the_delay_doubles_up_to_an_hour(attempt, seconds):
    """Ten seconds after the first attempt, twice as long each time, an hour at most."""
    assert delay_after(Retries(1), attempt, uuid4()) == seconds


def test_the_delay_follows_the_given_values():
    """The pause follows `delay`, `factor` and `max_delay`, and no power of 1,000 overflows."""
    assert [delay_after(Retries(9, 2, 3, 50), n, uuid4()) for n in (1, 2, 3, 4)] == [2, 6, 18, 50]
    assert [delay_after(Retries(9, 5, 1), n, uuid4()) for n in (1, 2, 9)] == [5, 5, 5]
    assert delay_after(Retries(1000, 1e9, 1000, 1e9), 1000, uuid4()) == 1e9
    assert delay_after(Retries(1000, 0), 1000, uuid4()) == 0


def test_delays_can_be_listed():
    """The last one repeats; `factor` and `max_delay` do not matter, and the jitter does."""
    policy = Retries(5, delay=[10, 60, 7200], factor=9, max_delay=1)

    assert policy.delay == (10.0, 60.0, 7200.0)
    assert [delay_after(policy, n, uuid4()) for n in (0, 1, 2, 3, 4, 1000)] == [
        10, 10, 60, 7200, 7200, 7200,
    ]  # fmt: skip
    assert delay_after(Retries(1, (10,), jitter=0.2), 1, UUID(int=0)) == 8
    assert Retries.from_json(policy.to_json()) == policy
    assert hash(policy) == hash(Retries(5, (10, 60, 7200), 9, 1))


def test_jitter_comes_from_the_id_of_the_job():
    """The same job always has the same delay, and the delays of many jobs fill the range."""
    policy = Retries(3, delay=10, jitter=0.2)
    ids = [uuid4() for _ in range(1000)]
    delays = [delay_after(policy, 1, one) for one in ids]

    assert delays == [delay_after(policy, 1, one) for one in ids]
    assert 8 <= min(delays) < 8.2
    assert 11.8 < max(delays) <= 12
    assert delay_after(policy, 1, UUID(int=0x8000_0000)) == 10
    assert delay_after(policy, 1, UUID(int=0)) == 8


@each(
    "wrong",
    [
        {"max": -1}, {"max": 1001}, {"max": 1.0}, {"max": True}, {"max": None},
        {"delay": -1}, {"delay": []}, {"delay": [1, -1]}, {"delay": ["1"]}, {"delay": [1] * 1001},
        {"delay": "x"}, {"delay": float("nan")}, {"delay": 1e10},
        {"factor": 0.5}, {"factor": 1001}, {"factor": None}, {"max_delay": -0.1},
        {"jitter": 1.1}, {"jitter": -0.1}, {"on": ()}, {"on": "never"}, {"on": ("error", 1)},
        {"on": None},
    ],
)  # fmt: skip
def test_impossible_retries_are_refused(wrong):
    """The error names the argument."""
    with pytest.raises(ArgumentError, match=f"^{next(iter(wrong))} must"):
        Retries(**{"max": 1, **wrong})


def test_retries_are_stored_as_they_were():
    """They are equal after a round trip, and a number stands for the defaults."""
    policy = Retries(3, 1, 1.5, 60, 0.5, ["timeout", "lost"])

    assert Retries.from_json(policy.to_json()) == policy
    assert (policy.delay, policy.on) == (1.0, ("timeout", "lost"))
    assert Retries(1, on="timeout").on == ("timeout",)
    assert checked_retries(4) == Retries(4)
    assert checked_retries(None) is None
    assert checked_retries(policy) is policy
    with pytest.raises(ArgumentError, match="retries must be a number or Retries, not str"):
        checked_retries("4")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"max": -1}', '{"max": 1, "x": 2}', "null"])
def test_damaged_retries_raise_database_corrupt(text):
    """A value that `to_json` did not make is damage."""
    with pytest.raises(DatabaseCorrupt, match="stored retries are invalid"):
        Retries.from_json(text)


@pytest.mark.parametrize(
    ("status", "configured"),
    [(Status.COMPLETE, "READY"), (Status.ERROR, "FAILED"), (Status.STOPPED, "FAILED")],
)
def test_a_pipeline_is_ready_only_when_its_configuration_completed(status, configured):
    """COMPLETE makes it READY; whatever else ends its configuration makes it FAILED."""
    assert configured == configured_as(status)

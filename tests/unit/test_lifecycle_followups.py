"""Lifecycle: what follows from an ending."""

from __future__ import annotations

import itertools

import pytest

from jobcore.lifecycle import Status, configured_as, is_retried, retry_delay

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


@pytest.mark.parametrize(("attempt", "max_retries", "again"), AGAIN)
def test_an_error_is_tried_again_as_often_as_allowed(attempt, max_retries, again):
    """The first attempt and `max_retries` more, of a job that ends ERROR each time."""
    told = is_retried(Status.ERROR, attempt=attempt, max_retries=max_retries, stop_requested=False)

    assert told is again


@pytest.mark.parametrize(
    ("status", "stop_requested"),
    [pair for pair in itertools.product(Status, (False, True)) if pair != (Status.ERROR, False)],
)
def test_nothing_else_is_tried_again(status, stop_requested):
    """Only ERROR is tried again, and not where somebody had asked for a stop."""
    told = is_retried(status, attempt=1, max_retries=1000, stop_requested=stop_requested)

    assert told is False


@pytest.mark.parametrize(
    ("attempt", "seconds"),
    [
        (1, 10), (2, 20), (3, 40), (4, 80), (5, 160), (6, 320), (7, 640), (8, 1280), (9, 2560),
        (10, 3600), (11, 3600), (33, 3600), (1000, 3600), (10**9, 3600),
    ],
)  # fmt: skip
def test_the_back_off_doubles_up_to_an_hour(attempt, seconds):
    """Ten seconds behind the first attempt, twice as long each time, an hour at the most."""
    assert seconds == retry_delay(attempt)


@pytest.mark.parametrize(
    ("status", "configured"),
    [(Status.COMPLETE, "READY"), (Status.ERROR, "FAILED"), (Status.STOPPED, "FAILED")],
)
def test_a_pipeline_is_ready_only_when_its_configuration_completed(status, configured):
    """COMPLETE makes it READY; whatever else ends its configuration makes it FAILED."""
    assert configured == configured_as(status)

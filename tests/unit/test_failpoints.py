"""Failpoints: each is named once, explained, and stands somewhere; unarmed they do nothing."""

from __future__ import annotations

import re

import pytest

from jobcore.embedding import failpoints
from tests.processes import ROOT

SOURCE = (ROOT / "jobcore" / "embedding" / "failpoints.py").read_text()
#: Each constant with the comment above it.
EXPLAINED = {
    name: comment for comment, name in re.findall(r"^#: (.+)\n(\w+) = \"", SOURCE, re.MULTILINE)
}


@pytest.fixture
def armed():
    """Return what arms a callback for this test alone."""
    callbacks = []

    def arm(callback):
        callbacks.append(callback)
        failpoints.arm(callback)

    yield arm
    for callback in callbacks:
        failpoints.disarm(callback)


def test_every_point_has_a_name_a_side_and_an_explanation():
    """Each failpoint belongs to one side, and a sentence says what comes before it."""
    points = [*failpoints.HOST, *failpoints.SUPERVISOR, *failpoints.KEEPER, *failpoints.WARM]

    assert points == [getattr(failpoints, name) for name in EXPLAINED]
    assert len(set(points)) == len(points)
    assert [name for name, said in EXPLAINED.items() if not said.endswith(".")] == []


def reached_in(folder):
    """Return the points that the code in a folder of jobcore reaches."""
    return {
        getattr(failpoints, name)
        for path in (ROOT / "jobcore" / folder).rglob("*.py")
        for call in re.findall(r"\breach\(.*", path.read_text())
        for name in re.findall(r"\bfailpoints\.(\w+)\b", call)
    }


def test_every_point_is_reached_somewhere():
    """No point is a name alone: the code of its side reaches it."""
    assert sorted(set(failpoints.HOST) - reached_in(".")) == []
    assert sorted(set(failpoints.SUPERVISOR) - reached_in("supervisor")) == []
    assert sorted(set(failpoints.KEEPER) - reached_in(".")) == []
    assert sorted(set(failpoints.WARM) - reached_in("supervisor")) == []


def test_unarmed_nothing_happens():
    """A point without a callback returns."""
    assert failpoints.reach(failpoints.CLAIMED, object()) is None


def test_armed_callbacks_get_point_and_host(armed):
    """Whoever armed the points hears of each, and of whose it is, until disarmed."""
    first, second, host = [], [], object()
    armed(lambda *told: first.append(told))
    armed(also := lambda *told: second.append(told))

    failpoints.reach(failpoints.CLAIMED, host)
    failpoints.disarm(also)
    failpoints.disarm(also)
    failpoints.reach(failpoints.UNLOCKED)

    assert first == [("claimed", host), ("unlocked", None)]
    assert second == [("claimed", host)]


def test_callback_exception_is_raised_at_the_failpoint(armed):
    """A crash goes through every `except Exception`."""

    def crash(*_):
        raise failpoints.Crashed

    armed(crash)

    with pytest.raises(failpoints.Crashed):
        failpoints.reach(failpoints.CLAIMED)
    assert not issubclass(failpoints.Crashed, Exception)

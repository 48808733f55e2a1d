"""Machine: its two clocks, read as of one moment."""

from __future__ import annotations

import pytest

from jobcore.supervisor.execution import Machine, read_clocks

BEGUN, WALL = 1000.0, 1_700_000_000 * 10**9


class Preempted(Machine):
    """A machine that is paused between two readings, the n-th time for `pauses[n]` seconds."""

    def __init__(self, pauses):
        self.passed = 0.0
        self.readings = 0
        self._pauses = list(pauses)

    def time_ns(self):
        """Return the wall time, and let the pause go by."""
        wall = WALL + round(self.passed * 10**9)
        self.readings += 1
        self.passed += self._pauses.pop(0) if self._pauses else 0.0
        return wall

    def monotonic(self):
        """Return the monotonic clock."""
        return BEGUN + self.passed


@pytest.mark.parametrize("pauses", [[], [5], [0.01, 3600, 0.0002], [1] * 9])
def test_pause_between_two_clock_readings_is_detected(pauses):
    """However often it is disturbed, the two times are of one moment."""
    machine = Preempted(pauses)

    monotonic, wall = read_clocks(machine)

    assert monotonic - BEGUN == pytest.approx((wall - WALL) / 10**9, abs=0.0001)
    assert monotonic - BEGUN == pytest.approx(sum(pauses), abs=0.0001)


def test_undisturbed_clocks_are_read_once():
    """It costs nothing where there is no pause."""
    machine = Preempted([])
    assert read_clocks(machine) == (BEGUN, WALL)
    assert machine.readings == 1


def test_on_a_machine_that_is_always_paused_no_end_is_too_early():
    """It does not try for ever; and then the wall time is the later of the two."""
    machine = Preempted([0.5] * 1000)

    monotonic, wall = read_clocks(machine)

    assert machine.readings < 100
    assert (wall - WALL) / 10**9 >= monotonic - BEGUN


def test_the_machines_own_clocks_run_together():
    """The clocks of jobcore advance with the machine's."""
    machine = Machine()
    (begun, wall), (ended, wall_ended) = read_clocks(machine), read_clocks(machine)

    assert ended >= begun
    assert wall_ended >= wall

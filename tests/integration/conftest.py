"""Fixtures: supervisors that start warm, and a host of real ones, of whose jobs none is left."""

from __future__ import annotations

import os

import pytest

from jobcore.engine.supervisor_pool import ProcessLauncher
from tests.integration.supervision_harness import Host


@pytest.fixture(autouse=True)
def _warm_supervisors(request, nursery, monkeypatch):
    """
    Fork this process's supervisors from one that has everything loaded.

    The start of an interpreter for each would be a third of the time of all tests. A module
    that is about their start has the mark `cold_supervisors`.
    """
    if request.node.get_closest_marker("cold_supervisors"):
        return
    process, start = os.getpid(), ProcessLauncher.start

    def start_warm(self, descriptor):
        if os.getpid() != process:  # a fork, whose descriptors are its own affair
            return start(self, descriptor)
        return nursery.launcher().start(descriptor)

    monkeypatch.setattr(ProcessLauncher, "start", start_warm)


@pytest.fixture
def host(tmp_path):
    """Return a host in small; it leaves no process behind."""
    host = Host(tmp_path)
    yield host
    host.close()

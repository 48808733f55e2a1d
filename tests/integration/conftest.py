"""Fixtures: supervisors that start warm, and a host of real ones, of whose jobs none is left."""

from __future__ import annotations

import pytest

from tests.integration.supervision_harness import Host


@pytest.fixture(autouse=True)
def _warm_by_default(request):
    """Have supervisors start warm, but for modules with the mark `cold_supervisors`."""
    if not request.node.get_closest_marker("cold_supervisors"):
        request.getfixturevalue("warm_supervisors")


@pytest.fixture
def host(tmp_path):
    """Return a host in small; it leaves no process behind."""
    host = Host(tmp_path)
    yield host
    host.close()

"""Fixtures: a host of real supervisors, of whose jobs no process is left."""

from __future__ import annotations

import pytest

from tests.integration.supervision_harness import Host


@pytest.fixture
def host(tmp_path):
    """Return a host in small; it leaves no process behind."""
    host = Host(tmp_path)
    yield host
    host.close()

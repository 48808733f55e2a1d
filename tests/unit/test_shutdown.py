"""Shutdown: a SIGTERM is seen by poll and by a look, with its sender where the kernel tells."""

from __future__ import annotations

import os
import select
import signal

import pytest

from jobcore.supervisor import system_calls
from jobcore.supervisor.stop_requests import Shutdown
from tests.processes import in_child


def take_sigterm(tells_sender):
    """Return whether a SIGTERM was seen before, by poll and by a look, and whose it seemed."""
    if not tells_sender:

        def refuse(_number):
            raise OSError

        system_calls.open_signal = refuse
    shutdown = Shutdown()
    shutdown.request_by_sigterm()
    before = shutdown.requested
    os.kill(os.getpid(), signal.SIGTERM)
    readable = bool(select.select([shutdown.fileno()], [], [], 30)[0])
    seen = shutdown.requested
    shutdown.drain()
    quiet = not select.select([shutdown.fileno()], [], [], 0)[0]
    shutdown.close()
    return before, readable, seen, quiet, shutdown.by_service_manager


@pytest.mark.parametrize("tells_sender", [True, False])
def test_sigterm_is_seen_with_and_without_its_sender(tells_sender):
    """Without signalfd, only the sender is unknown."""
    assert in_child(take_sigterm, tells_sender) == (False, True, True, True, False)


def test_shutdown_requested_in_process_is_not_by_the_service_manager():
    """What a stand-in of a test asks is a shutdown like another one."""
    shutdown = Shutdown()
    shutdown.request()
    shutdown.request()

    assert shutdown.requested
    assert select.select([shutdown.fileno()], [], [], 0)[0]
    assert not shutdown.by_service_manager
    shutdown.close()

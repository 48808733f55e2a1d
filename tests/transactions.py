"""Transactions that a test holds open for as long as a block lasts."""

from __future__ import annotations

import threading
from contextlib import contextmanager

from tests.processes import PATIENCE


@contextmanager
def transaction(database, **options):
    """
    Give the connection of a write transaction, which ends with the block.

    The writer thread waits for the end of the block; what the block raises is
    raised in the change, which is rolled back.
    """
    begun, over = threading.Event(), threading.Event()
    found = {}

    def change(connection):
        found["connection"] = connection
        begun.set()
        assert over.wait(PATIENCE)
        if "error" in found:
            raise found["error"]

    def write():
        try:
            database.write(change, **options)
        except BaseException as error:  # noqa: BLE001 - raised in the test's thread
            found["failure"] = error
        finally:
            begun.set()

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    assert begun.wait(PATIENCE)
    try:
        if "connection" in found:
            yield found["connection"]
    except BaseException as error:  # noqa: BLE001 - raised again by the change
        found["error"] = error
    over.set()
    writer.join(PATIENCE)
    if "failure" in found:
        raise found["failure"]

"""The names of the tests are the same in every process, so that several can share the work."""

from __future__ import annotations

import re


def test_no_name_has_an_address(request):
    """What a parameter is called must not depend on where it lies in memory."""
    names = [item.nodeid for item in request.session.items]

    assert [name for name in names if re.search(r" at 0x[0-9a-f]+", name)] == []

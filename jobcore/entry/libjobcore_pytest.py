"""
What pytest loads at its start where jobcore is installed: jobcore's plugin, and nothing else.

An installation has it beside the package, and an editable one inside it. It is no part of the
package, so that a run of pytest goes on where `jobcore` is another one, such as a folder of that
name in the project under test. Code of that one is not run.
"""

from __future__ import annotations

import os
from importlib.util import find_spec


def _has_own_package() -> bool:
    """Tell whether `import jobcore` gives the package that this file belongs to."""
    try:
        spec = find_spec("jobcore")
    except (ImportError, ValueError):  # the name is blocked, or a module without a spec
        return False
    here = os.path.dirname(os.path.realpath(__file__))
    places = (os.path.join(here, "jobcore"), os.path.dirname(here))
    own = {os.path.join(place, "__init__.py") for place in places}
    return spec is not None and os.path.realpath(spec.origin or "") in own


_missing: str | None = None
if _has_own_package():
    try:
        from jobcore.pytest_plugin import job_clock, job_scripts, jobs, pytest_configure
    except Exception as error:  # noqa: BLE001 - not the reason for tests of others to fail
        _missing = repr(error)
else:
    _missing = "`import jobcore` does not find libjobcore"


def pytest_report_header() -> list[str]:
    """Say why there are no fixtures, if there are none."""
    return [] if _missing is None else [f"jobcore: no fixtures: {_missing}"]


__all__ = ["job_clock", "job_scripts", "jobs", "pytest_configure", "pytest_report_header"]

"""The manual page is what the commands' help says, and the package installs it."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests import man_page
from tests.processes import ROOT


def test_page_is_what_the_help_texts_say():
    """If not, `python -m tests.man_page` writes it again."""
    assert man_page.PAGE.read_text() == man_page.page(), "run python -m tests.man_page"


def test_package_installs_the_page():
    """The wheel puts it where `man` looks, and the source distribution has it."""
    settings = (ROOT / "pyproject.toml").read_text()

    assert '"jobcore/docs/jobcore.1" = "share/man/man1/jobcore.1"' in settings
    assert '"man", ' in settings


@pytest.mark.skipif(shutil.which("groff") is None, reason="needs groff")
def test_formatter_has_no_complaint_about_the_page():
    """No text of a command is taken for a macro or an escape."""
    words = ["groff", "-man", "-Tutf8", "-ww", str(man_page.PAGE)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)

    assert done.stderr == ""
    assert "generate | jobcore run --stdin -- python load.py" in done.stdout

"""What a person reads of jobcore, README and the guides, and the examples in it."""

from __future__ import annotations

import re

from tests.processes import ROOT

README = (ROOT / "README.md").read_text()
#: The guides that `jobcore docs` prints, by name.
GUIDES = {path.stem: path.read_text() for path in sorted((ROOT / "jobcore/docs").glob("*.md"))}
TEXT = "\n".join([README, *GUIDES.values()])


def between(begin, end=None, text=TEXT):
    """Return the text from the mark `<!-- begin` to `<!-- end`, else to `<!-- end of begin`."""
    assert text.count(f"<!-- {begin}") == 1, begin
    return text.partition(f"<!-- {begin}")[2].partition(f"<!-- {end or f'end of {begin}'}")[0]


def blocks(language, text=TEXT):
    """Return the code blocks in `language`."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)

"""A big log, read back as a whole."""

from __future__ import annotations

import os
import subprocess

from benchmarks.big_logs import LINES, QUICK_LINES, lines_file, stored
from benchmarks.timing import Goal, Series
from jobcore import JobManager

DEFAULT_N, QUICK_N = LINES, QUICK_LINES


def measure(n: int, rounds: int, folder: str) -> list[Series]:
    """Read `n` lines as text, as NDJSON and as lines; copy the text from the page cache."""
    source = lines_file(folder, n)
    size, million = os.path.getsize(source) / 1e6, n / 1e6
    cat = Series("cat to cat, from the page cache", "MB/s", peer=True)
    text = Series("log_text", "MB/s", Goal(400), cat)
    ndjson = Series("log_ndjson", "M lines/s", Goal(1))
    lines = Series("logs", "M lines/s", Goal(1.5))
    database, job = stored(folder, n)
    with JobManager(database, slots=0) as jobs:
        for _ in range(rounds):
            with text.sample(size):
                read = sum(map(len, jobs.log_text(job)))
            assert read == os.path.getsize(source)
            with ndjson.sample(million):
                read = sum(map(len, jobs.log_ndjson(job)))
            assert read > size
            with lines.sample(million):
                read = sum(1 for _ in jobs.logs(job))
            assert read == n
            with cat.sample(size):
                script = 'cat "$1" | cat > /dev/null'
                subprocess.run(["sh", "-c", script, "sh", source], check=True)
    return [text, ndjson, lines, cat]

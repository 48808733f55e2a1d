"""One big job, until every line can be read."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import tempfile

from benchmarks.big_logs import LINES, QUICK_LINES, lines_file, write
from benchmarks.timing import Goal, Series
from jobcore import JobManager

DEFAULT_N, QUICK_N = LINES, QUICK_LINES


def measure(n: int, rounds: int, folder: str) -> list[Series]:
    """Let a job write `n` lines; copy them to a file; let SQLite's shell import them."""
    text = lines_file(folder, n)
    size = os.path.getsize(text)
    share = n / LINES  # the goal is that of LINES lines
    cat = Series("cat > file, fsync", peer=True)
    missing = "" if shutil.which("sqlite3") else "apt install sqlite3"
    imported = Series("sqlite3 .import", peer=True, missing=missing)
    ours = Series(f"{size / 1e6:.0f} MB, {n:,} lines", "ms", Goal(3, "ratio"), cat)
    cpu = Series("CPU of the host", goal=Goal(400 * share))
    stored = Series("database", "MB", Goal(0.3, "ratio"), Series("the text", "MB"))
    for _ in range(rounds):
        assert stored.beside is not None
        stored.beside.values.append(size / 1e6)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            _write(text, n, place, ours, cpu, stored)
            with cat.sample():
                _shell('cat "$1" > "$2" && sync "$2"', text, f"{place}/copy")
            if not missing:
                with imported.sample():
                    _shell(_IMPORT, text, f"{place}/rows.db")
    return [ours, cpu, stored, cat, imported]


#: In ascii mode it gives quotes no meaning.
_IMPORT = """sqlite3 "$2" 'PRAGMA journal_mode = WAL' 'CREATE TABLE line (text)' '.mode ascii' \
'.separator "\\037" "\\n"' ".import $1 line" > /dev/null"""


def _write(text: str, n: int, place: str, ours: Series, cpu: Series, stored: Series) -> None:
    database = os.path.join(place, "jobs.db")
    with JobManager(database, slots=1) as jobs:
        jobs.wait(jobs.submit(["true"]).id)  # starts a supervisor
        before = _cpu()
        with ours.sample():
            job = write(jobs, [text], n)
            assert sum(1 for _ in jobs.logs(job, n - 1)) == 1
        cpu.values.append((_cpu() - before) * 1000)
    stored.values.append(os.path.getsize(database) / 1e6)


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _shell(script: str, *arguments: str) -> None:
    subprocess.run(["sh", "-c", script, "sh", *arguments], check=True)

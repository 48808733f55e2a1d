"""
Print the journey of one job through the files of jobcore: `python -m tests.journey`.

It runs `sh -c 'echo hello'` from `submit` to the end of `follow`, and notes the file of every
function that is called in the caller, in jobcore's own threads and in the supervisor. A switch
is a call in another file than the call before; it goes back if that file was seen before.
"""

from __future__ import annotations

import _thread
import collections
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import jobcore
from jobcore import JobManager, tuning
from jobcore.embedding import worker
from jobcore.engine import launcher

PACKAGE = str(Path(jobcore.__file__).parent) + os.sep

#: Runs in the supervisor, before anything of jobcore is loaded there.
NOTES = """\
import os, sys
seen, below, end = [], sys.argv[2] + "/", os._exit
def note(frame, event, _):
    name = frame.f_code.co_filename
    if event == "call" and name.startswith(below):
        if frame.f_code.co_name == "accept":
            del seen[:]  # the job before was to load all that is needed
        if not seen or seen[-1] != name:
            seen.append(name)
def leave(code):
    sys.setprofile(None)
    with open(PATH, "w") as out:
        out.write("\\n".join(seen))
    end(code)
os._exit = leave
sys.setprofile(note)
"""


class Journey:
    """The files that one thread has called functions in, each run of calls in one file once."""

    def __init__(self) -> None:
        self.files: list[str] = []

    def note(self, frame, event, _argument):
        """Count a call; the arguments are those of `sys.setprofile`."""
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(PACKAGE) and (self.files or [""])[-1] != name:
            self.files.append(name)

    @property
    def back(self) -> int:
        """How many switches went to a file that had been seen before."""
        return len(self.files) - len(set(self.files))


def travel(database: str) -> dict[str, Journey]:
    """Return the journey of each thread and of the supervisor, by name."""
    names: dict[int, str] = {}
    threads: dict[str, Journey] = collections.defaultdict(Journey)
    path = f"{database}.supervisor"
    counting = False
    run = worker.Worker._run

    def note(frame, event, argument):
        if counting:
            name = names.get(_thread.get_ident()) or threading.current_thread().name
            threads[name].note(frame, event, argument)

    def run_in_worker(self, *given):
        names[_thread.get_ident()] = "worker"
        sys.setprofile(note)
        run(self, *given)

    tuning.CHORES_PAUSE = 3600.0  # after the first ones, which come before any job
    threading.setprofile(note)
    worker.Worker._run = run_in_worker  # which `threading` does not start
    launcher.STUB = NOTES.replace("PATH", repr(path)) + launcher.STUB
    with JobManager(database) as jobs:
        jobs.wait(jobs.submit(["true"]).id)  # all is loaded, and threads and a supervisor are there
        time.sleep(0.5)  # until the dispatcher has cleaned up after that job
        sys.setprofile(note)
        counting = True
        job = jobs.submit(["sh", "-c", "echo hello"])
        for _ in jobs.follow(job.id):
            pass
        counting = False
        sys.setprofile(None)
    threading.setprofile(None)
    found = dict(threads)
    found["supervisor"] = Journey()
    found["supervisor"].files = Path(path).read_text().splitlines()
    return found


def main() -> None:
    """Print a line for each thread, and how many files were entered in all."""
    with tempfile.TemporaryDirectory() as folder:
        found = travel(f"{folder}/jobs.db")
    for name, journey in found.items():
        files = set(journey.files)
        print(
            f"{name:24} {len(files):3} files {len(journey.files):4} switches {journey.back:4} back"
        )
    print(f"{'all':24} {len({one for way in found.values() for one in way.files}):3} files")


if __name__ == "__main__":
    main()

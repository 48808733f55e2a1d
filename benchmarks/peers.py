"""Peers: other programs that run a command for each of many entries, and what they lack."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable

from benchmarks.timing import Series, wait_until

_EXTRA = 'pip install -e ".[bench]"'


def command_peers(n: int) -> list[tuple[Series, Callable[[], None]]]:
    """Return what runs `true` `n` times, each with a function that takes a sample."""

    def by_command(what: str, tool: str, debian: str, run: Callable[[str], None]) -> _Peer:
        missing = "" if shutil.which(tool) else f"apt install {debian}"
        series = Series(what, "jobs/s", peer=True, missing=missing)

        def sample() -> None:
            with tempfile.TemporaryDirectory() as folder, series.sample(n):
                run(folder)

        return series, sample

    numbers = "\n".join(map(str, range(n))) + "\n"

    def xargs(_: str) -> None:
        subprocess.run(["xargs", "-P2", "-n1", "true"], input=numbers, text=True, check=True)

    def parallel(folder: str) -> None:
        logged = "--joblog {0}/log --results {0}/results"
        subprocess.run(
            ["parallel", "-j4", *logged.format(folder).split(), "-N0", "true"],
            input=numbers,
            text=True,
            check=True,
            stderr=subprocess.DEVNULL,  # it asks to be cited
        )

    def task_spooler(folder: str) -> None:
        env = {**os.environ, "TMPDIR": folder, "TS_SOCKET": f"{folder}/socket"}
        subprocess.run(
            ["sh", "-c", _TASK_SPOOLER, "sh", str(n)],
            env=env,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    return [
        by_command("xargs -P2", "xargs", "findutils", xargs),
        by_command("task-spooler", "tsp", "task-spooler", task_spooler),
        _by_program("huey, SQLite with fsync", "jobs/s", "huey", _HUEY, "command", n),
        by_command("GNU parallel, joblog, results", "parallel", "parallel", parallel),
    ]


def function_peers(n: int) -> list[tuple[Series, Callable[[], None]]]:
    """Return what calls a tiny function `n` times, each with a function that takes a sample."""
    return [
        _by_program("huey, tiny calls, same process", "calls/s", "huey", _HUEY, "function", n),
        _rq(n),
    ]


#: Queues $1 jobs, whose numbers begin at 0. Waits for the last one of each of four slots, and for
#: the end of the server.
_TASK_SPOOLER = """
tsp -S 4
i=0
while [ $i -lt "$1" ]; do tsp true; i=$((i + 1)); done
for id in $(seq $(($1 > 4 ? $1 - 4 : 0)) $(($1 - 1))); do tsp -w $id; done
tsp -K
while [ -e "$TS_SOCKET" ]; do sleep 0.01; done
"""

_Peer = tuple[Series, Callable[[], None]]

#: Runs $3 tasks, each one a command or a function, through 4 threads, and prints the seconds.
_HUEY = """
import subprocess, sys, time
from huey import SqliteHuey
path, kind, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
huey = SqliteHuey(filename=path + "/huey.db", fsync=True)

@huey.task()
def command():
    return subprocess.run(["true"], check=True).returncode

@huey.task()
def function(a, b):
    return a + b

consumer = huey.create_consumer(workers=4, periodic=False, initial_delay=0.001, max_delay=0.01)
consumer.start()
begun = time.perf_counter()
results = [command() if kind == "command" else function(1, 2) for _ in range(n)]
for result in results:
    result.get(blocking=True, backoff=1, max_delay=0.002)
print(time.perf_counter() - begun)
consumer.stop(graceful=True)
"""

#: Calls a function $2 times, by a worker that forks for each call, and prints the seconds.
_RQ = """
import operator, sys, time
from redis import Redis
from rq import Queue, Worker
queue = Queue(connection=Redis(unix_socket_path=sys.argv[1]))
begun = time.perf_counter()
jobs = [queue.enqueue(operator.add, 1, 2) for _ in range(int(sys.argv[2]))]
Worker([queue], connection=queue.connection).work(burst=True, logging_level="ERROR")
print(time.perf_counter() - begun)
assert all(job.return_value() == 3 for job in jobs)
"""


def _by_program(what: str, unit: str, module: str, source: str, kind: str, n: int) -> _Peer:
    missing = "" if importlib.util.find_spec(module) else _EXTRA
    series = Series(what, unit, peer=True, missing=missing)

    def sample() -> None:
        with tempfile.TemporaryDirectory() as folder:
            series.values.append(n / _seconds(source, folder, kind, n))

    return series, sample


def _rq(n: int) -> _Peer:
    missing = "" if importlib.util.find_spec("rq") else _EXTRA
    if not shutil.which("redis-server"):
        missing = f"{missing} and apt install redis-server".removeprefix(" and ")
    series = Series("RQ, tiny calls, a fork for each", "calls/s", peer=True, missing=missing)

    def sample() -> None:
        with tempfile.TemporaryDirectory() as folder:
            socket = f"{folder}/socket"
            server = subprocess.Popen(
                ["redis-server", "--port", "0", "--unixsocket", socket, "--save", ""],
                cwd=folder,
                stdout=subprocess.DEVNULL,
            )
            try:
                wait_until(lambda: os.path.exists(socket))
                series.values.append(n / _seconds(_RQ, socket, n))
            finally:
                server.terminate()
                server.wait()

    return series, sample


def _seconds(source: str, *arguments: object) -> float:
    done = subprocess.run(
        [sys.executable, "-c", source, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=600,
    )
    return float(done.stdout)

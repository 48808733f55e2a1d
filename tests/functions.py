"""
Functions: what the function jobs of these tests call, each named by what it does.

Each call loads this module in an interpreter of its own: what few of them need, these import.
"""

from __future__ import annotations

import atexit
import functools
import json
import logging
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path


def gives_back(value=None, **named):
    """Return the argument, or all of those given by name."""
    return named or value


def adds(a, b, *, c=0):
    return a + b + c


class Basket:
    """A class of a program."""

    def __init__(self, *fruit):
        self.fruit = list(fruit)

    def __eq__(self, other):
        return isinstance(other, Basket) and self.fruit == other.fruit

    __hash__ = None

    def count(self):
        return len(self.fruit)

    @classmethod
    def of_apples(cls, number):
        return cls(*["apple"] * number)

    @staticmethod
    def weighs(number):
        return number * 2

    def __call__(self):
        return self.fruit


class HoldsALock:
    """Cannot be pickled."""

    def __init__(self):
        self.lock = threading.Lock()

    def method(self):
        return 1


class TellsWhyNot:
    """Cannot be pickled, and says what to do."""

    def __reduce__(self):
        raise TypeError("send the address of the connection instead")


class QuotedByPickle:
    """Cannot be pickled, and pickle's own error quotes it."""

    def __init__(self, secret):
        self.secret = secret

    def __repr__(self):
        return f"QuotedByPickle({self.secret})"

    def __reduce__(self):
        return "nowhere"


def decorated(function):
    """Return a wrapper that hands over one argument more."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function("from the decorator", *args, **kwargs)

    return wrapper


@decorated
def is_given_more(first, second):
    return [first, second]


def replaced():
    return "the first"


was_replaced = replaced


def replaced():
    return "the second"


a_lambda = lambda: 1  # noqa: E731 - that is the point


def makes_a_local():
    def local():
        return 1

    return local


def makes_a_local_object():
    class Local:
        pass

    return Local()


# --- that end in their own ways -----------------------------------------------------


def fails(text):
    inner_failure(text)


def inner_failure(text):
    raise LookupError(text)


def fails_in_turn():
    try:
        inner_failure("first")
    except LookupError as error:
        raise RuntimeError("second") from error


def fails_in_groups():
    group = ExceptionGroup("several", [ValueError("one"), OSError("two")])  # noqa: F821 - from 3.11 on
    raise group


def exits(code):
    sys.exit(code)


def exits_at_once(code):
    os._exit(code)


def is_interrupted():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)


def waits(seconds=60):
    print("ready", flush=True)
    time.sleep(seconds)
    return "waited"


def cleans_up(path):
    """Wait, and say in every way there is that it came to its end."""

    def tell(word):
        with open(path, "a") as file:
            file.write(f"{word}\n")

    atexit.register(tell, "atexit")
    thread = threading.Thread(target=_until_main_ends, args=(tell,))
    thread.start()
    try:
        with Path(path).open("a"):
            print("ready", flush=True)
            time.sleep(60)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)  # a second one, which does not interrupt this
        tell("finally")
        print("cleaned up", end="")


def cleans_up_after_its_end(path, how):
    """Return or raise; in a handler wait for a signal, and say that it came to its end."""

    def clean_up():
        told, tell = os.pipe()
        os.set_blocking(tell, False)
        signal.set_wakeup_fd(tell)
        print("cleaning up", flush=True)
        os.read(told, 1)
        Path(path).write_text("atexit")

    atexit.register(clean_up)
    if how == "raises":
        raise ValueError(how)
    if how == "exits":
        sys.exit(3)


def leaves_a_thread(path):
    """Return, and leave a thread that then runs for long, and a handler."""

    def run_on():
        threading.main_thread().join()
        print("ready", flush=True)
        time.sleep(60)

    atexit.register(Path(path).write_text, "atexit")
    threading.Thread(target=run_on).start()


def _until_main_ends(tell):
    threading.main_thread().join()
    tell("thread")


async def cleans_up_in_an_event_loop():
    """Wait in one, and say that its tasks were cancelled."""
    import asyncio  # noqa: PLC0415

    try:
        print("ready", flush=True)
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(0)
        print("cancelled", flush=True)


def forks_what_waits():
    """Have a child that has nothing to clean up, and end it by SIGTERM; return its wait status."""
    child = os.fork()
    if child == 0:
        try:
            time.sleep(60)
        finally:
            os._exit(1)
    os.kill(child, signal.SIGTERM)
    return os.waitpid(child, 0)[1]


def waits_in_a_pool():
    """Have a pool finish what it does when this is ended."""
    from concurrent.futures import ProcessPoolExecutor  # noqa: PLC0415
    from multiprocessing import get_context  # noqa: PLC0415

    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        future = pool.submit(time.sleep, 0)
        future.result()
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            print(pool.submit(adds, 1, 2).result(), flush=True)


def waits_beside_a_generator():
    """Have a generator in the middle of its work when this is ended."""

    def holds():
        try:
            yield
        finally:
            print("closed", flush=True)

    generator = holds()
    next(generator)
    print("ready", flush=True)
    time.sleep(60)


def waits_for(path):
    print("ready", flush=True)
    while not os.path.exists(path):
        time.sleep(0.01)
    return {"saw": path}


def returns_although_asked_to_stop():
    # Held back and asked for: a handler that sets an Event may come while `wait` holds its lock.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    print("ready", flush=True)
    signal.sigtimedwait([signal.SIGTERM], 60)
    return "all the same"


def forks_and_returns():
    if os.fork() == 0:
        time.sleep(0.2)  # behind the parent: what it left would be the last
        return "child"
    return "parent"


def leaves_a_failing_end():
    atexit.register(os._exit, 9)
    return "returned"


def returns_a_lock():
    return threading.Lock()


def returns_many_bytes(number):
    return "x" * number


def returns_on_a_full_disk():
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    return "x" * 5000


def closes_all_descriptors():
    os.closerange(3, 1000)
    return "closed"


# --- that look around ---------------------------------------------------------------


async def sleeps_a_little(value):
    import asyncio  # noqa: PLC0415

    await asyncio.sleep(0)
    return [value, asyncio.get_running_loop().is_running()]


def prints(*lines):
    print(*lines, sep="\n")


def leaves_text_unflushed():
    os.environ["X"] = "1"
    with open(1, "w", closefd=False) as buffered:
        buffered.write("written\n")
    sys.stdout.write("no line end")


def prints_from_processes(workers, count):
    from multiprocessing import get_context  # noqa: PLC0415

    context = get_context("fork")
    processes = [
        context.Process(target=_prints_objects, args=(one, count)) for one in range(workers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def _prints_objects(worker, count):
    for n in range(count):
        print(json.dumps({"worker": worker, "n": n}))


def prints_and_waits(gate):
    print("said")
    Path(gate).open("rb").close()
    print("more")


def looks_around(*_):
    """Return what a function can see of the one that calls it, and others of its process."""
    return {
        "stdin": [os.readlink("/proc/self/fd/0"), sys.stdin.read()],
        "jobcore": [name for name in sys.modules if name.startswith("jobcore")],
        "argv": sys.argv,
        "path": sys.path,
        "environment": sorted(name for name in os.environ if name.startswith("JOBCORE_")),
        "public": Path("/proc/self/cmdline").read_text() + Path("/proc/self/environ").read_text(),
        "cwd": os.getcwd(),
        "descriptors": sorted(os.listdir("/proc/self/fd")),
        "python": list(sys.version_info[:2]),
    }


def imports_jobcore():
    import jobcore  # noqa: PLC0415 - whether it can be imported here is the question

    return [jobcore.__name__, hasattr(jobcore, "JobManager")]


def uses_a_pool():
    from concurrent.futures import ProcessPoolExecutor  # noqa: PLC0415
    from multiprocessing import get_context  # noqa: PLC0415

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(adds, 1, 2).result()


# --- that log -----------------------------------------------------------------------

log = logging.getLogger("tests.functions")


def logs_at_every_level():
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        log.log(level, "%s speaks", logging.getLevelName(level).lower())


def logs_several_lines():
    try:
        inner_failure("inside")
    except LookupError:
        log.exception("first\nsecond")


def configures_logging(how):
    """Configure it in one of the ways there are, and log before and after."""
    log.info("before")
    root = logging.getLogger()
    if how == "basicConfig":
        logging.basicConfig(format="own %(message)s")
    elif how == "basicConfig at INFO":
        logging.basicConfig(format="own %(message)s", level=logging.INFO)
    elif how == "basicConfig to stdout at DEBUG":
        logging.basicConfig(stream=sys.stdout, format="own %(message)s", level=logging.DEBUG)
    elif how == "a handler on the root":
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("own %(message)s"))
        root.addHandler(handler)
    elif how == "a level on the root, then a handler":
        root.setLevel(logging.INFO)
        logging.basicConfig(format="own %(message)s")
    elif how == "a level on the root":
        root.setLevel(logging.ERROR)
    elif how == "dictConfig":
        from logging.config import dictConfig  # noqa: PLC0415

        dictConfig(
            {
                "version": 1,
                "disable_existing_loggers": False,
                "formatters": {"own": {"format": "own %(message)s"}},
                "handlers": {"own": {"class": "logging.StreamHandler", "formatter": "own"}},
                "root": {"handlers": ["own"]},
            }
        )
    elif how == "a null handler":
        root.addHandler(logging.NullHandler())
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("own %(message)s"))
        log.addHandler(handler)
    log.debug("debug")
    log.info("info")
    log.warning("warning")
    return [root.level, len(root.handlers)]


def logs_by_structlog():
    import structlog  # noqa: PLC0415 - the others do without it

    structlog.get_logger().info("loaded", rows=3)


def adds_to_upstream(number):
    """Return the sum of a number and of the results of the jobs before."""
    results = json.loads(Path(os.environ["JOBCORE_UPSTREAM"]).read_text(encoding="utf-8"))
    return number + sum(results.values())


def tells_its_step(step):
    """Change the data of the job that it runs in, report progress, and return what it knows."""
    from jobcore import current_job  # noqa: PLC0415 - the others do without it

    job = current_job()
    job.update(data={"step": step})
    job.progress(0.25, 1e9, f"{step}\nof many")
    return [str(job.id), job.attempt, str(job.workspace_id), job.pipeline_id, job.database]


def answer_a_tuple():
    """Return what JSON cannot represent exactly."""
    return (1, 2)

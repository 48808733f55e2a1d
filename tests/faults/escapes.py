"""Escapes: programs that try to leave something behind; each says `ready` once it has tried."""

from __future__ import annotations

import os
import sys
from pathlib import Path

#: What all of them begin with. SIGTERM is ignored, which forks and programs that
#: are executed inherit. What stays has the mark in its command line: unlike an
#: environment, nobody wipes that by the way.
_BEGINNING = """\
import ctypes, os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
mark = sys.argv[1]
reader, writer = os.pipe()

def tell():
    os.write(writer, b".")

def hear(count):
    for _ in range(count):
        os.read(reader, 1)

def stay():
    tell()
    while True:
        time.sleep(300)

def become_sleep(*environment):
    tell()
    sleep = ["sleep", "300." + mark]
    os.execve("/bin/sleep", sleep, {} if environment == ("none",) else os.environ)

def ready():
    os.write(1, b"ready\\n")

def prctl(option, value):
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)

"""
_END = """
ready()
while True:
    time.sleep(300)
"""

_SOURCES = {
    "ignores SIGTERM": "",
    "forks twice": """
if os.fork() == 0:
    if os.fork() == 0:
        stay()
    os._exit(0)
os.wait()
hear(1)
""",
    "leaves its session": """
if os.fork() == 0:
    os.setsid()
    stay()
hear(1)
""",
    "leaves its group": """
if os.fork() == 0:
    os.setpgid(0, 0)
    stay()
hear(1)
""",
    "is a daemon": """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.chdir("/")
        os.umask(0)
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        stay()
    os._exit(0)
os.wait()
hear(1)
""",
    "is stopped": """
if os.fork() == 0:
    os.setsid()
    tell()
    os.kill(os.getpid(), signal.SIGSTOP)
    stay()
hear(1)
""",
    "stops itself": """
ready()
os.kill(os.getpid(), signal.SIGSTOP)
""",
    "forks for ever": """
if os.fork() == 0:
    end = time.monotonic() + 60
    tell()
    while time.monotonic() < end:
        if os.fork() > 0:
            os._exit(0)
        os.setsid()
hear(1)
""",
    "uses nohup": """
import subprocess
subprocess.Popen(["sh", "-c", 'nohup setsid sleep "300.$0" >/dev/null 2>&1 & echo .', mark],
                 stdout=writer, pass_fds=[writer]).wait()
hear(1)
""",
    "has a subreaper in between": """
if os.fork() == 0:
    prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
    if os.fork() == 0:
        if os.fork() == 0:
            os.setsid()
            stay()
        os._exit(0)
    stay()
hear(2)
""",
    "closes its descriptors": """
if os.fork() == 0:
    os.setsid()
    tell()
    os.closerange(0, 64)
    while True:
        time.sleep(300)
hear(1)
ready()
os.closerange(0, 3)
while True:
    time.sleep(300)
""",
    "wipes its environment": """
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        become_sleep("none")
    os._exit(0)
os.wait()
hear(1)
""",
    "is a chain of vforks": """
import subprocess
chain = 'sh -c \\'sh -c "setsid sleep 300.$0 & wait" $0 & wait\\' $0 & echo .; wait'
subprocess.Popen(["sh", "-c", chain, mark], stdout=writer, pass_fds=[writer], close_fds=True)
hear(1)
""",
    "forks from threads": """
import threading

def fork_often():
    for _ in range(5):
        if os.fork() == 0:
            os.setsid()
            stay()

threads = [threading.Thread(target=fork_often) for _ in range(4)]
for thread in threads:
    thread.start()
hear(20)
""",
    "blocks all signals": """
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
if os.fork() == 0:
    os.setsid()
    stay()
hear(1)
""",
    "forks when it shall end": """
def fork(*_):
    if os.fork() == 0:
        os.setsid()
        stay()

signal.signal(signal.SIGTERM, fork)
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        stay()
hear(3)
""",
    "runs in a pid namespace of its own": """
if ctypes.CDLL(None).unshare(0x20000000) == 0:  # CLONE_NEWPID; else it is a plain fork
    pass
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        stay()
    stay()
hear(2)
""",
    "is traced by its child": """
if os.fork() == 0:
    os.setsid()
    if ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0:  # PTRACE_ATTACH: it stands still
        os.waitpid(os.getppid(), 0x40000000)
        ctypes.CDLL(None).ptrace(7, os.getppid(), 0, 0)  # PTRACE_CONT
    stay()
hear(1)
""",
}


def escape(name, mark):
    """Return the command; `mark` is a number in decimal digits."""
    source = _BEGINNING + _SOURCES[name] + _END
    # Python warns on stderr of a fork with threads, which one of them is about.
    return [sys.executable, "-I", "-S", "-W", "ignore", "-c", source, mark]


NAMES = tuple(_SOURCES)


def marked(mark):
    """Return what is left of a program, by its mark: the command line of each process."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if any(word.endswith(mark.encode()) for word in words):
                found[int(entry.name)] = words[0]
    return found

"""Programs: what the jobs of these tests run, each named by what it does."""

from __future__ import annotations

import sys

EXIT_0 = ["true"]
EXIT_3 = ["sh", "-c", "exit 3"]
EXIT_255 = ["sh", "-c", "exit 255"]
KILLS_ITSELF = ["sh", "-c", "kill -KILL $$"]
TERMINATES_ITSELF = ["sh", "-c", "kill -TERM $$"]
SAYS_HELLO = ["sh", "-c", "echo hello; echo world >&2"]
SLEEPS = ["sh", "-c", "echo ready; exec sleep 300"]
# A child reports that the shell is stopped. In the child, `$$` is still the shell's pid.
_SAYS_READY_ONCE_STOPPED = "until grep -q '^State:.T' /proc/$$/status; do :; done; echo ready"
STOPS_ITSELF = ["sh", "-c", f"({_SAYS_READY_ONCE_STOPPED}) & kill -STOP $$; sleep 300"]
EXITS_0_ON_SIGTERM = ["sh", "-c", "trap 'exit 0' TERM; echo ready; while :; do sleep 0.01; done"]
# For `sh -c`: starts a child, and waits until its name is `sleep` and no longer `sh`.
_SLEEPER = 'sleep 300 & until read -r name </proc/$!/comm && [ "$name" = sleep ]; do :; done; '
LEAVES_A_SLEEPER = ["sh", "-c", f"{_SLEEPER} echo ready; exit 4"]
LEAVES_A_SLEEPER_AND_EXITS_0 = ["sh", "-c", f"{_SLEEPER} exit 0"]
LEAVES_TWO_THAT_IGNORE_SIGTERM = ["sh", "-c", f"trap '' TERM; {_SLEEPER} {_SLEEPER} exit 4"]
LEAVES_A_LATE_SPEAKER = ["sh", "-c", "(sleep 0.3; echo late) & exit 5"]
CLOSES_ITS_OUTPUT = ["sh", "-c", "echo before; exec >&- 2>&-; sleep 0.2; exit 7"]
WAITS_FOR_A_FILE = [
    "sh",
    "-c",
    'echo ready; while [ ! -e "$GO" ]; do sleep 0.01; done; echo done; exit 6',
]
# For `sh -c`: prints a line, then waits until somebody opens the FIFO, then ends with 4.
HELD = 'echo ready; read -r _ < "$GATE"; echo going; exit 4'


def python(source: str) -> list[str]:
    """Return what runs `source` in an interpreter that starts quickly."""
    return [sys.executable, "-I", "-S", "-c", source]


# A tree that no signal to one group reaches: every process ignores SIGTERM, one
# left its parent, one its session, one both and its standard streams.
TREE_THAT_IGNORES_SIGTERM = python("""
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
reader, writer = os.pipe()

def sleeper():
    os.write(writer, b".")
    time.sleep(300)
    os._exit(0)

if os.fork() == 0:
    sleeper()
if os.fork() == 0:
    os.setsid()
    sleeper()
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for descriptor in (0, 1, 2):
                os.close(descriptor)
            sleeper()
        os._exit(0)
    os._exit(0)
stopped = os.fork()
if stopped == 0:
    os.setsid()
    os.kill(os.getpid(), signal.SIGSTOP)
    sleeper()
os.waitpid(stopped, os.WUNTRACED)
for _ in range(3):
    os.read(reader, 1)
print("ready", flush=True)
time.sleep(300)
""")

# Ends with its first SIGTERM, and leaves three who wait for theirs and say how many came: one of
# its group that is nobody's child any more, one in a session of its own, and one that is both.
TREE_THAT_HEARS_SIGTERM = python("""
import os, signal
reader, writer = os.pipe()

def hear(name):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    os.write(writer, b".")
    signal.sigwait([signal.SIGTERM])
    again = signal.sigtimedwait([signal.SIGTERM], 0.5)
    os.write(1, b"%s heard %s\\n" % (name, b"once" if again is None else b"again"))
    os._exit(0)

if os.fork() == 0:
    if os.fork() == 0:
        hear(b"group")
    os._exit(0)
os.wait()
if os.fork() == 0:
    os.setsid()
    hear(b"session")
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        hear(b"both")
    os._exit(0)
for _ in range(3):
    os.read(reader, 1)
os.write(1, b"ready\\n")
signal.pause()
""")

# Its child has a task that it finishes, unless a SIGTERM of its own ends it before. At its own
# SIGTERM the program lets the child finish, waits for it, and tells.
FINISHES_WITH_ITS_CHILD = python("""
import os, signal, sys
reader, writer = os.pipe()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
child = os.fork()
if child == 0:
    os.close(writer)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    os.write(1, b"ready\\n")
    os.read(reader, 1)  # returns when the parent has closed its end
    os.write(1, b"child finished\\n")
    os._exit(0)
signal.sigwait([signal.SIGTERM])
# In the scope `group` the child's own SIGTERM was sent before this one could be seen.
ended, status = os.waitpid(child, os.WNOHANG)
if not ended:
    os.write(writer, b".")
    _, status = os.waitpid(child, 0)
os.write(1, b"saved\\n" if status == 0 else b"child lost\\n")
sys.exit(int(status != 0))
""")

SAVES_ON_INTERRUPT = python("""
import time
try:
    print("ready", flush=True)
    time.sleep(300)
except KeyboardInterrupt:
    print("saved", flush=True)
""")

TAKES_TOO_LONG_ON_INTERRUPT = python("""
import time
try:
    print("ready", flush=True)
    time.sleep(300)
except KeyboardInterrupt:
    time.sleep(300)
""")

LEAVES_150_THAT_IGNORE_SIGTERM = python("""
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(150):
    if os.fork() == 0:
        time.sleep(300)
        os._exit(0)
""")

# Each process begins the next one and ends, in a session of its own.
FORKS_FOR_EVER = python("""
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
end = time.monotonic() + 60
while time.monotonic() < end:
    if os.fork() > 0:
        os._exit(0)
    os.setsid()
""")

# Prints numbered lines until the file that it is given is there, and exits with 5.
PRINTS_UNTIL = python("""
import os, sys, time
n = 0
while not os.path.exists(sys.argv[1]):
    print("".join(f"line {m}\\n" for m in range(n, n + 50)), end="", flush=True)
    n += 50
    time.sleep(0.01)
print("last", flush=True)
sys.exit(5)
""")

TELLS_ITS_STATE = python("""
import os
listed = os.listdir("/proc/self/fd")  # by a descriptor of its own, which is closed by now
print("descriptors", *sorted((n for n in listed if os.path.lexists("/proc/self/fd/" + n)), key=int))
for line in open("/proc/self/status"):
    if line.startswith(("SigIgn", "SigBlk", "Umask")):
        print(*line.split())
print("stdin", os.readlink("/proc/self/fd/0"))
print("cwd", os.getcwd())
print("session", os.getsid(0) == os.getpid(), "group", os.getpgrp() == os.getpid())
""")

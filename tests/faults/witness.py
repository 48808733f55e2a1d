"""
Witness: commands that write what they say into a file of their own, too.

jobcore knows nothing of that file. So whatever is killed, there is somebody to
say what the log must be, and how often the command was started.
"""

from __future__ import annotations

import os

# Each piece goes to the file first. So the log may lack what the file has, never
# the other way, and of what a stopped command said it lacks one piece at most.
# Pieces are whole lines, or halves of one; lines carry their number and a checksum.
_SCRIPT = """\
exec 3>>"$1/$JOBCORE_JOB_ID"
echo "$JOBCORE_RUN" >>"$1/$JOBCORE_JOB_ID.starts"
short='a line'
middle='a line of a length that is more usual for what real programs print into their logs'
long="$middle $middle $middle $middle $middle $middle $middle $middle $middle $middle $middle"
say() { printf '%s' "$1" >&3; printf '%s' "$1"; }
newline='
'
n=0
while [ "$n" -lt "$2" ]; do
    check=$(( (n * 2654435761 + 40503) % 4294967296 ))
    case $(( n % 5 )) in
        0 | 2) say "$n $check $short$newline" ;;
        1) say "$n $check"; say " $middle$newline" ;;
        3) say "$n $check $long$newline" ;;
        4) say "$n "; say "$check "; say "$newline" ;;
    esac
    n=$(( n + 1 ))
    if [ "$4" -gt 0 ] && [ $(( n % $4 )) = 0 ]; then sleep 0.005; fi
done
case $3 in
    KILL) kill -KILL $$ ;;
    STAY) exec sleep 300 ;;
    open) say "no newline behind this"; exit 5 ;;
    *) exit "$3" ;;
esac
"""

#: The last words of one that ends as `open`.
OPEN_END = b"no newline behind this"

#: What a command that ends as named leads to, by itself: exit code and reason.
ENDS = {
    "0": (0, "exited"),
    "9": (9, "exited"),
    "255": (255, "exited"),
    "open": (5, "exited"),
    "KILL": (137, "signaled"),
}


def witness(sides, lines, end="0", *, pauses=0):
    """
    Return a command that says `lines` lines and then ends.

    Args:
        sides: The directory of the files.
        end: A key of `ENDS`, or `STAY`: it stays until it is killed.
        pauses: How often it pauses for 5 ms on the way.
    """
    pause_every = max(1, lines // pauses) if pauses else 0
    return ["sh", "-c", _SCRIPT, "witness", str(sides), str(lines), end, str(pause_every)]


def expected(lines):
    """Return the first `lines` lines that any witness says."""
    middle = "a line of a length that is more usual for what real programs print into their logs"
    texts = [" a line", f" {middle}", " a line", " " + " ".join([middle] * 11), " "]
    return "".join(
        f"{n} {(n * 2654435761 + 40503) % 4294967296}{texts[n % 5]}\n" for n in range(lines)
    ).encode()


def said(sides, job_id):
    """Return what the command of a job has said; nothing where it was not started."""
    return _read(os.path.join(sides, str(job_id)))


def starts(sides, job_id):
    """Return the cookie of each start of the command of a job."""
    return _read(os.path.join(sides, f"{job_id}.starts")).decode().split()


def _read(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""

"""
The limits and tuning constants of the operations, with their reasons.

Those of waiting are in `waiting` and `waiting_async`.
"""

from __future__ import annotations

# --- limits of arguments ---------------------------------------------------

#: The most slots: Linux cannot have more processes.
MOST_SLOTS = 2**22
#: Seconds, 24 days: the most that SQLite's busy timer can hold, in milliseconds of 31 bits.
LONGEST_BUSY = 2_147_483
#: The most bytes of a caller's own JSON: it is for facts about a job, not for payload.
DATA_BYTES = 64 * 1024
#: The most retries that make sense: with the doubling back-off they take more than a month.
MOST_RETRIES = 1000
#: The largest `late_after`, in seconds: a year.
LONGEST_LATE = 366 * 86400.0

# --- jobs ------------------------------------------------------------------

#: Seconds that a claim in an event loop waits for the write lock before it tries again. It is
#: short because the claim cannot be cancelled meanwhile.
CLAIM_PATIENCE = 0.25
#: If the first queued job is damaged, how many jobs a claim searches for one that is not.
JOBS_PAST_DAMAGED = 1000
#: The most jobs of one call that are written in one transaction; more are staged.
STAGED_FROM = 1000
#: The most jobs, and characters of their commands, per transaction; it takes about 50 ms.
STAGED_AT_ONCE = 1000
STAGED_TEXT = 2**20

# --- pruning ---------------------------------------------------------------

#: Jobs examined in one read transaction. It is limited because most of them may stay, and a
#: long read transaction keeps the write-ahead log from being truncated.
PRUNED_FROM_AT_ONCE = 20_000

# --- the end of a manager --------------------------------------------------

#: Seconds that `close` waits in all for the delivery of committed events.
CLOSE_PATIENCE = 5.0

# --- what doctor notes -----------------------------------------------------

#: Bytes. A larger write-ahead log shows that checkpoints do not succeed: they are tried from
#: 4 MiB on.
LARGE_LOG = 64 * 2**20

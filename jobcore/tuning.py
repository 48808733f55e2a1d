"""
The pauses, patience and limits that an operator may ask about, with their reasons.

Batch sizes and other details are in the modules that use them.
"""

from __future__ import annotations

# --- the write-ahead log ------------------------------------------------------

#: Size of the write-ahead log, in bytes, from which a checkpoint is worth its fsyncs.
CHECKPOINT_BYTES = 4 * 2**20
#: Seconds between two attempts.
CHECKPOINT_PAUSE = 1.0
#: Milliseconds to wait for readers. With 3 s, one open reader blocked a writer for 2.8 s.
CHECKPOINT_PATIENCE = 100
#: A log is searched only up to this many bytes.
LARGEST_LOG_SEARCHED = 16 * 2**20

# --- commits of other processes -----------------------------------------------

#: Seconds between two checks for commits of other processes: the first and the longest pause.
LOOK_FIRST, LOOK_LONGEST = 0.005, 0.05

# --- connections and reads ----------------------------------------------------

#: Cursors that a connection records before it drops those that no longer exist.
RECORDED_CURSORS = 64
#: Connections kept for the next reader. More are opened while more threads read at once.
SPARE_CONNECTIONS = 8
#: Seconds between two checks whether reads may begin, or whether all have ended.
READ_PAUSE = 0.001
#: Seconds that a fork waits for the reads of other threads if its own thread is in a read.
FORK_IN_READ_PATIENCE = 0.1
#: Seconds that reopening all connections waits for reads and for the writer. It is longer
#: than the ten seconds for which SQLite tries to begin a read.
RENEW_PATIENCE = 15.0

# --- logs ---------------------------------------------------------------------

#: Maximum raw bytes of a segment. A reader decompresses a whole segment to find a line, so
#: this is an estimated compromise between many rows and much work for one line.
SEGMENT_BYTES = 256 * 1024
#: Maximum lines in a frame that a host appends. Readers skip a frame by its header.
LINES_OF_FRAME = 1024
#: The fastest level of zlib. Without compression, storing lines takes twice as long, because more
#: is written. ISA-L compresses better at this level than zlib, and four times as fast.
COMPRESSION_LEVEL = 1
#: Segments read in one transaction. It must be short: an open read transaction keeps the
#: write-ahead log from being truncated.
SEGMENTS_READ_AT_ONCE = 8
#: The same for segments of a few lines, which are merged when they fill a large one.
UNMERGED_READ_AT_ONCE = 64

# --- the dispatcher's thread --------------------------------------------------

#: Seconds between two looks for jobs that other processes queued.
QUEUE_PAUSE = 0.1
#: Seconds between two rounds of chores: to look at all running jobs, and at schedules.
CHORES_PAUSE = 1.0
#: The same while a chore is done in steps; jobs can start in between.
STEP_PAUSE = 0.15
#: Seconds of rest after an error that concerns more than one job.
BACK_OFF = 0.5
#: Seconds between two imports of one job, unless it has much output or has ended.
IMPORT_PAUSE = 0.25
#: Seconds from the claim of a job to its first import, unless the job has ended. Many jobs end
#: sooner, so that one transaction stores output and end. Followers read the files themselves.
FIRST_IMPORT = 0.02
#: Bytes of new output that trigger an import earlier.
IMPORT_BYTES = 256 * 1024
#: Seconds that the interpreter's exit waits for the current turn.
EXIT_PATIENCE = 5.0

# --- supervisors --------------------------------------------------------------

#: Seconds within which a program named by `python=` must answer as a Python interpreter.
INTERPRETER_PATIENCE = 10.0
#: Seconds within which a new supervisor must be ready.
READY_PATIENCE = 10.0
#: Seconds that a keeper waits for the next supervisor to fork before it is dismissed. It has some
#: 4 MB of memory, and its start costs as much as that of a supervisor.
IDLE_KEEPER = 60.0
#: The most supervisors that are started without a keeper after a failure. The number begins with 1
#: and doubles, so that a keeper that never works costs little.
MOST_WITHOUT_KEEPER = 64
#: Seconds that an idle supervisor waits for the next job before it is dismissed.
IDLE_SUPERVISOR = 5.0
#: After a supervisor could not be started: the longest pause before the next try, in seconds.
LONGEST_START_PAUSE = 5.0
#: Seconds to look for a supervisor that takes a claimed job.
SEND_PATIENCE = 10.0
#: Seconds that a supervisor has to take a job before all stopped supervisors are woken.
RECORD_PATIENCE = 2.0
#: Seconds between two requests to a supervisor whose job is overdue, so that it can read one.
ANSWER_PATIENCE = 0.5
#: Seconds after the end of the grace until a supervisor that does not answer is woken.
WAKE_AFTER = 30.0
#: Further seconds without any answer until it is killed and its job resolved.
KILL_AFTER = 10.0

# --- recovery -----------------------------------------------------------------

#: The most seconds that a sweep imports output or waits for orphans to die. The next sweep does
#: the rest, and jobs can start in between.
SWEEP = 0.05
#: Seconds that a read waits for locks before it returns the row as stored.
READ_PATIENCE = 0.25
#: Bytes of output that a read imports at once. It takes a tenth of a second or two, and other
#: reads of the process wait for it. A command without a manager may have written gigabytes.
READ_BYTES = 8 * 2**20
#: Seconds to keep killing orphans: a process in an uninterruptible sleep does not die.
ORPHAN_PATIENCE = 10.0
#: Seconds for which the directory of all job directories may be missing: someone may move it
#: away and back.
MOVED_PATIENCE = 2.0

# --- failures that are repeated -----------------------------------------------

#: Seconds until the next try: at first, and at most. In between, the pause doubles.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
#: Seconds after which a continuing failure is logged again.
LOG_EVERY = 3600.0
#: A failure is persistent after this many in a row, over at least this many seconds.
PERSISTENT_FAILURES, PERSISTENT_SECONDS = 3, 10.0

# --- schedules ----------------------------------------------------------------

#: The default of `late_after`: seconds after which a tick counts as missed.
LATE_AFTER = 60.0
#: Seconds by which the clock may be set back without any tick being taken twice. If it is set
#: back by more, it was wrong before, and the ticks at the wrong time do not count, as in cron.
SET_BACK = 3 * 3600.0
#: Seconds that a retry may wait longer than its pause. If it waits longer, the clock was set
#: back. This can be short, because a retry is never made twice.
RETRY_SET_BACK = 60.0
#: Seconds between two searches for jobs and ticks that a wrong clock has delayed.
PUT_OFF_PAUSE = 3600.0

# --- limits of arguments ------------------------------------------------------

#: The most slots: Linux cannot have more processes.
MOST_SLOTS = 2**22
#: Seconds, 24 days: the most that SQLite's busy timer can hold, in milliseconds of 31 bits.
LONGEST_BUSY = 2_147_483
#: The most bytes of a job's `data`, which is for facts about the job, not for payload.
DATA_BYTES = 64 * 1024
#: The most retries that make sense: with the doubling back-off, they take more than a month.
MOST_RETRIES = 1000
#: The largest `late_after`, in seconds: a year.
LONGEST_LATE = 366 * 86400.0

# --- jobs ---------------------------------------------------------------------

#: Seconds that a claim in an event loop waits for the write lock before it tries again. It is
#: short because the claim cannot be cancelled meanwhile.
CLAIM_PATIENCE = 0.25
#: How many jobs a claim searches for an intact one, if the first queued job is damaged.
JOBS_PAST_DAMAGED = 1000
#: The most jobs of one call that are written in one transaction; more are staged.
STAGED_FROM = 1000
#: The most jobs, and characters of their commands, per transaction; it takes about 50 ms.
STAGED_AT_ONCE = 1000
STAGED_TEXT = 2**20

# --- pruning ------------------------------------------------------------------

#: Jobs examined in one read transaction. It is limited because most of them may stay, and a
#: long read transaction keeps the write-ahead log from being truncated.
PRUNED_FROM_AT_ONCE = 20_000

#: Seconds between two searches for jobs that the file's retention no longer keeps.
RETENTION_PAUSE = 60.0
#: Jobs that such a search examines in one read, which takes about 5 ms.
EXAMINED_AT_ONCE = 1000

# --- the end of a manager -----------------------------------------------------

#: Seconds that `close` waits in all for the delivery of committed events.
CLOSE_PATIENCE = 5.0

# --- what doctor notes --------------------------------------------------------

#: Bytes. A larger write-ahead log shows that checkpoints fail: they are tried from 4 MiB on.
LARGE_LOG = 64 * 2**20

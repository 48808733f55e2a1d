"""
The pauses, patience and limits of the engine that an operator may ask about, with their reasons.

The sizes of batches and other details stand in the modules that use them.
"""

# --- the dispatcher's thread ----------------------------------------------------

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
#: Bytes of new output that trigger an import earlier.
IMPORT_BYTES = 256 * 1024
#: Seconds that the interpreter's exit waits for the current turn.
EXIT_PATIENCE = 5.0

# --- supervisors ----------------------------------------------------------------

#: Seconds within which a program named by `python=` must answer as a Python interpreter.
INTERPRETER_PATIENCE = 10.0
#: Seconds within which a new supervisor must be ready.
READY_PATIENCE = 10.0
#: Seconds that an idle supervisor is kept for the next job.
IDLE_SUPERVISOR = 5.0
#: The most seconds until the next try after a supervisor could not be started.
LONGEST_START_PAUSE = 5.0
#: Seconds to look for a supervisor that takes a claimed job.
SEND_PATIENCE = 10.0
#: Seconds that a supervisor has to take a job before all stopped supervisors are woken.
RECORD_PATIENCE = 2.0
#: Seconds between two letters to a supervisor whose job is overdue, so that it can read one.
ANSWER_PATIENCE = 0.5
#: Seconds after the end of the grace until a supervisor that does not answer is woken.
WAKE_AFTER = 30.0
#: Further seconds without any answer until it is killed and its job resolved.
KILL_AFTER = 10.0

# --- recovery -------------------------------------------------------------------

#: The most seconds that a sweep imports, or waits for orphans to die. The next sweep does the
#: rest, and jobs can start in between.
SWEEP = 0.05
#: Seconds that a read waits for locks before it returns the row as stored.
READ_PATIENCE = 0.25
#: Seconds to keep killing orphans: a process in an uninterruptible sleep does not die.
ORPHAN_PATIENCE = 10.0
#: Seconds for which the directory of all job directories may be missing: someone may move it
#: away and back.
MOVED_PATIENCE = 2.0

# --- failures that are repeated -------------------------------------------------

#: Seconds until the next try: at first, and at most. In between, the pause doubles.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
#: Seconds after which a continuing failure is logged again.
LOG_EVERY = 3600.0
#: A failure is persistent after this many in a row, over at least this many seconds.
PERSISTENT_FAILURES, PERSISTENT_SECONDS = 3, 10.0

# --- schedules ------------------------------------------------------------------

#: The default of `late_after`: seconds after which a tick counts as missed.
LATE_AFTER = 60.0
#: Seconds by which the clock may be set back without any tick being taken twice. If it is set
#: back by more, it was wrong before, and the ticks at the wrong time do not count, as in cron.
SET_BACK = 3 * 3600.0
#: Seconds that a retry may wait longer than its pause. If it waits longer, the clock was set
#: back. This can be short, because a retry is never made twice.
RETRY_SET_BACK = 60.0
#: Seconds between two looks for what a wrong clock has delayed, perhaps in another process.
PUT_OFF_PAUSE = 3600.0

"""The tuning constants of storage, with their reasons; those of the writer are in `writer`."""

from __future__ import annotations

# --- the write-ahead log ---------------------------------------------------

#: Size of the write-ahead log, in bytes, from which a checkpoint is worth its fsyncs.
CHECKPOINT_BYTES = 4 * 2**20
#: Seconds between two attempts.
CHECKPOINT_PAUSE = 1.0
#: Milliseconds to wait for readers. With 3 s, one open reader blocked a writer for 2.8 s.
CHECKPOINT_PATIENCE = 100
#: Only the first so many bytes of a log are searched.
LARGEST_LOG_SEARCHED = 16 * 2**20

# --- commits of other processes --------------------------------------------

#: Seconds between two checks for commits of other processes: the first and the longest pause.
LOOK_FIRST, LOOK_LONGEST = 0.005, 0.05

# --- connections and reads -------------------------------------------------

#: Cursors that a connection records before it drops the entries of those that are gone.
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

# --- logs ------------------------------------------------------------------

#: Maximum raw bytes of a segment. A reader decompresses a whole segment to find a line, so
#: this is an estimated compromise between many rows and much work for one line.
SEGMENT_BYTES = 256 * 1024
#: Maximum lines in a frame that a host appends. Readers skip a frame by its header.
LINES_OF_FRAME = 1024
#: zlib's fastest level. It stores 3.6 million lines/s; without compression, which writes
#: more, it is 1.8.
COMPRESSION_LEVEL = 1
#: Segments read in one transaction. It must be short: an open read transaction keeps the
#: write-ahead log from being truncated.
SEGMENTS_READ_AT_ONCE = 8

"""
Storage: one SQLite file, with every statement and every transaction on it.

Operations and engine import it. Reads run in the host's calling thread, writes in the
thread of the writer. It starts no process and knows no executor. Internal.
"""

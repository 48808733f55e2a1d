"""
Storage: the SQLite file, and every statement and transaction that runs on it.

`operations` and `engine` import this package. Reads run in the caller's thread, writes in
the writer's thread. It starts no processes and knows nothing of executors. Internal.

A function that takes a connection needs it in a transaction. Times are microseconds since 1970.
"""

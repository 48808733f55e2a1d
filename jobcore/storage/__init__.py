"""
Storage: the SQLite file, and every statement and transaction that runs on it.

`operations` and `engine` import this package. Reads run in the caller's thread, writes in
the writer's thread. It starts no processes and knows nothing of executors. Internal.

In the modules about stored rows, a function that takes a connection needs it in a transaction,
and times are microseconds since 1970.
"""

"""
Embedding: what a library needs to be a well-behaved guest in the process that imports it.

It handles forks, interrupts, logging and jobcore's own threads, and contains the failpoints for
tests. Every package may import it; of jobcore it imports only `errors`. Its functions run in
any thread of the host; `failpoints` also runs in supervisors. Internal.
"""

"""
Embedding: what a guest owes the process that imports it.

Forks, interrupts, logging, threads of jobcore's own, and the failpoints of its tests. Every
package may import it; of jobcore it imports `errors` alone. Its functions run in any thread of
the host; `failpoints` runs in supervisors, too. Internal.
"""

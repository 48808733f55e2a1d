"""
Supervision: the processes that run jobs, and the files through which hosts speak with them.

Every module here but `pool` uses the standard library alone, and little of it:
a supervisor starts with `-I -S`, and each import would be paid at every start.
"""

#: The language of job directory, frames and notices. Newer code reads every
#: older version; a version newer than this is left alone.
PROTOCOL_VERSION = 1


class NewerProtocol(Exception):
    """The file was written by a newer jobcore: this one must leave the job alone."""

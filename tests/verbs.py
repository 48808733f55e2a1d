"""Verbs of the command line in this process, which has loaded none of them."""

from __future__ import annotations

import sys

from jobcore import cli


def call_each(verbs):
    """Run each of these verbs, and say behind each how it has ended."""
    for words in verbs:
        code = 0
        try:
            _call(words)
        except SystemExit as end:
            code = end.code or 0
        print("--- exit", code, file=sys.__stdout__, flush=True)


def call_all(verbs):
    """Run each of these verbs; the first one exits."""
    for words in verbs:
        _call(words)


def _call(words):
    sys.argv = ["jobcore", *words]
    cli.main()

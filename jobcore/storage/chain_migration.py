"""
Migrates chains from names in text (schema 4) to ids (schema 5).

It also makes names unique in a workspace: before, any number of pipelines could share one.
Only `schema` calls this, once for each file, inside the transaction of the migration.
"""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from typing import Any, NamedTuple

#: The platform's workspace task, which pipelines may name though no pipeline has this name.
DEPLOY = "deploy"


class _Pipeline(NamedTuple):
    id: str
    workspace_id: str
    name: str
    triggered_by: str | None
    deleted: bool


def link_pipelines(connection: sqlite3.Connection) -> None:
    """
    Write the folded names, the links and the notes about both; twins get a name of their own.

    A name fired for every pipeline of the workspace that had it, so each of them gets a
    link. A name that no pipeline has stays as text, and never fires. What is not UTF-8 in
    a name is escaped.
    """
    before, connection.text_factory = connection.text_factory, _as_text
    try:
        rows = connection.execute(
            "SELECT id, workspace_id, name, triggered_by, deleted_at IS NOT NULL FROM pipeline "
            "ORDER BY created, id"
        ).fetchall()
    finally:
        connection.text_factory = before
    # One whose id is damaged cannot be referred to: it stays as it is.
    pipelines = [one for row in rows if _is_plain((one := _Pipeline._make(row)).id)]
    sources: dict[tuple[str, str], list[str]] = defaultdict(list)
    for one in pipelines:
        if not one.deleted:
            sources[one.workspace_id, _folded(one.name)].append(one.id)
    for one in pipelines:
        if one.triggered_by is not None:
            _link(connection, one, sources)
    _name(connection, pipelines, set(sources))


def _link(
    connection: sqlite3.Connection, one: _Pipeline, sources: dict[tuple[str, str], list[str]]
) -> None:
    links: dict[tuple[str | None, str | None], None] = {}  # in order, each once
    names = _names(one.triggered_by)
    if names is None:
        _note(connection, one.id, "chain", "triggered_by was damaged: it runs after no pipeline")
    for name in names or ():
        found = sources.get((one.workspace_id, _folded(name)), ())
        if found:
            links.update(dict.fromkeys((source, None) for source in found))
        elif (None, name) not in links:
            links[None, name] = None
            if _folded(name) != DEPLOY:
                _note(
                    connection,
                    one.id,
                    "chain",
                    f"triggered_by names {name!r}, which no pipeline of its workspace has: "
                    "it never runs after that",
                )
    connection.executemany(
        "INSERT INTO link (pipeline_id, position, source_id, name) VALUES (?, ?, ?, ?)",
        [
            (one.id, position, source, None if name is None else _escaped(name))
            for position, (source, name) in enumerate(links)
        ],
    )


def _name(
    connection: sqlite3.Connection, pipelines: list[_Pipeline], taken: set[tuple[str, str]]
) -> None:
    """Fold the names; the oldest pipeline of a name keeps it."""
    kept: set[tuple[str, str]] = set()
    for one in pipelines:
        name, key = str(one.name), (one.workspace_id, _folded(one.name))
        if not one.deleted and key in kept:
            number = 2
            while (key := (one.workspace_id, _folded(f"{one.name} ({number})"))) in taken:
                number += 1
            name = f"{one.name} ({number})"
            taken.add(key)
            _note(
                connection,
                one.id,
                "name",
                f"was called {one.name!r}, as an older pipeline of its workspace is",
            )
        if not one.deleted:
            kept.add(key)
        if not _is_plain(name):
            _note(connection, one.id, "name", "its name was not UTF-8: the rest of it is escaped")
        connection.execute(
            "UPDATE pipeline SET name = ?, folded_name = ? WHERE id = ?",
            (_escaped(name), _escaped(key[1]), one.id),
        )


def _note(connection: sqlite3.Connection, pipeline_id: str, topic: str, detail: str) -> None:
    connection.execute(
        "INSERT INTO pipeline_note (pipeline_id, topic, detail) VALUES (?, ?, ?)",
        (pipeline_id, topic, _escaped(detail)),
    )


def _names(stored: Any) -> list[str] | None:
    """Return the names in a stored list; None: it is damaged."""
    try:
        found = json.loads(stored)
    except (ValueError, TypeError, RecursionError):
        return None
    return [str(name) for name in found] if isinstance(found, list) else None


def _folded(name: Any) -> str:
    return str(name).casefold()


def _as_text(raw: bytes) -> str:
    """Return a stored text, each byte that is not UTF-8 as half of a surrogate."""
    return raw.decode("utf-8", "surrogateescape")


def _escaped(text: str) -> str:
    """Return a text that can be stored: JSON and damage may have halves of surrogates."""
    return text.encode("utf-8", "backslashreplace").decode()


def _is_plain(text: Any) -> bool:
    return isinstance(text, str) and _escaped(text) == text

"""
Migration from schema 4 to 5: `triggered_by` refers to pipelines by id instead of by name.

It also makes pipeline names unique within a workspace; before, several pipelines could
share one. Only `schema` calls this, once per file, inside the migration's transaction.
"""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from typing import Any, NamedTuple

from jobcore.storage.pipelines import DEPLOY


class _Pipeline(NamedTuple):
    id: str
    workspace_id: str
    name: str
    triggered_by: str | None
    deleted: bool


def link_pipelines(connection: sqlite3.Connection) -> None:
    """
    Write case-folded names, links, and notes on what changed; rename duplicates.

    In schema 4 a name matched every pipeline of the workspace with that name, so each of
    them gets a link. A name that no pipeline has stays as text, and never triggers. Bytes
    of a name that are not UTF-8 are escaped.
    """
    before, connection.text_factory = connection.text_factory, _as_text
    try:
        rows = connection.execute(
            "SELECT id, workspace_id, name, triggered_by, deleted_at IS NOT NULL FROM pipeline "
            "ORDER BY created, id"
        ).fetchall()
    finally:
        connection.text_factory = before
    # Nothing can refer to a pipeline whose id is damaged, so it stays unchanged.
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
    """Write the folded names. Of pipelines with the same name, the oldest keeps it."""
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
    """Return the names in a stored JSON list; None: the list is damaged."""
    try:
        found = json.loads(stored)
    except (ValueError, TypeError, RecursionError):
        return None
    return [str(name) for name in found] if isinstance(found, list) else None


def _folded(name: Any) -> str:
    return str(name).casefold()


def _as_text(raw: bytes) -> str:
    """Decode a stored text; each byte that is not UTF-8 becomes a lone surrogate."""
    return raw.decode("utf-8", "surrogateescape")


def _escaped(text: str) -> str:
    """Escape lone surrogates, which come from JSON or from damage and cannot be stored."""
    return text.encode("utf-8", "backslashreplace").decode()


def _is_plain(text: Any) -> bool:
    return isinstance(text, str) and _escaped(text) == text

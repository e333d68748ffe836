"""Ids of queries, which are part of topic names."""

from __future__ import annotations

import re

from luseel_model.errors import QueryError

MAX_ID = 64  # characters


def validate_id(query_id: str) -> str:
    """The id, if it may be part of a topic name.

    Raises:
        QueryError: it may not.
    """
    if len(query_id) > MAX_ID or not re.fullmatch(r"[A-Za-z](_?[A-Za-z0-9])*", query_id):
        raise QueryError(
            f"the id {query_id[:MAX_ID]!r} can't be used: a letter, then letters and digits with "
            f"single underscores between them, at most {MAX_ID} characters")
    return query_id

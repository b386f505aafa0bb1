"""Tables in documents: replaced between their markers."""

from __future__ import annotations

import re
from pathlib import Path

from ocp_faenet.cli.errors import BadInputError
from ocp_faenet.cli.output import write_text


def insert(document: str, name: str, text: str, kind: str = "table") -> str:
    """``document`` with what stands between a table's two markers replaced by ``text``.

    The markers are ``<!-- table:NAME -->`` and ``<!-- /table:NAME -->``, each on its line; those
    of a study have ``study`` for ``table``.

    Raises:
        ValueError: the document lacks the markers.
    """
    begin, end = f"<!-- {kind}:{name} -->", f"<!-- /{kind}:{name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(document):
        raise ValueError(f"no lines {begin} and {end}")
    return pattern.sub(lambda _: f"{begin}\n{text}\n{end}", document)


def with_table(path: Path, name: str, text: str, kind: str = "table") -> str:
    """The document at ``path`` with ``text`` between its markers; nothing is written.

    Raises:
        BadInputError: no such document, or no such markers in it.
    """
    try:
        return insert(path.read_text(), name, text, kind)
    except (ValueError, OSError) as error:
        raise BadInputError(f"--into {path}: {error}") from error


def insert_into(path: Path, name: str, text: str, kind: str = "table") -> None:
    """Put ``text`` between the markers of the document at ``path``.

    Raises:
        BadInputError: see `with_table`; or it cannot be written.
    """
    write_text(path, with_table(path, name, text, kind))

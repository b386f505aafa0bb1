"""Tables in documents: replaced between their markers."""

from __future__ import annotations

import os
from pathlib import Path

from ocp_faenet.cli.errors import BadInputError


def insert_into(path: Path, name: str, text: str) -> None:
    """Put ``text`` between ``<!-- table:NAME -->`` and ``<!-- /table:NAME -->``.

    Raises:
        BadInputError: no such document, or no such markers in it.
    """
    from ocp_faenet.cli.study_report import insert  # loads the host

    try:
        document = insert(path.read_text(), name, text, kind="table")
    except (ValueError, OSError) as error:
        raise BadInputError(f"--into {path}: {error}") from error
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(document)
    os.replace(temporary, path)

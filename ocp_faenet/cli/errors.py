"""The one way in which a command refuses bad input."""

from __future__ import annotations

import click


class BadInputError(click.ClickException):
    """Bad input: printed as one line, exit code 2."""

    exit_code = 2

"""The one exception that is the user's to mend: one line on the screen, exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(Exception):
    """Says what is wrong, where, and what to do."""


def exit_code_of(command: Callable[[list[str]], None], argv: list[str]) -> int:
    """Run the command; 0, or 2 after a UserError, or 130 after Ctrl-C."""
    try:
        command(argv)
    except KeyboardInterrupt:
        print("p2o: stopped; the same command with --resume goes on with the run", file=sys.stderr)
        return 130
    except UserError as error:
        print(f"p2o: {error}", file=sys.stderr)
        return 2
    return 0

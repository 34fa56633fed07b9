"""The one exception that is the user's to mend: main() prints it as one line and exits with code 2."""


class UserError(Exception):
    """Says what is wrong, where, and what to do."""

"""The errors that a user can cause, told apart from faults of the program."""

import difflib
from collections.abc import Iterable


class OptionError(ValueError):
    """An option, file or data set that cannot be used; the message is one line that names it.

    The command line prints it without a traceback and exits with status 2.
    """


class ChannelMapError(OptionError):
    """A backbone whose student cannot be proved to be a slice of its teacher."""


def suggestion(key: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` with the nearest known name, or nothing."""
    near = difflib.get_close_matches(str(key), list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""

"""The one exception that means: the user can fix this."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input, found before any work started.

    The message reads `<what is wrong>: <value>. <what is allowed or where it was looked for>.
    <what fixes it>` on one line; the command line prints it as `error: …` and exits with 2.
    """

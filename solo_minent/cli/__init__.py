"""The command line: parse, compose the configuration, call one function, print.

Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import argparse
import sys

from solo_minent.cli.parser import parse
from solo_minent.cli.stopped import INTERRUPTED
from solo_minent.cli.words import say, say_first
from solo_minent.errors import UserError
from solo_minent.files import FULL, full_disk_error


def main(arguments: list[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: of the command line, without the program's name.

    Returns:
        Exit status: 0, 1 (doctor found something missing), 2 (bad input), 75 (a signal stopped
        pretraining, which has saved and wants to be started again), 130 (interrupted).
    """
    options = argparse.Namespace(debug=False, command=None, stopped="stopped")
    try:
        options = parse(arguments)
        return options.command(options)
    except (UserError, ModuleNotFoundError) as error:
        if options.debug:
            raise
        say(f"error: {_one_line(error)}", sys.stderr)
        return 2
    except OSError as error:  # a path that may not be read or written, a full disk
        if options.debug:
            raise
        if error.errno in FULL:
            say(f"error: {full_disk_error(error, error.filename or 'a file')}", sys.stderr)
            return 2
        what = f"{error.strerror or error}: {error.filename or 'no file named'}"
        say(
            f"error: the system refuses a file: {what}. It must be there, readable, and writable "
            "where results go. Mend that; --debug shows where it happened.",
            sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        say_first(options.stopped)
        return INTERRUPTED


def _one_line(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and not isinstance(error, UserError):
        package = error.name or str(error).partition(". ")[0]
        return (
            f"package is missing: {package}. It is one of solo-minent's requirements. "
            "See solo-minent doctor."
        )
    return " ".join(str(error).split())

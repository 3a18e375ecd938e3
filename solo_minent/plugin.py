"""Import this module and the methods of this package are in `solo.methods.METHODS`.

It makes solo-learn importable and correct on today's libraries (see `solo_minent.host`), whichever
of the two supported versions is installed. Importing it again, or calling `register` again,
changes nothing.
"""

from __future__ import annotations

from solo_minent import host, methods


def register() -> None:
    """Registers every method in `solo_minent.methods` with solo-learn.

    Raises:
        UserError: if solo-learn is missing, or if another method of the same name is there.
    """
    for method in methods.available().values():
        host.register(method)


register()

"""Self-supervised learning with entropy objectives, as a plug-in of solo-learn.

Importing this package is light: neither torch nor solo-learn is loaded. `register()`, or
`import solo_minent.plugin`, puts the methods into `solo.methods.METHODS`.
"""

from __future__ import annotations

__version__ = "0.1.0"


def register() -> None:
    """Makes the methods of this package available as `solo.methods.METHODS[name]`.

    Raises:
        UserError: if solo-learn is missing, or if another method of the same name is there.
    """
    from solo_minent import plugin

    plugin.register()

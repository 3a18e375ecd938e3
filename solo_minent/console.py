"""What long work shows on the terminal: a bar, and of Lightning's lines only those that matter."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

LOGGERS = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
EXPECTED = (
    ".*overridden `transfer_batch_to_device` in `LightningModule`.*",  # it is the one to use
    ".*isinstance\\(treespec, LeafSpec\\).*",  # inside Lightning 2.6
    ".*does not have many workers.*",  # the loader caps workers at the cores
    ".*`validation_step` but have no `val_dataloader`.*",  # a probe has none
    ".*sync_dist=True.*when logging on epoch level.*",  # kNN is the same number on every rank
    ".*`IterableDataset` has `__len__` defined.*",
)


def progress_bar(show: bool = True) -> Progress:
    """A bar on stderr that goes away when it is done; none where stderr is no terminal."""
    shown = show and sys.stderr.isatty()
    return Progress(console=Console(stderr=True), disable=not shown, transient=True)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Within it, Lightning logs errors only, its expected warnings are dropped, and Ctrl-C is
    KeyboardInterrupt, not the exit that Lightning makes of it.
    """
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message in EXPECTED:
                warnings.filterwarnings("ignore", message)
            yield
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

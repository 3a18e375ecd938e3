"""Commands that train, prepare and look around."""

from __future__ import annotations

import argparse
from pathlib import Path

from solo_minent.cli import stopped
from solo_minent.cli.configs import one_config
from solo_minent.cli.words import quiet_pipe, say


def pretrain(options: argparse.Namespace) -> int:
    config = one_config(options)
    from solo_minent.pretrain import pretrain
    from solo_minent.training.stopping import Stopped

    resume_from = options.resume_from and Path(options.resume_from)
    try:
        say(f"run folder: {pretrain(config, resume_from)}")
    except Stopped as stop:
        return stopped.end(stop.signum, stop.step)
    return 0


def prepare(options: argparse.Namespace) -> int:
    from solo_minent.prepare import prepare, print_prepared

    done = prepare(
        options.dataset,
        options.root,
        source=options.source,
        classes=options.classes,
        verify=options.verify,
        h5=options.h5,
        lists=options.lists,
    )
    with quiet_pipe():
        print_prepared(done)
    return 0


def recipes(options: argparse.Namespace) -> int:
    from solo_minent.config import recipes

    with quiet_pipe():
        print("\n".join(recipes()))
    return 0


def doctor(options: argparse.Namespace) -> int:
    from solo_minent.doctor import print_findings

    with quiet_pipe():
        complete = print_findings()
    return 0 if complete else 1

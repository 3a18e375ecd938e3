"""`solo-minent bench`: its options, and what each benchmark is given."""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from solo_minent.cli.configs import one_config
from solo_minent.errors import UserError

if TYPE_CHECKING:
    from solo_minent.bench.everything import Settings

STOPPED = "stopped; what was measured before is written, and the same command goes on from there"


def add_bench(
    commands: argparse._SubParsersAction,
    common: argparse.ArgumentParser,
    named: argparse.ArgumentParser,
) -> None:
    """Adds the command.

    Args:
        commands: of solo-minent.
        common: options of every command.
        named: options of a command that takes a run or recipe.
    """
    bench = commands.add_parser("bench", help="how fast each part is beside its peers")
    what = bench.add_subparsers(metavar="what", required=True)
    table = argparse.ArgumentParser(add_help=False)
    table.add_argument("--csv", metavar="FILE", help="write the figures there as well")
    turns = argparse.ArgumentParser(add_help=False, parents=[common])
    turns.add_argument("--pairs", type=int, default=5, help="turns of each side (default 5)")
    turns.add_argument("--tiny", action="store_true", help="small sizes: to see that it runs")
    timed = argparse.ArgumentParser(add_help=False, parents=[turns])
    timed.add_argument("--device", metavar="LIST", help="cpu, cuda; default: all that are there")
    timed.add_argument("--seconds", type=float, default=0.2, help="of a turn, about (default 0.2)")
    steps = argparse.ArgumentParser(add_help=False)
    steps.add_argument("words", nargs="*", metavar="key=value", help="overrides of the recipes")

    add = what.add_parser("loss", parents=[timed, table], help="losses against plain formulas")
    add.add_argument("--loss", metavar="LIST", help='mec, "minent heads", …; default: all')
    add.set_defaults(command=_loss)
    add = what.add_parser(
        "step", parents=[timed, table, steps], help="training steps against solo-learn's, phases"
    )
    add.add_argument("--method", metavar="LIST", help="methods, with commas; default: all")
    add.set_defaults(command=_step)
    add = what.add_parser("knn", parents=[turns, table], help="kNN against solo-learn's")
    add.add_argument("--train", type=int, default=50_000, help="training points (default 50000)")
    add.add_argument("--test", type=int, default=10_000, help="test points (default 10000)")
    add.add_argument("--width", type=int, default=512, help="numbers of a point (default 512)")
    add.add_argument("--threads", type=int, default=0, help="default: PyTorch's choice")
    add.add_argument("--data", metavar="LIST", help="clusters, gaussian; default: both")
    add.set_defaults(command=_knn)
    add = what.add_parser("loader", parents=[named, table], help="every format, and solo-learn's")
    add.add_argument("--dataset", metavar="NAME", help="measure with the recipe NAME/minent")
    add.add_argument(
        "--format",
        metavar="LIST",
        help="formats, with commas between, solo-learn and solo-learn-dali for its own loaders; "
        "default: image_folder, dali or device (pixels), and solo-learn's where they can",
    )
    add.add_argument("--seconds", type=float, default=3.0, help="of one round (default 3)")
    add.add_argument("--rounds", type=int, default=3, help="of each format (default 3)")
    add.set_defaults(command=_loader)
    add = what.add_parser("startup", parents=[turns, table], help="until something happens")
    add.set_defaults(command=_startup)
    add = what.add_parser(
        "growth", parents=[timed, table], help="time and memory against sizes; draws FILE.png"
    )
    add.set_defaults(command=_growth)
    add = what.add_parser("all", parents=[timed, steps], help="all of them, and every goal")
    add.add_argument(
        "--out", required=True, metavar="DIR", help="folder of the csv files; goes on there"
    )
    add.add_argument("--only", metavar="LIST", help="loss, step, knn, startup, growth, loader")
    add.add_argument("--recipe", metavar="NAME", help="measure the loader too, on its data")
    add.set_defaults(command=_all, stopped=STOPPED)
    for add in what.choices.values():
        add.set_defaults(command=_stoppable(add.get_default("command")))


def _stoppable(command: Callable[[argparse.Namespace], int]) -> Callable:
    """SIGTERM ends a benchmark as Ctrl-C does: its processes and temporary folders go with it."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def run(options: argparse.Namespace) -> int:
        if threading.current_thread() is not threading.main_thread():  # others may not
            return command(options)
        before = signal.signal(signal.SIGTERM, stop)
        try:
            return command(options)
        finally:
            signal.signal(signal.SIGTERM, before)

    return run


def _loss(options: argparse.Namespace) -> int:
    from solo_minent.bench.everything import measure_losses

    measure_losses(_settings(options, _listed(options.loss)), _csv(options))
    return 0


def _step(options: argparse.Namespace) -> int:
    from solo_minent.bench.everything import measure_steps

    measure_steps(_settings(options, _listed(options.method)), _csv(options))
    return 0


def _knn(options: argparse.Namespace) -> int:
    from solo_minent.bench.everything import measure_knn

    sizes = {key: getattr(options, key) for key in ("train", "test", "width", "threads")}
    measure_knn(_settings(options), _csv(options), data=_listed(options.data), **sizes)
    return 0


def _startup(options: argparse.Namespace) -> int:
    from solo_minent.bench.everything import measure_startup

    measure_startup(_settings(options), _csv(options))
    return 0


def _growth(options: argparse.Namespace) -> int:
    from solo_minent.bench.everything import measure_growth

    measure_growth(_settings(options), _csv(options))
    return 0


def _loader(options: argparse.Namespace) -> int:
    if options.dataset and options.recipe:
        raise UserError(
            f"data set is named twice: --dataset {options.dataset} and --recipe {options.recipe}. "
            "A recipe names its data set. Leave one of them out."
        )
    if options.dataset:
        options.recipe = f"{options.dataset}/minent"
    config = one_config(options)
    csv = _csv(options)
    from solo_minent.bench.loaders import bench_loaders, print_loaders

    found = bench_loaders(config, _listed(options.format), options.seconds, options.rounds)
    print_loaders(config, found, csv)
    return 0


def _all(options: argparse.Namespace) -> int:
    settings = _settings(options)
    from dataclasses import replace

    from solo_minent.bench.everything import bench_all

    if options.recipe:
        settings = replace(settings, config=one_config(options))
    bench_all(Path(options.out), settings, _listed(options.only))
    return 0


def _settings(options: argparse.Namespace, only: tuple[str, ...] = ()) -> Settings:
    from solo_minent.bench.everything import Settings

    settings = Settings(
        devices=_listed(getattr(options, "device", None)),
        pairs=options.pairs,
        seconds=getattr(options, "seconds", 0.2),
        tiny=options.tiny,
        only=only,
        overrides=getattr(options, "words", ()),
    )
    settings.check()
    return settings


def _csv(options: argparse.Namespace) -> Path | None:
    if not options.csv:
        return None
    from solo_minent.bench.output import check_writable

    check_writable(Path(options.csv))
    return Path(options.csv)


def _listed(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",")) if text else ()

"""The command line: parse, compose the configuration, call one function, print.

Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from solo_minent import __version__
from solo_minent.allowed import Range, check_one_of, check_range
from solo_minent.errors import UserError

if TYPE_CHECKING:
    from solo_minent.schema import RunConfig

RECIPE_HELP = "recipe such as cifar10/minent, or a YAML file of your own"
OVERRIDE_HELP = "Hydra overrides such as max_epochs=10 data.root=/data"
DISTANCES = ("euclidean", "cosine")


def main(arguments: list[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: of the command line, without the program's name.

    Returns:
        Exit status: 0, 1 (doctor found something missing), 2 (bad input), 130 (interrupted).
    """
    options = argparse.Namespace(debug=False, command=None)
    try:
        options = _parse(arguments)
        return options.command(options)
    except (UserError, ModuleNotFoundError) as error:
        if options.debug:
            raise
        _say(f"error: {_one_line(error)}", sys.stderr)
        return 2
    except OSError as error:  # a path that may not be read or written, a full disk
        if options.debug:
            raise
        what = f"{error.strerror or error}: {error.filename or 'no file named'}"
        _say(
            f"error: the system refuses a file: {what}. It must be there, readable, and writable "
            "where results go. Mend that; --debug shows where it happened.",
            sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        continues = {
            _pretrain: "stopped; the same command continues the run",
            _prepare: "stopped; the same command goes on from here",
        }
        _say(continues.get(options.command, "stopped"), sys.stderr)
        return 130


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as every other error of ours is said."""

    def error(self, message: str) -> NoReturn:
        raise UserError(
            f"command line is wrong: {message}. A command, its options and key=value are taken. "
            f"See {self.prog} --help"
        )

    def print_help(self, file: TextIO | None = None) -> None:
        with _quiet_pipe():
            super().print_help(file)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = _parser()
    # argparse takes the words after an option for unknown ones.
    options, late = parser.parse_known_args(arguments)
    if any(word.startswith("-") for word in late) or (late and "words" not in options):
        parser.error(f"unrecognized arguments: {' '.join(late)}")
    if late:
        options.words += late
    return options


@contextmanager
def _quiet_pipe() -> Iterator[None]:
    """Printing into a pipe that is closed (| head) ends the program quietly, as in other tools."""
    if not hasattr(signal, "SIGPIPE"):  # Windows
        yield
        return
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        yield
        sys.stdout.flush()
    finally:
        signal.signal(signal.SIGPIPE, before)


def _say(text: str, file: TextIO | None = None) -> None:
    """Prints once for all processes of a run, started by Lightning, torchrun or Slurm.

    What goes wrong once they work together is said by each: one of them alone may know.
    """
    ranks = (os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    if all(rank == "0" for rank in ranks) or (file is sys.stderr and _in_a_group()):
        print(text, file=file)


def _in_a_group() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.distributed.is_initialized()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="solo-minent", description="MinEnt, MEC, TWIST and CorInfoMax on solo-learn."
    )
    parser.add_argument("--version", action="version", version=f"solo-minent {__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    run = argparse.ArgumentParser(add_help=False, parents=[common])
    run.add_argument("--recipe", metavar="NAME", help=RECIPE_HELP)
    run.add_argument("words", nargs="*", metavar="RUN | key=value", help=OVERRIDE_HELP)
    target = argparse.ArgumentParser(add_help=False, parents=[run])
    target.add_argument(
        "--target",
        default="trained",
        help="trained (the run, default), random (its untrained backbone) or pixels",
    )

    add = commands.add_parser("pretrain", parents=[run], help="train a backbone without labels")
    add.set_defaults(command=_pretrain)
    add = commands.add_parser("linear", parents=[target], help="linear evaluation of a run")
    add.set_defaults(command=_linear)
    add = commands.add_parser("knn", parents=[target], help="nearest-neighbour evaluation of a run")
    add.add_argument("--k", type=int, help="neighbours; default: the recipe's")
    add.add_argument("--temperature", type=float, help="weigh votes by exp(sim / T); default: no")
    add.add_argument("--distance", default="euclidean", help="euclidean (default) or cosine")
    add.set_defaults(command=_knn)
    add = commands.add_parser("report", parents=[run], help="a run against its baselines, plotted")
    add.set_defaults(command=_report)
    add = commands.add_parser("prepare", parents=[common], help="make a data set ready, check it")
    add.add_argument("dataset", help="digits, cifar10, stl10, tiny_imagenet, imagenet100, …")
    add.add_argument("--root", metavar="DIR", help="folder that shall hold it, later data.root")
    add.add_argument(
        "--from",
        dest="source",
        metavar="SOURCE",
        help="what is there of it: an archive, a folder of archives, an ImageNet tree",
    )
    add.add_argument("--classes", metavar="FILE", help="imagenet100: a class list of your own")
    add.add_argument("--verify", action="store_true", help="decode every image")
    add.add_argument("--h5", action="store_true", help="write train.h5 and val.h5 as well")
    add.set_defaults(command=_prepare)
    add = commands.add_parser("bench", parents=[run], help="how fast the loaders are")
    add.add_argument("what", choices=["loader"], help="loader: every format in turn")
    add.add_argument("--dataset", metavar="NAME", help="measure with the recipe NAME/minent")
    add.add_argument(
        "--format",
        metavar="LIST",
        help="formats, with commas between; default: image_folder and dali, or device for pixels",
    )
    add.add_argument("--seconds", type=float, default=3.0, help="of one round (default 3)")
    add.add_argument("--rounds", type=int, default=3, help="of each format (default 3)")
    add.add_argument("--csv", metavar="FILE", help="write the figures there as well")
    add.set_defaults(command=_bench)
    add = commands.add_parser("recipes", parents=[common], help="list the recipes")
    add.set_defaults(command=_recipes)
    add = commands.add_parser("doctor", parents=[common], help="what is installed, what is missing")
    add.set_defaults(command=_doctor)
    return parser


def _pretrain(options: argparse.Namespace) -> int:
    config = _config(options)
    from solo_minent.pretrain import pretrain

    _say(f"run folder: {pretrain(config)}")
    return 0


def _linear(options: argparse.Namespace) -> int:
    config = _config(options)
    from solo_minent.evaluation.targets import features_of, load_target
    from solo_minent.report import linear_result

    _check_results(config)
    target = load_target(config, options.target)
    result = linear_result(config, target, features_of(target, config))
    print(f"{result['protocol']}\ntop-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} %")
    return 0


def _knn(options: argparse.Namespace) -> int:
    check_one_of("--distance", options.distance, DISTANCES)
    if options.temperature is not None:
        check_range("--temperature", options.temperature, Range(0, 0.07, above=True))
    if options.k is not None:
        check_range("--k", options.k, Range(1, 5))
    config = _config(options)
    from solo_minent.evaluation.targets import (
        check_knn_k,
        eval_loaders,
        features_of,
        load_target,
    )
    from solo_minent.report import knn_result

    if options.k is not None:
        config = replace(config, evaluation=replace(config.evaluation, knn_k=options.k))
    _check_results(config)
    target = load_target(config, options.target)
    loaders = eval_loaders(config)
    key = "evaluation.knn_k" if options.k is None else "--k"
    check_knn_k(config, len(loaders[0].dataset), key)
    features = features_of(target, config, loaders=loaders)
    k = config.evaluation.knn_k
    result = knn_result(config, target, features, k, options.temperature, options.distance)
    print(f"{result['protocol']}\ntop-1 {result['top1']:.2f} %")
    return 0


def _report(options: argparse.Namespace) -> int:
    config = _config(options)
    from solo_minent.report import report

    print(f"picture: {report(config)}")
    return 0


def _prepare(options: argparse.Namespace) -> int:
    from solo_minent.prepare import prepare, print_prepared

    done = prepare(
        options.dataset,
        options.root,
        source=options.source,
        classes=options.classes,
        verify=options.verify,
        h5=options.h5,
    )
    with _quiet_pipe():
        print_prepared(done)
    return 0


def _bench(options: argparse.Namespace) -> int:
    if options.dataset and options.recipe:
        raise UserError(
            f"data set is named twice: --dataset {options.dataset} and --recipe {options.recipe}. "
            "A recipe names its data set. Leave one of them out."
        )
    if options.dataset:
        options.recipe = f"{options.dataset}/minent"
    config = _config(options)
    from solo_minent.bench import bench_loaders, print_loaders

    formats = options.format.split(",") if options.format else ()
    found = bench_loaders(config, formats, options.seconds, options.rounds)
    print_loaders(config, found, options.csv and Path(options.csv))
    return 0


def _recipes(options: argparse.Namespace) -> int:
    from solo_minent.config import recipes

    with _quiet_pipe():
        print("\n".join(recipes()))
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from solo_minent.doctor import print_findings

    with _quiet_pipe():
        complete = print_findings()
    return 0 if complete else 1


def _config(options: argparse.Namespace) -> RunConfig:
    """The run that a command names: by its folder, or by recipe and overrides.

    Raises:
        UserError: it names none, or more than one.
    """
    from solo_minent.config import load_recipe, load_run

    overrides = [word for word in options.words if "=" in word or word.startswith("~")]
    others = [word for word in options.words if word not in overrides]
    if options.recipe and not others:
        return load_recipe(options.recipe, overrides)
    if len(others) == 1 and not options.recipe:
        if not os.path.isdir(others[0]):
            raise UserError(
                f"run folder is missing: {others[0]}. A folder that solo-minent pretrain made was "
                "expected. Name it, or use --recipe."
            )
        return load_run(others[0], overrides)
    raise UserError(
        f"run is not named: {' '.join(options.words) or 'no arguments'}. Either a recipe or one "
        "run folder is needed. Add --recipe digits/minent."
    )


def _check_results(config: RunConfig) -> None:
    """Complains before the slow part of an evaluation if its result could not be stored."""
    from solo_minent.checkpoint import read_results
    from solo_minent.config import check_writable

    check_writable(config)
    read_results(config.run_dir)


def _one_line(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and not isinstance(error, UserError):
        package = error.name or str(error).partition(". ")[0]
        return (
            f"package is missing: {package}. It is one of solo-minent's requirements. "
            "See solo-minent doctor."
        )
    return " ".join(str(error).split())

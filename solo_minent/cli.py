"""The command line: parse, compose the configuration, call one function, print.

Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import TYPE_CHECKING

from solo_minent import __version__
from solo_minent.errors import UserError

if TYPE_CHECKING:
    from solo_minent.config import RunConfig

RECIPE_HELP = "recipe such as cifar10/minent, or a YAML file of your own"
OVERRIDE_HELP = "Hydra overrides such as max_epochs=10 data.root=/data"


def main(arguments: list[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: of the command line, without the program's name.

    Returns:
        Exit status: 0, 1 (doctor found something missing), 2 (bad input), 130 (interrupted).
    """
    parser = _parser()
    # argparse takes the words after an option for unknown ones.
    options, late = parser.parse_known_args(arguments)
    if any(word.startswith("-") for word in late) or (late and "words" not in options):
        parser.error(f"unrecognized arguments: {' '.join(late)}")
    if late:
        options.words += late
    # Behind a closed pipe (| head) end quietly, as other tools do.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        return options.command(options)
    except (UserError, ModuleNotFoundError) as error:
        if options.debug:
            raise
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues from the last checkpoint", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
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
    add = commands.add_parser("recipes", parents=[common], help="list the recipes")
    add.set_defaults(command=_recipes)
    add = commands.add_parser("doctor", parents=[common], help="what is installed, what is missing")
    add.set_defaults(command=_doctor)
    return parser


def _pretrain(options: argparse.Namespace) -> int:
    config = _config(options)
    from solo_minent.pretrain import pretrain

    print(f"run folder: {pretrain(config)}")
    return 0


def _linear(options: argparse.Namespace) -> int:
    config = _config(options)
    from solo_minent.evaluation.targets import features_of, load_target
    from solo_minent.report import linear_result

    target = load_target(config, options.target)
    result = linear_result(config, target, features_of(target, config))
    print(f"{result['protocol']}\ntop-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} %")
    return 0


def _knn(options: argparse.Namespace) -> int:
    config = _config(options)
    from solo_minent.evaluation.targets import features_of, load_target
    from solo_minent.report import knn_result

    target = load_target(config, options.target)
    features = features_of(target, config)
    k = config.evaluation.knn_k if options.k is None else options.k
    result = knn_result(config, target, features, k, options.temperature, options.distance)
    print(f"{result['protocol']}\ntop-1 {result['top1']:.2f} %")
    return 0


def _report(options: argparse.Namespace) -> int:
    config = _config(options)
    from solo_minent.report import report

    print(f"picture: {report(config)}")
    return 0


def _recipes(options: argparse.Namespace) -> int:
    from solo_minent.config import recipes

    print("\n".join(recipes()))
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from solo_minent.doctor import print_findings

    return 0 if print_findings() else 1


def _config(options: argparse.Namespace) -> RunConfig:
    """The run that a command names: by its folder, or by recipe and overrides."""
    from solo_minent.config import load_recipe, load_run

    overrides = [word for word in options.words if "=" in word]
    others = [word for word in options.words if "=" not in word]
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


def _one_line(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and not isinstance(error, UserError):
        return (
            f"package is missing: {error.name}. It is one of solo-minent's requirements. "
            "See solo-minent doctor."
        )
    return " ".join(str(error).split())

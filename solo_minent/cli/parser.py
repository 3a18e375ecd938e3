"""The commands and their options."""

from __future__ import annotations

import argparse
from typing import NoReturn, TextIO

from solo_minent import __version__
from solo_minent.cli import evaluate, run
from solo_minent.cli.bench import add_bench
from solo_minent.cli.words import quiet_pipe
from solo_minent.cli.zoo import add_zoo
from solo_minent.errors import UserError

RECIPE_HELP = "recipe such as cifar10/minent, or a YAML file of your own"
OVERRIDE_HELP = "Hydra overrides such as max_epochs=10 data.root=/data"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Options of one command, with the function `command` that runs it.

    Raises:
        UserError: the command line is wrong.
    """
    parser = _parser()
    # argparse takes the words after an option for unknown ones.
    options, late = parser.parse_known_args(arguments)
    if any(word.startswith("-") for word in late) or (late and "words" not in options):
        parser.error(f"unrecognized arguments: {' '.join(late)}")
    if late:
        options.words += late
    return options


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as every other error of ours is said."""

    def error(self, message: str) -> NoReturn:
        raise UserError(
            f"command line is wrong: {message}. A command, its options and key=value are taken. "
            f"See {self.prog} --help"
        )

    def print_help(self, file: TextIO | None = None) -> None:
        with quiet_pipe():
            super().print_help(file)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="solo-minent", description="MinEnt, MEC, TWIST and CorInfoMax on solo-learn."
    )
    parser.set_defaults(stopped="stopped")
    parser.add_argument("--version", action="version", version=f"solo-minent {__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    named = argparse.ArgumentParser(add_help=False, parents=[common])
    named.add_argument("--recipe", metavar="NAME", help=RECIPE_HELP)
    named.add_argument("words", nargs="*", metavar="RUN | key=value", help=OVERRIDE_HELP)

    add = commands.add_parser("pretrain", parents=[named], help="train a backbone without labels")
    add.add_argument(
        "--resume-from",
        metavar="PATH",
        help="go on from this run folder or checkpoint, though its configuration differs",
    )
    add.set_defaults(command=run.pretrain, stopped="stopped; the same command continues the run")
    _evaluations(commands, named)
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
    add.add_argument("--lists", action="store_true", help="imagenet: SimCLR's 1 %% and 10 %% lists")
    add.set_defaults(command=run.prepare, stopped="stopped; the same command goes on from here")
    add_bench(commands, common, named)
    add_zoo(commands, common)
    add = commands.add_parser("recipes", parents=[common], help="list the recipes")
    add.set_defaults(command=run.recipes)
    add = commands.add_parser("doctor", parents=[common], help="what is installed, what is missing")
    add.set_defaults(command=run.doctor)
    return parser


def _evaluations(commands: argparse._SubParsersAction, named: argparse.ArgumentParser) -> None:
    target = argparse.ArgumentParser(add_help=False, parents=[named])
    target.add_argument(
        "--target",
        default="trained",
        metavar="WHAT",
        help="trained (the run, default), random (its untrained backbone), pixels, a run folder, a "
        "file of weights, a model of the zoo, torchvision:NAME, timm:NAME or random:NAME",
    )
    add = commands.add_parser("linear", parents=[target], help="linear evaluation")
    add.add_argument("--protocol", metavar="NAME", help="of a paper: corinfomax, mec, twist, …")
    add.set_defaults(command=evaluate.linear)
    add = commands.add_parser("knn", parents=[target], help="nearest-neighbour evaluation")
    add.add_argument("--k", metavar="LIST", help="neighbours, 5,20,200; default: the recipe's")
    add.add_argument(
        "--temperature",
        default="none",
        metavar="LIST",
        help="votes weigh exp(similarity / T), 0.07,0.2; none (default): one vote each",
    )
    add.add_argument("--distance", default="euclidean", metavar="LIST", help="euclidean, cosine")
    add.set_defaults(command=evaluate.knn)
    add = commands.add_parser(
        "finetune", parents=[target], help="train the whole network on few labels, or on all"
    )
    add.add_argument("--protocol", metavar="NAME", help="of a paper: corinfomax_1, twist_10, …")
    add.add_argument(
        "--percent", type=float, default=100.0, help="share of the labels (default 100)"
    )
    add.set_defaults(command=evaluate.finetune)
    add = commands.add_parser("cluster", parents=[target], help="predicted classes against labels")
    add.add_argument("--clusters", type=int, help="of k-means; default: the number of classes")
    add.add_argument("--split", default="test", help="test (default) or train")
    add.set_defaults(command=evaluate.cluster)
    add = commands.add_parser("transfer", parents=[target], help="evaluation on another data set")
    add.add_argument(
        "--dataset", required=True, metavar="NAME", help="dtd, pets, voc2007, custom, …"
    )
    add.add_argument("--root", metavar="DIR", help="folder of that data set")
    add.add_argument("--mode", default="linear", help="linear (default) or finetune")
    add.add_argument("--protocol", metavar="NAME", help="of linear or finetune, as there")
    add.set_defaults(command=evaluate.transfer)
    add = commands.add_parser("detect", parents=[target], help="train and test a detector on it")
    add.add_argument("--root", required=True, metavar="DIR", help="of COCO, or of VOCdevkit")
    add.add_argument("--protocol", metavar="NAME", help="voc_c4, twist_coco_fpn, …")
    add.set_defaults(
        command=evaluate.detect, stopped="stopped; the same command continues the training"
    )
    add = commands.add_parser("export", parents=[target], help="the backbone for other tools")
    add.add_argument("--format", required=True, help="torchvision, timm or detectron2")
    add.add_argument("--out", required=True, metavar="FILE", help="file to write")
    add.set_defaults(command=evaluate.export)
    add = commands.add_parser("umap", parents=[target], help="picture of the feature space")
    add.add_argument("--method", default="umap", help="umap (default) or pca")
    add.add_argument("--split", default="test", help="test (default) or train")
    add.set_defaults(command=evaluate.umap)
    add = commands.add_parser(
        "report", parents=[named], help="page of one or several runs, or of all below a folder"
    )
    add.add_argument(
        "--evaluate",
        action="store_true",
        help="first evaluate the run, its untrained backbone and raw pixels: linear, kNN, few-shot",
    )
    add.add_argument("--out", metavar="FILE", help="the page; default: report.html by the run")
    add.add_argument("--csv", metavar="FILE", help="write every result there as a table")
    add.add_argument(
        "--no-features", action="store_true", help="without what needs the data set and features"
    )
    add.set_defaults(command=evaluate.report)

"""`solo-minent zoo`: its options, and what each command prints."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from solo_minent.cli.words import quiet_pipe
from solo_minent.errors import UserError

EXTERNAL = ("architecture", "dataset", "method", "licence", "page")


def add_zoo(commands: argparse._SubParsersAction, common: argparse.ArgumentParser) -> None:
    """Adds the command.

    Args:
        commands: of solo-minent.
        common: options of every command.
    """
    zoo = commands.add_parser("zoo", help="trained models: list, download, verify, load, add")
    what = zoo.add_subparsers(metavar="what", required=True)
    any_zoo = argparse.ArgumentParser(add_help=False, parents=[common])
    any_zoo.add_argument("--zoo", metavar="DIR", help="folder with models.yaml; default: our own")
    one = argparse.ArgumentParser(add_help=False, parents=[any_zoo])
    one.add_argument("model", metavar="ID", help="of the model, see zoo list")
    online = argparse.ArgumentParser(add_help=False)
    online.add_argument("--offline", action="store_true", help="download nothing")

    add = what.add_parser("list", parents=[any_zoo], help="all models in a table")
    add.set_defaults(command=_list)
    add = what.add_parser("info", parents=[one], help="everything about a model")
    add.add_argument("--json", action="store_true", help="as JSON")
    add.set_defaults(command=_info)
    add = what.add_parser("download", parents=[any_zoo, online], help="files, checked and kept")
    add.add_argument("models", nargs="+", metavar="ID", help="of the models, or all")
    add.set_defaults(command=_download, stopped="stopped; the same command goes on from here")
    add = what.add_parser("verify", parents=[any_zoo], help="every file against the index")
    add.add_argument("models", nargs="*", metavar="ID", help="of the models; default: all")
    add.set_defaults(command=_verify)
    add = what.add_parser("load", parents=[one, online], help="load a model, say what was loaded")
    add.set_defaults(command=_load)
    _add_add(what, any_zoo)


def _add_add(what: argparse._SubParsersAction, any_zoo: argparse.ArgumentParser) -> None:
    add = what.add_parser("add", parents=[any_zoo], help="a finished run, or somebody's file")
    add.add_argument("words", nargs="*", metavar="RUN | key=value", help="run folder, overrides")
    add.add_argument("--id", required=True, metavar="ID", help="minent-resnet18-cifar10, …")
    add.add_argument("--licence", help="of the weights; of a run: MIT by default")
    add.add_argument("--url", action="append", default=[], metavar="URL", help="where the file is")
    run = add.add_argument_group("of a run")
    run.add_argument("--float16", action="store_true", help="ship the weights in float16")
    run.add_argument(
        "--max-change", type=float, default=0.1, help="of kNN by float16, in points (default 0.1)"
    )
    run.add_argument("--recipe", metavar="NAME", help="where environment.json does not tell")
    run.add_argument("--hours", type=float, help="that the training took")
    run.add_argument(
        "--results-only", action="store_true", help="a further seed: its numbers, no file"
    )
    file = add.add_argument_group("of somebody's file")
    file.add_argument("--from-file", metavar="FILE", help="weights of any known layout")
    file.add_argument("--architecture", metavar="NAME", help="resnet50, timm:<model>")
    file.add_argument("--stem", help="imagenet, cifar, small, solo; default: the network's own")
    file.add_argument("--kwargs", metavar="JSON", default="{}", help="of its constructor")
    file.add_argument("--dataset", help="that it was trained on")
    file.add_argument("--method", help="that trained it")
    file.add_argument("--image-size", type=int, default=224, help="in pixels (default 224)")
    file.add_argument("--which", default="student", help="student (default) or teacher")
    file.add_argument("--epochs", type=int, help="of its training")
    file.add_argument("--batch-size", type=int, help="of its training")
    file.add_argument("--page", metavar="URL", help="whose it is, and where to get it")
    add.set_defaults(command=_add)


def _list(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from solo_minent.zoo.index import read_index
    from solo_minent.zoo.schema import words_of

    entries = read_index(_zoo(options))
    if not entries:
        print("the zoo has no models yet")
        return 0
    rows = [words_of(entry) for entry in entries]
    table = Table()
    for column in rows[0]:
        numbers = column in ("epochs", "kNN", "linear", "MB")
        table.add_column(column, justify="right" if numbers else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(_cell, row.values()), style=None)
    with quiet_pipe():
        Console(width=160, markup=False, highlight=False).print(table)
    return 0


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)


def _info(options: argparse.Namespace) -> int:
    from solo_minent.zoo.index import find_model, zoo_folder
    from solo_minent.zoo.schema import plain

    zoo = _zoo(options) or zoo_folder()
    entry = find_model(options.model, zoo)
    values = plain(entry)
    with quiet_pipe():
        if options.json:
            print(json.dumps(values, indent=2))
            return 0
        from omegaconf import OmegaConf

        if not entry.ours:
            print(f"not ours: see {entry.page} for its authors and its terms")
        print(OmegaConf.to_yaml(OmegaConf.create(values)), end="")
        from solo_minent.zoo.cache import cached, in_repository

        for file in entry.files:
            here = [p for p in [*in_repository(file, zoo), cached(file)] if p.is_file()]
            print(f"# {file.name}: {here[0] if here else 'not downloaded'}")
    return 0


def _download(options: argparse.Namespace) -> int:
    from solo_minent.zoo.download import fetch
    from solo_minent.zoo.index import files_of, find_model, read_index, zoo_folder

    zoo = _zoo(options) or zoo_folder()
    everything = options.models == ["all"]
    entries = read_index(zoo) if everything else [find_model(name, zoo) for name in options.models]
    failures = []
    for _, file in files_of(entries):
        try:
            print(f"{fetch(file, zoo, options.offline)}")
        except UserError as error:
            failures.append(error)
            print(f"error: {error}", file=sys.stderr)
    return 2 if failures else 0


def _verify(options: argparse.Namespace) -> int:
    from solo_minent.zoo.verify import verify

    checks = verify(options.models, _zoo(options))
    with quiet_pipe():
        for check in checks:
            found = f"WRONG: {check.wrong}" if check.wrong else check.found
            print(f"{check.model}  {check.what}  {found}")
    wrong = [check for check in checks if check.wrong]
    if wrong:
        print(
            f"error: zoo is not what its index says: {len(wrong)} of {len(checks)} checks failed, "
            f"first {wrong[0].what}: {wrong[0].wrong}",
            file=sys.stderr,
        )
        return 2
    print(f"{len(checks)} checks, nothing wrong")
    return 0


def _load(options: argparse.Namespace) -> int:
    from solo_minent.zoo.models import load_backbone

    model = load_backbone(options.model, _zoo(options), options.offline)
    print(
        f"{options.model}: {model.loaded.line} from {model.path}, {model.feature_dim} features of "
        f"{model.entry.normalization.image_size} px images"
    )
    return 0


def _add(options: argparse.Namespace) -> int:
    from solo_minent.zoo.index import zoo_folder

    zoo = _zoo(options) or zoo_folder()
    if (zoo / "__init__.py").exists():
        raise UserError(
            f"zoo belongs to the installed package: {zoo}. Models are added to a checkout, or to a "
            "folder of your own with models.yaml. Give --zoo <folder>."
        )
    overrides = tuple(word for word in options.words if "=" in word or word.startswith("~"))
    runs = [word for word in options.words if word not in overrides]
    if options.from_file:
        if options.words:
            raise UserError(
                f"--from-file stands alone: {' '.join(options.words)}. A run has a file of its "
                "own. Leave one of them out."
            )
        return _add_external(options, zoo)
    if len(runs) != 1:
        raise UserError(
            f"run is not named: {' '.join(runs) or 'no folder'}. One finished run is added at a "
            "time. Name its folder, or --from-file."
        )
    from solo_minent.allowed import Range, check_range
    from solo_minent.zoo.add import Request, add_run

    check_range("--max-change", options.max_change, Range(0, 0.1))
    entry = add_run(
        Request(
            run=Path(runs[0]),
            id=options.id,
            float16=options.float16,
            max_change=options.max_change,
            licence=options.licence or "MIT",
            recipe=options.recipe,
            hours=options.hours,
            urls=tuple(options.url),
            overrides=overrides,
            only_results=options.results_only,
        ),
        zoo,
    )
    numbers = "  ".join(f"{m.evaluation} {m.top1:.2f}" for m in entry.metrics)
    what = "results" if options.results_only else f"{entry.file.bytes / 1e6:.1f} MB"
    print(f"added {entry.id} to {zoo}: {what}  {numbers}")
    return 0


def _add_external(options: argparse.Namespace, zoo: Path) -> int:
    absent = [name for name in EXTERNAL if not getattr(options, name)]
    if absent:
        raise UserError(
            f"--{absent[0]} is missing: {options.from_file}. Of a file that is not ours, "
            f"{', '.join(f'--{name}' for name in EXTERNAL)} are said. Add --{absent[0]} …"
        )
    from solo_minent.zoo.external import External, add_external

    try:
        kwargs = dict(json.loads(options.kwargs))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"--kwargs is no JSON of names and values: {options.kwargs}. The network's constructor "
            "takes them. Write for example --kwargs '{\"img_size\": 224}'."
        ) from error
    entry, loaded = add_external(
        External(
            file=Path(options.from_file),
            id=options.id,
            architecture=options.architecture,
            dataset=options.dataset,
            method=options.method,
            licence=options.licence,
            page=options.page,
            image_size=options.image_size,
            stem=options.stem,
            kwargs=kwargs,
            which=options.which,
            urls=tuple(options.url),
            epochs=options.epochs,
            batch_size=options.batch_size,
        ),
        zoo,
    )
    print(f"added {entry.id} to {zoo}, not ours: {loaded.layout}, {loaded.line}")
    return 0


def _zoo(options: argparse.Namespace) -> Path | None:
    return Path(options.zoo) if options.zoo else None

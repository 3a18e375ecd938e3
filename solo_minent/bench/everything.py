"""Each benchmark with its table and csv; all of them in one command: `solo-minent bench all`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solo_minent.allowed import check_one_of
from solo_minent.bench.goals import FILES, PICTURE, print_goals, read_rows
from solo_minent.bench.losses import check_turns, pick_devices
from solo_minent.bench.output import check_writable, fingerprint, print_rows, write_rows
from solo_minent.errors import UserError

if TYPE_CHECKING:
    from solo_minent.schema import RunConfig

METHODS = ("minent", "mec", "twist", "corinfomax")
STEPS = ("step", "phases", "loop")
# Two views of 64 images take a ResNet-18 of CIFAR two to three seconds on two cores. With fewer,
# optimiser and heads, of which a part costs the same for any batch, weigh more than in training.
CPU_STEP = ("accelerator=cpu", "precision=32-true", "data.format=device", "optimizer.batch_size=64")
GPU_STEP = ("accelerator=gpu", "data.format=device")
WINDOWS = {"cpu": 2, "cuda": 20}  # steps of the training loop in one turn
TINY_STEP = (
    "optimizer.batch_size=8",
    "backbone.name=timm:resnet10t",
    "backbone.stem=small",
    "backbone.kwargs.layers=[1,1,1,1]",
    "backbone.kwargs.channels=[8,8,8,8]",
    "method_kwargs.hidden_dim=16",
)
TORCHVISION_ONLY = ("mec", "corinfomax")  # their recipes have an argument of torchvision's ResNets


@dataclass(frozen=True)
class Settings:
    """How the benchmarks run.

    Attributes:
        devices: cpu, cuda; none are all that are there.
        pairs: turns of every side.
        seconds: about the time of one turn.
        tiny: sizes of a smoke test, which say nothing about speed.
        only: losses or methods; none are all.
        overrides: of the recipes that steps come from.
        config: what the loaders are measured with; without it they are not.
        run: fingerprint of all this. A csv of the same one is not measured again.
    """

    devices: Sequence[str] = ()
    pairs: int = 5
    seconds: float = 0.2
    tiny: bool = False
    only: Sequence[str] = ()
    overrides: Sequence[str] = ()
    config: RunConfig | None = None
    run: str = ""

    def check(self) -> None:
        """Raises UserError where something cannot be measured."""
        pick_devices(self.devices)
        check_turns(self.pairs, self.seconds)

    @property
    def about(self) -> dict[str, Any]:
        """What is written into every row besides versions and hardware."""
        return {"sizes": "tiny" if self.tiny else "full"} | ({"run": self.run} if self.run else {})


def measure_losses(settings: Settings, csv: Path | None = None) -> None:
    """`bench_losses`, printed and written."""
    from solo_minent.bench.losses import bench_losses

    s = settings
    caption = "plain: the formula of the paper; medians of turns; MiB: peak beyond the inputs"
    measure = partial(bench_losses, s.devices, s.only, s.pairs, s.seconds, s.tiny)
    _show("Losses, forward and backward", s, csv, measure, caption)


def measure_steps(settings: Settings, csv: Path | None = None) -> None:
    """Steps, their phases and the training loop, printed and written.

    Beside `<name>.csv` stand `<name>-phases.csv` and `<name>-loop.csv`.
    """
    from solo_minent.bench import step

    s = settings
    configs = {device: _step_configs(s, device) for device in pick_devices(s.devices)}
    flat = [config for each in configs.values() for config in each]

    def loop() -> list[dict[str, Any]]:
        rows = []
        for device, own in configs.items():
            rows += step.bench_loop(own, s.pairs, WINDOWS[device.type])
        return rows

    for kind, title, measure in (
        ("", "Training steps", lambda: step.bench_step(flat, s.pairs, s.seconds)),
        ("-phases", "Phases of a step", lambda: step.bench_phases(flat, s.pairs, s.seconds)),
        ("-loop", "Images a second", loop),
    ):
        file = csv and csv.with_name(f"{csv.stem}{kind}{csv.suffix}")
        _show(title, s, file, measure)


def measure_knn(settings: Settings, csv: Path | None = None, **options: Any) -> None:
    """`bench_knn`, printed and written; options are sizes and `data`."""
    from solo_minent.bench.knn import DATA, Sizes, about, bench_knn

    data = options.pop("data", None) or DATA
    sizes = Sizes(**options)
    if settings.tiny:
        sizes = replace(sizes, train=3000, test=200, width=16)
    caption = "extra: peak beyond what was held before (features and all); medians of the rounds"
    same = about(sizes)
    title = ", ".join(f"{key} {value}" for key, value in same.items())
    measure = partial(bench_knn, sizes, data, settings.pairs)
    _show(title, settings, csv, measure, caption, same)


def measure_startup(settings: Settings, csv: Path | None = None) -> None:
    """`bench_startup`, printed and written."""
    from solo_minent.bench.startup import bench_startup

    measure = partial(bench_startup, settings.pairs, ["accelerator=cpu"])
    _show("Start-up", settings, csv, measure, about={"device": "cpu"})


def measure_growth(settings: Settings, csv: Path | None = None) -> None:
    """`bench_growth`, its slopes and its picture, which stands beside the csv."""
    from solo_minent.bench.growth import WHY, bench_growth, growth_table
    from solo_minent.bench.growth_picture import draw_growth

    s = settings
    measure = partial(bench_growth, s.devices, s.pairs, s.seconds / 2, s.tiny)
    rows = _show("Growth", s, csv, measure, "a loader's ms are those of 1,000 images")
    caption = (
        "exponents by least squares; last: of the last doubling; 1 s, 1 GiB at: where that leads to"
    )
    print_rows("Exponents", growth_table(rows), caption)
    for method, why in WHY.items():
        print(f"{method}: {why}")
    if csv is not None:
        draw_growth(rows, csv.with_suffix(".png"))


def measure_loaders(settings: Settings, csv: Path | None = None) -> None:
    """`bench_loaders` of the run that the settings name."""
    from solo_minent.bench.loaders import bench_loaders, print_loaders

    assert settings.config is not None
    if _measured_before("Loaders", settings, csv):
        return
    seconds = 0.05 if settings.tiny else 3.0
    found = bench_loaders(settings.config, seconds=seconds, rounds=settings.pairs)
    print_loaders(settings.config, found, csv, settings.about)


PARTS: dict[str, Callable[[Settings, Path | None], None]] = {
    "loss": measure_losses,
    "growth": measure_growth,
    "startup": measure_startup,
    "knn": partial(measure_knn, data=("clusters",)),
    "step": measure_steps,
    "loader": measure_loaders,
}


def bench_all(folder: Path, settings: Settings, parts: Sequence[str] = ()) -> None:
    """Measures part after part; each csv is there as soon as its part is done. Then the goals.

    Started again after it was stopped it goes on: a csv of the same code, machine, versions and
    settings stays.

    Args:
        folder: where the csv files go, by the names of `goals.FILES`.
        settings: of all parts.
        parts: keys of PARTS; by default all, loaders where the settings name a run.

    Raises:
        UserError: an unknown part, settings that do not fit, a folder that cannot be written.
    """
    for name in parts:
        check_one_of("--only", name, PARTS)
    if "loader" in parts and settings.config is None:
        raise UserError(
            "loader's data is not named: --only loader. A recipe is needed whose images it reads. "
            "Add --recipe cifar10/minent data.root=DIR."
        )
    settings.check()
    chosen = [name for name in PARTS if name in parts or not parts]
    if settings.config is None and "loader" in chosen:
        chosen.remove("loader")
    if "step" in chosen:  # what is wrong with overrides or data shows before the first measurement
        for device in pick_devices(settings.devices):
            _step_configs(settings, device)
    for name in (*chosen, *(STEPS if "step" in chosen else ())):
        check_writable(folder / FILES[name])
    settings = replace(settings, run=fingerprint(asdict(settings)))
    for number, name in enumerate(chosen, 1):
        print(f"part {number} of {len(chosen)}: {name}", file=sys.stderr, flush=True)
        PARTS[name](settings, folder / FILES[name])
    print_goals([folder, folder / "gpu"])
    if settings.tiny:
        print("tiny sizes: these figures say nothing about speed")
    if "growth" in chosen:
        print(f"picture: {folder / PICTURE}")


def _step_configs(settings: Settings, device: Any) -> list[RunConfig]:
    from solo_minent.bench import step

    for name in settings.only:
        check_one_of("--method", name, METHODS)
    found = []
    for method in settings.only or METHODS:
        overrides = [*(CPU_STEP if device.type == "cpu" else GPU_STEP)]
        if settings.tiny:
            overrides += TINY_STEP
            if method in TORCHVISION_ONLY:
                overrides.append("~backbone.kwargs.zero_init_residual")
        found += step.step_configs([method], [*overrides, *settings.overrides])
    for config in found:
        if (config.accelerator == "cpu") != (device.type == "cpu"):
            raise UserError(
                f"device is said twice: accelerator={config.accelerator} on {device.type}. Steps "
                "are measured on the devices of --device. Leave accelerator out."
            )
        step.check_loop(config, WINDOWS[device.type])
    return found


def _show(
    title: str,
    settings: Settings,
    csv: Path | None,
    measure: Callable[[], list[dict[str, Any]]],
    caption: str = "",
    about: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Measures, writes and prints; or takes what the same run wrote before it was stopped."""
    if rows := _measured_before(title, settings, csv):
        return rows
    rows = measure()
    if csv is not None:
        write_rows(csv, rows, {**(about or {}), **settings.about})
    print_rows(title, rows, caption)
    return rows


def _measured_before(title: str, settings: Settings, csv: Path | None) -> list[dict[str, Any]]:
    """The rows of a csv that the same run wrote."""
    rows: list[dict[str, Any]] = []
    if settings.run and csv is not None:
        with suppress(UserError):  # a damaged one is written anew
            rows = [{**row} for row in read_rows(csv)]
    if any(row.get("run") != settings.run for row in rows):
        return []
    if rows:
        print(f"{title}: measured before, in {csv}. Without that file it is measured again.")
    return rows

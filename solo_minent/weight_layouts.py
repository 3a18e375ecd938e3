"""Where the weights of a backbone lie in each kind of file, and under which names.

The official layouts are those that this code saves: MEC xinliu20/MEC@35045dc, TWIST
bytedance/TWIST@796d36e, CorInfoMax serdarozsoy/corinfomax-ssl@c0b917e, MinEnt
LiShuo1001/MinEnt@d17ed2f, solo-learn 1.0.2 and its repository@9187ea3 (1.0.6).
"""

from __future__ import annotations

from typing import NamedTuple

WHICH = ("student", "teacher")
# What DistributedDataParallel and torch.compile put into names.
WRAPPERS = ("module", "_orig_mod")
# Classifiers (and MEC's projector, fc) that sit inside of a network and are no part of a backbone.
HEADS = ("fc", "head", "heads", "head_dist", "classifier")
COUNTER = "num_batches_tracked"


class Layout(NamedTuple):
    """One place for the weights in one kind of file.

    Attributes:
        name: for messages.
        container: key of the file that holds the names; "" if they are the file's own keys.
        prefix: of the backbone's names.
        groups: beginnings of names, one of which must be there as well; () for none.
        beside: another key of the file that must be there, or `key.key`; "" for none.
        stems: those of `solo_minent.backbones.STEMS` that such a network may have; () for any.
        which: student or teacher.
        counters: BatchNorm's batch counters are always there.
    """

    name: str
    container: str
    prefix: str
    groups: tuple[str, ...] = ()
    beside: str = ""
    stems: tuple[str, ...] = ()
    which: str = "student"
    counters: bool = True


def _ours(prefix: str, which: str = "student") -> Layout:
    # The state of our log tells our run from solo-learn's own, which has its own stem.
    log = "callbacks.EpochLog"
    return Layout("solo_minent checkpoint", "state_dict", prefix, (), log, (), which)


def _solo(version: str, prefix: str, which: str = "student") -> Layout:
    stems = ("imagenet", "solo")
    name = f"solo-learn {version} checkpoint"
    return Layout(name, "state_dict", prefix, ("classifier",), "", stems, which)


def _mec(prefix: str, which: str = "student") -> Layout:
    stems = ("imagenet",)
    return Layout("MEC checkpoint", "state_dict", prefix, ("predictor",), "", stems, which)


def _twist(container: str, which: str = "student") -> tuple[Layout, Layout]:
    """The whole model, and the backbone once more in a place of its own."""
    name, stems, heads = "TWIST checkpoint", ("imagenet",), ("projection_heads",)
    alone = "backbone" if which == "student" else "teacher_backbone"
    return (
        Layout(name, alone, "", (), container, stems, which),
        Layout(name, container, "backbone.", heads, "", stems, which),
    )


# Of several layouts with the same prefix in the same container, the first that suits is meant.
LAYOUTS = (
    _ours("backbone."),
    _ours("encoder."),
    _ours("teacher_backbone.", "teacher"),
    _solo("1.0.6", "backbone."),
    _solo("1.0.6", "momentum_backbone.", "teacher"),
    _solo("1.0.2", "encoder."),
    _solo("1.0.2", "momentum_encoder.", "teacher"),
    _mec("encoder."),
    _mec("teacher.", "teacher"),
    *_twist("model"),
    *_twist("teacher", "teacher"),
    Layout(
        "CorInfoMax checkpoint",
        "model_state_dict",
        "backbone.",
        ("projector",),
        stems=("imagenet", "cifar"),
    ),
    Layout(
        "MinEnt checkpoint",
        "",
        "model.",
        ("head", "head_list"),
        stems=("imagenet", "cifar", "small"),
    ),
    # torchvision, timm and whoever saves a backbone alone. torchvision's files have no counters.
    *(Layout("state dict", key, "", counters=False) for key in ("", "state_dict", "model")),
    *(Layout("state dict", key, "backbone.") for key in ("", "state_dict", "model")),
)

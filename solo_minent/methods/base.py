"""What a method is, free of solo-learn: a dataclass of hyper-parameters and four hooks.

The host (`solo_minent.host`) mixes a method into solo-learn's LightningModule. A new objective is
one file in this folder with one `SSLMethod` subclass; nothing that exists has to change.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from solo_minent.schedules import cosine


@dataclass(frozen=True)
class Progress:
    """Where a run stands; every schedule is a function of it, so it resumes by itself.

    Attributes:
        step: optimiser steps finished before this one.
        total_steps: optimiser steps of the whole run.
        epoch: epochs finished before this one.
        total_epochs: epochs of the whole run.
    """

    step: int
    total_steps: int
    epoch: int
    total_epochs: int

    @property
    def steps_per_epoch(self) -> float:
        return self.total_steps / self.total_epochs


@dataclass
class Views:
    """One batch of B images as the networks saw it; every list has one entry a view.

    Attributes:
        feats: backbone features, (B, features_dim), large crops first.
        z: projector outputs of the views in `feats`.
        teacher_z: teacher projector outputs of the large crops, without gradient; empty where the
            method has no teacher.
        num_large: how many of the views are large crops.
        made: what `ssl_loss` made of them on the way, by name, for an observer to look at.
    """

    feats: list[Tensor]
    z: list[Any]
    teacher_z: list[Any]
    num_large: int
    made: dict[str, Any] = field(default_factory=dict)


class SSLMethod:
    """A self-supervised method: hyper-parameters, heads and loss.

    The class it is mixed into provides `backbone`, `features_dim` (int), `num_classes` (int) and
    `num_large_crops` (int) before `setup_method` is called.

    Attributes:
        name: key in `solo.methods.METHODS`.
        Params: dataclass of every hyper-parameter; its `__post_init__` raises `UserError`.
        teacher: whether an EMA copy of backbone and projector is kept; its `Params` then has
            `base_momentum` and `final_momentum`.
        multicrop: whether the loss takes more than two views (two large, any number of small).
        joint_projection: whether the projector takes the list of all views at once and returns a
            list, so that its batch norms pool their statistics over views.
        monitors: terms of `ssl_loss` that tell a healthy run from a collapsing one.
        observer: called with the method, the views and the progress after each loss, if set; it
            must change none of them.
        projector: module from (B, features_dim) to what the loss takes; made by `build`.
    """

    name: ClassVar[str]
    Params: ClassVar[type]
    teacher: bool = False
    multicrop: ClassVar[bool] = False
    joint_projection: ClassVar[bool] = False
    monitors: ClassVar[tuple[str, ...]] = ()
    observer: Callable[[SSLMethod, Views, Progress], None] | None = None
    projector: nn.Module

    # Hooks of a method.

    @classmethod
    def check_batch(cls, params: dict[str, Any], batch: int, ranks: int) -> None:
        """Raises UserError where a method cannot take batches of so many images a rank."""

    def build(self, params: Any) -> None:
        """Makes `self.projector` and whatever else the loss needs from `params`."""
        raise NotImplementedError

    def extra_params(self) -> list[dict[str, Any]]:
        """Optimiser groups besides backbone and online classifier."""
        return [{"name": "projector", "params": self.projector.parameters()}]

    def ssl_loss(self, views: Views, progress: Progress) -> dict[str, Tensor]:
        """The objective on one batch: `{"loss": scalar, "<term>": scalar, …}`, terms to log."""
        raise NotImplementedError

    def teacher_momentum(self, progress: Progress) -> float:
        """Weight of the teacher's old value at an update: half a cosine over the whole run."""
        t = progress.step / progress.total_steps
        return cosine(self.params.base_momentum, self.params.final_momentum, t)

    # What the host calls.

    def setup_method(self, params: Any) -> None:
        """Builds the heads, and the teacher as a frozen copy of the freshly made student."""
        self.params = params
        self.build(params)
        if self.teacher:
            self.teacher_backbone = copy.deepcopy(self.backbone).requires_grad_(False)
            self.teacher_projector = copy.deepcopy(self.projector).requires_grad_(False)

    def ssl_step(
        self, crops: list[Tensor], feats: list[Tensor], progress: Progress
    ) -> dict[str, Tensor]:
        """Projects the features, runs the teacher on the large crops and takes the loss.

        Args:
            crops: images of each view, (B, 3, H, W), large crops first.
            feats: their backbone features, (B, features_dim).
            progress: where the run stands.

        Returns:
            What `ssl_loss` returns.
        """
        teacher_z = []
        if self.teacher:
            with torch.no_grad():
                large = crops[: self.num_large_crops]
                teacher_feats = [self.teacher_backbone(crop) for crop in large]
                teacher_z = self._project(self.teacher_projector, teacher_feats)
        z = self._project(self.projector, feats)
        views = Views(feats, z, teacher_z, self.num_large_crops)
        terms = self.ssl_loss(views, progress)
        if self.observer is not None:
            self.observer(self, views, progress)
        return terms

    def _project(self, projector: nn.Module, feats: list[Tensor]) -> list[Any]:
        if self.joint_projection:
            return projector(feats)
        return [projector(f) for f in feats]

    @torch.no_grad()
    def update_teacher(self, progress: Progress) -> float:
        """Moves the teacher's parameters towards the student's after an optimiser step.

        Buffers are left to the teacher: it runs in training mode on its own batch statistics, as
        in MEC and TWIST (BYOL's convention).

        Args:
            progress: with `step` = index of the optimiser step that was just taken.

        Returns:
            The momentum that was used.
        """
        momentum = self.teacher_momentum(progress)
        for teacher, student in (
            (self.teacher_backbone, self.backbone),
            (self.teacher_projector, self.projector),
        ):
            torch._foreach_lerp_(
                list(teacher.parameters()), list(student.parameters()), 1 - momentum
            )
        return momentum


def mlp(
    dims: list[int],
    *,
    batch_norm: bool = True,
    hidden_bias: bool = True,
    output_bias: bool = True,
    activation: type[nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Linear [BatchNorm1d] activation … Linear, from dims[0] to dims[-1] features."""
    layers: list[nn.Module] = []
    for n_in, n_out in zip(dims[:-2], dims[1:-1], strict=True):
        layers.append(nn.Linear(n_in, n_out, bias=hidden_bias))
        if batch_norm:
            layers.append(nn.BatchNorm1d(n_out))
        layers.append(activation())
    layers.append(nn.Linear(dims[-2], dims[-1], bias=output_bias))
    return nn.Sequential(*layers)

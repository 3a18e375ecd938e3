"""An adapted method used like any method of solo-learn, without our configuration."""

from __future__ import annotations

from argparse import ArgumentParser

import pytest
import torch

from solo_minent import host
from solo_minent.errors import UserError


def check_fit(module, loaders, trainer):
    fit = trainer(1)
    fit.fit(module, *loaders())
    assert fit.global_step == 2
    assert torch.isfinite(fit.callback_metrics["train_tiny_loss"])
    assert fit.callback_metrics["val_acc5"] == 100
    assert host.backbone_state(module.state_dict()).keys() == module.backbone.state_dict().keys()


if host.HOST == "wheel":
    BASE = ["--optimizer=sgd", "--encoder=resnet18", "--scheduler=cosine", "--batch_size=8"]

    def parse(method, *arguments):
        parser = method.add_model_specific_args(ArgumentParser())
        return vars(parser.parse_args([*BASE, *arguments]))

    def test_command_line_arguments(tiny, solo_method, loaders, trainer):
        from solo.methods import METHODS

        args = parse(METHODS["tiny"], "--widths", "3", "5", "--flip", "--weight=2", "--note=a b")
        fields = tiny.Params.__dataclass_fields__
        given = {name: args[name] for name in fields}
        assert tiny.Params(**given) == tiny.Params(4, [3, 5], 2.0, True, "a b")
        module = solo_method("tiny", **given)
        assert module.params == tiny.Params(**given)
        check_fit(module, loaders, trainer)

    def test_defaults_of_the_command_line_are_those_of_params(tiny):
        from solo.methods import METHODS

        args = parse(METHODS["tiny"])
        expected = tiny.Params()
        assert {name: args[name] for name in vars(expected)} == vars(expected)
        assert parse(METHODS["tiny"], "--no-flip")["flip"] is False

    def test_wrong_value(tiny, solo_method):
        with pytest.raises(UserError, match="method_kwargs of tiny has a wrong value"):
            solo_method("tiny", dim="many")


if host.HOST == "source":

    def test_cfg(tiny, solo_method, loaders, trainer):
        module = solo_method("tiny", widths=[3, 5], note="a b")
        assert module.params == tiny.Params(widths=[3, 5], note="a b")
        assert module.cfg.method_kwargs.base_momentum == 0.9  # a default, filled in
        check_fit(module, loaders, trainer)

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"dimm": 3}, "method_kwargs of tiny has an unknown key: dimm. It takes dim, widths"),
            ({"dim": "many"}, "method_kwargs of tiny has a wrong value"),
        ],
    )
    def test_wrong_cfg(tiny, solo_method, kwargs, message):
        with pytest.raises(UserError, match=message):
            solo_method("tiny", **kwargs)

"""What several test files share."""

import pytest
import torch

from solo_minent.config import load_recipe
from solo_minent.schema import RunConfig

# Seconds instead of minutes: a few digits, a narrow network, one worker-less loader.
TINY = [
    "max_epochs=2",
    "data.num_workers=0",
    "data.train_images=160",
    "data.val_images=80",
    "optimizer.batch_size=32",
    "backbone.kwargs.channels=[8,16,16,16]",
    "evaluation.linear.max_epochs=5",
    "accelerator=cpu",
]
TINY_METHODS = {  # where the defaults of a method are too wide for a test
    "minent": ["method_kwargs.heads=[16,8]", "method_kwargs.hidden_dim=32"],
    "mec": ["method_kwargs.hidden_dim=32", "method_kwargs.output_dim=32"],
    "twist": [
        "method_kwargs.hidden_dim=32",
        "method_kwargs.output_dim=16",
        "method_kwargs.bunch_size=32",
    ],
    "corinfomax": ["method_kwargs.hidden_dim=32", "method_kwargs.output_dim=16"],
}


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Small tensors: threads cost more than they bring."""
    torch.set_num_threads(1)


@pytest.fixture
def tiny_run(tmp_path):
    """`tiny_run("mec", "max_epochs=1")`: a run of seconds that writes below tmp_path."""

    def make(method: str, *overrides: str) -> RunConfig:
        output = f"output_dir={tmp_path / 'runs'}"
        return load_recipe(
            f"digits/{method}", [*TINY, *TINY_METHODS.get(method, []), output, *overrides]
        )

    return make

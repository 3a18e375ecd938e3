"""The table of transfer sets: the field's metrics, whole sets, hints that can be typed."""

from __future__ import annotations

import pytest
from torchvision import datasets

from solo_minent.data.transfer_known import KNOWN, TRANSFER_SETS
from solo_minent.data.transfer_sets import transfer_set
from solo_minent.errors import UserError


def test_the_metrics_of_the_field():
    by_metric = {name: known.metric for name, known in KNOWN.items()}
    per_class = {name for name, metric in by_metric.items() if metric == "mean_per_class"}
    assert per_class == {"aircraft", "pets", "caltech101", "flowers102"}
    assert [name for name, metric in by_metric.items() if metric == "map11"] == ["voc2007"]


def test_the_published_sizes_are_those_of_whole_sets():
    sizes = {name: known.sizes for name, known in KNOWN.items()}
    assert sum(sizes["dtd"].values()) == 47 * 120
    assert sizes["food101"] == {"train": 101 * 750, "test": 101 * 250}
    assert sizes["flowers102"]["train"] == sizes["flowers102"]["val"] == 102 * 10
    assert sizes["sun397"]["train"] == sizes["sun397"]["test"] == 397 * 50
    assert sum(sizes["aircraft"].values()) == 100 * 100
    assert sizes["voc2007"]["train"] + sizes["voc2007"]["val"] == 5011


def test_how_to_get_a_set(tmp_path):
    with pytest.raises(UserError) as error:
        transfer_set("voc2007", tmp_path)
    command = str(error.value).partition('python -c "')[2].rpartition('"')[0]
    compile(command, "<hint>", "exec")
    assert "image_set='trainval'" in command and "image_set='test'" in command
    for dataset in TRANSFER_SETS:
        with pytest.raises(UserError, match=f"{dataset} not found") as error:
            transfer_set(dataset, tmp_path)
        kind = KNOWN[dataset].kind
        assert hasattr(datasets, kind)
        if dataset == "cars":
            assert "cannot download it any more" in str(error.value)
        else:
            assert f"{kind}('{tmp_path}', " in str(error.value)
    assert list(tmp_path.iterdir()) == [], "looking makes no folders"

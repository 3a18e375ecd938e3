"""What the repository ships: each file's hash, and what a model reaches, measured again."""

import json
from pathlib import Path

from solo_minent.files import sha256
from solo_minent.zoo.index import files_of, read_index

ZOO = Path(__file__).parents[2] / "zoo"


def test_every_file_of_the_repository_has_its_hash():
    shipped = 0
    for _, file in files_of(read_index(ZOO)):
        for place in (ZOO / url for url in file.urls if "://" not in url):
            assert (place.stat().st_size, sha256(place)) == (file.bytes, file.sha256), place
            shipped += 1
    assert shipped == sum(path.is_file() for path in (ZOO / "checkpoints").glob("*"))


def test_models_of_digits_reach_their_stated_accuracy(command, tmp_path):
    """On data that comes with scikit-learn; for CIFAR-10's, zoo/README.md has the commands."""

    for entry in (entry for entry in read_index(ZOO) if entry.dataset == "digits"):
        stated = [metric for metric in entry.metrics if metric.evaluation == "knn"]
        folder = tmp_path / entry.id
        words = ["--recipe", ZOO / str(entry.config), "--target", entry.id]
        words += [f"folder={folder}", "accelerator=cpu", "data.num_workers=0"]
        assert command("knn", *words)[0] == 0
        (result,) = json.loads((folder / "results.json").read_text())
        assert result["checkpoint_sha256"] == entry.file.sha256
        (same,) = [metric for metric in stated if metric.protocol == result["protocol"]]
        # float32 on another processor may order two equally near neighbours otherwise.
        assert abs(result["top1"] - same.top1) <= 0.3, entry.id

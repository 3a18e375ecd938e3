"""SimCLR's lists of ImageNet's training images for semi-supervised evaluation (Apache-2.0)."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from solo_minent.errors import UserError
from solo_minent.files import sha256
from solo_minent.prepare.archives import Archive, Job, fetch

# github.com/google-research/simclr: 12,811 and 128,116 file names, one a line.
COMMIT = "383d4143fd8cf7879ae10f1046a9baeb753ff438"
PLACE = f"https://raw.githubusercontent.com/google-research/simclr/{COMMIT}/imagenet_subsets"
LISTS = {
    "1percent.txt": Archive(
        f"{PLACE}/1percent.txt", "1percent.txt", "b61c91b8ddb75fabdb02a9bb2ae3bd74", 260_323, 0
    ),
    "10percent.txt": Archive(
        f"{PLACE}/10percent.txt", "10percent.txt", "b0d861160cc9531910d069ff547fc1b6", 2_603_168, 0
    ),
}
SHA256 = {
    "1percent.txt": "71e82a48ba78252683ae334c4d019ebd5c6e855b9599c1389fbe83eb9549cf17",
    "10percent.txt": "6d09de11e7bdaf5b1f3b1f249b6183695f97310cdd20f0c03e7235b6b9392091",
}


def prepare_lists(job: Job) -> list[Path]:
    """Downloads the lists into the root unless they are there; both are checked.

    Returns:
        Files for `data.file_list`.

    Raises:
        UserError: a list is damaged or cannot be had.
    """
    found = []
    for name, archive in LISTS.items():
        # What --from names holds the images.
        path = fetch(replace(job, source=None), archive)
        if sha256(path) != SHA256[name]:
            if path != job.root / name:
                path.unlink()
            raise UserError(
                f"file list is damaged: {path}. Its SHA-256 must be {SHA256[name]}. Remove it and "
                f"run again: {job.again}"
            )
        if path != job.root / name:
            os.replace(path, job.root / name)
        found.append(job.root / name)
    return found

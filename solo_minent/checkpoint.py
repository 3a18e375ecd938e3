"""Files of a run: written whole or not at all (`solo_minent.weights` reads weights)."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solo_minent.errors import UserError
from solo_minent.files import locked, write_bytes, write_json
from solo_minent.weight_files import safetensors_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from solo_minent.schema import DataConfig, RunConfig

BACKBONE_FILE = "backbone.safetensors"
CHECKPOINT_FILE = Path("checkpoints/last.ckpt")
RESULTS_FILE = "results.json"


def save_backbone(path: Path, state: dict[str, Tensor], config: RunConfig) -> None:
    """Exports backbone weights as safetensors, with what is needed to build the backbone again.

    Args:
        path: `.safetensors` file.
        state: the backbone's state dict, without prefix.
        config: the run; its backbone and data settings go into the file's metadata.
    """
    metadata = {
        "format": "solo_minent backbone 1",
        "method": config.method,
        "backbone": json.dumps(asdict(config.backbone)),
        "data": json.dumps(asdict(config.data)),
    }
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    # As bytes: safetensors' own writer makes a second temporary file, which a kill would leave.
    write_bytes(path, safetensors_bytes(tensors, metadata))


def exported_data(path: Path) -> DataConfig | None:
    """The data settings in a file of `save_backbone`; None of any other file."""
    from safetensors import SafetensorError, safe_open

    from solo_minent.schema import DataConfig

    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, "pt") as file:
            return DataConfig(**json.loads((file.metadata() or {})["data"]))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def read_results(run_dir: Path) -> list[dict[str, Any]]:
    """The results in the folder's `results.json`; none if there is no such file.

    Raises:
        UserError: the file is no list of results.
    """
    path = run_dir / RESULTS_FILE
    if not path.is_file():
        return []
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # JSON of thousands of brackets
        results = error
    if not isinstance(results, list) or not all(isinstance(r, dict) for r in results):
        found = results if isinstance(results, Exception) else type(results).__name__
        raise UserError(
            f"results are damaged: {path} ({found}). A JSON list of results was expected. "
            f"Restore the file, or start a new one: mv {path} {path}.damaged"
        )
    return results


def add_result(run_dir: Path, result: dict[str, Any]) -> None:
    """Adds one result to the folder's `results.json`.

    It replaces one of the same target, evaluation, data set, protocol, seed, split sizes, image
    size and normalisation.
    Processes that add at the same time wait for each other.

    Raises:
        UserError: the file that is there is no list of results.
    """
    same = {"target", "evaluation", "dataset", "root", "protocol", "seed"}
    same |= {"image_size", "normalization"}
    same |= {key for key in result if key.endswith("_images")}
    run_dir.mkdir(parents=True, exist_ok=True)
    with locked(run_dir / f".{RESULTS_FILE}.lock"):
        others = [
            r for r in read_results(run_dir) if any(r.get(key) != result.get(key) for key in same)
        ]
        write_json(run_dir / RESULTS_FILE, [*others, result])

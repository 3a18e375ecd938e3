"""Files of a run: written whole or not at all (`solo_minent.weights` reads weights)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solo_minent.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from solo_minent.schema import DataConfig, RunConfig

BACKBONE_FILE = "backbone.safetensors"
CHECKPOINT_FILE = Path("checkpoints/last.ckpt")
RESULTS_FILE = "results.json"


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Has `write` fill a temporary file next to `path`, makes it durable and renames it.

    Args:
        path: final name; its folder is made.
        write: called with the temporary path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        # safetensors leaves its files to the owner alone; a run folder is shared like any other.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    # A file name that is no UTF-8 keeps its bytes.
    data = text.encode("utf-8", "surrogateescape")
    write_atomic(path, lambda temporary: temporary.write_bytes(data))


def write_json(path: Path, value: Any) -> None:
    """Writes JSON whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def sha256(path: Path) -> str:
    """Hex digest of a file, read piece by piece."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            found.update(piece)
    return found.hexdigest()


def save_backbone(path: Path, state: dict[str, Tensor], config: RunConfig) -> None:
    """Exports backbone weights as safetensors, with what is needed to build the backbone again.

    Args:
        path: `.safetensors` file.
        state: the backbone's state dict, without prefix.
        config: the run; its backbone and data settings go into the file's metadata.
    """
    from safetensors.torch import save_file

    metadata = {
        "format": "solo_minent backbone 1",
        "method": config.method,
        "backbone": json.dumps(asdict(config.backbone)),
        "data": json.dumps(asdict(config.data)),
    }
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata))


def exported_data(path: Path) -> DataConfig | None:
    """The data settings in a file of `save_backbone`; None of any other file."""
    from safetensors import SafetensorError, safe_open

    from solo_minent.schema import DataConfig

    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, "pt") as file:
            return DataConfig(**json.loads((file.metadata() or {})["data"]))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
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
    except ValueError as error:
        results = error
    if not isinstance(results, list) or not all(isinstance(r, dict) for r in results):
        found = results if isinstance(results, ValueError) else type(results).__name__
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
    with _locked(run_dir / f".{RESULTS_FILE}.lock"):
        others = [
            r for r in read_results(run_dir) if any(r.get(key) != result.get(key) for key in same)
        ]
        write_json(run_dir / RESULTS_FILE, [*others, result])


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a file that one process at a time can hold, on systems that have such locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

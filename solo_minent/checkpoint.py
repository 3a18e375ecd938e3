"""Files of a run: written whole or not at all, loaded strictly and without pickle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solo_minent.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from solo_minent.schema import RunConfig

BACKBONE_FILE = "backbone.safetensors"
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
    """Hex digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


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


def load_backbone(path: Path, backbone: nn.Module) -> str:
    """Loads exported weights into a backbone, all of them or none.

    Args:
        path: file that `save_backbone` wrote.
        backbone: module of the same architecture.

    Returns:
        A line such as `loaded 122/122 tensors`.

    Raises:
        UserError: no file, not a safetensors file, or names or shapes that differ.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(
            f"backbone weights are missing: {path}. A finished run folder holds {BACKBONE_FILE}. "
            "Finish the run by starting solo-minent pretrain again with the same arguments."
        )
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise UserError(
            f"backbone weights are damaged: {path} ({error}). A safetensors file was expected. "
            "Download or export the file again."
        ) from error
    own = backbone.state_dict()
    wrong = sorted(
        key
        for key in own.keys() | state.keys()
        if key not in own or key not in state or own[key].shape != state[key].shape
    )
    if wrong:
        raise UserError(
            f"backbone weights do not fit: {path}, {len(wrong)} of {len(own)} tensors differ in "
            f"name or shape, first {wrong[0]}. The architecture must be the one that was trained. "
            "Set backbone.name, backbone.stem and backbone.kwargs as in the run's config.yaml."
        )
    backbone.load_state_dict(state)
    return f"loaded {len(state)}/{len(own)} tensors"


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
    """Adds one result to the folder's `results.json`; the same protocol and target is replaced.

    Raises:
        UserError: the file that is there is no list of results.
    """
    same = ("target", "protocol")
    results = [
        r for r in read_results(run_dir) if any(r.get(key) != result.get(key) for key in same)
    ]
    write_json(run_dir / RESULTS_FILE, [*results, result])

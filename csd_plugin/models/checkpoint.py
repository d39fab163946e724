"""Checkpoint files: complete under their name, or not there."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def save_atomically(content: Mapping[str, Any], path: Path) -> None:
    """Write with torch.save beside `path`, then rename. What was there stays until the new file is complete.

    Raises:
        OSError, RuntimeError: the file cannot be written; nothing is left of it.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def cpu_state(network: nn.Module) -> dict[str, Tensor]:
    """The state dict of a network as independent tensors on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}

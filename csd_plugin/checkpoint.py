"""Checkpoint files: complete under their name, or not there."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from csd_plugin.errors import OptionError

_STATE_FILE = re.compile(r"(\d+)\.state")


def save_atomically(content: Mapping[str, Any], path: Path) -> None:
    """Write with torch.save beside `path`, then rename. What was there stays until the new file is complete.

    Raises:
        OSError, RuntimeError: the file cannot be written; nothing is left of it.
    """
    with _complete_or_absent(path) as file:
        torch.save(dict(content), file)


def write_atomically(data: bytes, path: Path) -> None:
    """As `save_atomically`, for bytes.

    Raises:
        OSError: the file cannot be written; nothing is left of it.
    """
    with _complete_or_absent(path) as file:
        file.write(data)


@contextmanager
def _complete_or_absent(path: Path) -> Iterator[BinaryIO]:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_mapping(path: str | os.PathLike[str], option: str) -> Mapping[str, Any]:
    """Read a file of torch.save onto the CPU; nothing in it is executed.

    Args:
        path: the file.
        option: option path that names the file, quoted in errors.

    Raises:
        OptionError: the file is missing, damaged, holds anything but tensors and plain values, or no mapping.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else "no file of PyTorch weights"
        raise OptionError(f"{path}: {reason} ({type(error).__name__}) (option {option})") from error
    if not isinstance(content, Mapping):
        raise OptionError(f"{path}: expected a mapping, got {type(content).__name__} (option {option})")
    return content


def newest_state(states: Path, models: Path) -> str | None:
    """Path of the newest training state `<iter>.state` that has its network file `net_g_<iter>.pth`.

    Args:
        states: folder of training states; it need not exist.
        models: folder of network files.
    """
    names = os.listdir(states) if states.is_dir() else []
    found = [int(match[1]) for name in names if (match := _STATE_FILE.fullmatch(name))]
    complete = [iteration for iteration in found if (models / f"net_g_{iteration}.pth").is_file()]
    return str(states / f"{max(complete)}.state") if complete else None


def cpu_state(network: nn.Module) -> dict[str, Tensor]:
    """The state dict of a network as independent tensors on the CPU."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in network.state_dict().items()
    }

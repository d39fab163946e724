"""Files of a network that say which network it is: stock BasicSR's .pth, .safetensors and, in `onnx.py`, ONNX."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from csd_plugin.checkpoint import cpu_state, load_mapping, save_atomically, write_atomically
from csd_plugin.errors import OptionError
from csd_plugin.slicing.widths import build_backbone
from csd_plugin.version import __version__

_KEY = "csd_plugin"  # of the description in a .pth file, beside `params`; stock BasicSR does not look at it


@dataclass(frozen=True)
class Description:
    """What a file says of its network.

    Attributes:
        network_g: the block of an option file for stock BasicSR.
        scale: upsampling factor.
        width: channels of this network over its teacher's.
        trained_by: name of the training option file, or what else it comes from.
    """

    network_g: Mapping[str, Any]
    scale: int
    width: float
    trained_by: str

    def to_strings(self) -> dict[str, str]:
        """As the metadata of a file, which are strings."""
        return {
            "architecture": str(self.network_g["type"]),
            "network_g": json.dumps(self.network_g),
            "scale": str(self.scale),
            "width": f"{self.width:g}",
            "trained_by": self.trained_by,
            "csd_plugin": __version__,
        }

    @classmethod
    def from_strings(cls, strings: Mapping[str, str]) -> "Description":
        """From the metadata of a file.

        Raises:
            KeyError, ValueError: they are not of this kind.
        """
        return cls(
            json.loads(strings["network_g"]), int(strings["scale"]), float(strings["width"]), strings["trained_by"]
        )


def save_pth(network: nn.Module, description: Description, path: Path) -> None:
    """A file for stock BasicSR, with the description beside `params`."""
    save_atomically({"params": cpu_state(network), _KEY: description.to_strings()}, path)


def save_safetensors(network: nn.Module, description: Description, path: Path) -> None:
    """A file that cannot hold code, with the description as its metadata."""
    data = safetensors.torch.save(cpu_state(network), {"format": "pt", **description.to_strings()})
    write_atomically(data, path)


def load_network(path: Path, network_g: Mapping[str, Any] | None = None) -> tuple[nn.Module, Description]:
    """The network of a .pth or .safetensors file, in evaluation mode on the CPU.

    Args:
        path: a file of `basicsr export`, or any .pth file of BasicSR if `network_g` says what it is of.
        network_g: block of an option file; None takes the file's own description.

    Raises:
        OptionError: no such file, not of this kind, without a description, or of another network.
    """
    reader = {".pth": _read_pth, ".safetensors": _read_safetensors}.get(path.suffix)
    if reader is None:
        raise OptionError(f"expected a .pth, .safetensors or .onnx file, got {path}")
    if not path.is_file():
        raise OptionError(f"no such file: {path}")
    state, strings = reader(path)
    if network_g is None:
        try:
            description = Description.from_strings(strings)
        except (KeyError, ValueError):
            raise OptionError(
                f"{path} does not say which network it is: name an option file with its network_g (option --network)"
            ) from None
    else:
        description = Description(dict(network_g), 0, 1.0, path.name)
    network = build_backbone(description.network_g).eval()
    try:
        network.load_state_dict({name.removeprefix("module."): tensor for name, tensor in state.items()})
    except RuntimeError as error:
        reason = " ".join(str(error).split(":", 1)[-1].split())[:160]
        raise OptionError(f"{path} does not fit {description.network_g['type']}: {reason}") from None
    return network, description


def _read_pth(path: Path) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    content = load_mapping(path, "--model")
    state = content.get("params_ema", content.get("params"))
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise OptionError(f"{path} holds no weights under 'params' or 'params_ema'")
    strings = content.get(_KEY)
    return state, strings if isinstance(strings, Mapping) else {}


def _read_safetensors(path: Path) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise OptionError(f"{path}: no safetensors file ({' '.join(str(error).split())[:120]})") from None


Saver = Callable[[nn.Module, Description, Path], None]

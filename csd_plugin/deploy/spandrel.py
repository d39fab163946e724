"""Files for spandrel, which chaiNNer and ComfyUI read models with: it finds out the network from the names of weights.

It reads BasicSR's RRDBNet (growth width 32 only) and SRVGGNetCompact as they are, and RCAN under the names of its
authors. It knows no EDSR or MSRResNet.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from csd_plugin.checkpoint import cpu_state, write_atomically
from csd_plugin.deploy.formats import Description
from csd_plugin.errors import OptionError
from csd_plugin.slicing.widths import backbone_options

_DIV2K_MEAN = (0.4488, 0.4371, 0.4040)
_RCAN_BLOCKS = (
    (r"body\.(\d+)\.residual_group\.(\d+)\.rcab\.([02])\.(\w+)", r"body.\1.body.\2.body.\3.\4"),
    (r"body\.(\d+)\.residual_group\.(\d+)\.rcab\.3\.attention\.1\.(\w+)", r"body.\1.body.\2.body.3.conv_du.0.\3"),
    (r"body\.(\d+)\.residual_group\.(\d+)\.rcab\.3\.attention\.3\.(\w+)", r"body.\1.body.\2.body.3.conv_du.2.\3"),
    (r"upsample\.(.+)", r"tail.0.\1"),
    (r"conv_first\.(\w+)", r"head.0.\1"),
    (r"conv_last\.(\w+)", r"tail.1.\1"),
)


def save_for_spandrel(network: nn.Module, description: Description, path: Path) -> None:
    """Write a .safetensors file that spandrel recognises.

    Raises:
        OptionError: spandrel does not know the network, or not with these arguments.
    """
    state = spandrel_state(backbone_options(description.network_g), cpu_state(network))
    write_atomically(safetensors.torch.save(state, {"format": "pt", **description.to_strings()}), path)


def spandrel_state(options: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names that spandrel looks for.

    Args:
        options: complete options of the stock network.
        state: its weights.

    Raises:
        OptionError: spandrel does not know the network, or not with these arguments.
    """
    kind = options["type"]
    if kind == "SRVGGNetCompact":
        return dict(state)
    if kind == "RRDBNet":
        _demand(options, num_grow_ch=32)
        return dict(state)
    if kind == "RCAN":
        _demand(options, num_in_ch=3, num_out_ch=3, res_scale=1, img_range=255, rgb_mean=_DIV2K_MEAN)
        return _rcan_state(options, state)
    raise OptionError(f"spandrel does not know {kind}, only RCAN, RRDBNet and SRVGGNetCompact (option --format)")


def _demand(options: Mapping[str, Any], **needed: Any) -> None:
    """Refuse arguments that spandrel cannot see in the weights and takes to be others."""
    for key, value in needed.items():
        given = tuple(options[key]) if isinstance(value, tuple) else options[key]
        if given != value:
            raise OptionError(
                f"spandrel takes {options['type']} to have {key} {value}, it has {given} (option --format)"
            )


def _rcan_state(options: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renames = (
        *_RCAN_BLOCKS,
        (r"body\.(\d+)\.conv\.(\w+)", rf"body.\1.body.{options['num_block']}.\2"),
        (r"conv_after_body\.(\w+)", rf"body.{options['num_group']}.\1"),
    )
    renamed = {}
    for name, tensor in state.items():
        pattern, target = next((p, t) for p, t in renames if re.fullmatch(p, name))
        renamed[re.sub(pattern, target, name)] = tensor
    mean = options["img_range"] * torch.tensor(options["rgb_mean"])
    for part, sign in (("sub_mean", -1), ("add_mean", 1)):
        renamed[f"{part}.weight"], renamed[f"{part}.bias"] = torch.eye(3).view(3, 3, 1, 1).clone(), sign * mean
    return renamed

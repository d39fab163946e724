"""Geometric self-ensemble (Lim et al., CVPRW 2017, section 4.2): the "+" of EDSR+."""

from collections.abc import Callable

import torch
from torch import Tensor


def self_ensemble(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Mean of the outputs for the 8 flips and rotations of the input, each turned back.

    Args:
        network: from (B, C, H, W) to (B, C, scale * H, scale * W).
        x: images (B, C, H, W).

    Returns:
        Images (B, C, scale * H, scale * W).
    """
    outputs = []
    for quarter_turns in range(4):
        for flipped in (False, True):
            turned = torch.rot90(x.flip(-1) if flipped else x, quarter_turns, (-2, -1))
            output = torch.rot90(network(turned.contiguous()), -quarter_turns, (-2, -1))
            outputs.append(output.flip(-1) if flipped else output)
    return torch.stack(outputs).mean(0)

"""Running a network on whole images: self-ensemble and padding."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def self_ensemble(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Geometric self-ensemble (Lim et al., CVPRW 2017, section 4.2), the "+" of EDSR+.

    It is the mean of the outputs for the 8 flips and rotations of the input, each turned back.

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


def run_padded(network: Callable[[Tensor], Tensor], multiple: int, x: Tensor) -> Tensor:
    """Run on an input mirrored to a multiple of an attention window, as SwinIR needs, and cut the output back.

    Args:
        network: from (B, C, H, W) to (B, C, scale * H, scale * W), or the same for clips.
        multiple: what height and width must be a multiple of; an input that has it is left as it is.
        x: images (B, C, H, W) or clips (B, T, C, H, W).

    Returns:
        Images (B, C, scale * H, scale * W), or what the network gives for clips.
    """
    height, width = x.shape[-2:]
    below, right = -height % multiple, -width % multiple
    if below == right == 0:
        return network(x)
    padded = F.pad(x.flatten(0, -4), (0, right, 0, below), mode="reflect").unflatten(0, x.shape[:-3])
    output = network(padded)
    scale = output.shape[-1] // padded.shape[-1]
    return output[..., : height * scale, : width * scale]

"""CARN: cascading residual network (Ahn et al., ECCV 2018), the third network of the CSD paper."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from csd_plugin.errors import OptionError


class CARN(nn.Module):
    """Fast, accurate, lightweight super-resolution by cascading (Ahn et al., section 3).

    Every cascade, of residual blocks inside a block and of the blocks themselves, merges all features so far by a 1x1
    convolution. This is the form for one scale; the published network shares its body between the upsamplers of x2, x3
    and x4.

    Args:
        num_in_ch: channels of the input.
        num_out_ch: channels of the output.
        num_feat: channels of the features.
        num_block: cascading blocks.
        num_residual: residual blocks in each.
        upscale: 3 or a power of 2.
        rgb_mean: taken from the input and added to the output, in 0..1.

    Raises:
        OptionError: another upscale, or as many means as there are no channels.
    """

    mean: Tensor

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 64,
        num_block: int = 3,
        num_residual: int = 3,
        upscale: int = 4,
        rgb_mean: Sequence[float] = (0.4488, 0.4371, 0.4040),
    ) -> None:
        super().__init__()
        if upscale != 3 and (upscale < 1 or upscale & (upscale - 1)):
            raise OptionError(f"expected 3 or a power of 2, got {upscale} (option network_g:backbone:upscale)")
        if not len(rgb_mean) == num_in_ch == num_out_ch:
            raise OptionError(f"expected a mean for each channel, got {rgb_mean} (option network_g:backbone:rgb_mean)")
        self.register_buffer("mean", torch.tensor(rgb_mean).view(1, -1, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, padding=1)
        self.body = _Cascade(num_feat, [_CascadingBlock(num_feat, num_residual) for _ in range(num_block)])
        steps = [3] if upscale == 3 else [2] * int(math.log2(upscale))
        self.upsample = nn.Sequential(*(_UpsampleStep(num_feat, step) for step in steps))
        self.conv_last = nn.Conv2d(num_feat, num_out_ch, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolve images (B, C, H, W) in 0..1 to (B, C, upscale * H, upscale * W)."""
        features = self.body(self.conv_first(x - self.mean))
        return self.conv_last(self.upsample(features)) + self.mean


class _Cascade(nn.Module):
    """Stages in a row; after each, a 1x1 convolution merges the input and the outputs of all stages so far."""

    def __init__(self, num_feat: int, stages: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.merges = nn.ModuleList(nn.Conv2d(num_feat * (i + 2), num_feat, 1) for i in range(len(stages)))

    def forward(self, x: Tensor) -> Tensor:
        collected = merged = x
        for stage, merge in zip(self.stages, self.merges, strict=True):
            collected = torch.cat([collected, stage(merged)], dim=1)
            merged = F.relu(merge(collected))
        return merged


class _CascadingBlock(_Cascade):
    def __init__(self, num_feat: int, num_residual: int) -> None:
        super().__init__(num_feat, [_ResidualBlock(num_feat) for _ in range(num_residual)])


class _ResidualBlock(nn.Module):
    def __init__(self, num_feat: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.conv2 = nn.Conv2d(num_feat, num_feat, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + x)


class _UpsampleStep(nn.Module):
    def __init__(self, num_feat: int, factor: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(num_feat, num_feat * factor**2, 3, padding=1)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(F.relu(self.conv(x)), self.factor)

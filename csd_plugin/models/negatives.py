"""The negatives of the contrast: bicubically enlarged LR patches of other images (the paper, section 3.2)."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from csd_plugin.config.schema import NegativesOptions


@dataclass(frozen=True)
class Negatives:
    """Negatives shared by the anchors of a batch.

    Attributes:
        images: (N, 3, H, W) in 0..1.
        pair_weights: (B, N); each row sums to K and is zero at the anchor's own image.
    """

    images: Tensor
    pair_weights: Tensor


class NegativeSampler:
    """Draws K negatives for every anchor of the batch, never the anchor's own image.

    All ranks draw from the joined batch and draw the same, so several ranks give what one rank gives on the joined
    batch. A draw depends on the seed and the iteration alone, which keeps resumed runs in step.

    Args:
        options: number and source of the negatives.
        scale: upsampling factor.
        seed: the run's seed.
    """

    def __init__(self, options: NegativesOptions, scale: int, seed: int) -> None:
        self.options = options
        self.scale = scale
        self.seed = seed
        self.pool: Tensor | None = None

    @torch.no_grad()
    def sample(self, lq: Tensor, current_iter: int) -> Negatives | None:
        """Negatives for a batch; the pool then takes the batch in.

        As long as the pool holds fewer than K others, what there is counts for K, so that the scale of the loss stays.

        Args:
            lq: this rank's LR patches (B, C, h, w) in 0..1.
            current_iter: iteration, from 1.

        Returns:
            Enlarged patches (N, C, scale * h, scale * w) and weights (B, N), or None when there is no other image.
        """
        rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        batch = _join_ranks(lq)
        candidates = batch if self.pool is None else torch.cat([batch, self.pool.to(lq)])
        wanted = min(self.options.num + 1, len(candidates))
        if self.options.source == "pool":
            self.pool = torch.cat([batch, *([] if self.pool is None else [self.pool.to(lq)])])[: self.options.pool_size]
        if self.options.num == 0 or wanted < 2:
            return None
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + current_iter)
        chosen = torch.randperm(len(candidates), generator=generator)[:wanted]
        weights = _all_but_own(chosen, len(batch), self.options.num, generator)
        enlarged = F.interpolate(
            candidates[chosen.to(lq.device)], scale_factor=self.scale, mode="bicubic", antialias=True
        )
        return Negatives(enlarged.clamp_(0, 1), weights[rank::world_size].to(lq))


def _all_but_own(chosen: Tensor, anchors: int, num: int, generator: torch.Generator) -> Tensor:
    """(anchors, N) weights that leave out one candidate a row: the anchor itself, else one at random."""
    left_out = torch.randint(len(chosen), (anchors,), generator=generator)
    own = chosen[None, :] == torch.arange(anchors)[:, None]
    left_out = torch.where(own.any(1), own.float().argmax(1), left_out)
    weights = torch.full((anchors, len(chosen)), num / (len(chosen) - 1))
    weights[torch.arange(anchors), left_out] = 0
    return weights


def _join_ranks(lq: Tensor) -> Tensor:
    """The batches of all ranks, interleaved as BasicSR's sampler deals them out."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return lq
    parts = [torch.empty_like(lq) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, lq.contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1)

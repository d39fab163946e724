"""The negatives of the contrast: bicubically enlarged LR patches of other images (the paper, section 3.2)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from csd_plugin.config.schema import NegativesOptions

_BLUR_SIGMA, _NOISE_SIGMA = 1.5, 10 / 255  # LR pixels; of values in 0..1


@dataclass(frozen=True)
class Negatives:
    """Negatives shared by the anchors of a batch.

    Attributes:
        images: (N, 3, H, W) in 0..1.
        pair_weights: (B, N); each row sums to K and is zero at the anchor's own image and the others of its clip.
        features: of the images by layer, if they have been computed.
    """

    images: Tensor
    pair_weights: Tensor
    features: Mapping[str, Tensor] | None = None

    def rows(self, start: int, stop: int) -> "Negatives":
        """The same negatives for some of the anchors."""
        return replace(self, pair_weights=self.pair_weights[start:stop])


def generator_for(seed: int, current_iter: int) -> torch.Generator:
    """Random numbers by the run's seed and the iteration alone, so that all ranks and resumed runs agree."""
    return torch.Generator().manual_seed(seed * 1_000_003 + current_iter)


class NegativeSampler:
    """Draws K negatives for every anchor of the batch, never the anchor's own image or a frame of its own clip.

    All ranks draw from the joined batch and draw the same, so several ranks give what one rank gives on the joined
    batch. A draw depends on the seed and the iteration alone, which keeps resumed runs in step.

    Args:
        options: number and source of the negatives.
        scale: upsampling factor.
        seed: the run's seed.
        history: super-resolves LR patches as the student did earlier (kind history).
    """

    def __init__(
        self, options: NegativesOptions, scale: int, seed: int, history: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.options = options
        self.scale = scale
        self.seed = seed
        self.history = history
        self.pool: Tensor | None = None

    @torch.no_grad()
    def sample(self, lq: Tensor, current_iter: int, per_clip: int = 1) -> Negatives | None:
        """Negatives for a batch; the pool then takes the batch in.

        From a pool of K or more patches they are drawn alone. Otherwise one more is drawn than needed (or as many as a
        clip has frames), because an anchor's own image may be among them.

        As long as there are fewer than K others, what there is counts for K, so that the scale of the loss stays.

        Args:
            lq: this rank's LR patches (B, C, h, w) in 0..1.
            current_iter: iteration, from 1.
            per_clip: how many patches in a row are frames of the same clip.

        Returns:
            Enlarged patches (N, C, scale * h, scale * w) and weights (B, N), or None when there is no other image.
        """
        if self.options.num > 0 and self.options.source == "own":
            own_only = torch.eye(len(lq), device=lq.device) * self.options.num
            return Negatives(self._degraded(lq, generator_for(self.seed, current_iter)), own_only)
        rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        batch = _join_ranks(lq.unflatten(0, (-1, per_clip))).flatten(0, 1)
        earlier = None if self.pool is None else self.pool.to(lq)
        if self.options.source == "pool":
            self.pool = torch.cat([batch, *([] if earlier is None else [earlier])])[: self.options.pool_size]
        only_earlier = earlier is not None and len(earlier) >= self.options.num
        candidates = batch if earlier is None else earlier if only_earlier else torch.cat([batch, earlier])
        own = 0 if only_earlier else len(batch)
        if self.options.num == 0 or (own == len(candidates) == per_clip):
            return None
        generator = generator_for(self.seed, current_iter)
        wanted = self.options.num + (0 if only_earlier else per_clip)
        chosen = torch.randperm(len(candidates), generator=generator)[:wanted]
        clip = torch.arange(len(candidates)) // per_clip
        clip[own:] = -1  # the pool's are nobody's own
        weights = _k_others(torch.arange(len(batch)) // per_clip, clip[chosen], self.options.num, generator)
        images = self._degraded(candidates[chosen.to(lq.device)], generator)
        own_rank = weights.unflatten(0, (-1, per_clip))[rank::world_size].flatten(0, 1)
        return Negatives(images, own_rank.to(lq))

    def _degraded(self, lq: Tensor, generator: torch.Generator) -> Tensor:
        """LR patches (N, C, h, w) as negatives (N, C, scale * h, scale * w) of the kind asked for."""
        if self.history is not None:
            return self.history(lq).clamp(0, 1)
        if self.options.kind == "blurred":
            lq = gaussian_blur(lq, [7, 7], [_BLUR_SIGMA, _BLUR_SIGMA])
        elif self.options.kind == "noisy":
            lq = lq + _NOISE_SIGMA * torch.randn(lq.shape, generator=generator).to(lq)
        return F.interpolate(lq, scale_factor=self.scale, mode="bicubic", antialias=True).clamp_(0, 1)


def _k_others(anchors: Tensor, candidates: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """(anchors, candidates) weights that keep `num` candidates of other clips a row, or as many as there are."""
    others = anchors[:, None] != candidates[None, :]
    place = torch.rand(others.shape, generator=generator).masked_fill(~others, 2).argsort(1).argsort(1)
    kept = others & (place < num)
    return kept * (num / kept.sum(1, keepdim=True).clamp(min=1))


def _join_ranks(items: Tensor) -> Tensor:
    """The batches of all ranks, interleaved as BasicSR's sampler deals them out."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return items
    parts = [torch.empty_like(items) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, items.contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1)

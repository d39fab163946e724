"""The contrastive loss of CSD (Wang et al., IJCAI 2021, eq. 4 and 5)."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from csd_plugin.errors import OptionError
from csd_plugin.losses.vgg import VGGFeatures

Features = Mapping[str, Tensor]

LAYER_WEIGHTS: Mapping[str, float] = {
    "relu1_1": 1 / 32,
    "relu2_1": 1 / 16,
    "relu3_1": 1 / 8,
    "relu4_1": 1 / 4,
    "relu5_1": 1.0,
}
_EPS = 1e-7


class _L1ToNegatives(torch.autograd.Function):
    """sum_bk w[b, k] * mean|s[b] - n[k]|, with its gradient accumulated in the forward pass.

    Keeps one tensor of the size of the student's features for the backward pass instead of one for each negative.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, negatives: Tensor, pair_weights: Tensor) -> Tensor:
        total = student.new_zeros((), dtype=torch.float64 if student.dtype == torch.float64 else torch.float32)
        gradient = torch.zeros_like(student)
        difference = torch.empty_like(student)
        scale = 1 / student[0].numel()
        for negative, weights in zip(negatives, pair_weights.unbind(1), strict=True):
            torch.sub(student, negative, out=difference)
            distances = torch.linalg.vector_norm(difference, ord=1, dim=(1, 2, 3), dtype=total.dtype) * scale
            total += (distances * weights).sum()
            gradient.addcmul_(difference.sign_(), (weights * scale).to(student.dtype).view(-1, 1, 1, 1))
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output.to(gradient.dtype), None, None


def _l1(a: Tensor, b: Tensor) -> Tensor:
    return F.l1_loss(a, b)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return 1 - (F.normalize(a, dim=1) * F.normalize(b, dim=1)).sum(1).mean()


def _l1_to_negatives(student: Tensor, negatives: Tensor, pair_weights: Tensor) -> Tensor:
    return _L1ToNegatives.apply(student, negatives, pair_weights)


def _cosine_to_negatives(student: Tensor, negatives: Tensor, pair_weights: Tensor) -> Tensor:
    # The cosine is linear in the normalised negative, so the weighted sum over k comes before the product.
    directions = torch.einsum("bk,kchw->bchw", pair_weights.to(student.dtype), F.normalize(negatives, dim=1))
    pixels = student.shape[2] * student.shape[3]
    return pair_weights.sum() - (F.normalize(student, dim=1) * directions).sum() / pixels


_DISTANCES: Mapping[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "l1": (_l1, _l1_to_negatives),
    "cosine": (_cosine, _cosine_to_negatives),
}


def contrastive_loss(
    student: Features,
    positive: Features,
    negatives: Features | None,
    layer_weights: Mapping[str, float] = LAYER_WEIGHTS,
    pair_weights: Tensor | None = None,
    distance: Literal["l1", "cosine"] = "l1",
    synchronize: bool = False,
) -> Tensor:
    r"""Contrastive loss on features.

    .. math:: L_{CL} = \sum_j \lambda_j \frac{d(\phi_j(S), \phi_j(P))}{\sum_k d(\phi_j(S), \phi_j(N_k)) + 10^{-7}}

    with :math:`d` the mean over batch, channels and pixels of the absolute difference (`l1`), or of one minus the
    cosine over the channels (`cosine`). The ratio is one of batch means (Wang et al., IJCAI 2021, eq. 4, 5).

    Args:
        student: features (B, C, H, W) of the student's output by layer.
        positive: features (B, C, H, W) of what the student is pulled to.
        negatives: features (K, C, H, W) of what it is pushed from; they get no gradient. None or K = 0 leaves the
            numerator alone.
        layer_weights: :math:`\lambda_j` by layer.
        pair_weights: (B, K), how much negative k counts for anchor b; None counts every pair once.
        distance: `l1` or `cosine`.
        synchronize: take the batch means over all ranks of torch.distributed. The gradients averaged over the ranks,
            as DistributedDataParallel does, are then those of one rank on the joined batch.

    Returns:
        Scalar.
    """
    to_positive, to_negatives = _DISTANCES[distance]
    pulls = torch.stack([to_positive(student[name], positive[name]) for name in layer_weights])
    scale = torch.tensor(list(layer_weights.values()), dtype=pulls.dtype, device=pulls.device)
    if negatives is None or next(iter(negatives.values())).shape[0] == 0:
        return (scale * pulls).sum()
    reference = student[next(iter(layer_weights))]
    if pair_weights is None:
        pair_weights = reference.new_ones(reference.shape[0], next(iter(negatives.values())).shape[0])
    batch_mean = pair_weights.to(reference.dtype) / reference.shape[0]
    pushes = torch.stack([to_negatives(student[name], negatives[name].detach(), batch_mean) for name in layer_weights])
    if synchronize:
        pulls, pushes = _mean_over_ranks(torch.stack([pulls, pushes.to(pulls.dtype)]))
    return (scale * pulls / (pushes + _EPS)).sum()


def _mean_over_ranks(local: Tensor) -> Tensor:
    """Value: the mean over all ranks. Gradient: that of the local part, which DDP's averaging completes."""
    mean = local.detach().clone()
    dist.all_reduce(mean)
    mean /= dist.get_world_size()
    return local + (mean - local.detach())


class ContrastiveLoss(nn.Module):
    r"""`contrastive_loss` on the VGG-19 features of images.

    Args:
        loss_weight: :math:`\lambda_C`. The paper's 200 is for pixels in 0..255 and is 200 / 255 = 0.784 for 0..1.
        layer_weights: weight of each VGG-19 layer.
        vgg_weights: `imagenet`, `random` or a file, see `VGGFeatures`.
        input_norm: `imagenet` or `none`.
        input_range: what 1.0 becomes before the VGG; 255 with `input_norm: none` is the reference's input.
        distance: `l1` or `cosine`.
        detach_positive: keep the contrast from moving the positive (the teacher).

    Raises:
        OptionError: an argument is out of range, or the VGG cannot be had.
    """

    def __init__(
        self,
        loss_weight: float = 200 / 255,
        layer_weights: Mapping[str, float] | None = None,
        vgg_weights: str = "imagenet",
        input_norm: Literal["imagenet", "none"] = "imagenet",
        input_range: float = 1.0,
        distance: Literal["l1", "cosine"] = "l1",
        detach_positive: bool = True,
    ) -> None:
        super().__init__()
        if distance not in _DISTANCES:
            raise OptionError(f"expected l1 or cosine, got {distance!r} (option train:contrastive_opt:distance)")
        self.loss_weight = float(loss_weight)
        self.layer_weights = dict(LAYER_WEIGHTS if layer_weights is None else layer_weights)
        self.distance = distance
        self.detach_positive = detach_positive
        self.vgg = VGGFeatures(tuple(self.layer_weights), vgg_weights, input_norm, input_range)

    def forward(
        self, student: Tensor, positive: Tensor, negatives: Tensor | None = None, pair_weights: Tensor | None = None
    ) -> Tensor:
        """Weighted loss of a batch; in distributed training the loss of the joined batch.

        Args:
            student: (B, 3, H, W) in 0..1.
            positive: (B, 3, H, W) in 0..1.
            negatives: (K, 3, H, W) in 0..1, or None.
            pair_weights: (B, K), how much negative k counts for anchor b; None counts every pair once.

        Returns:
            Scalar.

        Raises:
            ValueError: the images are not RGB, or differ in size.
        """
        _check_images(student, positive, negatives)
        if self.detach_positive:
            positive = positive.detach()
        without_graph = [] if positive.requires_grad else [positive]
        without_graph += [] if negatives is None or len(negatives) == 0 else [negatives.detach()]
        student_features = self.vgg(student)
        rest = self._split(without_graph)
        positive_features = self.vgg(positive) if positive.requires_grad else rest.pop(0)
        loss = contrastive_loss(
            student_features,
            positive_features,
            rest[0] if rest else None,
            self.layer_weights,
            pair_weights,
            self.distance,
            synchronize=dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1,
        )
        return self.loss_weight * loss

    @torch.no_grad()
    def _split(self, groups: list[Tensor]) -> list[Features]:
        """Features of several groups of images from one call of the VGG."""
        if not groups:
            return []
        sizes = [len(group) for group in groups]
        features = {name: f.split(sizes) for name, f in self.vgg(torch.cat(groups)).items()}
        return [{name: parts[i] for name, parts in features.items()} for i in range(len(groups))]


def _check_images(student: Tensor, positive: Tensor, negatives: Tensor | None) -> None:
    for name, images in (("student", student), ("positive", positive), ("negatives", negatives)):
        if images is None or (name == "negatives" and len(images) == 0):
            continue
        if images.dim() != 4 or images.shape[1] != 3 or images.shape[2:] != student.shape[2:]:
            raise ValueError(
                f"expected {name} of shape (N, 3, {student.shape[-2]}, {student.shape[-1]}), got {tuple(images.shape)}"
            )
    if len(student) != len(positive):
        raise ValueError(f"expected as many positives as students ({len(student)}), got {len(positive)}")

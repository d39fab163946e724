"""The contrastive loss of CSD (Wang et al., IJCAI 2021, eq. 4 and 5)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from csd_plugin.errors import OptionError
from csd_plugin.losses.distances import l1_distances, sum_type
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


def _l1(
    student: Tensor, positive: Tensor, negatives: Tensor | None, pair_weights: Tensor | None, compiled: bool
) -> tuple[Tensor, Tensor | None]:
    if negatives is None or pair_weights is None:
        return F.l1_loss(student.to(sum_type(student)), positive.to(sum_type(student))), None
    return l1_distances(student, positive, negatives, pair_weights, compiled)


def _cosine(
    student: Tensor, positive: Tensor, negatives: Tensor | None, pair_weights: Tensor | None, _compiled: bool
) -> tuple[Tensor, Tensor | None]:
    student, positive = (F.normalize(features.to(sum_type(student)), dim=1) for features in (student, positive))
    pull = 1 - (student * positive).sum(1).mean()
    if negatives is None or pair_weights is None:
        return pull, None
    # The cosine is linear in the normalised negative, so the weighted sum over k comes before the product.
    negatives = F.normalize(negatives.to(student.dtype), dim=1)
    directions = torch.einsum("bk,kchw->bchw", pair_weights.to(student.dtype), negatives)
    pixels = student.shape[2] * student.shape[3]
    return pull, pair_weights.sum() - (student * directions).sum() / pixels


_DISTANCES: Mapping[str, Callable[..., tuple[Tensor, Tensor | None]]] = {"l1": _l1, "cosine": _cosine}


def feature_distances(
    student: Features,
    positive: Features,
    negatives: Features | None,
    layer_weights: Mapping[str, float] = LAYER_WEIGHTS,
    pair_weights: Tensor | None = None,
    distance: Literal["l1", "cosine"] = "l1",
    compiled: bool = False,
) -> Tensor:
    r"""Numerators and denominators of `contrastive_loss`.

    Args:
        student: as in `contrastive_loss`, and so are the next five.
        positive: (B, C, H, W) by layer.
        negatives: (K, C, H, W) by layer, or None.
        layer_weights: the layers.
        pair_weights: (B, K).
        distance: `l1` or `cosine`.
        compiled: run the L1 distances as kernels of torch.compile.

    Returns:
        (2, layers): mean distance to the positive, and sum over the negatives of the mean distance; (1, layers)
        without negatives.
    """
    if negatives is not None and next(iter(negatives.values())).shape[0] == 0:
        negatives = None
    if negatives is not None:
        anchors, others = (len(next(iter(features.values()))) for features in (student, negatives))
        if pair_weights is None:
            pair_weights = next(iter(student.values())).new_ones(anchors, others)
        pair_weights = pair_weights.to(sum_type(next(iter(student.values())))) / anchors
    columns = []
    for name in layer_weights:
        others_here = None if negatives is None else negatives[name].detach()
        pull, push = _DISTANCES[distance](student[name], positive[name], others_here, pair_weights, compiled)
        columns.append(torch.stack([pull] if push is None else [pull, push.to(pull.dtype)]))
    return torch.stack(columns, dim=1)


def ratio_of_distances(distances: Tensor, layer_weights: Mapping[str, float] = LAYER_WEIGHTS) -> Tensor:
    r""":math:`\sum_j \lambda_j \, pull_j / (push_j + 10^{-7})`; where there are no negatives, without the denominator.

    Args:
        distances: (2, layers) or (1, layers), as `feature_distances` gives them.
        layer_weights: :math:`\lambda_j` by layer.

    Returns:
        Scalar.
    """
    scale = torch.tensor(list(layer_weights.values()), dtype=distances.dtype, device=distances.device)
    if len(distances) == 1:
        return (scale * distances[0]).sum()
    return (scale * distances[0] / (distances[1] + _EPS)).sum()


def contrastive_loss(
    student: Features,
    positive: Features,
    negatives: Features | None,
    layer_weights: Mapping[str, float] = LAYER_WEIGHTS,
    pair_weights: Tensor | None = None,
    distance: Literal["l1", "cosine"] = "l1",
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

    Returns:
        Scalar.
    """
    distances = feature_distances(student, positive, negatives, layer_weights, pair_weights, distance)
    return ratio_of_distances(distances, layer_weights)


def join_distances(parts: Sequence[Tensor]) -> Tensor:
    """Mean of the distances of all parts of a batch of the same size, on all ranks of torch.distributed; no graph."""
    mean = torch.stack([part.detach() for part in parts]).mean(0)
    if _world_size() > 1:
        dist.all_reduce(mean)
        mean /= _world_size()
    return mean


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@dataclass(frozen=True)
class Targets:
    """What a student is compared with.

    Attributes:
        positive: features by layer.
        negatives: features by layer, or None.
    """

    positive: Features
    negatives: Features | None


class ContrastiveLoss(nn.Module):
    r"""`contrastive_loss` on the VGG-19 features of images.

    Args:
        loss_weight: :math:`\lambda_C`. The paper's 200 is for pixels in 0..255 and is 200 / 255 = 0.784 for 0..1.
        layer_weights: weight of each VGG-19 layer; None takes the paper's, from 1/32 for relu1_1 to 1 for relu5_1.
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
        self.compiled = False
        self._settled, self._last_count = False, -1
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
        return self.loss(self.distances(student, self.targets(positive, negatives), pair_weights))

    def targets(self, positive: Tensor, negatives: Tensor | Features | None = None) -> Targets:
        """Features that several students may be compared with; one call of the VGG for what needs no gradient.

        Args:
            positive: (B, 3, H, W) in 0..1.
            negatives: (K, 3, H, W) in 0..1, or their features from an earlier call, or None.
        """
        if self.detach_positive:
            positive = positive.detach()
        images = negatives if isinstance(negatives, Tensor) and len(negatives) > 0 else None
        if negatives is not None:
            # Kernels are compiled for a number of negatives. A pool that fills has another one in each iteration.
            count = len(negatives if isinstance(negatives, Tensor) else next(iter(negatives.values())))
            self._settled, self._last_count = count == self._last_count, count
        known = negatives if isinstance(negatives, Mapping) else None
        if positive.requires_grad and torch.is_grad_enabled():
            return Targets(self.vgg(positive), known if images is None else self._without_graph(images)[0])
        if images is None:
            return Targets(self._without_graph(positive)[0], known)
        return Targets(*self._without_graph(positive, images))

    def distances(self, student: Tensor, targets: Targets, pair_weights: Tensor | None = None) -> Tensor:
        """What `loss` makes the loss of: distances in each layer, which are means over the batch.

        Args:
            student: (B, 3, H, W) in 0..1.
            targets: from `targets`.
            pair_weights: as in `forward`.

        Returns:
            (2, layers), or (1, layers) without negatives.
        """
        distances = feature_distances(
            self.vgg(student),
            targets.positive,
            targets.negatives,
            self.layer_weights,
            pair_weights,
            self.distance,
            self.compiled and self._settled,
        )
        return distances * self.vgg.unit if self.distance == "l1" else distances

    def loss(self, distances: Tensor, joined: Tensor | None = None) -> Tensor:
        """Weighted loss of a batch that may be worked on in parts.

        In distributed training the means over all ranks are taken. The value is then that of the joined batch, and the
        gradients averaged over the ranks (which DistributedDataParallel does) are its gradients; likewise with parts.

        Args:
            distances: of this part, from `distances`.
            joined: what `join_distances` gives for all parts; None if this is the only part.

        Returns:
            Scalar.
        """
        if joined is None and _world_size() > 1:
            joined = join_distances([distances])
        if joined is not None:
            distances = distances + (joined - distances.detach())
        return self.loss_weight * ratio_of_distances(distances, self.layer_weights)

    def use_compiler(self) -> None:
        """Run the VGG and the distances through torch.compile from now on."""
        self.compiled = True
        self.vgg.compile(dynamic=False)

    def features(self, images: Tensor) -> Features:
        """Features without a graph of negatives (K, 3, H, W) in 0..1, for several calls of `targets`."""
        return self._without_graph(images)[0]

    @torch.no_grad()
    def _without_graph(self, *groups: Tensor) -> list[Features]:
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

"""L1 distances of the student's features to the positive's and to all negatives', in one pass over the features.

Summing K differences needs one read of the student's features, K reads of the negatives' and no tensor of all pairs.
Forward and backward pass read the features once each; nothing is kept in between but the features, and nothing is
written but the gradient. Sums are accumulated in float32 whatever the features' type.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_ANCHORS_AT_ONCE = 4  # their differences to all negatives share one read of these; more would overflow the registers


def l1_distances(
    student: Tensor, positive: Tensor, negatives: Tensor, pair_weights: Tensor, compiled: bool = False
) -> tuple[Tensor, Tensor]:
    """Mean distance to the positive and weighted sum of the mean distances to the negatives.

    Args:
        student: features (B, C, H, W).
        positive: features (B, C, H, W).
        negatives: features (K, C, H, W); they get no gradient.
        pair_weights: (B, K).
        compiled: run as kernels of torch.compile.

    Returns:
        `mean |student - positive|` and `sum_bk pair_weights[b, k] * mean |student[b] - negatives[k]|`, scalars.
    """
    return _L1Distances.apply(student, positive, negatives, pair_weights, compiled)


class _L1Distances(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student: Tensor, positive: Tensor, negatives: Tensor, pair_weights: Tensor, compiled: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(student, positive, negatives, pair_weights)
        ctx.compiled = compiled
        sums = [
            _kernel(_sums, compiled)(*group) for group in _groups(student, positive, negatives, pair_weights, compiled)
        ]
        pull, push = (torch.stack(parts).sum() for parts in zip(*sums, strict=True))
        return pull / student.numel(), push / student[0].numel()

    @staticmethod
    def backward(ctx: Any, grad_pull: Tensor, grad_push: Tensor) -> tuple[Tensor | None, ...]:
        student, positive, negatives, pair_weights = ctx.saved_tensors
        of_pull = (grad_pull / student.numel()).to(sum_type(student))
        pair_weights = (pair_weights * (grad_push / student[0].numel())).to(sum_type(student))
        gradient = torch.empty_like(student) if ctx.needs_input_grad[0] else None
        if gradient is not None:
            groups = _groups(student, positive, negatives, pair_weights, ctx.compiled)
            for (s, p, n, w), into in zip(groups, gradient.split(_group_size(ctx.compiled, student)), strict=True):
                _kernel(_gradient, ctx.compiled)(s, p, n, w, of_pull, into)
        of_positive = (positive - student).sign_().mul_(of_pull.to(student.dtype)) if ctx.needs_input_grad[1] else None
        return gradient, of_positive, None, None, None


def _group_size(compiled: bool, student: Tensor) -> int:
    if compiled:
        return _ANCHORS_AT_ONCE
    return 1 if student.device.type == "cpu" else len(student)


def _groups(
    student: Tensor, positive: Tensor, negatives: Tensor, pair_weights: Tensor, compiled: bool
) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Parts of the batch to be worked on at once: without a compiler on a CPU one image, whose buffer stays cached."""
    size = _group_size(compiled, student)
    parts = zip(student.detach().split(size), positive.detach().split(size), pair_weights.split(size), strict=True)
    return [(s, p, negatives, w) for s, p, w in parts]


def _sums(student: Tensor, positive: Tensor, negatives: Tensor, pair_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the distances to the positives and weighted sum of those to the negatives, without temporaries."""
    difference = torch.sub(student, positive)
    pull = difference.abs_().sum(dtype=sum_type(student))
    push = torch.zeros_like(pull)
    for negative, weights in zip(negatives, pair_weights.unbind(1), strict=True):
        distances = torch.sub(student, negative, out=difference).abs_().sum((1, 2, 3), dtype=sum_type(student))
        push += (distances * weights).sum()
    return pull, push


def _gradient(
    student: Tensor, positive: Tensor, negatives: Tensor, pair_weights: Tensor, of_pull: Tensor, into: Tensor
) -> None:
    wide = into if into.dtype in (torch.float32, torch.float64) else torch.empty_like(into, dtype=torch.float32)
    difference = torch.sub(student, positive)
    torch.mul(difference.sign_(), of_pull, out=wide)
    for negative, weights in zip(negatives, pair_weights.unbind(1), strict=True):
        torch.sub(student, negative, out=difference)
        wide.addcmul_(difference.sign_(), weights.view(-1, 1, 1, 1).to(wide.dtype))
    if wide is not into:
        into.copy_(wide)


def _fused_sums(student: Tensor, positive: Tensor, negatives: Tensor, pair_weights: Tensor) -> tuple[Tensor, Tensor]:
    """As `_sums`, spelled out for each anchor, so that the compiler reads a negative once for all of them."""
    pulls: list[Tensor] = []
    pushes: list[Tensor] = []
    others = [n.to(sum_type(student)) for n in negatives.unbind()]
    for b in range(student.shape[0]):
        anchor = student[b].to(sum_type(student))
        pulls.append((anchor - positive[b]).abs())
        pushes += [(anchor - other).abs() * pair_weights[b, k] for k, other in enumerate(others)]
    return sum(pulls[1:], pulls[0]).sum(), sum(pushes[1:], pushes[0]).sum()


def _fused_gradient(
    student: Tensor, positive: Tensor, negatives: Tensor, pair_weights: Tensor, of_pull: Tensor, into: Tensor
) -> None:
    others = [n.to(sum_type(student)) for n in negatives.unbind()]
    gradients = []
    for b in range(student.shape[0]):
        anchor = student[b].to(sum_type(student))
        gradient = (anchor - positive[b]).sign() * of_pull
        for k, other in enumerate(others):
            gradient = gradient + (anchor - other).sign() * pair_weights[b, k]
        gradients.append(gradient)
    into.copy_(torch.stack(gradients))


def sum_type(features: Tensor) -> torch.dtype:
    """What sums over features are accumulated in: at least float32."""
    return torch.promote_types(features.dtype, torch.float32)


_FUSED: dict[Callable[..., Any], Callable[..., Any]] = {_sums: _fused_sums, _gradient: _fused_gradient}
_COMPILED: dict[Callable[..., Any], Callable[..., Any]] = {}


def _kernel(plain: Callable[..., Any], compiled: bool) -> Callable[..., Any]:
    if not compiled:
        return plain
    if plain not in _COMPILED:
        _COMPILED[plain] = torch.compile(_FUSED[plain], dynamic=True)
    return _COMPILED[plain]

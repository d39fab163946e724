"""What goes into a training step and what the networks make of it."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from csd_plugin.models.negatives import Negatives


@dataclass(frozen=True)
class Batch:
    """A batch, or a part of one.

    Attributes:
        lq: what the network takes.
        gt: what it should give.
        negatives: what the contrast pushes it from.
    """

    lq: Tensor
    gt: Tensor
    negatives: Negatives | None

    def parts(self, count: int) -> list["Batch"]:
        """The batch in `count` parts of the same size; the negatives are shared.

        Raises:
            ValueError: the batch does not divide by `count`.
        """
        if count == 1:
            return [self]
        if len(self.lq) % count:
            raise ValueError(f"expected a batch that divides by accumulate {count}, got {len(self.lq)}")
        size = len(self.lq) // count
        per_item = 1 if self.negatives is None else len(self.negatives.pair_weights) // len(self.lq)
        return [
            Batch(
                self.lq[i : i + size],
                self.gt[i : i + size],
                self.negatives and self.negatives.rows(i * per_item, (i + size) * per_item),
            )
            for i in range(0, len(self.lq), size)
        ]


@dataclass(frozen=True)
class Results:
    """What the networks give for a batch.

    Attributes:
        students: output by width.
        teacher: output of the teacher that shares the students' weights, where it is needed.
        guide: output of the teacher that the students learn from: that one, or the frozen one.
    """

    students: Mapping[float, Tensor]
    teacher: Tensor | None
    guide: Tensor | None

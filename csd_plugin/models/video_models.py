"""CSD for video: BasicSR's models for sliding-window and for recurrent networks, with the losses of CSDModel.

The contrast compares frames as it compares images; the negatives of a frame are frames of other clips.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from basicsr.models.edvr_model import EDVRModel
from basicsr.models.video_recurrent_model import VideoRecurrentModel
from torch import Tensor

from csd_plugin.archs.cssr_arch import TEACHER, CSSRNet
from csd_plugin.config.schema import (
    RecurrentTrainOptions,
    RecurrentValOptions,
    SlidingWindowTrainOptions,
)
from csd_plugin.models.csd_model import CSDModel
from csd_plugin.models.negatives import generator_for


class _OnClips:
    """What the two models share. It comes before BasicSR's classes, so that they find these methods first."""

    opt: dict[str, Any]
    device: torch.device
    lq: Tensor
    gt: Tensor
    validate_each: Callable[..., None]
    _bare_net: Callable[[], CSSRNet]
    held_until: int | None
    is_held: Callable[[str], bool]

    def __init__(self, opt: dict[str, Any]) -> None:
        if opt.get("val"):
            opt["val"] = {"metrics": None, "suffix": None, **opt["val"]}  # BasicSR reads both without asking
        super().__init__(opt)  # type: ignore[call-arg]
        # BasicSR would hold them fixed from the first iteration, which a resumed run never sees; _hold_fixed does it.
        self.train_tsa_iter = self.fix_flow_iter = None

    @property
    def memory_format(self) -> torch.memory_format:
        """Clips have five axes, for which there is no such layout."""
        return torch.contiguous_format

    def feed_data(self, data: Mapping[str, Any]) -> None:
        """Take a batch.

        Args:
            data: `lq` and, but for testing without it, `gt`.
        """
        super().feed_data(data)  # type: ignore[misc]
        # BasicSR takes the batch axis off its own tensors afterwards, which on the CPU are these.
        self.lq = self.lq.view(self.lq.shape)
        if "gt" in data:
            self.gt = self.gt.view(self.gt.shape)

    def optimize_parameters(self, current_iter: int) -> None:
        """One step, for whose first iterations a part of the network may be held fixed.

        Args:
            current_iter: iteration, from 1.
        """
        self._hold_fixed(current_iter)
        super().optimize_parameters(current_iter)  # type: ignore[misc]

    def dist_validation(self, dataloader: Any, current_iter: Any, tb_logger: Any, save_img: bool) -> None:
        """Validate every student and, by option, the teacher on clips that all ranks share."""

        def validate(dataloader: Any, current_iter: Any, tb_logger: Any, save_img: bool) -> None:
            frames = Counter(dataloader.dataset.data_info["folder"])
            metrics = self.opt["val"]["metrics"] or {}
            # BasicSR would make these once for all data sets, and on CUDA.
            self.metric_results = {
                folder: torch.zeros(count, len(metrics), device=self.device) for folder, count in frames.items()
            }
            curves = tb_logger and _Curves(tb_logger, dataloader.dataset.opt["name"])
            super(_OnClips, self).dist_validation(dataloader, current_iter, curves, save_img)  # type: ignore[misc]

        self.validate_each(validate, dataloader, current_iter, tb_logger, save_img)

    def nondist_validation(self, dataloader: Any, current_iter: Any, tb_logger: Any, save_img: bool) -> None:
        """As `dist_validation`, with one rank."""
        self.dist_validation(dataloader, current_iter, tb_logger, save_img)

    def _hold_fixed(self, current_iter: int) -> None:
        until = self.held_until
        if until is not None and current_iter <= until:
            for name, parameter in self._bare_net().named_parameters():
                if self.is_held(name):
                    parameter.requires_grad_(current_iter == until)


class CSDVideoModel(_OnClips, EDVRModel, CSDModel):
    """For networks from a window of frames (B, T, C, H, W) to the middle one (B, C, H, W), as EDVR.

    Options of BasicSR's EDVRModel: `train:dcn_lr_mul`, learning rate of the deformable convolutions over that of the
    rest, and `train:tsa_iter`, the iteration up to which only the fusion is trained. Unlike there, a resumed run holds
    the rest fixed, too.
    """

    train_schema: type[SlidingWindowTrainOptions] = SlidingWindowTrainOptions
    train_options: SlidingWindowTrainOptions

    def to_images(self, batch: Tensor, current_iter: int) -> Tensor:
        """The frame of each window that the network restores."""
        if batch.dim() == 4:
            return batch
        middle = self._bare_net().options[TEACHER].get("center_frame_idx")
        return batch[:, batch.shape[1] // 2 if middle is None else middle]

    @property
    def held_until(self) -> int | None:  # type: ignore[override]
        """The iteration that trains everything again."""
        return self.train_options.tsa_iter

    def is_held(self, name: str) -> bool:
        """Whether a parameter is held fixed before it."""
        return "fusion" not in name


class CSDVideoRecurrentModel(_OnClips, VideoRecurrentModel, CSDModel):
    """For networks from a clip (B, T, C, H, W) to a clip, as BasicSR's BasicVSR and BasicVSR++.

    Options of BasicSR's VideoRecurrentModel: `train:flow_lr_mul`, learning rate of the optical flow over that of the
    rest, `train:fix_flow`, the iteration up to which the optical flow is held fixed (in a resumed run, too),
    `val:flip_seq` and `val:center_frame_only`. Validation uses the moving average if there is one.
    """

    train_schema: type[RecurrentTrainOptions] = RecurrentTrainOptions
    val_schema: type[RecurrentValOptions] = RecurrentValOptions
    train_options: RecurrentTrainOptions
    val_options: RecurrentValOptions

    def test(self) -> None:
        """Super-resolve `self.lq` at the active width (the default student's) into `self.output`."""
        self.center_frame_only = self.val_options.center_frame_only
        CSDModel.test(self)

    def to_images(self, batch: Tensor, current_iter: int) -> Tensor:
        """`train:contrast_frames` frames of each clip, the same of every clip and on every rank."""
        total, wanted = batch.shape[1], self.train_options.contrast_frames
        if wanted is None or wanted >= total:
            return batch.flatten(0, 1)
        generator = generator_for(self.shared_seed, current_iter)
        drawn = torch.randperm(total, generator=generator)[:wanted].sort().values
        return batch[:, drawn.to(batch.device)].flatten(0, 1)

    def super_resolve(self, network: Callable[[Tensor], Tensor], lq: Tensor) -> Tensor:
        """As in CSDModel; `val:flip_seq` averages over the clip and the reversed clip, run as one."""
        frames = lq.shape[1]
        if self.val_options.flip_seq:
            both = super().super_resolve(network, torch.cat([lq, lq.flip(1)], dim=1))
            output = (both[:, :frames] + both[:, frames:].flip(1)) / 2
        else:
            output = super().super_resolve(network, lq)
        return output[:, frames // 2] if self.val_options.center_frame_only else output

    @property
    def held_until(self) -> int | None:  # type: ignore[override]
        """The iteration that trains everything again."""
        return self.train_options.fix_flow

    def is_held(self, name: str) -> bool:
        """Whether a parameter is held fixed before it."""
        return "spynet" in name or "edvr" in name


class _Curves:
    """A tensorboard whose metrics go by data set, as they do for images."""

    def __init__(self, tb_logger: Any, dataset: str) -> None:
        self._tb_logger = tb_logger
        self._dataset = dataset

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Add a point to the curve `metrics/<data set>/<metric>`, or `.../<folder>`."""
        self._tb_logger.add_scalar(tag.replace("metrics/", f"metrics/{self._dataset}/", 1), value, step)

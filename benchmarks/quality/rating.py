"""Rating networks on folders of images."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from basicsr.metrics.psnr_ssim import calculate_psnr, calculate_ssim
from basicsr.utils import img2tensor, tensor2img
from torch import Tensor

from csd_plugin.data.bicubic import upscale
from csd_plugin.models.inference import self_ensemble

Rating = dict[str, dict[str, float]]


def rate(run: Callable[[Tensor], Tensor], folders: dict[str, Path], scale: int, everything: bool = True) -> Rating:
    """PSNR and SSIM on Y, borders of `scale` pixels left out: means over the images of each folder.

    Args:
        run: from LR (1, 3, h, w) to HR images.
        folders: folders with HR and LR below.
        scale: upsampling factor.
        everything: with SSIM and with self-ensemble (`psnr_ensemble`, the "+").
    """
    ratings: Rating = {}
    for name, folder in folders.items():
        found: dict[str, list[float]] = {}
        for path in sorted((folder / "HR").iterdir()):
            hr = cv2.imread(str(path))
            lq = img2tensor(cv2.imread(str(folder / "LR" / path.name)).astype(np.float32) / 255)[None]
            y = partial(calculate_psnr, img2=hr, crop_border=scale, test_y_channel=True)
            with torch.no_grad():
                output = tensor2img(run(lq))
                found.setdefault("psnr", []).append(float(y(output)))
                if everything:
                    found.setdefault("psnr_ensemble", []).append(float(y(tensor2img(self_ensemble(run, lq)))))
                    ssim = calculate_ssim(output, hr, crop_border=scale, test_y_channel=True)
                    found.setdefault("ssim", []).append(float(ssim))
        ratings[name] = {metric: round(float(np.mean(values)), 4) for metric, values in found.items()}
    return ratings


def bicubic(scale: int) -> Callable[[Tensor], Tensor]:
    """The baseline, rounded to 8 bits as a file of it would be."""

    def run(lq: Tensor) -> Tensor:
        enlarged = upscale(tensor2img(lq), scale)
        return img2tensor(enlarged.astype(np.float32) / 255)[None]

    return run

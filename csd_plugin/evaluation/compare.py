"""`basicsr compare`: several exported models on the same photographs, in figures and in pictures."""

import argparse
import csv
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from basicsr.metrics.psnr_ssim import calculate_psnr, calculate_ssim
from basicsr.utils import tensor2img
from torch import Tensor

from csd_plugin.checkpoint import write_atomically
from csd_plugin.data.bicubic import downscale, upscale
from csd_plugin.data.pairs import IMAGE_SUFFIXES
from csd_plugin.deploy.images import read_picture
from csd_plugin.deploy.upscale import Upscaler, load_upscaler
from csd_plugin.errors import OptionError
from csd_plugin.evaluation.sheet import crop_sheet, most_disputed_patch

_PATCH = 72
_BICUBIC = "bicubic"


@dataclass
class Scores:
    """Metrics of a model, an entry an image.

    Attributes:
        psnr: dB on Y, borders of `scale` pixels left out.
        ssim: the same.
        lpips: perceptual distance, empty if it was not asked for.
    """

    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    lpips: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class _Crop:
    """A row of the sheet and by how much the models differ in it."""

    dispute: float
    cells: Mapping[str, np.ndarray]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `basicsr compare`."""
    parser.epilog = "example: basicsr compare scratch.pth csd.safetensors --hr datasets/Set5/GTmod12 -o compared"
    parser.add_argument("models", nargs="+", type=Path, help=".pth, .safetensors or .onnx files of the same scale")
    parser.add_argument("--hr", type=Path, required=True, help="folder of HR images")
    parser.add_argument("--lr", type=Path, help="folder of LR images of the same names (default: MATLAB's bicubic)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for compare.csv and compare.png")
    parser.add_argument("--rows", type=int, default=6, help="crops of the sheet (default: 6)")
    parser.add_argument("--ensemble", action="store_true", help="mean over 8 flips and rotations")
    parser.add_argument("--lpips", action="store_true", help="LPIPS as well (needs torchmetrics and AlexNet's weights)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier comparison")


def run(args: argparse.Namespace) -> None:
    """Print the table, and write the figures of each image and the sheet.

    Raises:
        OptionError: a model or image cannot be used, scales differ, or there is an earlier comparison.
    """
    files = {name: args.output / f"compare.{name}" for name in ("csv", "png")}
    for path in files.values():
        if path.exists() and not args.overwrite:
            raise OptionError(f"{path} is there already: choose another folder, or replace it by --overwrite")
    models = _load(args.models)
    scale = next(iter(models.values())).scale
    lpips = _lpips() if args.lpips else None
    scores = {name: Scores() for name in (_BICUBIC, *models)}
    names, crops = [], []
    for name, lq, hr in _images(args.hr, args.lr, scale):
        outputs = {_BICUBIC: upscale(tensor2img(lq), scale)}
        outputs |= {key: tensor2img(model(lq, ensemble=args.ensemble)) for key, model in models.items()}
        for key, image in outputs.items():
            _rate(scores[key], image, hr, scale, lpips)
        names.append(name)
        crops.append(_crop(name, outputs, hr, {key: score.psnr[-1] for key, score in scores.items()}))
    args.output.mkdir(parents=True, exist_ok=True)
    write_atomically(_csv(names, scores).encode(), files["csv"])
    kept = sorted(crops, key=lambda crop: -crop.dispute)[: args.rows]
    buffer = io.BytesIO()
    crop_sheet([crop.cells for crop in kept]).save(buffer, "PNG")
    write_atomically(buffer.getvalue(), files["png"])
    sys.stdout.write(f"\n{text_table(scores)}\n\n{files['csv']}\n{files['png']}\n")


def _load(paths: Sequence[Path]) -> dict[str, Upscaler]:
    """Models by a short name each, which are their files' unless two files share one."""
    stems = [path.stem for path in paths]
    names = [path.stem if stems.count(path.stem) == 1 else str(path) for path in paths]
    models = {name: load_upscaler(path) for name, path in zip(names, paths, strict=True)}
    if len(models) < len(paths):
        raise OptionError("the same model is named twice")
    scales = {name: model.scale for name, model in models.items()}
    if len(set(scales.values())) > 1:
        shown = ", ".join(f"{name} x{scale}" for name, scale in scales.items())
        raise OptionError(f"models of one scale can be compared, got {shown}")
    return models


def _images(hr_folder: Path, lr_folder: Path | None, scale: int) -> Iterator[tuple[str, Tensor, np.ndarray]]:
    """Name, LR image (1, 3, h, w) in 0..1 and HR image (H, W, 3) uint8 BGR."""
    for folder in (hr_folder, lr_folder):
        if folder is not None and not folder.is_dir():
            raise OptionError(f"no such folder: {folder} (options --hr, --lr)")
    paths = sorted(path for path in hr_folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise OptionError(f"no images in {hr_folder} (option --hr)")
    small = {} if lr_folder is None else {p.stem: p for p in lr_folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES}
    for path in paths:
        hr = tensor2img(read_picture(path).colour)
        height, width = (n - n % scale for n in hr.shape[:2])
        hr = np.ascontiguousarray(hr[:height, :width])
        if lr_folder is None:
            values = downscale(hr, scale)[..., ::-1].astype(np.float32) / 255
            lq = torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))[None]
        else:
            if path.stem not in small:
                raise OptionError(f"no LR image of {path.name} in {lr_folder} (option --lr)")
            lq = read_picture(small[path.stem]).colour
            if (lq.shape[-2] * scale, lq.shape[-1] * scale) != (height, width):
                raise OptionError(
                    f"{small[path.stem]} is {lq.shape[-1]}x{lq.shape[-2]}, expected {width // scale}x{height // scale} "
                    f"for x{scale} (option --lr)"
                )
        yield path.stem, lq, hr


def _rate(scores: Scores, image: np.ndarray, hr: np.ndarray, scale: int, lpips: Callable[..., float] | None) -> None:
    scores.psnr.append(float(calculate_psnr(image, hr, crop_border=scale, test_y_channel=True)))
    scores.ssim.append(float(calculate_ssim(image, hr, crop_border=scale, test_y_channel=True)))
    if lpips is not None:
        scores.lpips.append(lpips(image, hr))


def _lpips() -> Callable[[np.ndarray, np.ndarray], float]:
    """LPIPS (Zhang et al., CVPR 2018) with AlexNet, by torchmetrics."""
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        metric = LearnedPerceptualImagePatchSimilarity("alex", normalize=True)
    except Exception as error:  # the library is missing, or its weights cannot be downloaded
        raise OptionError(f"LPIPS cannot be had: {' '.join(str(error).split())[:120]} (option --lpips)") from None

    def distance(image: np.ndarray, hr: np.ndarray) -> float:
        pair = [torch.from_numpy(i[..., ::-1].astype(np.float32) / 255).permute(2, 0, 1)[None] for i in (image, hr)]
        return float(metric(*pair))

    return distance


def _crop(name: str, outputs: Mapping[str, np.ndarray], hr: np.ndarray, psnr: Mapping[str, float]) -> _Crop:
    size = min(_PATCH, *hr.shape[:2])
    compared = list(outputs.values())[1:] if len(outputs) > 2 else list(outputs.values())
    top, left, dispute = most_disputed_patch(compared, size)
    window = (slice(top, top + size), slice(left, left + size))
    cells = {f"{key}  {psnr[key]:.2f} dB": image[window] for key, image in outputs.items()}
    return _Crop(dispute, {**cells, f"{name}: HR": hr[window]})


def _csv(names: Sequence[str], scores: Mapping[str, Scores]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    with_lpips = any(score.lpips for score in scores.values())
    writer.writerow(["image", "model", "psnr", "ssim", *(["lpips"] if with_lpips else [])])
    for number, name in enumerate(names):
        for model, score in scores.items():
            columns = (score.psnr, score.ssim, *([score.lpips] if with_lpips else []))
            writer.writerow([name, model, *(f"{column[number]:.4f}" for column in columns)])
    return buffer.getvalue()


def text_table(scores: Mapping[str, Scores]) -> str:
    """Means over the images; of several models also in how many images each is the best."""
    with_lpips = any(score.lpips for score in scores.values())
    longest = max(map(len, scores)) + 2
    images = len(next(iter(scores.values())).psnr)
    best = np.argmax([score.psnr for score in scores.values()], axis=0)
    lines = [
        f"{'':{longest}}{'PSNR (dB)':>10}{'SSIM':>9}" + (f"{'LPIPS':>9}" if with_lpips else "") + f"{'best in':>9}"
    ]
    for number, (name, score) in enumerate(scores.items()):
        line = f"{name:{longest}}{np.mean(score.psnr):>10.2f}{np.mean(score.ssim):>9.4f}"
        line += f"{np.mean(score.lpips):>9.4f}" if with_lpips else ""
        lines.append(f"{line}{int((best == number).sum()):>9}")
    return "\n".join([*lines, f"Y channel, mean of {images} images; best in so many of them by PSNR"])

"""`basicsr prepare`: from a folder of HR images to pairs of sub-images in LMDBs or folders.

The LR images are bicubic as MATLAB's `imresize` makes them, computed on the whole photograph before both are cut.
Names follow BasicSR: `<name>_HR_sub.lmdb` and `<name>_LR_bicubic_X<scale>_sub.lmdb`.
"""

import argparse
import math
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import lmdb
import numpy as np
from tqdm import tqdm

from csd_plugin.data.bicubic import downscale
from csd_plugin.data.pairs import IMAGE_SUFFIXES
from csd_plugin.data.stores import COMPRESSION, Store, Target
from csd_plugin.errors import OptionError

_COMMON_MULTIPLE = 12
Images = dict[str, dict[str, bytes]]


@dataclass(frozen=True)
class Settings:
    """What decides on the content of a data set.

    Attributes:
        scales: upsampling factors.
        crop_size: side of the sub-images in HR pixels; 0 keeps whole images.
        step: distance between sub-images in HR pixels.
    """

    scales: tuple[int, ...]
    crop_size: int
    step: int

    @property
    def multiple(self) -> int:
        """HR images are cut to a multiple of 12 and of every scale, so that one HR set serves all scales."""
        return math.lcm(_COMMON_MULTIPLE, *self.scales)

    def __post_init__(self) -> None:
        if any(scale < 1 for scale in self.scales):
            raise OptionError(f"expected scales of 1 or more, got {list(self.scales)} (option --scale)")
        for name, value in (("--crop-size", self.crop_size), ("--step", self.step)):
            if value < 0 or (self.crop_size and (value == 0 or value % math.lcm(*self.scales))):
                raise OptionError(f"expected a multiple of the scales {list(self.scales)}, got {value} (option {name})")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `basicsr prepare`."""
    parser.epilog = "example: basicsr prepare datasets/DIV2K/DIV2K_train_HR datasets/DIV2K --scale 2 3 4"
    parser.add_argument("input", nargs="?", type=Path, help="folder of HR images")
    parser.add_argument("output", nargs="?", type=Path, help="folder to write into (with --demo: datasets/demo)")
    parser.add_argument("--name", help="first part of the output names (default: the input folder's, less _HR)")
    parser.add_argument("--scale", type=int, nargs="+", default=[4], help="scales of the LR images (default: 4)")
    parser.add_argument("--crop-size", type=int, default=480, help="side of the sub-images; 0: whole (default: 480)")
    parser.add_argument("--step", type=int, default=240, help="distance between sub-images (default: 240)")
    parser.add_argument("--format", choices=["lmdb", "png"], default="lmdb", help="LMDBs, or folders of PNG files")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="threads (default: all cores)")
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that were made otherwise")
    parser.add_argument("--demo", action="store_true", help="make the small demo set from scikit-image's photographs")


def run(args: argparse.Namespace) -> None:
    """Run `basicsr prepare` on parsed arguments.

    Raises:
        OptionError: wrong arguments, unreadable images, or an output that cannot be written.
    """
    try:
        if args.demo:
            from csd_plugin.data.demo import make_demo_set

            make_demo_set(args.input or Path("datasets/demo"), args.workers, args.overwrite)
            return
        if args.input is None or args.output is None:
            raise OptionError("expected INPUT and OUTPUT, or --demo")
        if not args.input.is_dir():
            raise OptionError(f"no such folder: {args.input} (argument INPUT)")
        settings = Settings(tuple(sorted(set(args.scale))), args.crop_size, args.step)
        name = args.name or args.input.name.removesuffix("_HR")
        prepare(args.input, args.output, name, settings, args.format == "lmdb", args.workers, args.overwrite)
    except (OSError, lmdb.Error) as error:
        raise OptionError(f"cannot write: {error}; what is done is kept, run the same command again") from None


def prepare(
    source: Path, output: Path, name: str, settings: Settings, as_lmdb: bool, workers: int, overwrite: bool = False
) -> list[Path]:
    """Make the data set; an interrupted run goes on where it stopped, a finished one is left as it is.

    Args:
        source: folder of HR images.
        output: folder to write into.
        name: first part of the output names.
        settings: scales and cutting.
        as_lmdb: LMDBs, else folders of PNG files.
        workers: number of threads.
        overwrite: replace outputs that were made otherwise.

    Returns:
        Paths of the HR set and of the LR set of each scale.

    Raises:
        OptionError: an image cannot be read, is too small, or clashes with another; or an output is in the way.
    """
    photographs = _photographs(source)
    stamp = {**asdict(settings), "files": {p.name: p.stat().st_size for p in photographs}}
    targets = {
        kind: Target(
            output / f"{name}_{kind}{'_sub' if settings.crop_size else ''}{'.lmdb' if as_lmdb else ''}",
            stamp,
            overwrite,
        )
        for kind in ("HR", *(f"LR_bicubic_X{scale}" for scale in settings.scales))
    }
    for target in targets.values():
        sys.stderr.write(f"{target.path}: {'complete already' if target.complete else 'to be made'}\n")
    pending = {kind: target.open() for kind, target in targets.items() if not target.complete}
    if pending:
        todo = [p for p in photographs if not all(_first_key(p, settings) in store for store in pending.values())]
        with tqdm(total=len(photographs), initial=len(photographs) - len(todo), unit="image", desc=name) as bar:
            for images in _in_parallel(todo, settings, workers):
                for kind, store in pending.items():
                    store.put(images[kind])
                bar.update()
        _check(pending, settings)
        for kind in pending:
            targets[kind].publish()
    return [target.path for target in targets.values()]


def _photographs(source: Path) -> list[Path]:
    files = sorted(p for p in source.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    if not files:
        raise OptionError(f"no images in {source} (argument INPUT)")
    by_key: dict[str, Path] = {}
    for path in files:
        other = by_key.setdefault(_stem_key(path), path)
        if other is not path:
            raise OptionError(f"{other.name} and {path.name} would have the same key: rename one")
    return files


def _stem_key(path: Path) -> str:
    """An LMDB key of the file: ASCII and, since BasicSR cuts keys at the first dot, without one."""
    escaped = path.stem.encode("ascii", "backslashreplace").decode()
    return escaped.replace(".", "_").replace("\\", "_").replace(" ", "_")


def _first_key(path: Path, settings: Settings) -> str:
    return f"{_stem_key(path)}_s001" if settings.crop_size else _stem_key(path)


def _in_parallel(paths: Sequence[Path], settings: Settings, workers: int) -> Iterator[Images]:
    if workers < 1:
        raise OptionError(f"expected 1 or more, got {workers} (option --workers)")
    if workers == 1 or len(paths) < 2:
        yield from (make_images(path, settings) for path in paths)
        return
    with ThreadPoolExecutor(workers) as executor:
        yield from _windowed(executor, paths, settings, 4 * workers)


def _windowed(executor: Executor, paths: Sequence[Path], settings: Settings, window: int) -> Iterator[Images]:
    """Results in order with a bounded number of images in memory."""
    futures: deque[Any] = deque()
    for path in paths:
        futures.append(executor.submit(make_images, path, settings))
        if len(futures) >= window:
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()


def make_images(path: Path, settings: Settings) -> Images:
    """Cut one photograph and its LR images.

    Args:
        path: image file of any kind OpenCV reads; it becomes 8-bit BGR.
        settings: scales and cutting.

    Returns:
        For `HR` and each `LR_bicubic_X<scale>` the PNG bytes by key.

    Raises:
        OptionError: the file is no image or smaller than a sub-image.
    """
    hr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if hr is None:
        raise OptionError(f"cannot read image {path}")
    height, width = (n - n % settings.multiple for n in hr.shape[:2])
    if min(height, width) < max(settings.crop_size, settings.multiple):
        raise OptionError(
            f"{path} of {hr.shape[1]}x{hr.shape[0]} pixels is too small (option --crop-size {settings.crop_size})"
        )
    hr = hr[:height, :width]
    images = {"HR": _cut(hr, path, settings, 1)}
    for scale in settings.scales:
        images[f"LR_bicubic_X{scale}"] = _cut(downscale(hr, scale), path, settings, scale)
    return images


def _cut(image: np.ndarray, path: Path, settings: Settings, scale: int) -> dict[str, bytes]:
    if settings.crop_size == 0:
        return {_stem_key(path): _png(image)}
    size, step = settings.crop_size // scale, settings.step // scale
    pieces: dict[str, bytes] = {}
    for top in _starts(image.shape[0], size, step):
        for left in _starts(image.shape[1], size, step):
            key = f"{_stem_key(path)}_s{len(pieces) + 1:03d}"
            pieces[key] = _png(image[top : top + size, left : left + size])
    return pieces


def _starts(length: int, size: int, step: int) -> list[int]:
    """Starts of windows that cover the length; the last one ends with it."""
    starts = list(range(0, length - size + 1, step))
    return starts if starts[-1] + size == length else [*starts, length - size]


def _png(image: np.ndarray) -> bytes:
    _, encoded = cv2.imencode(".png", np.ascontiguousarray(image), [cv2.IMWRITE_PNG_COMPRESSION, COMPRESSION])
    return encoded.tobytes()


def _check(stores: dict[str, Store], settings: Settings) -> None:
    """Every set holds the same keys, and each LR image is its HR image's size divided by the scale."""
    sizes = {kind: dict(store.sizes()) for kind, store in stores.items()}
    factor = {"HR": 1} | {f"LR_bicubic_X{scale}": scale for scale in settings.scales}
    reference = {key: [n * factor[kind] for n in size] for kind, found in sizes.items() for key, size in found.items()}
    for kind, found in sizes.items():
        for key, expected in reference.items():
            if key not in found or [n * factor[kind] for n in found[key]] != expected:
                raise OptionError(f"{key} of {kind} does not fit the other sets: run again with --overwrite")

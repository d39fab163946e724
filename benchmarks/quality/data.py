"""The data of a recipe: training pairs in LMDBs, held-out and test pairs as PNG files, all below the work folder."""

import shutil
from pathlib import Path

import cv2

from benchmarks.quality.recipe import TEACHER_ARM, Recipe
from csd_plugin import OptionError
from csd_plugin.cli import main as basicsr
from csd_plugin.data.bicubic import downscale
from csd_plugin.data.pairs import IMAGE_SUFFIXES


def prepare_data(recipe: Recipe, source: Path, work: Path) -> None:
    """Make what is not there yet in `<work>/data`.

    Args:
        recipe: the recipe.
        source: the folder that its paths are below.
        work: the recipe's work folder.

    Raises:
        OptionError: a folder or file is missing.
    """
    target = work / "data"
    vgg = _file(source / recipe.data.vgg)
    photographs = _images(source / recipe.data.train)
    held_out = photographs[:: len(photographs) // recipe.data.held_out][: recipe.data.held_out]
    _pairs(held_out, None, target / "held_out", recipe.scale)
    for name, test in recipe.data.tests.items():
        lq = None if test.lq is None else source / test.lq
        _pairs(_images(source / test.hr), lq, target / "tests" / name, recipe.scale)
    shutil.copyfile(vgg, target / "vgg.pth")
    if recipe.data.teacher is not None:
        models = work / f"experiments/{TEACHER_ARM}/models"
        models.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_file(source / recipe.data.teacher), models / "net_g_latest.pth")
    chosen = target / "photographs"
    chosen.mkdir(exist_ok=True)
    for path in sorted(set(photographs) - set(held_out)):
        if not (chosen / path.name).exists():
            (chosen / path.name).symlink_to(path.resolve())
    flags = ["--scale", str(recipe.scale), "--crop-size", str(recipe.data.crop_size), "--step", str(recipe.data.step)]
    if basicsr(["prepare", str(chosen), str(target), "--name", "train", *flags]):
        raise OptionError(f"the training data could not be made in {target}")


def _file(path: Path) -> Path:
    if not path.is_file():
        raise OptionError(f"no such file: {path} (option --data)")
    return path


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise OptionError(f"no such folder: {folder} (option --data)")
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def _pairs(images: list[Path], lq: Path | None, target: Path, scale: int) -> None:
    """HR images cut to a multiple of the scale and their LR ones, as PNG files of the same names."""
    if target.is_dir():
        return
    partial = target.with_name(f"{target.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    for kind in ("HR", "LR"):
        (partial / kind).mkdir(parents=True)
    for path in images:
        hr = cv2.imread(str(path))
        height, width = (n - n % scale for n in hr.shape[:2])
        hr = hr[:height, :width]
        given = None if lq is None else cv2.imread(str(lq / path.name))
        small = downscale(hr, scale) if given is None else given[: height // scale, : width // scale]
        cv2.imwrite(str(partial / "HR" / f"{path.stem}.png"), hr)
        cv2.imwrite(str(partial / "LR" / f"{path.stem}.png"), small)
    partial.rename(target)

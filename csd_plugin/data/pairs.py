"""What a paired data set holds, read from its index and its file headers without decoding an image."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from csd_plugin.errors import OptionError

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_META_LINE = re.compile(r"(?P<name>.+) \((?P<h>\d+),(?P<w>\d+),(?P<c>\d+)\)( \d+)?")
_MAX_HEADERS = 2000

Size = tuple[int, int]


@dataclass(frozen=True)
class Pair:
    """Sizes (height, width) of one LR and HR image."""

    name: str
    lq: Size
    gt: Size


def read_meta_info(lmdb_path: Path) -> dict[str, Size]:
    """Height and width of every image of an LMDB, by key, from its `meta_info.txt`.

    Raises:
        OptionError: a line is not of the form `name.png (h,w,c) 1`.
    """
    sizes = {}
    for line in (lmdb_path / "meta_info.txt").read_text(encoding="utf-8").splitlines():
        match = _META_LINE.fullmatch(line)
        if match is None:
            raise OptionError(f"{lmdb_path / 'meta_info.txt'}: cannot read the line {line!r}")
        sizes[match["name"].split(".")[0]] = (int(match["h"]), int(match["w"]))
    return sizes


def image_size(path: Path) -> Size:
    """Height and width of an image file from its header.

    Raises:
        OptionError: the file is no image.
    """
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (UnidentifiedImageError, OSError) as error:
        raise OptionError(f"cannot read image {path}: {error}") from None


def check_paired_dataset(options: Mapping[str, Any], where: str, scale: int, training: bool) -> int:
    """Check that the data set exists and that each HR image is `scale` times its LR image.

    Folders of more than 2000 images are sampled evenly; an LMDB is checked wholly.

    Args:
        options: an entry of `datasets` of type `PairedImageDataset`.
        where: its option path, quoted in errors.
        scale: upsampling factor.
        training: sizes must match exactly; otherwise HR may be larger by less than `scale`, as BasicSR crops it.

    Returns:
        Number of pairs.

    Raises:
        OptionError: something is missing or does not match; names the option and the image.
    """
    is_lmdb = options["io_backend"].get("type") == "lmdb"
    for key in ("dataroot_gt", "dataroot_lq"):
        check_root(Path(os.path.expanduser(options[key])), f"{where}:{key}", is_lmdb)
    if is_lmdb:
        pairs, count = _lmdb_pairs(options, where)
    else:
        pairs, count = _folder_pairs(options, where)
    if count == 0:
        raise OptionError(f"no images in {options['dataroot_gt']} (option {where}:dataroot_gt)")
    for pair in pairs:
        check_pair(pair, options, where, scale, training)
    return count


def check_root(root: Path, option: str, is_lmdb: bool) -> None:
    """Refuse a folder or LMDB that is not there.

    Raises:
        OptionError: naming it and its option.
    """
    if not root.is_dir():
        raise OptionError(f"no such {'LMDB' if is_lmdb else 'folder'}: {root} (option {option})")
    if is_lmdb:
        if root.suffix != ".lmdb":
            raise OptionError(f"expected a folder that ends with .lmdb, got {root} (option {option})")
        for file in ("data.mdb", "meta_info.txt"):
            if not (root / file).is_file():
                raise OptionError(f"{root} is no finished LMDB: {file} is missing (option {option})")


def _lmdb_pairs(options: Mapping[str, Any], where: str) -> tuple[Iterator[Pair], int]:
    gt, lq = (read_meta_info(Path(os.path.expanduser(options[key]))) for key in ("dataroot_gt", "dataroot_lq"))
    alone = sorted(set(gt) ^ set(lq))
    if alone:
        raise OptionError(f"{alone[0]} is in only one of the two LMDBs (option {where}:dataroot_lq)")
    return (Pair(name, lq[name], gt[name]) for name in gt), len(gt)


def _folder_pairs(options: Mapping[str, Any], where: str) -> tuple[Iterator[Pair], int]:
    gt_root, lq_root = (Path(os.path.expanduser(options[key])) for key in ("dataroot_gt", "dataroot_lq"))
    if options.get("meta_info_file"):
        meta = Path(os.path.expanduser(options["meta_info_file"]))
        if not meta.is_file():
            raise OptionError(f"no such file: {meta} (option {where}:meta_info_file)")
        names = [line.split(" ")[0] for line in meta.read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        names = _images(gt_root)
        others = len(_images(lq_root))
        if others != len(names):
            raise OptionError(f"{len(names)} HR images but {others} LR images (option {where}:dataroot_lq)")

    def pairs() -> Iterator[Pair]:
        step = max(1, len(names) // _MAX_HEADERS)
        for name in names[::step]:
            stem, suffix = os.path.splitext(name)
            low = lq_root / (options.get("filename_tmpl", "{}").format(stem) + suffix)
            for path, key in ((gt_root / name, "dataroot_gt"), (low, "dataroot_lq")):
                if not path.is_file():
                    raise OptionError(f"no such image: {path} (option {where}:{key})")
            yield Pair(name, image_size(low), image_size(gt_root / name))

    return pairs(), len(names)


def _images(folder: Path) -> list[str]:
    """Names of the files that BasicSR's folder scan takes: all that are not hidden."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_file() and not entry.name.startswith("."))


def check_pair(pair: Pair, options: Mapping[str, Any], where: str, scale: int, training: bool) -> None:
    """HR is `scale` times LR and, in training, not smaller than the patch.

    Raises:
        OptionError: naming the pair and the option.
    """
    expected = (pair.lq[0] * scale, pair.lq[1] * scale)
    surplus = max(g - e for g, e in zip(pair.gt, expected, strict=True))
    shortage = min(g - e for g, e in zip(pair.gt, expected, strict=True))
    if shortage < 0 or surplus > (0 if training else scale - 1):
        raise OptionError(
            f"{pair.name}: HR {pair.gt[0]}x{pair.gt[1]} is not {scale} times LR {pair.lq[0]}x{pair.lq[1]} "
            f"(options scale, {where}:dataroot_lq)"
        )
    if training and min(pair.gt) < options["gt_size"]:
        raise OptionError(
            f"{pair.name}: HR {pair.gt[0]}x{pair.gt[1]} is smaller than the patch (option {where}:gt_size "
            f"{options['gt_size']})"
        )

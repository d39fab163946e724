"""Checking BasicSR's data sets of video clips before a run starts."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from csd_plugin.data.pairs import Pair, check_pair, check_root, image_size
from csd_plugin.errors import OptionError

CLIP_DATASETS: Mapping[str, tuple[str, ...]] = {
    "REDSDataset": ("gt_size", "meta_info_file", "dataroot_flow", "val_partition", "interval_list", "random_reverse"),
    "REDSRecurrentDataset": ("gt_size", "meta_info_file", "val_partition", "test_mode"),
    "Vimeo90KDataset": ("gt_size", "meta_info_file", "random_reverse"),
    "Vimeo90KRecurrentDataset": ("gt_size", "meta_info_file", "random_reverse", "flip_sequence"),
    "VideoTestDataset": ("cache_data", "padding"),
    "VideoTestDUFDataset": ("cache_data", "padding", "use_duf_downsampling"),
    "VideoTestVimeo90KDataset": ("cache_data", "meta_info_file"),
    "VideoRecurrentTestDataset": ("cache_data",),
}
_HELD_OUT = {"REDS4": ("000", "011", "015", "020"), "official": tuple(f"{i:03d}" for i in range(240, 270))}
_REDS_FRAMES = 100
_TEST_NAMES = ("vid4", "reds4", "redsofficial")


def check_clip_dataset(options: Mapping[str, Any], where: str) -> int | None:
    """Check what BasicSR would stumble over: options that it reads without asking, roots, clips and their length.

    Args:
        options: an entry of `datasets` whose type is one of `CLIP_DATASETS`.
        where: its option path, quoted in errors.

    Returns:
        Number of items, or None for a test set.

    Raises:
        OptionError: something is missing or does not fit; names the option and the clip.
    """
    kind = options["type"]
    for key in CLIP_DATASETS[kind]:
        if key not in options:
            raise OptionError(f"missing option {where}:{key}, which {kind} needs")
    is_lmdb = options["io_backend"].get("type") == "lmdb"
    for key in ("dataroot_gt", "dataroot_lq"):
        check_root(Path(options[key]), f"{where}:{key}", is_lmdb)
    meta = options.get("meta_info_file")
    if meta is not None and not os.path.isfile(meta):
        raise OptionError(f"no such file: {meta} (option {where}:meta_info_file)")
    if kind.startswith("VideoTest") and kind != "VideoTestVimeo90KDataset" or kind == "VideoRecurrentTestDataset":
        _check_test_clips(options, where)
        return None
    if kind.startswith("REDS"):
        return _check_reds(options, where, is_lmdb)
    return len(_lines(options, where)) if meta is not None else None


def _check_test_clips(options: Mapping[str, Any], where: str) -> None:
    if options["name"].lower() not in _TEST_NAMES:
        raise OptionError(
            f"{options['type']} reads data sets named {', '.join(_TEST_NAMES)} only, got {options['name']!r} "
            f"(option {where}:name)"
        )
    if options["io_backend"].get("type") == "lmdb":
        raise OptionError(f"{options['type']} reads folders, no LMDB (option {where}:io_backend:type)")
    if options["type"] == "VideoRecurrentTestDataset" and not options["cache_data"]:
        raise OptionError(f"VideoRecurrentTestDataset needs true (option {where}:cache_data)")
    roots = [Path(options[key]) for key in ("dataroot_gt", "dataroot_lq")]
    if options.get("meta_info_file") is not None:
        clips = [line.split(" ")[0] for line in _lines(options, where)]
    else:
        clips = sorted(entry.name for entry in roots[0].iterdir() if entry.is_dir())
    if not clips:
        raise OptionError(f"no clips in {roots[0]} (option {where}:dataroot_gt)")
    for clip in clips:
        counts = []
        for root, key in zip(roots, ("dataroot_gt", "dataroot_lq"), strict=True):
            if not (root / clip).is_dir():
                raise OptionError(f"no such clip: {root / clip} (option {where}:{key})")
            counts.append(sum(not entry.name.startswith(".") for entry in (root / clip).iterdir()))
        if counts[0] != counts[1]:
            raise OptionError(f"clip {clip}: {counts[0]} HR but {counts[1]} LR frames (option {where}:dataroot_lq)")


def _check_reds(options: Mapping[str, Any], where: str, is_lmdb: bool) -> int:
    """Number of frames that are for training; BasicSR takes each clip to have the 100 frames of REDS."""
    if options["val_partition"] is None:
        raise OptionError(f"expected REDS4 or official, got None (option {where}:val_partition)")
    span = (options["num_frame"] - 1) * max(options.get("interval_list") or [1]) + 1
    if not 1 <= span <= _REDS_FRAMES:
        raise OptionError(f"a clip has {_REDS_FRAMES} frames, fewer than {span} (option {where}:num_frame)")
    if options["type"] == "REDSDataset" and options["num_frame"] % 2 == 0:
        raise OptionError(f"expected an odd number, got {options['num_frame']} (option {where}:num_frame)")
    frames, clips = 0, []
    for line in _lines(options, where):
        clip, *rest = line.split(" ")
        if len(rest) != 2 or not rest[0].isdigit():
            raise OptionError(f"{options['meta_info_file']}: expected 'clip frames (h,w,c)', got {line!r}")
        if int(rest[0]) != _REDS_FRAMES:
            raise OptionError(
                f"{options['type']} takes clips of {_REDS_FRAMES} frames, {clip} has {rest[0]} "
                f"(option {where}:meta_info_file)"
            )
        if clip not in _HELD_OUT[options["val_partition"]]:
            clips.append(clip)
            frames += _REDS_FRAMES
    for clip in clips if not is_lmdb else ():
        _check_ends(clip, options, where)
    return frames


def _check_ends(clip: str, options: Mapping[str, Any], where: str) -> None:
    """First and last frame of a clip are there, and HR is as many times LR as it should be."""
    for frame in ("00000000.png", f"{_REDS_FRAMES - 1:08d}.png"):
        for key in ("dataroot_gt", "dataroot_lq"):
            path = Path(options[key]) / clip / frame
            if not path.is_file():
                raise OptionError(f"no such image: {path} (option {where}:{key})")
    gt, lq = (image_size(Path(options[key]) / clip / "00000000.png") for key in ("dataroot_gt", "dataroot_lq"))
    check_pair(Pair(f"clip {clip}", lq, gt), options, where, options["scale"], training=True)


def _lines(options: Mapping[str, Any], where: str) -> list[str]:
    text = Path(options["meta_info_file"]).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise OptionError(f"{options['meta_info_file']} names no clip (option {where}:meta_info_file)")
    return lines

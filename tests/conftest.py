"""Shared fixtures. One thread: with two, tiny networks run many times slower."""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import logging
from pathlib import Path

import csd_plugin  # noqa: F401  isort: skip  (mends BasicSR, so it comes before it)

import basicsr.utils.logger
import numpy as np
import pytest
import torch
import yaml

from csd_plugin.cli import main
from csd_plugin.data.bicubic import downscale

torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent


def forget_logging():
    """Make BasicSR's logger as new as in a new process."""
    for name in list(basicsr.utils.logger.initialized_logger):
        logger = logging.getLogger(name)
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()
    basicsr.utils.logger.initialized_logger.clear()


@pytest.fixture(autouse=True)
def fresh_basicsr(tmp_path, monkeypatch):
    """An empty working directory and a BasicSR that has not logged yet."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    yield
    forget_logging()


def photograph(seed, height=48, width=48):
    """A smooth random picture (H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x * rng.uniform(0.1, 0.9) + y * rng.uniform(0.1, 0.9) + rng.uniform(0, 6)) for _ in range(3)]
    return ((np.stack(waves, 2) + 1) * 110 + rng.uniform(0, 30, (height, width, 3))).clip(0, 255).astype(np.uint8)


def write_pairs(folder, count=4, scale=2, size=48):
    """HR and LR PNG files in folder/HR and folder/LR."""
    import cv2

    for kind in ("HR", "LR"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        hr = photograph(i, size, size)
        cv2.imwrite(str(folder / "HR" / f"im{i}.png"), hr)
        cv2.imwrite(str(folder / "LR" / f"im{i}.png"), downscale(hr, scale))


def write_clips(folder, clips=("001", "002"), frames=100, scale=4, size=64):
    """Clips of four pictures over and over, in folder/HR/<clip> and folder/LR/<clip>, and folder/meta.txt."""
    import cv2

    for number, clip in enumerate(clips):
        for kind in ("HR", "LR"):
            (folder / kind / clip).mkdir(parents=True)
        for frame in range(frames):
            name = f"{frame:08d}.png"
            if frame < 4:
                hr = photograph(10 * number + frame, size, size)
                cv2.imwrite(str(folder / "HR" / clip / name), hr)
                cv2.imwrite(str(folder / "LR" / clip / name), downscale(hr, scale))
            else:
                for kind in ("HR", "LR"):
                    os.link(folder / kind / clip / f"{frame % 4:08d}.png", folder / kind / clip / name)
    (folder / "meta.txt").write_text("".join(f"{clip} {frames} ({size},{size},3)\n" for clip in clips))


EDSR = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1, "upscale": 2}


def base_options(**changes):
    """A complete option file for a tiny run; `changes` replace top-level blocks or update nested ones by a:b:c."""
    l1 = {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"}
    contrast = {"type": "ContrastiveLoss", "vgg_weights": "random", "layer_weights": {"relu1_1": 0.5, "relu2_1": 1.0}}
    data = {"type": "PairedImageDataset", "dataroot_gt": "data/HR", "dataroot_lq": "data/LR"}
    options = {
        "name": "tiny",
        "model_type": "CSDModel",
        "scale": 2,
        "num_gpu": 0,
        "manual_seed": 1,
        "datasets": {
            "train": {
                **data,
                "name": "tiny",
                "io_backend": {"type": "disk"},
                "gt_size": 24,
                "use_hflip": True,
                "use_rot": True,
                "num_worker_per_gpu": 0,
                "batch_size_per_gpu": 4,
                "dataset_enlarge_ratio": 20,
            },
            "val": {**data, "name": "held", "io_backend": {"type": "disk"}},
        },
        "network_g": {"type": "CSSRNet", "width": 0.5, "backbone": dict(EDSR)},
        "path": {"pretrain_network_g": None, "strict_load_g": True, "resume_state": None},
        "train": {
            "ema_decay": 0.9,
            "optim_g": {"type": "Adam", "lr": 1e-3, "betas": [0.9, 0.99]},
            "scheduler": {"type": "MultiStepLR", "milestones": [3], "gamma": 0.5},
            "total_iter": 4,
            "warmup_iter": -1,
            "pixel_opt": dict(l1),
            "teacher_opt": dict(l1),
            "contrastive_opt": contrast,
            "negatives": {"source": "batch", "num": 2},
        },
        "val": {
            "val_freq": 2,
            "save_img": False,
            "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True}},
        },
        "logger": {"print_freq": 1, "save_checkpoint_freq": 2, "use_tb_logger": False},
    }
    for path, value in changes.items():
        block = options
        *parents, key = path.split(":")
        for parent in parents:
            block = block[parent]
        block[key] = value
    return options


def write_options(options, path="run.yml"):
    Path(path).write_text(yaml.safe_dump(options, sort_keys=False))
    return path


def train(options, *flags):
    """Exit status of `basicsr train` on the options, in this process."""
    return main(["train", "-opt", write_options(options), *flags])


def load(path):
    return torch.load(path, map_location="cpu", weights_only=True)


@pytest.fixture
def pairs(tmp_path):
    """Four x2 pairs in data/HR and data/LR of the working directory."""
    write_pairs(tmp_path / "data")

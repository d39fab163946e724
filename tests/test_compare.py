"""Several models on the same photographs."""

import csv

import cv2
import numpy as np
import pytest
import torch
from basicsr.metrics.psnr_ssim import calculate_psnr

from csd_plugin.cli import main
from csd_plugin.data.bicubic import downscale, upscale
from csd_plugin.deploy.formats import Description, save_pth, save_safetensors
from csd_plugin.evaluation.sheet import most_disputed_patch
from csd_plugin.slicing.widths import build_backbone
from tests.conftest import EDSR, write_pairs


@pytest.fixture
def models(tmp_path):
    """Two models, and four pairs of size 48 and one of another size."""
    for seed, (name, save) in enumerate((("one.pth", save_pth), ("two.safetensors", save_safetensors))):
        torch.manual_seed(seed)
        save(build_backbone(EDSR).eval(), Description(EDSR, 2, 1.0, "test"), tmp_path / name)
    write_pairs(tmp_path / "data", count=3)
    return ["one.pth", "two.safetensors"]


def compare(*arguments):
    return main(["compare", *arguments, "--hr", "data/HR"])


def rows():
    with open("out/compare.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_figures_are_those_of_each_image(models, tmp_path, capsys):
    assert compare(*models, "--lr", "data/LR", "-o", "out") == 0
    found = rows()
    assert [(row["image"], row["model"]) for row in found[:4]] == [
        ("im0", "bicubic"), ("im0", "one"), ("im0", "two"), ("im1", "bicubic"),
    ]  # fmt: skip
    hr, lq = cv2.imread("data/HR/im1.png"), cv2.imread("data/LR/im1.png")
    expected = calculate_psnr(upscale(lq, 2), hr, crop_border=2, test_y_channel=True)
    assert float(found[3]["psnr"]) == pytest.approx(expected, abs=1e-3)
    out = capsys.readouterr().out
    assert "mean of 3 images" in out and "bicubic" in out and "two" in out
    sheet = cv2.imread("out/compare.png")
    assert sheet.shape[0] > 3 * 240 and sheet.shape[1] > 4 * 240


def test_lr_images_are_made_where_none_are_given(models):
    assert compare(*models, "--lr", "data/LR", "-o", "out") == 0
    given = rows()
    assert compare(*models, "-o", "out", "--overwrite") == 0
    assert rows() == given


def test_an_image_that_does_not_divide_by_the_scale_is_cut(models, tmp_path):
    hr = cv2.imread("data/HR/im0.png")[:47, :45]
    for path in (tmp_path / "data/HR").iterdir():
        path.unlink()
    cv2.imwrite("data/HR/odd.png", hr)
    assert compare("one.pth", "-o", "out") == 0
    cut = hr[:46, :44]
    expected = calculate_psnr(upscale(downscale(cut, 2), 2), cut, crop_border=2, test_y_channel=True)
    assert float(rows()[0]["psnr"]) == pytest.approx(expected, abs=1e-3)


def test_the_sheet_shows_where_models_differ():
    base = np.zeros((60, 80, 3), np.uint8)
    other = base.copy()
    other[30:40, 50:60] = 200
    top, left, dispute = most_disputed_patch([base, other], 10)
    assert (top, left) == (30, 50) and dispute == pytest.approx(100)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["one.pth", "three.pth"], "no such file: three.pth"),
        (["one.pth", "one.pth"], "the same model is named twice"),
        (["one.pth", "x3.pth"], "models of one scale can be compared, got one x2, x3 x3"),
        (["one.pth", "--lr", "nowhere"], "no such folder: nowhere"),
        (["one.pth", "--lr", "data/HR"], "im0.png is 48x48, expected 24x24 for x2 (option --lr)"),
        (["one.pth", "--lr", "."], "no LR image of im0.png in . (option --lr)"),
        (["one.pth", "--lpips"], "LPIPS cannot be had"),
    ],
)
def test_mistakes_cost_one_line(models, arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchmetrics.image.lpip", None)
    options = {**EDSR, "upscale": 3}
    save_pth(build_backbone(options), Description(options, 3, 1.0, "test"), tmp_path / "x3.pth")
    assert compare(*arguments, "-o", "out") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_earlier_comparison_is_kept(models, tmp_path, capsys):
    assert compare("one.pth", "-o", "out") == 0
    before = (tmp_path / "out/compare.csv").read_bytes()
    assert compare("two.safetensors", "-o", "out") == 2
    assert "compare.csv is there already" in capsys.readouterr().err
    assert (tmp_path / "out/compare.csv").read_bytes() == before

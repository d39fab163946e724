"""The student that comes with the package."""

import json
import re

import cv2
import numpy as np
import pytest
from basicsr.metrics.psnr_ssim import calculate_psnr
from skimage import data

from csd_plugin.cli import main
from csd_plugin.data.bicubic import downscale, upscale
from csd_plugin.deploy.formats import load_network
from csd_plugin.deploy.upscale import DEFAULT_MODEL
from csd_plugin.evaluation.complexity import count_parameters
from tests.conftest import ROOT

CARD = (DEFAULT_MODEL.parent / "README.md").read_text()
RESULT = json.loads((ROOT / re.search(r"`(benchmarks/quality/results/[\w/]+\.json)`", CARD)[1]).read_text())


def test_it_is_small_and_says_what_it_is():
    assert DEFAULT_MODEL.stat().st_size < 2**20
    network, description = load_network(DEFAULT_MODEL)
    assert description.scale == 2 and description.network_g == RESULT["network"]
    assert f"{count_parameters(network):,} parameters" in CARD
    assert description.trained_by == f"{RESULT['arm']}_{RESULT['seed']}"


def test_the_card_has_the_figures_of_the_run():
    for name in ("Set5", "Set14", "BSD100"):
        (row,) = (line for line in CARD.splitlines() if line.startswith(f"| {name} |"))
        rating = RESULT["rating"]["student"][name]
        assert f"{rating['psnr']:.2f}" in row and f"{rating['psnr_ensemble']:.2f}" in row
    assert "research" in CARD


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee"])
def test_it_is_the_default_and_clearly_beats_bicubic(name, tmp_path):
    hr = np.ascontiguousarray(getattr(data, name)()[: 2 * 128, : 2 * 128, ::-1])
    lq = downscale(hr, 2)
    cv2.imwrite("lq.png", lq)
    assert main(["upscale", "lq.png", "-o", "sr.png"]) == 0
    images = (cv2.imread("sr.png"), upscale(lq, 2))
    ours, bicubic = (calculate_psnr(image, hr, crop_border=2, test_y_channel=True) for image in images)
    assert ours > bicubic + 0.5

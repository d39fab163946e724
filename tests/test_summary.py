import numpy as np
from PIL import Image

from csd_plugin.cli import main
from csd_plugin.data.bicubic import upscale
from csd_plugin.evaluation.sheet import crop_sheet, most_different_patch
from tests.conftest import base_options, photograph, train


def test_table_and_picture_of_a_run(pairs, tmp_path, capsys):
    assert train(base_options()) == 0
    capsys.readouterr()
    assert main(["summary", "-opt", "run.yml"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split() for line in lines if line.startswith(("bicubic", "student 0", "teacher  "))}
    hr, scores = [photograph(i).astype(float) for i in range(4)], []
    import cv2
    from basicsr.metrics import calculate_psnr

    for i, image in enumerate(hr):
        enlarged = upscale(cv2.imread(str(tmp_path / f"data/LR/im{i}.png")), 2)
        scores.append(calculate_psnr(enlarged, image, crop_border=2, test_y_channel=True))
    assert float(rows["bicubic"][1]) == round(float(np.mean(scores)), 2)
    # EDSR: in, two in the block, after the body, 4x in the upsampler, out; 3x3 weights and biases.
    for name, c in (("student", 4), ("teacher", 8)):
        parameters = (3 * c + 3 * c * c + 4 * c * c + 3 * c) * 9 + (c + 3 * c + 4 * c + 3)
        assert f"{parameters:,}" in rows[name]
    with Image.open(tmp_path / "experiments/tiny/summary.png") as picture:
        assert picture.size[0] > 5 * 200
        assert len(set(picture.convert("L").getdata())) > 50


def test_what_is_missing_is_named(pairs, capsys):
    assert train(base_options()) == 0
    capsys.readouterr()
    assert main(["summary", "-opt", "run.yml", "--checkpoint", "7"]) == 2
    assert "no such checkpoint: experiments/tiny/models/net_g_7.pth" in capsys.readouterr().err
    assert main(["summary", "-opt", "run.yml", "--force_yml", "network_g:backbone:num_block=2"]) == 2
    assert "holds no weights of this network" in capsys.readouterr().err


def test_the_patch_that_differs_most():
    a, b = np.zeros((20, 30, 3), np.uint8), np.zeros((20, 30, 3), np.uint8)
    b[7:11, 13:17] = 200
    assert most_different_patch(a, b, 4) == (7, 13)


def test_a_sheet_has_a_cell_for_each_crop():
    red, blue = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)
    red[..., 2], blue[..., 0] = 255, 255
    sheet = crop_sheet([{"r": red, "b": blue}, {"r": blue, "b": red}])
    colours = [sheet.getpixel((x, y)) for y in (150, 410) for x in (100, 350)]
    assert colours == [(255, 0, 0), (0, 0, 255), (0, 0, 255), (255, 0, 0)]

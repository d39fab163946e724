import json

import cv2
import lmdb
import numpy as np
import pytest
from basicsr.data import build_dataset
from basicsr.utils.matlab_functions import imresize

from csd_plugin.cli import main
from csd_plugin.data import prepare as module
from csd_plugin.data import stores
from csd_plugin.data.bicubic import downscale, resize
from csd_plugin.data.pairs import read_meta_info
from tests.conftest import photograph


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for i, size in enumerate([(60, 84), (75, 61), (48, 48)]):
        cv2.imwrite(str(folder / f"p{i}.png"), photograph(i, *size))
    return folder


def prepare(*extra):
    return main(
        ["prepare", "in", "out", "--name", "set", "--crop-size", "24", "--step", "12", "--workers", "2", *extra]
    )


def content(path):
    with lmdb.open(str(path), readonly=True, lock=False) as env, env.begin() as transaction:
        return {bytes(k): bytes(v) for k, v in transaction.cursor()}


@pytest.mark.parametrize("factor", [1 / 2, 1 / 3, 1 / 4, 2, 3, 4])
def test_resize_is_basicsrs_imresize(factor):
    image = photograph(0, 36, 48).astype(np.float32) / 255
    np.testing.assert_allclose(resize(image, factor), imresize(image, factor), atol=1e-6)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_pairs_are_aligned_and_train_in_basicsr(photographs, tmp_path, scale):
    assert prepare("--scale", str(scale)) == 0
    gt, lq = (tmp_path / "out" / f"set_{kind}_sub.lmdb" for kind in ("HR", f"LR_bicubic_X{scale}"))
    assert read_meta_info(gt).keys() == read_meta_info(lq).keys()
    assert set(read_meta_info(gt).values()) == {(24, 24)}
    options = {"type": "PairedImageDataset", "name": "set", "dataroot_gt": str(gt), "dataroot_lq": str(lq)}
    options |= {"io_backend": {"type": "lmdb"}, "scale": scale, "phase": "val"}
    pairs = list(build_dataset(options))
    assert len(pairs) == 24 + 20 + 9
    for pair in pairs:
        hr = (pair["gt"].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        lr = (pair["lq"].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        inside = slice(3, -3)  # the border of a sub-image knows its neighbours, this check does not
        assert np.abs(downscale(hr, scale)[inside, inside].astype(int) - lr[inside, inside]).max(initial=0) <= 1


def test_lr_is_made_from_the_whole_photograph(photographs, tmp_path):
    assert prepare("--scale", "2") == 0
    whole = downscale(cv2.imread(str(photographs / "p2.png")), 2)
    stored = content(tmp_path / "out/set_LR_bicubic_X2_sub.lmdb")[b"p2_s005"]
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(stored, np.uint8), 1), whole[6:18, 6:18])


def test_one_hr_set_serves_several_scales(photographs, tmp_path):
    assert prepare("--scale", "2", "3", "4") == 0
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["set_HR_sub.lmdb", *(f"set_LR_bicubic_X{s}_sub.lmdb" for s in (2, 3, 4))]


def test_whole_images_as_files(photographs, tmp_path):
    assert main(["prepare", "in", "out", "--scale", "2", "--crop-size", "0", "--format", "png"]) == 0
    sizes = {p.name: cv2.imread(str(p)).shape[:2] for p in (tmp_path / "out/in_HR").glob("*.png")}
    assert sizes == {"p0.png": (60, 84), "p1.png": (72, 60), "p2.png": (48, 48)}
    np.testing.assert_array_equal(
        cv2.imread(str(tmp_path / "out/in_LR_bicubic_X2/p0.png")), downscale(cv2.imread(str(photographs / "p0.png")), 2)
    )


@pytest.mark.parametrize("form", ["lmdb", "png"])
@pytest.mark.parametrize("stop_after", [1, 2])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(photographs, tmp_path, monkeypatch, form, stop_after):
    arguments = ["--scale", "2", "--format", form]
    suffix = ".lmdb" if form == "lmdb" else ""
    kinds = [f"set_{kind}_sub{suffix}" for kind in ("HR", "LR_bicubic_X2")]

    def snapshot():
        if form == "lmdb":
            return [
                (content(tmp_path / "out" / k), (tmp_path / "out" / k / "meta_info.txt").read_text()) for k in kinds
            ]
        return [{p.name: p.read_bytes() for p in (tmp_path / "out" / k).glob("*.png")} for k in kinds]

    assert prepare(*arguments) == 0
    whole = snapshot()
    assert prepare(*arguments, "--overwrite") == 0
    assert snapshot() == whole

    (tmp_path / "out").rename(tmp_path / "first")
    calls = []
    real = module.make_images

    def failing(path, settings):
        if len(calls) >= stop_after:
            raise KeyboardInterrupt
        calls.append(path)
        return real(path, settings)

    monkeypatch.setattr(module, "make_images", failing)
    assert (
        main(
            ["prepare", "in", "out", "--name", "set", "--crop-size", "24", "--step", "12", "--workers", "1", *arguments]
        )
        == 130
    )
    assert all(name.endswith(".partial") for name in (p.name for p in (tmp_path / "out").iterdir()))
    made = []
    monkeypatch.setattr(module, "make_images", lambda path, settings: made.append(path) or real(path, settings))
    assert prepare(*arguments) == 0
    assert len(made) == 3 - stop_after
    assert snapshot() == whole


def test_a_finished_set_is_left_as_it_is(photographs, tmp_path, monkeypatch, capsys):
    assert prepare("--scale", "2") == 0
    monkeypatch.setattr(module, "make_images", None)
    assert prepare("--scale", "2") == 0
    assert "complete already" in capsys.readouterr().err


def test_a_set_made_otherwise_is_replaced_only_when_asked(photographs, tmp_path, capsys):
    assert prepare("--scale", "2") == 0
    before = content(tmp_path / "out/set_HR_sub.lmdb")
    (photographs / "p2.png").unlink()
    assert prepare("--scale", "2") == 2
    assert "exists and was made otherwise" in capsys.readouterr().err
    assert content(tmp_path / "out/set_HR_sub.lmdb") == before
    assert prepare("--scale", "2", "--overwrite") == 0
    assert len(content(tmp_path / "out/set_HR_sub.lmdb")) == 44


def test_the_map_grows(photographs, tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "_FIRST_MAP_SIZE", 16384)
    assert prepare("--scale", "2") == 0
    assert len(content(tmp_path / "out/set_HR_sub.lmdb")) == 53


def test_keys_are_ascii_without_a_dot(tmp_path):
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in/fête v1.2.png"), photograph(0))
    assert prepare("--scale", "2") == 0
    keys = content(tmp_path / "out/set_HR_sub.lmdb")
    assert len(keys) == 9
    assert all(key.isascii() and b"." not in key and b" " not in key for key in keys)


def test_grey_alpha_and_16_bit_photographs_become_8_bit_rgb(tmp_path):
    (tmp_path / "in").mkdir()
    image = photograph(0)
    cv2.imwrite(str(tmp_path / "in/grey.png"), image[..., 0])
    cv2.imwrite(str(tmp_path / "in/alpha.png"), np.dstack([image, image[..., :1]]))
    cv2.imwrite(str(tmp_path / "in/deep.png"), image.astype(np.uint16) * 257)
    assert main(["prepare", "in", "out", "--scale", "2", "--crop-size", "0", "--format", "png"]) == 0
    for name in ("grey", "alpha", "deep"):
        made = cv2.imread(str(tmp_path / f"out/in_HR/{name}.png"), cv2.IMREAD_UNCHANGED)
        assert made.shape == (48, 48, 3) and made.dtype == np.uint8
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "out/in_HR/deep.png")), image)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "out"], "no such folder: nowhere (argument INPUT)"),
        (["in"], "expected INPUT and OUTPUT, or --demo"),
        (["in", "out", "--crop-size", "25"], "(option --crop-size)"),
        (["in", "out", "--crop-size", "24", "--step", "0"], "(option --step)"),
        (["in", "out", "--crop-size", "96", "--step", "48"], "is too small (option --crop-size 96)"),
        (["in", "out", "--scale", "0"], "(option --scale)"),
        (["in", "out", "--crop-size", "24", "--step", "12", "--workers", "0"], "(option --workers)"),
    ],
)
def test_mistakes_cost_one_line(photographs, capsys, arguments, message):
    assert main(["prepare", *arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("basicsr prepare: error: ")
    assert message in error


def test_files_with_the_same_key_and_files_that_are_no_images(photographs, capsys):
    cv2.imwrite(str(photographs / "p0.jpg"), photograph(0))
    assert prepare("--scale", "2") == 2
    assert "p0.jpg and p0.png would have the same key" in capsys.readouterr().err
    (photographs / "p0.jpg").unlink()
    (photographs / "broken.png").write_bytes(b"no image")
    assert prepare("--scale", "2") == 2
    assert "cannot read image in/broken.png" in capsys.readouterr().err


def test_demo_set_is_split_by_photograph(tmp_path):
    assert main(["prepare", "--demo", "--workers", "2"]) == 0
    folder = tmp_path / "datasets/demo"
    trained = {name.split("_s")[0] for name in read_meta_info(folder / "train_HR_sub.lmdb")}
    held_out = {p.stem for p in (folder / "val_HR").glob("*.png")}
    assert held_out == {"chelsea", "coffee"}
    assert "astronaut" in trained
    assert not trained & held_out
    assert json.loads((folder / "val_HR/.prepare.json").read_text())["scales"] == [2]

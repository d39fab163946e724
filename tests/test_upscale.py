"""Enlarging files: tiles without seams, the kinds of pictures there are, and nothing overwritten."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from csd_plugin.cli import main
from csd_plugin.deploy import upscale
from csd_plugin.deploy.formats import Description, save_pth, save_safetensors
from csd_plugin.deploy.images import read_picture
from csd_plugin.deploy.onnx import save_onnx
from csd_plugin.deploy.upscale import load_upscaler
from csd_plugin.models import tiles
from csd_plugin.models.tiles import fitting_side, retrying, run_in_tiles, tiles_along
from csd_plugin.slicing.widths import build_backbone
from tests.backbones import tiny
from tests.conftest import EDSR, photograph

DESCRIPTION = Description(EDSR, 2, 1.0, "test")


@pytest.fixture
def network(tmp_path):
    """A small network in the files a.pth, a.safetensors and a.onnx."""
    torch.manual_seed(1)
    network = build_backbone(EDSR).eval()
    for path, save in (("a.pth", save_pth), ("a.safetensors", save_safetensors), ("a.onnx", save_onnx)):
        save(network, DESCRIPTION, tmp_path / path)
    return network


@pytest.fixture
def photo(tmp_path):
    """photos/a.png and photos/b.png."""
    (tmp_path / "photos").mkdir()
    for seed, name in enumerate("ab"):
        cv2.imwrite(str(tmp_path / f"photos/{name}.png"), photograph(seed, 40, 30))
    return tmp_path / "photos/a.png"


def enlarged(network, path):
    image = torch.from_numpy(cv2.imread(str(path))[..., ::-1].astype(np.float32) / 255).permute(2, 0, 1)[None]
    with torch.no_grad():
        output = network(image).clamp(0, 1)[0].permute(1, 2, 0).numpy()[..., ::-1]
    return (output * 255).round().astype(np.uint8)


def difference(a, b):
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize("model", ["a.pth", "a.safetensors", "a.onnx"])
def test_every_kind_of_model_enlarges_a_file(network, photo, tmp_path, model):
    assert main(["upscale", str(photo), "-o", "out.png", "--model", model]) == 0
    assert difference(cv2.imread("out.png"), enlarged(network, photo)) <= 1


def test_a_folder_a_pattern_and_what_is_done_already(network, photo, tmp_path, capsys):
    flags = ["-o", "big", "--model", "a.pth"]
    assert main(["upscale", "photos/a*", *flags]) == 0
    first = (tmp_path / "big/a.png").stat().st_mtime_ns
    assert main(["upscale", "photos", *flags]) == 0
    assert "1 of 2 are there already" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "big").iterdir()) == ["a.png", "b.png"]
    assert (tmp_path / "big/a.png").stat().st_mtime_ns == first
    assert main(["upscale", "photos", *flags, "--overwrite", "--suffix", ".png"]) == 0
    assert (tmp_path / "big/a.png").stat().st_mtime_ns > first


@pytest.mark.parametrize("name", ["EDSR", "RRDBNet", "SwinIR", "MSRResNet"])
def test_tiles_equal_the_whole_image_where_they_see_enough(name):
    """SwinIR's windows stay where they are if tiles begin at multiples of them; its receptive field is the image."""
    torch.manual_seed(0)
    network = build_backbone(tiny(name)).eval()
    x = torch.rand(1, 3, 48, 60)
    multiple = tiny(name).get("window_size", 2)
    with torch.no_grad():
        whole = network(x)
        tiled = run_in_tiles(network, x, 2, side=24, overlap=24, multiple=multiple)
    mse = float((whole.clamp(0, 1) - tiled.clamp(0, 1)).square().mean())
    if name == "SwinIR":
        assert mse < 1e-5
    else:
        torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=0)


def test_tiles_that_see_too_little_differ():
    network = build_backbone(EDSR).eval()
    x = torch.rand(1, 3, 48, 48)
    with torch.no_grad():
        assert (run_in_tiles(network, x, 2, side=16, overlap=0) - network(x)).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("length", "side", "overlap"), [(100, 32, 8), (33, 32, 8), (32, 32, 8), (5, 1, 3), (97, 10, 0)]
)
def test_tiles_keep_every_pixel_once(length, side, overlap):
    kept = np.zeros(length, int)
    for tile in tiles_along(length, side, overlap):
        assert 0 < tile.inner_stop - tile.inner_start <= side
        assert tile.start == max(0, tile.inner_start - overlap) and tile.stop == min(length, tile.inner_stop + overlap)
        kept[tile.inner_start : tile.inner_stop] += 1
    assert (kept == 1).all()


def test_smaller_tiles_are_tried_while_memory_runs_out():
    tried = []

    def run(side):
        tried.append(side)
        if side is None or side > 60:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return torch.zeros(1)

    assert retrying(run, None, 480)[1] == 60
    assert tried == [None, 240, 120, 60]
    with pytest.raises(MemoryError, match="even the smallest tile"):
        retrying(lambda side: (_ for _ in ()).throw(RuntimeError("DefaultCPUAllocator: not enough memory")), 64, 64)
    with pytest.raises(RuntimeError, match="something else"):
        retrying(lambda side: (_ for _ in ()).throw(RuntimeError("something else")), 64, 64)


def test_the_tile_follows_free_memory(network, photo, tmp_path, monkeypatch):
    assert fitting_side(1000, 10**8, 32) == int((0.6e5) ** 0.5) - 64
    assert fitting_side(1000, 10, 32) == 32
    used = []
    run = run_in_tiles
    monkeypatch.setattr(upscale, "run_in_tiles", lambda *a, **k: used.append(k["side"]) or run(*a, **k))
    upscaler = load_upscaler(tmp_path / "a.pth")
    colour = torch.rand(1, 3, 200, 150)
    whole = upscaler(colour)
    monkeypatch.setattr(upscale, "free_memory", lambda device: upscaler.bytes_per_pixel * 130**2 / 0.6)
    tiled = upscaler(colour)
    assert used == [None, 65] or used == [None, 66]
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=0)
    assert tiles.free_memory(torch.device("cpu")) > 2**20


def write_16_bit(path):
    cv2.imwrite(str(path), (photograph(0, 20, 24).astype(np.uint16) * 257) ^ 1)


def test_alpha_grey_and_16_bits_come_out_as_they_went_in(network, tmp_path):
    colour = photograph(0, 20, 24)
    alpha = np.zeros((20, 24), np.uint8)
    alpha[:, 12:] = 255
    cv2.imwrite("alpha.png", np.dstack([colour, alpha]))
    cv2.imwrite("grey.png", colour[..., 0])
    write_16_bit(tmp_path / "deep.png")
    for name in ("alpha", "grey", "deep"):
        assert main(["upscale", f"{name}.png", "-o", f"{name}_x2.png", "--model", "a.pth"]) == 0
    out = {name: cv2.imread(f"{name}_x2.png", cv2.IMREAD_UNCHANGED) for name in ("alpha", "grey", "deep")}
    assert out["alpha"].shape == (40, 48, 4) and out["grey"].shape == (40, 48) and out["deep"].dtype == np.uint16
    cv2.imwrite("plain.png", colour)
    assert difference(out["alpha"][..., :3], enlarged(network, "plain.png")) <= 1
    assert (out["alpha"][:, :20, 3] <= 8).all() and (out["alpha"][:, 28:, 3] >= 247).all()
    assert len(np.unique(out["deep"] & 255)) > 100  # more than 8 bits


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_upright(tmp_path, orientation):
    image = Image.fromarray(photograph(3, 16, 24))
    exif = image.getexif()
    exif[274] = orientation
    image.save("turned.png", exif=exif)
    from PIL import ImageOps

    upright = np.asarray(ImageOps.exif_transpose(Image.open("turned.png")))
    ours = (read_picture(tmp_path / "turned.png").colour[0].permute(1, 2, 0).numpy() * 255).round()
    assert np.array_equal(ours, upright)


def test_self_ensemble_and_bf16_stay_near(network, photo):
    for name, flags in (("mean", ["--ensemble"]), ("half", ["--precision", "bf16"])):
        assert main(["upscale", str(photo), "-o", f"{name}.png", "--model", "a.pth", *flags]) == 0
        found = cv2.imread(f"{name}.png").astype(float)
        assert 0 < np.abs(found - enlarged(network, photo)).mean() < 20


def test_a_grey_network_enlarges_each_colour(tmp_path):
    options = {**tiny("SRVGGNetCompact"), "num_in_ch": 1, "num_out_ch": 1}
    network = build_backbone(options).eval()
    save_pth(network, Description(options, 2, 1.0, "test"), tmp_path / "grey.pth")
    colour = torch.rand(1, 3, 12, 9)
    with torch.no_grad():
        expected = torch.cat([network(colour[:, i : i + 1]) for i in range(3)], 1).clamp(0, 1)
    torch.testing.assert_close(load_upscaler(tmp_path / "grey.pth")(colour), expected, atol=1e-5, rtol=0)


def test_a_checkpoint_of_basicsr_needs_its_option_file(network, photo, tmp_path, capsys):
    torch.save({"params": network.state_dict()}, "bare.pth")
    arguments = ["upscale", str(photo), "-o", "out.png", "--model", "bare.pth"]
    assert main(arguments) == 2
    assert "does not say which network it is" in capsys.readouterr().err
    (tmp_path / "net.yml").write_text(f"network_g: {EDSR}\n")
    assert main([*arguments, "--network", "net.yml"]) == 0


def test_one_bad_image_does_not_keep_the_others_from_it(network, photo, tmp_path, capsys):
    (tmp_path / "photos/aa.png").write_bytes(b"no picture")
    whole = (tmp_path / "photos/b.png").read_bytes()
    (tmp_path / "photos/ab.png").write_bytes(whole[: len(whole) // 2])
    assert main(["upscale", "photos", "-o", "big", "--model", "a.pth"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "aa.png: no image that can be read" in error
    assert {"a.png", "b.png"} <= {path.name for path in (tmp_path / "big").iterdir()}


def test_a_header_that_claims_too_much_is_refused(tmp_path, network, capsys):
    png = tmp_path / "bomb.png"
    cv2.imwrite(str(png), photograph(0, 8, 8))
    data = bytearray(png.read_bytes())
    data[16:24] = (50000).to_bytes(4, "big") * 2
    import zlib

    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    png.write_bytes(bytes(data))
    assert main(["upscale", "bomb.png", "-o", "out.png", "--model", "a.pth"]) == 2
    assert "bomb.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "-o", "x"], "no such file or folder: nowhere"),
        (["empty", "-o", "x"], "no images in empty"),
        (["photos", "-o", "a.pth"], "2 images need a folder, a.pth is a file (option -o)"),
        (["photos", "-o", "x", "--model", "photos/a.png"], "expected a .pth, .safetensors or .onnx file"),
        (["photos", "-o", "x", "--model", "no.onnx"], "no such file: no.onnx"),
        (["photos", "-o", "x", "--tile", "-1"], "expected 0 or more, got -1 (option --tile)"),
        (["photos", "-o", "x", "--suffix", ".gif"], "got '.gif' (option --suffix)"),
        (["photos", "-o", "x", "--model", "a.onnx", "--precision", "bf16"], "(option --precision)"),
        (["photos", "-o", "x", "--model", "text.onnx"], "text.onnx: no ONNX file"),
    ],
)
def test_mistakes_cost_one_line(network, photo, arguments, message, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.onnx").write_text("no graph")
    if "--model" not in arguments:
        arguments = [*arguments, "--model", "a.pth"]
    assert main(["upscale", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "x").exists()

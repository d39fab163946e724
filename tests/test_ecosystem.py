"""Other people's programs run what is exported."""

import pytest
import torch

from csd_plugin import CSSRNet, OptionError
from csd_plugin.deploy.formats import Description, save_pth, save_safetensors
from csd_plugin.deploy.spandrel import save_for_spandrel

RGB = {"num_in_ch": 3, "num_out_ch": 3}
RRDBNET = {"type": "RRDBNet", **RGB, "num_feat": 16, "num_block": 2, "num_grow_ch": 64, "scale": 4}
COMPACT = {"type": "SRVGGNetCompact", **RGB, "num_feat": 32, "num_conv": 3, "upscale": 4, "act_type": "prelu"}
RCAN = {"type": "RCAN", **RGB, "num_feat": 32, "num_group": 2, "num_block": 3, "squeeze_factor": 4, "upscale": 2}


def student(backbone):
    torch.manual_seed(0)
    net = CSSRNet(backbone, 0.5).eval()
    return net.export(0.5).eval(), Description(net.stock_options(0.5), 4, 0.5, "test")


def opened(path):
    spandrel = pytest.importorskip("spandrel")
    return spandrel.ModelLoader().load_from_file(path)


@pytest.mark.parametrize(
    ("backbone", "save", "suffix", "architecture", "scale"),
    [
        (RRDBNET, save_pth, ".pth", "ESRGAN", 4),
        (RRDBNET, save_safetensors, ".safetensors", "ESRGAN", 4),
        (RRDBNET, save_for_spandrel, ".safetensors", "ESRGAN", 4),
        (COMPACT, save_pth, ".pth", "Compact", 4),
        (COMPACT, save_for_spandrel, ".safetensors", "Compact", 4),
        (RCAN, save_for_spandrel, ".safetensors", "RCAN", 2),
        ({**RCAN, "upscale": 3}, save_for_spandrel, ".safetensors", "RCAN", 3),
        ({**RCAN, "upscale": 4}, save_for_spandrel, ".safetensors", "RCAN", 4),
    ],
)
def test_spandrel_opens_the_student(backbone, save, suffix, architecture, scale, tmp_path):
    network, description = student(backbone)
    path = tmp_path / f"student{suffix}"
    save(network, description, path)
    model = opened(path)
    assert (model.architecture.id, model.scale) == (architecture, scale)
    x = torch.rand(1, 3, 14, 11)
    with torch.no_grad():
        torch.testing.assert_close(model(x.clone()), network(x).clamp(0, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ({**RRDBNET, "num_grow_ch": 32}, "spandrel takes RRDBNet to have num_grow_ch 32, it has 16"),
        ({**RCAN, "res_scale": 0.1}, "spandrel takes RCAN to have res_scale 1, it has 0.1"),
        ({"type": "EDSR", **RGB, "num_feat": 8, "num_block": 1}, "spandrel does not know EDSR, only RCAN"),
    ],
)
def test_what_spandrel_would_misread_is_refused(backbone, message, tmp_path):
    with pytest.raises(OptionError, match=message):
        save_for_spandrel(*student(backbone), tmp_path / "student.safetensors")
    assert not list(tmp_path.iterdir())

"""Exported files: what they hold, that others run them, and that nothing is lost on the way."""

import json
import subprocess
import sys

import onnxruntime
import pytest
import torch
import yaml
from safetensors import safe_open

from csd_plugin import CSSRNet
from csd_plugin.cli import main
from csd_plugin.deploy.formats import Description, load_network, save_pth
from csd_plugin.deploy.onnx import load_onnx, save_onnx
from csd_plugin.errors import OptionError
from csd_plugin.slicing.widths import backbone_options, build_backbone, size_multiple
from tests.backbones import IMAGE_BACKBONES, tiny
from tests.conftest import EDSR, base_options, load, train

OUT = "experiments/tiny/export"


@pytest.fixture
def run(pairs):
    """A run of two students with a moving average."""
    assert train(base_options(**{"network_g:width": [0.25, 0.5], "train:total_iter": 2})) == 0


def export(*arguments):
    return main(["export", "run.yml", *arguments])


def expected(width, key="params_ema"):
    net = CSSRNet(EDSR, [0.25, 0.5])
    net.load_state_dict(load("experiments/tiny/models/net_g_latest.pth")[key])
    return net.export(width).eval()


def test_every_student_in_every_format_computes_what_it_did_in_training(run, tmp_path):
    assert export("--format", "pth", "safetensors", "onnx", "onnx-fp16") == 0
    names = sorted(path.name for path in (tmp_path / OUT).iterdir())
    suffixes = (".onnx", ".pth", ".safetensors", "_fp16.onnx")
    stems = ("tiny_0.25", "tiny_0.5")
    assert names == sorted([f"{s}{e}" for s in stems for e in suffixes] + [f"test_{s}.yml" for s in stems])
    x = torch.rand(2, 3, 9, 14)
    for width in (0.25, 0.5):
        reference = expected(width)(x)
        for suffix in (".pth", ".safetensors"):
            network, description = load_network(tmp_path / OUT / f"tiny_{width:g}{suffix}")
            torch.testing.assert_close(network(x), reference, rtol=0, atol=0)
            assert (description.scale, description.width, description.trained_by) == (2, width, "tiny")
            assert description.network_g == {**EDSR, "num_feat": int(8 * width)}
        for suffix, tolerance in ((".onnx", 1e-5), ("_fp16.onnx", 4e-3)):
            graph, description, multiple = load_onnx(tmp_path / OUT / f"tiny_{width:g}{suffix}")
            torch.testing.assert_close(graph(x), reference, rtol=0, atol=tolerance)
            assert (description.scale, multiple) == (2, 1)


def test_files_describe_themselves_to_others(run, tmp_path):
    assert export("--width", "0.5", "--format", "safetensors", "onnx", "pth") == 0
    with safe_open(tmp_path / OUT / "tiny_0.5.safetensors", "pt") as file:
        metadata = file.metadata()
    session = onnxruntime.InferenceSession(tmp_path / OUT / "tiny_0.5.onnx")
    for strings in (metadata, session.get_modelmeta().custom_metadata_map):
        assert strings["architecture"] == "EDSR" and strings["trained_by"] == "tiny"
        assert json.loads(strings["network_g"])["num_feat"] == 4
    assert [d if isinstance(d, str) else "" for d in session.get_inputs()[0].shape] == ["batch", "", "height", "width"]
    state = load(tmp_path / OUT / "tiny_0.5.pth")["params"]
    build_backbone({**EDSR, "num_feat": 4}).load_state_dict(state, strict=True)


def test_the_test_file_runs_under_stock_basicsr(run, tmp_path):
    assert export("--width", "0.5", "--format", "pth") == 0
    options = yaml.safe_load((tmp_path / OUT / "test_tiny_0.5.yml").read_text())
    options["num_gpu"] = 0
    (tmp_path / "test.yml").write_text(yaml.safe_dump(options))
    code = (
        "import sys, types; m = types.ModuleType('torchvision.transforms.functional_tensor');"
        "from torchvision.transforms.functional import rgb_to_grayscale as f; m.rgb_to_grayscale = f;"
        "sys.modules[m.__name__] = m; sys.argv = ['test.py', '-opt', 'test.yml'];"
        "from basicsr.test import test_pipeline; test_pipeline('.'); assert 'csd_plugin' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "psnr" in done.stdout + done.stderr


def test_which_weights_go_out_is_an_option(run, tmp_path):
    x = torch.rand(1, 3, 8, 8)
    for flags, reference in (
        (["--weights", "params"], expected(0.5, "params")),
        (["--checkpoint", "2"], expected(0.5)),
        (["--checkpoint", "experiments/tiny/models/net_g_2.pth"], expected(0.5)),
    ):
        assert export("--width", "0.5", "--overwrite", "--format", "safetensors", *flags) == 0
        network, _ = load_network(tmp_path / OUT / "tiny_0.5.safetensors")
        torch.testing.assert_close(network(x), reference(x))
    assert export("--width", "0.25", "--checkpoint", "best", "--format", "pth", "-o", "best") == 0
    best = load("experiments/tiny/models/net_g_student_0.25_best.pth")["params_ema"]
    torch.testing.assert_close(load("best/tiny_0.25.pth")["params"], best)


def test_an_experiment_folder_is_enough_and_the_teacher_goes_out_too(run, tmp_path):
    assert main(["export", "experiments/tiny", "--width", "1", "--format", "safetensors"]) == 0
    network, description = load_network(tmp_path / OUT / "tiny_1.safetensors")
    assert description.network_g["num_feat"] == 8
    x = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(network(x), expected(1.0)(x))


def test_nothing_is_replaced_unless_told_to(run, tmp_path, capsys):
    assert export("--width", "0.5", "--format", "pth") == 0
    before = (tmp_path / OUT / "tiny_0.5.pth").read_bytes()
    assert export("--width", "0.25", "0.5", "--weights", "params", "--format", "pth") == 2
    assert "tiny_0.5.pth is there already" in capsys.readouterr().err
    assert (tmp_path / OUT / "tiny_0.5.pth").read_bytes() == before
    assert not (tmp_path / OUT / "tiny_0.25.pth").exists()
    assert export("--width", "0.5", "--weights", "params", "--format", "pth", "--overwrite") == 0
    assert (tmp_path / OUT / "tiny_0.5.pth").read_bytes() != before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--width", "0.3"], "expected some of 0.25, 0.5, 1 or all, got '0.3' (option --width)"),
        (["--checkpoint", "77"], "no such checkpoint: experiments/tiny/models/net_g_77.pth"),
        (["--checkpoint", "best", "--width", "1"], "best is a student's"),
        (["--checkpoint", "notes.pth"], "notes.pth: no file of PyTorch weights"),
    ],
)
def test_mistakes_cost_one_line(run, arguments, message, tmp_path, capsys):
    (tmp_path / "notes.pth").write_text("not weights")
    assert export(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / OUT).exists()


def test_what_is_no_run_of_ours_is_refused(tmp_path, capsys):
    (tmp_path / "stock.yml").write_text(yaml.safe_dump({"name": "x", "scale": 2, "network_g": EDSR}))
    assert main(["export", "stock.yml"]) == 2
    assert "expected CSSRNet" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["export", "empty"]) == 2
    assert "no option file in empty" in capsys.readouterr().err


ONNX_BACKBONES = tuple(name for name in IMAGE_BACKBONES if name != "SwinIR")


@pytest.mark.parametrize("name", ONNX_BACKBONES)
def test_image_backbones_run_in_onnx_runtime_at_any_size(name, tmp_path):
    torch.manual_seed(0)
    network = build_backbone(tiny(name)).eval()
    channels = 1 if name == "ECBSR" and tiny(name).get("num_in_ch") == 1 else 3
    description = Description(tiny(name), 2, 1.0, "test")
    multiple = size_multiple(backbone_options(tiny(name)))
    assert save_onnx(network, description, tmp_path / "net.onnx", multiple, channels) < 1e-4
    graph, _, _ = load_onnx(tmp_path / "net.onnx")
    x = torch.rand(3, channels, 11 * multiple, 9 * multiple)
    torch.testing.assert_close(graph(x), network(x), rtol=0, atol=1e-4)


def test_a_graph_that_holds_at_one_size_only_is_refused_or_fixed(tmp_path):
    network = build_backbone(tiny("SwinIR")).eval()
    description = Description(tiny("SwinIR"), 2, 1.0, "test")
    window = tiny("SwinIR")["window_size"]
    with pytest.raises(OptionError, match="fix it by --size H W"):
        save_onnx(network, description, tmp_path / "net.onnx", multiple=window)
    assert not list(tmp_path.iterdir())
    save_onnx(network, description, tmp_path / "net.onnx", multiple=window, size=(4 * window, 2 * window))
    x = torch.rand(1, 3, 4 * window, 2 * window)
    graph, _, _ = load_onnx(tmp_path / "net.onnx")
    torch.testing.assert_close(graph(x), network(x), rtol=0, atol=1e-4)
    with pytest.raises(OptionError, match=f"takes images of {4 * window}x{2 * window} only, got"):
        graph(x.mT)


def test_a_graph_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    """The check compares with the network itself, so a wrong graph cannot pass."""
    network = build_backbone(EDSR).eval()
    other = build_backbone(EDSR).eval()
    export_graph = torch.onnx.export
    monkeypatch.setattr(torch.onnx, "export", lambda _, *args, **kwargs: export_graph(other, *args, **kwargs))
    with pytest.raises(OptionError, match="ONNX Runtime differs from PyTorch by"):
        save_onnx(network, Description(EDSR, 2, 1.0, "test"), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"x", "expected a .pth, .safetensors or .onnx file, got a.txt"),
        ("a.pth", b"hello", "a.pth: no file of PyTorch weights"),
        ("a.safetensors", b"hello", "a.safetensors: no safetensors file"),
        ("b.pth", None, "no such file: b.pth"),
    ],
)
def test_what_is_no_model_is_refused(name, content, message, tmp_path):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OptionError) as error:
        load_network(path.relative_to(tmp_path))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_bare_checkpoint_needs_its_network(tmp_path):
    torch.save({"params": build_backbone(EDSR).state_dict()}, tmp_path / "bare.pth")
    with pytest.raises(OptionError, match="does not say which network it is"):
        load_network(tmp_path / "bare.pth")
    load_network(tmp_path / "bare.pth", EDSR)
    with pytest.raises(OptionError, match="does not fit EDSR"):
        load_network(tmp_path / "bare.pth", {**EDSR, "num_feat": 6})


def test_a_file_with_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (exec, ("open('pwned', 'w')",))

    torch.save({"params": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(OptionError, match="no file of PyTorch weights"):
        load_network(tmp_path / "evil.pth")
    assert not (tmp_path / "pwned").exists()


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    network = build_backbone(EDSR)
    save_pth(network, Description(EDSR, 2, 1.0, "test"), tmp_path / "net.pth")
    before = (tmp_path / "net.pth").read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError):
        save_pth(build_backbone(EDSR), Description(EDSR, 2, 1.0, "test"), tmp_path / "net.pth")
    assert (tmp_path / "net.pth").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["net.pth"]

"""What networks cost: published counts, other people's counters, and the command."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from mmengine.analysis import get_model_complexity_info

from csd_plugin.cli import main
from csd_plugin.evaluation.complexity import count
from csd_plugin.evaluation.profile import Cost, measured_size
from csd_plugin.evaluation.timing import peak_memory
from csd_plugin.slicing.widths import build_backbone
from tests.backbones import tiny
from tests.conftest import EDSR, ROOT, base_options, write_options

SMALL = {**EDSR, "num_feat": 16, "num_block": 4}


def profiled(tmp_path, *arguments):
    status = main(["profile", *map(str, arguments), "--json", str(tmp_path / "costs.json")])
    assert status == 0
    return json.loads((tmp_path / "costs.json").read_text())


@pytest.mark.parametrize(
    ("arch", "widths", "parameters", "giga_macs"),
    [
        ("edsr", [0.5, 0.25], [43_089_923, 10_780_675, 2_699_267], 2894.55),
        ("rcan", [0.5, 0.25], [15_592_355, 3_909_075, 982_763], 916.86),
    ],
)
def test_the_papers_networks(arch, widths, parameters, giga_macs, tmp_path):
    options = (ROOT / f"options/csd_{arch}_x4.yml").read_text()
    backbone = options[options.index("  backbone:") : options.index("\npath:")]
    backbone += "    squeeze_factor: 16\n" if arch == "rcan" and "squeeze_factor" not in backbone else ""
    (tmp_path / "run.yml").write_text(f"network_g:\n  type: CSSRNet\n  width: {widths}\n{backbone}\n")
    costs = profiled(tmp_path, "run.yml", "--counts-only")
    assert [cost["width"] for cost in costs] == [1.0, 0.5, 0.25]
    assert [cost["parameters"] for cost in costs] == parameters
    assert costs[0]["macs"] / 1e9 == pytest.approx(giga_macs, abs=0.005)
    assert costs[0]["size"] == [3, 180, 320]


@pytest.mark.parametrize(("name", "tolerance"), [("EDSR", 0), ("RCAN", 0.03), ("MSRResNet", 0.01)])
def test_macs_and_activations_are_those_that_mmengine_counts(name, tolerance):
    """It counts interpolation and pooling as well."""
    network = build_backbone(tiny(name)).eval()
    theirs = get_model_complexity_info(network, (3, 24, 20), show_table=False, show_arch=False)
    ours = count(network, (3, 24, 20))
    assert ours.parameters == theirs["params"]
    assert ours.macs == pytest.approx(theirs["flops"], rel=tolerance)
    assert ours.activations == pytest.approx(theirs["activations"], rel=tolerance)


def test_counted_memory_is_that_of_the_tensors_that_live_at_once():
    layers = [torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(inplace=True), torch.nn.Conv2d(8, 4, 3, padding=1)]
    assert count(torch.nn.Sequential(*layers), (3, 16, 16)).memory == 4 * 256 * (8 + 4)
    network = build_backbone(SMALL).eval()
    x = torch.rand(1, 3, 64, 64)
    counted = count(network, (3, 64, 64)).memory / 2**20
    assert counted < peak_memory(torch.no_grad()(partial(network, x))) < 2 * counted


def test_counts_grow_with_the_pixels():
    network = build_backbone(SMALL)
    small, large = count(network, (3, 16, 16)), count(network, (3, 32, 32))
    assert large.macs == 4 * small.macs and large.activations == 4 * small.activations
    assert large.memory == pytest.approx(4 * small.memory, rel=1e-3) and large.parameters == small.parameters


def test_latency_is_measured_at_a_size_of_its_own(tmp_path, capsys):
    write_options(base_options(**{"network_g:width": [0.25, 0.5]}))
    costs = profiled(tmp_path, "run.yml", "--plot", tmp_path / "costs.png", "--size", 400, 600, "--measure-size", 8, 9)
    assert [cost["name"] for cost in costs] == ["teacher", "student_0.5", "student_0.25"]
    assert all(cost["seconds"] > 0 for cost in costs)
    assert costs[0]["measured_size"] == [3, 8, 9]
    large = replace(Cost(**costs[0]), macs=10**12, size=(3, 4000, 6000))
    assert measured_size(large, 1) == (250, 375)
    assert measured_size(large, 8) == (248, 368)
    assert (tmp_path / "costs.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "counted for one 3x400x600 input" in out and "teacher" in out


def test_a_stock_network_is_profiled_too(tmp_path):
    write_options({"network_g": SMALL})
    (cost,) = profiled(tmp_path, "run.yml", "--counts-only", "--size", 8, 8)
    assert (cost["name"], cost["parameters"]) == ("EDSR", sum(p.numel() for p in build_backbone(SMALL).parameters()))


def test_the_default_size_is_one_that_the_network_takes(tmp_path):
    write_options({"network_g": {**tiny("SwinIR"), "window_size": 7, "img_size": 14}})
    (cost,) = profiled(tmp_path, "run.yml", "--counts-only")
    assert cost["size"] == [3, 182, 322]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.yml"], "cannot read option file nowhere.yml"),
        (["run.txt"], "expected an option file that ends with .yml, got run.txt"),
        (["empty.yml"], "empty.yml: missing option network_g"),
        (["run.yml", "--size", "0", "8"], "expected multiples of 1, got 0 8 (option --size)"),
    ],
)
def test_mistakes_cost_one_line(arguments, message, tmp_path, capsys):
    write_options({"network_g": SMALL})
    (tmp_path / "empty.yml").write_text("name: x\n")
    assert main(["profile", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1

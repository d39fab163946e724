"""What the README shows works."""

import re
import subprocess

import pytest
import yaml

from csd_plugin.cli import _parser, main
from csd_plugin.config import reference
from csd_plugin.config.load import read_options
from csd_plugin.config.schema import (
    NegativesOptions,
    RecurrentTrainOptions,
    RecurrentValOptions,
    SlidingWindowTrainOptions,
)
from csd_plugin.evaluation.complexity import count_macs, count_parameters
from csd_plugin.losses.contrastive_loss import ContrastiveLoss
from csd_plugin.slicing.widths import build_backbone
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands():
    lines = [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith(("basicsr", "torchrun"))])
def test_commands_are_accepted_and_their_files_exist(command):
    words = command.split()
    words = words[words.index("csd_plugin") + 1 :] if "csd_plugin" in words else words[1:]
    args = _parser().parse_args(words)
    if hasattr(args, "opt") and args.command != "wrap":
        assert (ROOT / args.opt).is_file()


@pytest.mark.parametrize(("arch", "width"), [("edsr", 0.25), ("rcan", 0.5)])
def test_the_table_of_sizes_is_true(arch, width):
    teacher = read_options(ROOT / f"options/csd_{arch}_x4.yml")["network_g"]["backbone"]
    row = next(line for line in README.splitlines() if line.startswith(f"| {arch.upper()} "))
    cells = [
        build_backbone(options) for options in (teacher, {**teacher, "num_feat": int(teacher["num_feat"] * width)})
    ]
    for network in cells:
        assert f"{count_parameters(network):,}" in row
        assert f"{count_macs(network, (3, 180, 320)) / 1e9:.1f} G" in row


def test_make_targets_exist():
    targets = [c.split()[1] for c in commands() if c.startswith("make ")]
    assert targets[:2] == ["demo", "test"]
    for target in targets:
        subprocess.run(["make", "-n", "-C", str(ROOT), target], check=True, capture_output=True)


def test_the_demo_runs(tmp_path, capsys):
    (tmp_path / "options").symlink_to(ROOT / "options")
    short = ["--force_yml", "train:total_iter=2", "logger:use_tb_logger=false"]
    for command in [c.split() for c in commands() if "demo" in c and c.startswith("basicsr")]:
        assert main(command[1:] + (short if command[1] == "train" else [])) == 0
    out = capsys.readouterr().out
    for text in ("bicubic", "student 0.5x", "teacher", "parameters", "net_g_student_latest.pth"):
        assert text in out
    assert (tmp_path / "experiments/csd_demo/summary.png").is_file()


def test_python_examples_run():
    assert len(blocks("python")) == 2
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})


def test_yaml_examples_are_yaml():
    for block in blocks("yaml"):
        assert isinstance(yaml.safe_load(block), dict)


def test_the_reference_of_options_is_that_of_the_schema():
    assert (ROOT / "docs/options.md").read_text() == reference.render()


def test_the_reference_has_every_option():
    keys = set(RecurrentTrainOptions.model_fields) | set(SlidingWindowTrainOptions.model_fields)
    keys |= set(NegativesOptions.model_fields) | set(RecurrentValOptions.model_fields)
    keys -= {"save_img", "val_freq", "suffix", "pbar", "metrics"}  # BasicSR's own
    keys -= {"total_iter", "optim_g", "scheduler", "ema_decay", "warmup_iter"}  # BasicSR's own
    keys |= set(ContrastiveLoss.__init__.__annotations__) - {"return"}
    missing = [key for key in sorted(keys) if f":{key}`" not in reference.render()]
    assert not missing


def test_the_options_of_the_readme_exist():
    table = README[README.index("## Options") : README.index("## Traps")]
    for key in re.findall(r"`(\w+:[\w:]+)`", table):
        assert f"`{key}`" in reference.render()

"""Every option file is read, built and run for two iterations, with smaller networks and data."""

import copy

import pytest
import torch
import yaml

from csd_plugin import OptionError
from csd_plugin.cli import main
from csd_plugin.config.load import read_options
from csd_plugin.slicing.widths import build_backbone
from tests.conftest import ROOT, base_options, forget_logging, load, write_clips, write_options, write_pairs

FILES = sorted(p for p in (ROOT / "options").rglob("*.yml"))
TRAINING = [p for p in FILES if not p.name.startswith(("base_", "test_"))]
TESTING = [p for p in FILES if p.name.startswith("test_")]
_NARROW = {"num_feat": 16, "num_block": 1, "num_group": 1, "squeeze_factor": 4, "num_conv": 1, "num_grow_ch": 8}
_NARROW |= {"depths": [2], "num_heads": [4], "embed_dim": 16, "window_size": 3}
_NARROW |= {
    "mid_channels": 64,
    "num_blocks": 1,
    "num_extract_block": 1,
    "num_reconstruct_block": 1,
    "spynet_path": None,
}
_HR_SIZE = {"BasicVSR": 132, "BasicVSRPlusPlus": 256, "EDVR": 32}  # the smallest that they take


def shrunk(options):
    """The same options on four tiny images or two tiny clips, with a tiny network."""
    options = copy.deepcopy(options)
    backbone = options["network_g"].get("backbone", options["network_g"])
    for phase, dataset in options["datasets"].items():
        root = "held" if dataset["name"] == "REDS4" else "data"
        dataset |= {"dataroot_gt": f"{root}/HR", "dataroot_lq": f"{root}/LR", "io_backend": {"type": "disk"}}
        if phase == "train":
            dataset |= {"gt_size": 24, "batch_size_per_gpu": 4, "num_worker_per_gpu": 0, "pin_memory": False}
        if dataset["name"] == "REDS":
            dataset |= {
                "gt_size": _HR_SIZE[backbone["type"]],
                "batch_size_per_gpu": 2,
                "meta_info_file": "data/meta.txt",
            }
            dataset["num_frame"] = min(dataset["num_frame"], 5 if backbone["type"] == "EDVR" else 2)
    backbone |= {key: value for key, value in _NARROW.items() if key in backbone}
    if "train" in options:
        options["path"]["pretrain_network_g"] = None
        if options["path"].get("pretrain_network_teacher"):
            torch.save({"params": build_backbone(backbone).state_dict()}, "teacher.pth")
            options["path"]["pretrain_network_teacher"] = "teacher.pth"
        options["train"]["total_iter"] = 2
        options["logger"]["save_checkpoint_freq"] = 2
        options["logger"]["use_tb_logger"] = False
        if options["train"].get("contrastive_opt"):
            options["train"]["contrastive_opt"]["vgg_weights"] = "random"
            options["train"]["negatives"]["num"] = 3
        if options["datasets"]["train"]["name"] == "REDS":
            options["train"]["contrastive_opt"]["layer_weights"] = {"relu1_1": 1.0}
    return options | {"num_gpu": 0}


@pytest.mark.parametrize("path", TRAINING, ids=lambda p: p.stem)
def test_training_files_run(path, tmp_path):
    options = read_options(path)
    if options["datasets"]["train"]["name"] == "REDS":
        size = _HR_SIZE[options["network_g"]["backbone"]["type"]]
        write_clips(tmp_path / "data", size=size)
        write_clips(tmp_path / "held", clips=("000",), frames=5, size=size)
    else:
        write_pairs(tmp_path / "data", scale=options["scale"])
    assert main(["train", "-opt", write_options(shrunk(options))]) == 0
    assert "params" in load(tmp_path / "experiments" / options["name"] / "models/net_g_2.pth")


@pytest.mark.parametrize("path", TESTING, ids=lambda p: p.stem)
def test_testing_files_run(path, tmp_path):
    write_pairs(tmp_path / "data", scale=4)
    run = path.stem.removeprefix("test_").replace("student", "csd")
    training = shrunk(read_options(ROOT / f"options/{run}.yml"))
    if "student" in path.stem:
        training["network_g"]["backbone"]["num_feat"] = int(16 / training["network_g"]["width"])
        training["network_g"]["backbone"] |= {"squeeze_factor": 4} if "rcan" in path.stem else {}
    assert main(["train", "-opt", write_options(training)]) == 0
    forget_logging()
    assert main(["test", "-opt", write_options(shrunk(read_options(path)), "test.yml")]) == 0
    folder = tmp_path / "results" / path.stem
    assert "Validation Set14" in next(folder.glob("*.log")).read_text()
    assert (folder / f"visualization/Set5/im0_{path.stem}.png").is_file()


PAPER = [p for p in TRAINING if p.parent.name == "controls" or p.stem.startswith(("csd_edsr", "csd_rcan"))]


@pytest.mark.parametrize("path", PAPER, ids=lambda p: p.stem)
def test_training_files_hold_the_papers_recipe(path):
    options = read_options(path)
    assert options["name"] == path.stem
    assert options["train"]["optim_g"] == {"type": "Adam", "lr": 1e-4, "weight_decay": 0, "betas": [0.9, 0.999]}
    assert options["train"]["scheduler"] == {"type": "MultiStepLR", "milestones": [200000], "gamma": 0.1}
    assert options["train"]["total_iter"] == 400000
    train = options["datasets"]["train"]
    assert (train["gt_size"], train["batch_size_per_gpu"]) == (192, 16)
    assert f"_X{options['scale']}_" in train["dataroot_lq"]
    assert {m["crop_border"] for m in options["val"]["metrics"].values()} == {options["scale"]}
    backbone = options["network_g"].get("backbone", options["network_g"])
    assert backbone["upscale"] == options["scale"]
    if path.stem.startswith("csd"):
        assert options["train"]["contrastive_opt"]["loss_weight"] == pytest.approx(200 / 255, abs=5e-4)
        assert options["train"]["negatives"]["num"] == 10


@pytest.mark.parametrize("arch", ["edsr", "rcan"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_controls_train_the_same_student(arch, scale):
    csd = read_options(ROOT / f"options/csd_{arch}_x{scale}.yml")
    student = dict(csd["network_g"]["backbone"])
    student["num_feat"] = int(student["num_feat"] * csd["network_g"]["width"])
    scratch = read_options(ROOT / f"options/controls/scratch_{arch}_x{scale}.yml")
    assert scratch["network_g"] == student
    assert "csd_plugin" not in yaml.safe_dump(scratch)
    for control in ("joint", "sliced_l1", "logits_kd"):
        options = read_options(ROOT / f"options/controls/{control}_{arch}_x{scale}.yml")
        assert options["network_g"] == csd["network_g"]
        assert options["train"]["contrastive_opt"] is None
        assert (options["train"]["teacher_opt"] is None) is (control != "joint")
        assert ("distill_opt" not in options["train"]) is (control != "logits_kd")
        kept = csd["path"]["pretrain_network_g"] if control == "logits_kd" else None
        assert options["path"]["pretrain_network_teacher"] == kept


def test_base_files_merge_and_overrides_add_keys(tmp_path):
    (tmp_path / "base.yml").write_text("a: {x: 1, y: 1e-4}\nb: [1, 2]\n")
    (tmp_path / "top.yml").write_text("_base_: base.yml\na: {x: 3}\n")
    overrides = ["a:z=[1, 2]", "a:lr=5e-5", "c:d=none", "a:name='1'", "e=~", "f=true"]
    assert read_options("top.yml", overrides) == {
        "a": {"x": 3, "y": 1e-4, "z": [1, 2], "lr": 5e-5, "name": "1"},
        "b": [1, 2],
        "c": {"d": None},
        "e": None,
        "f": True,
    }
    with pytest.raises(OptionError, match="expected key:key=value, got 'oops'"):
        read_options("top.yml", ["oops"])
    (tmp_path / "clash.yml").write_text("_base_: base.yml\nb: {x: 1}\n")
    with pytest.raises(OptionError, match=r"clash\.yml: .*cannot inherit from base"):
        read_options("clash.yml")


def test_the_merged_file_is_kept_with_the_experiment(pairs, tmp_path):
    write_options(base_options(), "base.yml")
    (tmp_path / "mine.yml").write_text("_base_: base.yml\nname: mine\n")
    overrides = ["--force_yml", "train:total_iter=3", "train:optim_g:lr=2e-3"]
    assert main(["train", "-opt", "mine.yml", *overrides]) == 0
    kept = yaml.safe_load((tmp_path / "experiments/mine/mine.yml").read_text())
    assert kept["train"]["total_iter"] == 3
    assert kept["train"]["optim_g"]["lr"] == 2e-3
    assert kept == base_options(**{"name": "mine", "train:total_iter": 3, "train:optim_g:lr": 2e-3})
    assert main(["train", "-opt", "experiments/mine/mine.yml", "--force_yml", "name=again"]) == 0


def test_a_plain_file_is_kept_with_its_comments(pairs, tmp_path):
    path = tmp_path / write_options(base_options())
    path.write_text("# mine\n" + path.read_text())
    assert main(["train", "-opt", "run.yml"]) == 0
    kept = (tmp_path / "experiments/tiny/run.yml").read_text()
    assert "# mine" in kept
    assert "basicsr train -opt run.yml" in kept


def test_debug_and_local_rank_flags(pairs, tmp_path):
    assert main(["train", "-opt", write_options(base_options()), "--debug", "--local-rank=0"]) == 0
    assert (tmp_path / "experiments/debug_tiny/models/net_g_latest.pth").is_file()


@pytest.mark.parametrize("arch", ["edsr", "rcan"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_finetuning_goes_on_with_the_student_of_the_recipe(arch, scale):
    scratch = read_options(ROOT / f"options/controls/scratch_{arch}_x{scale}.yml")
    finetune = read_options(ROOT / f"options/finetune_{arch}_x{scale}.yml")
    assert finetune["network_g"] == scratch["network_g"] and finetune["datasets"] == scratch["datasets"]
    student = f"experiments/csd_{arch}_x{scale}/models/net_g_student_latest.pth"
    assert finetune["path"]["pretrain_network_g"] == student
    recipe = read_options(ROOT / f"options/csd_{arch}_x{scale}.yml")["train"]
    last = recipe["optim_g"]["lr"] * recipe["scheduler"]["gamma"]
    assert finetune["train"]["optim_g"]["lr"] == pytest.approx(last)

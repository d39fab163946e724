"""Bad input: one line that names the option, status 2, nothing written."""

import cv2
import pytest
import torch

from csd_plugin.cli import main
from tests.backbones import tiny
from tests.conftest import EDSR, base_options, photograph, train

CASES = {
    "unknown top-level key": ({"scales": 2}, "unknown option scales; did you mean 'scale'?"),
    "unknown train key": ({"train:negative": {}}, "unknown option train:negative; did you mean 'negatives'?"),
    "unknown nested key": (
        {"train:negatives": {"nums": 3}},
        "unknown option train:negatives:nums; did you mean 'num'?",
    ),
    "unknown loss key": ({"train:pixel_opt:weight": 1}, "unknown option train:pixel_opt:weight"),
    "unknown contrast key": (
        {"train:contrastive_opt:vgg_weight": "random"},
        "unknown option train:contrastive_opt:vgg_weight; did you mean 'vgg_weights'?",
    ),
    "unknown loss": ({"train:pixel_opt:type": "L1Los"}, "no loss 'L1Los' is registered; did you mean 'L1Loss'?"),
    "unknown model": ({"model_type": "CSDModell"}, "did you mean 'CSDModel'? (option model_type)"),
    "unknown metric": ({"val:metrics:psnr:type": "calculate_psrn"}, "(option val:metrics:psnr:type)"),
    "unknown optimizer": ({"train:optim_g": {"type": "Adamm", "lr": 1e-3}}, "(option train:optim_g)"),
    "unknown optimizer key": ({"train:optim_g:beta": 1}, "unknown option train:optim_g:beta; did you mean 'betas'?"),
    "unknown data key": ({"datasets:train:gtsize": 24}, "datasets:train:gtsize; did you mean 'gt_size'?"),
    "unknown data set type": ({"datasets:train:type": "PairedImage"}, "(option datasets:train:type)"),
    "unknown backbone": ({"network_g:backbone:type": "EDSRR"}, "did you mean 'EDSR'? (option network_g:backbone:type)"),
    "unknown backbone key": ({"network_g:backbone:num_feats": 8}, "network_g:backbone:num_feats; did you mean"),
    "width of 0": ({"network_g:width": 0}, "expected a ratio in (0, 1], got 0 (option network_g:width)"),
    "width above 1": ({"network_g:width": 1.5}, "(option network_g:width)"),
    "missing option": ({"train:optim_g": None}, "(option train:optim_g)"),
    "negatives beyond the batch": ({"train:negatives:num": 4}, "4 negatives need a batch of 5, got 4"),
    "history without an average": (
        {"train:negatives:kind": "history", "train:ema_decay": 0},
        "history needs a moving average (options train:negatives:kind, train:ema_decay)",
    ),
    "unknown kind of negatives": ({"train:negatives:kind": "bicubc"}, "(option train:negatives:kind)"),
    "no such teacher": (
        {"path:pretrain_network_teacher": "no.pth"},
        "no such file: no.pth (option path:pretrain_network_teacher)",
    ),
    "teacher that is no checkpoint": (
        {"path:pretrain_network_teacher": "run.yml"},
        "run.yml: no file of PyTorch weights",
    ),
    "negatives beyond the pool": (
        {"train:negatives": {"source": "pool", "num": 9, "pool_size": 8}},
        "9 negatives but a pool of 8",
    ),
    "batch beyond the data": (
        {"datasets:train:dataset_enlarge_ratio": 1, "datasets:train:batch_size_per_gpu": 5},
        "batch of 5 images but 4 a rank in the data set",
    ),
    "patch too small for the VGG": (
        {"datasets:train:gt_size": 8, "train:contrastive_opt:layer_weights": {"relu5_1": 1.0}},
        "patches of 8 pixels are too small for the deepest VGG layer, which needs 16",
    ),
    "missing VGG": ({"train:contrastive_opt:vgg_weights": "no.pth"}, "no such file: no.pth"),
    "wrong VGG": ({"train:contrastive_opt:vgg_weights": "run.yml"}, "run.yml: no file of PyTorch weights"),
    "missing folder": (
        {"datasets:train:dataroot_gt": "nowhere"},
        "no such folder: nowhere (option datasets:train:data",
    ),
    "missing LMDB": (
        {"datasets:train:io_backend:type": "lmdb", "datasets:train:dataroot_gt": "HR.lmdb"},
        "no such LMDB: HR.lmdb (option datasets:train:dataroot_gt)",
    ),
    "folder taken for an LMDB": ({"datasets:train:io_backend:type": "lmdb"}, "expected a folder that ends with .lmdb"),
    "data of another scale": (
        {"scale": 3, "network_g:backbone:upscale": 3},
        "im0.png: HR 48x48 is not 3 times LR 24x24",
    ),
    "network of another scale": ({"network_g:backbone:upscale": 4}, "the network enlarges x4 but scale is 2"),
    "patch beyond the images": (
        {"datasets:train:gt_size": 64},
        "is smaller than the patch (option datasets:train:gt_size",
    ),
    "patch no multiple of scale": ({"datasets:train:gt_size": 25}, "expected a multiple of scale 2, got 25"),
    "missing checkpoint": (
        {"path:pretrain_network_g": "no.pth"},
        "no such file: no.pth (option path:pretrain_network_g)",
    ),
    "wrong checkpoint": ({"path:pretrain_network_g": "run.yml"}, "run.yml: no file of PyTorch weights"),
    "GPU that is not there": ({"num_gpu": 1}, "num_gpu 1"),
    "workers wanted but none": (
        {"datasets:train:persistent_workers": True},
        "(option datasets:train:num_worker_per_gpu)",
    ),
    "CUDA prefetch without a GPU": ({"datasets:train:prefetch_mode": "cuda"}, "prefetch_mode cuda needs a GPU"),
    "wandb that is not there": (
        {"logger:wandb": {"project": "p"}},
        "wandb is not installed: pip install wandb, or set it to ~ (option logger:wandb:project)",
    ),
    "best metric that is none": ({"val:best_metric": "lpips"}, "(option val:best_metric)"),
    "contrast on odd images": (
        {
            "network_g:backbone": {
                "type": "SRVGGNetCompact",
                "num_in_ch": 2,
                "num_out_ch": 2,
                "num_feat": 8,
                "upscale": 2,
            }
        },
        "the contrast needs RGB or grey images, the network gives 2 channels",
    ),
    "parts": ({"train:accumulate": 3}, "a batch of 4 does not divide by 3 (option train:accumulate)"),
    "parts of a sum": (
        {"train:accumulate": 2, "train:pixel_opt:reduction": "sum"},
        "needs reduction mean (options train:accumulate, train:pixel_opt:reduction)",
    ),
    "crop": ({"train:contrast_crop": 9}, "expected a multiple of scale 2, got 9 (option train:contrast_crop)"),
    "amp": ({"train:amp": "float16"}, "got 'float16' (option train:amp)"),
    "video network": (
        {"network_g:backbone": tiny("EDVR")},
        "EDVR is trained by CSDVideoModel, got 'CSDModel' (option model_type)",
    ),
    "backbone that cannot be built": (
        {"network_g:backbone:rgb_mean": [0.5]},
        "EDSR cannot be built: shape '[1, 3, 1, 1]' is invalid for input of size 1 (option network_g:backbone)",
    ),
    "unprovable backbone": (
        {
            "network_g:backbone": {**tiny("ECBSR"), "with_idt": True, "num_channel": 16},
            "network_g:width": 0.75,
        },
        "ECBSR: the wide and the narrow network do not carry out the same operations",
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.skipif(torch.cuda.is_available(), reason="some cases are mistakes only where there is no GPU")
def test_mistakes_cost_one_line(case, pairs, tmp_path, capsys):
    changes, message = CASES[case]
    assert train(base_options(**changes)) == 2
    error = capsys.readouterr().err
    assert error.startswith("basicsr train: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "run.yml"]


def test_a_missing_block_is_named(pairs, capsys):
    options = base_options()
    del options["logger"]
    assert train(options) == 2
    assert "missing option logger" in capsys.readouterr().err


def test_a_checkpoint_of_another_network_is_refused(pairs, tmp_path, capsys):
    from csd_plugin.slicing.widths import build_backbone

    torch.save({"params": build_backbone({**EDSR, "num_feat": 4}).state_dict()}, tmp_path / "narrow.pth")
    assert train(base_options(**{"path:pretrain_network_g": "narrow.pth"})) == 2
    error = capsys.readouterr().err
    assert "narrow.pth does not fit network_g: body.0.conv1.bias is (4,), expected (8,)" in error
    assert not (tmp_path / "experiments").exists()


def test_a_file_that_is_no_image_is_named(pairs, tmp_path, capsys):
    (tmp_path / "data/HR/im2.png").write_bytes(b"no image")
    assert train(base_options()) == 2
    assert "cannot read image data/HR/im2.png" in capsys.readouterr().err


def test_one_pair_of_unlike_size_is_named(pairs, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "data/LR/im3.png"), photograph(3, 20, 24))
    assert train(base_options()) == 2
    assert "im3.png: HR 48x48 is not 2 times LR 20x24" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "bad.yml: "),
        ("- 1", "expected a YAML mapping, got list"),
        ("!!python/object/apply:os.system ['touch hacked']", "bad.yml: "),
        ("_base_: bad.yml", "_base_ leads back to itself"),
        ("_base_: absent.yml", "cannot read option file absent.yml"),
        ("name: x", "missing option model_type"),
    ],
)
def test_option_files_that_cannot_be_used(text, message, tmp_path, capsys):
    (tmp_path / "bad.yml").write_text(text)
    assert main(["train", "-opt", "bad.yml"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["bad.yml"]


def test_an_option_file_of_another_kind(tmp_path, capsys):
    (tmp_path / "run.txt").write_text("name: x")
    assert main(["train", "-opt", "run.txt"]) == 2
    assert "expected an option file that ends with .yml, got run.txt" in capsys.readouterr().err


def test_an_option_file_that_is_not_there(capsys):
    assert main(["train", "-opt", "absent.yml"]) == 2
    assert (
        capsys.readouterr().err
        == "basicsr train: error: cannot read option file absent.yml: No such file or directory\n"
    )


def test_earlier_outputs_stay_untouched(pairs, tmp_path):
    assert train(base_options()) == 0
    before = {p: p.read_bytes() for p in (tmp_path / "experiments").rglob("*") if p.is_file()}
    assert train(base_options(**{"network_g:width": 2})) == 2
    assert {p: p.read_bytes() for p in (tmp_path / "experiments").rglob("*") if p.is_file()} == before


def test_launcher_without_its_environment(pairs, capsys, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert train(base_options(), "--launcher", "pytorch") == 2
    assert "WORLD_SIZE is not set: start with torchrun" in capsys.readouterr().err


def test_compiling_without_a_compiler_is_refused_before_the_run(pairs, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert train(base_options(**{"train:compile": True})) == 2
    assert "no C++ compiler, g++ or clang++, on the PATH (option train:compile)" in capsys.readouterr().err

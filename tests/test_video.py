"""CSD on clips: what the contrast compares, what is held fixed, and what validation rates."""

import math

import numpy as np
import pytest
import torch
from basicsr.models import build_model

from csd_plugin.cli import main
from csd_plugin.config.schema import NegativesOptions
from csd_plugin.models.negatives import NegativeSampler
from tests.backbones import tiny
from tests.conftest import base_options, forget_logging, load, train, write_clips, write_options

REDS = {
    "name": "REDS",
    "type": "REDSRecurrentDataset",
    "dataroot_gt": "data/HR",
    "dataroot_lq": "data/LR",
    "meta_info_file": "data/meta.txt",
    "val_partition": "REDS4",
    "test_mode": False,
    "io_backend": {"type": "disk"},
    "num_frame": 2,
    "gt_size": 132,
    "use_hflip": True,
    "use_rot": True,
    "num_worker_per_gpu": 0,
    "batch_size_per_gpu": 2,
    "dataset_enlarge_ratio": 1,
}
REDS4 = {
    "name": "REDS4",
    "type": "VideoRecurrentTestDataset",
    "dataroot_gt": "held/HR",
    "dataroot_lq": "held/LR",
    "io_backend": {"type": "disk"},
    "cache_data": True,
    "num_frame": -1,
}


def recurrent(**changes):
    """Options of a tiny BasicVSR run."""
    psnr = {"type": "calculate_psnr", "crop_border": 0, "test_y_channel": False}
    changes = {
        "model_type": "CSDVideoRecurrentModel",
        "scale": 4,
        "network_g:backbone": tiny("BasicVSR"),
        "datasets": {"train": dict(REDS), "val": dict(REDS4)},
        "train:contrastive_opt:layer_weights": {"relu1_1": 1.0},
        "train:negatives": {"source": "batch", "num": 2},
        "train:total_iter": 2,
        "val:metrics": {"psnr": psnr},
        **changes,
    }
    return base_options(**changes)


def sliding(**changes):
    """Options of a tiny EDVR run."""
    data = {**REDS, "type": "REDSDataset", "dataroot_flow": None, "interval_list": [1], "random_reverse": False}
    data |= {"num_frame": 5, "gt_size": 32}
    val = {**REDS4, "type": "VideoTestDataset", "cache_data": False, "num_frame": 5, "padding": "reflection_circle"}
    backbone = {**tiny("EDVR"), "num_frame": 5}
    changes = {"model_type": "CSDVideoModel", "network_g:backbone": backbone, **changes}
    return recurrent(**{"datasets": {"train": data, "val": val}, "train:negatives": {"num": 1}, **changes})


def built(options):
    options |= {"dist": False, "rank": 0, "world_size": 1, "is_train": True}
    options["path"] |= {"models": "models", "training_states": "states", "visualization": "vis"}
    return build_model(options)


def clips(count=2, frames=3, side=33, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lq, gt = (torch.rand(count, frames, 3, n, n, generator=generator) for n in (side, 4 * side))
    return {"lq": lq, "gt": gt}


def test_no_frame_meets_a_frame_of_its_own_clip():
    lq = torch.arange(12.0).div(12).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()  # four clips of three frames
    sampler = NegativeSampler(NegativesOptions(source="pool", num=4, pool_size=20), 2, 0)
    for iteration in range(1, 20):
        negatives = sampler.sample(lq + iteration / 1000, iteration, per_clip=3)
        weights = negatives.pair_weights
        torch.testing.assert_close(weights.sum(1), torch.full((12,), 4.0))
        assert set(weights.count_nonzero(1).tolist()) == {4}
        values = negatives.images.mean((1, 2, 3)) * 12
        for anchor, row in enumerate(weights):
            fresh = (values - iteration * 12 / 1000).round(decimals=3)
            own = [float(anchor // 3 * 3 + i) for i in range(3)]
            assert not set(fresh[row > 0].tolist()) & set(own)


def test_a_lone_clip_has_no_negatives():
    sampler = NegativeSampler(NegativesOptions(num=2), 2, 0)
    assert sampler.sample(torch.rand(3, 3, 4, 4), 1, per_clip=3) is None


def test_a_step_compares_some_frames_of_each_clip():
    csd = built(recurrent(**{"train:contrast_frames": 2}))
    seen = []
    csd.cri_contrast.vgg.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    csd.feed_data(clips())
    csd.optimize_parameters(1)
    assert list(csd.log_dict) == ["l_pix_student", "l_pix_teacher", "l_contrast"]
    assert all(math.isfinite(value) for value in csd.log_dict.values())
    positive_and_negatives, student = seen  # two calls of the VGG
    assert student.shape == (4, 3, 132, 132)
    assert positive_and_negatives.shape == (4 + 4, 3, 132, 132)
    assert csd.output.shape == (2, 3, 3, 132, 132)
    torch.testing.assert_close(student, csd.to_images(csd.output, 1))
    numbers = torch.arange(6.0).view(2, 3, 1, 1, 1).expand(2, 3, 3, 2, 2)
    drawn = [csd.to_images(numbers, i)[:, 0, 0, 0].tolist() for i in range(1, 30)]
    assert all(b == [x + 3 for x in a] for a, b in ((d[:2], d[2:]) for d in drawn))
    assert {tuple(d[:2]) for d in drawn} == {(0, 1), (0, 2), (1, 2)}
    csd = built(recurrent(**{"train:contrast_frames": None}))
    assert len(csd.to_images(numbers, 1)) == 6


def test_a_window_is_compared_by_the_frame_that_it_restores():
    csd = built(sliding())
    batch = {"lq": clips(frames=5, side=8)["lq"], "gt": torch.rand(2, 3, 32, 32)}
    csd.feed_data(batch)
    assert torch.equal(csd.to_images(csd.lq, 1), batch["lq"][:, 2])
    csd.optimize_parameters(1)
    assert csd.output.shape == (2, 3, 32, 32)
    csd = built(sliding(**{"network_g:backbone": {**tiny("EDVR"), "center_frame_idx": 0}}))
    assert torch.equal(csd.to_images(batch["lq"], 1), batch["lq"][:, 0])


@pytest.mark.parametrize("first", [1, 2])
def test_the_optical_flow_is_fixed_at_first_in_a_resumed_run_too(first):
    csd = built(recurrent(**{"train:fix_flow": 3, "train:flow_lr_mul": 0.5, "train:contrastive_opt": None}))
    assert [group["lr"] for group in csd.optimizer_g.param_groups] == [1e-3, 5e-4]
    flow = csd.net_g.teacher.spynet.basic_module[0].basic_module[0].weight
    trunk = csd.net_g.teacher.forward_trunk.main[0].weight
    for iteration in range(first, 4):
        before = flow.detach().clone(), trunk.detach().clone()
        csd.feed_data(clips(count=1, frames=2))
        csd.optimize_parameters(iteration)
        assert torch.equal(flow, before[0]) is (iteration < 3)
        assert not torch.equal(trunk, before[1])


def test_only_the_fusion_is_trained_at_first():
    csd = built(sliding(**{"train:tsa_iter": 2, "train:dcn_lr_mul": 0.5, "train:contrastive_opt": None}))
    weights = dict(csd.net_g.named_parameters())
    for iteration, alone in ((1, True), (2, False)):
        before = {name: w.detach().clone() for name, w in weights.items()}
        csd.feed_data({"lq": clips(frames=5, side=8)["lq"], "gt": torch.rand(2, 3, 32, 32)})
        csd.optimize_parameters(iteration)
        moved = {name for name, w in weights.items() if not torch.equal(w, before[name])}
        assert moved and all("fusion" in name for name in moved) is alone


def test_validation_rates_every_role_frame_by_frame(tmp_path):
    write_clips(tmp_path / "data", size=132)
    write_clips(tmp_path / "held", clips=("000", "011"), frames=2, size=132)
    options = recurrent(**{"network_g:width": [0.25, 0.5], "val:flip_seq": True, "logger:use_tb_logger": True})
    assert train(options) == 0
    models = tmp_path / "experiments/tiny/models"
    log = next((tmp_path / "experiments/tiny").glob("*.log")).read_text()
    for label in ("student_0.25", "student_0.5"):
        state = load(models / f"net_g_{label}_2.pth")["params_ema"]
        assert f"Validation REDS4_{label}\n\t # psnr: {_psnr(state, label):.4f}" in log
    assert "Validation REDS4_teacher" in log and "# 000: " in log and "# 011: " in log
    assert (models / "net_g_student_0.5_best.pth").is_file()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves = EventAccumulator(str(next((tmp_path / "tb_logger").rglob("events*")).parent))
    curves.Reload()
    assert {f"metrics/REDS4_{r}/psnr" for r in ("student_0.25", "student_0.5", "teacher")} <= set(
        curves.Tags()["scalars"]
    )


def _psnr(state, label):
    """PSNR of the exported student on the held-out clips with the reversed clip averaged in, written out."""
    from basicsr.archs.basicvsr_arch import BasicVSR
    from basicsr.data.data_util import read_img_seq

    student = BasicVSR(num_feat=int(8 * float(label.split("_")[1])), num_block=1).eval()
    student.load_state_dict(state)
    folders = []
    for clip in ("000", "011"):
        lq, gt = (read_img_seq(f"held/{kind}/{clip}") for kind in ("LR", "HR"))
        with torch.no_grad():
            both = student(torch.cat([lq, lq.flip(0)])[None])[0]
        output = (both[:2] + both[2:].flip(0)) / 2
        as_bytes = (output.clamp(0, 1) * 255).round()
        errors = (as_bytes - (gt * 255).round()).double().square().mean((1, 2, 3))
        folders.append((10 * torch.log10(255**2 / errors)).mean())
    return float(np.mean(folders))


@pytest.mark.parametrize("kind", [recurrent, sliding])
def test_testing_writes_the_pictures_of_each_role(kind, tmp_path):
    options = kind()
    side = options["datasets"]["train"]["gt_size"]
    write_clips(tmp_path / "data", size=side)
    write_clips(tmp_path / "held", clips=("000",), frames=5, size=side)
    assert train(options) == 0
    forget_logging()
    options["path"]["pretrain_network_g"] = "experiments/tiny/models/net_g_2.pth"
    options["datasets"] = {"test": options["datasets"]["val"]}
    for key in ("train", "logger"):
        del options[key]
    options["val"] = {"save_img": True, "metrics": options["val"]["metrics"]}
    assert main(["test", "-opt", write_options(options, "test.yml")]) == 0
    pictures = tmp_path / "results/tiny/visualization"
    for role in ("REDS4", "REDS4_teacher"):
        assert sorted(p.name for p in (pictures / role / "000").iterdir()) == [f"0000000{i}_tiny.png" for i in range(5)]


def _with(phase, **changes):
    """Change of `datasets` that updates one data set; None takes an option out."""
    data = {"train": dict(REDS), "val": dict(REDS4)}
    data[phase] = {k: v for k, v in {**data[phase], **changes}.items() if k not in changes or v is not None}
    return {"datasets": data}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "CSDModel"},
            "BasicVSR is trained by CSDVideoRecurrentModel, got 'CSDModel' (option model_type)",
        ),
        ({"model_type": "CSDVideoModel"}, "BasicVSR is trained by CSDVideoRecurrentModel, got 'CSDVideoModel'"),
        ({"train:fix_flows": 3}, "unknown option train:fix_flows; did you mean 'fix_flow'?"),
        (_with("train", gt_sise=4), "unknown option datasets:train:gt_sise; did you mean 'gt_size'?"),
        (_with("train", gt_size=128), "BasicVSR takes patches of at least scale 4 x 33, got 128"),
        (
            _with("train", gt_size=256),
            "clip 001: HR 132x132 is smaller than the patch (option datasets:train:gt_size 256)",
        ),
        (_with("train", test_mode=None), "missing option datasets:train:test_mode, which REDSRecurrentDataset needs"),
        (_with("train", dataroot_gt="nowhere"), "no such folder: nowhere (option datasets:train:dataroot_gt)"),
        (_with("train", meta_info_file="no.txt"), "no such file: no.txt (option datasets:train:meta_info_file)"),
        (_with("train", meta_info_file="short.txt"), "takes clips of 100 frames, 001 has 99"),
        (_with("train", meta_info_file="odd.txt"), "odd.txt: expected 'clip frames (h,w,c)', got '001'"),
        (_with("train", meta_info_file="more.txt"), "data/HR/003/00000000.png (option datasets:train:dataroot_gt)"),
        (_with("train", num_frame=101), "a clip has 100 frames, fewer than 101 (option datasets:train:num_frame)"),
        (_with("train", batch_size_per_gpu=300), "batch of 300 images but 200 a rank"),
        (_with("val", name="mine"), "VideoRecurrentTestDataset reads data sets named vid4, reds4, redsofficial only"),
        (_with("val", cache_data=False), "VideoRecurrentTestDataset needs true (option datasets:val:cache_data)"),
        (_with("val", dataroot_lq="data/LR"), "no such clip: data/LR/000 (option datasets:val:dataroot_lq)"),
        ({"train:negatives": {"num": 5}}, "5 negatives need a batch of 4, got 2"),
    ],
)
def test_mistakes_cost_one_line(changes, message, tmp_path, capsys, video_data):
    assert train(recurrent(**changes)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "experiments").exists()


@pytest.fixture(scope="module")
def clips_on_disk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    write_clips(folder / "data", size=132)
    write_clips(folder / "held", clips=("000",), frames=3, size=132)
    for name, text in (("short", "001 99 (1,1,3)"), ("odd", "001"), ("more", "001 100 (1,1,3)\n003 100 (1,1,3)")):
        (folder / f"{name}.txt").write_text(text)
    return folder


@pytest.fixture
def video_data(tmp_path, clips_on_disk):
    for path in clips_on_disk.iterdir():
        (tmp_path / path.name).symlink_to(path)


def test_windows_of_another_length_are_refused(video_data, capsys):
    options = sliding()
    options["datasets"]["train"]["num_frame"] = 7
    assert train(options) == 2
    assert "the network takes 5 frames, got 7 (option datasets:train:num_frame)" in capsys.readouterr().err

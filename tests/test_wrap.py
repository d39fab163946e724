import pytest
import yaml

from csd_plugin.cli import main
from csd_plugin.config.load import read_options
from tests.backbones import tiny
from tests.conftest import base_options, load, write_clips, write_options, write_pairs

HEAD = """\
# my experiment
name: mine
model_type: MODEL  # stock
scale: 2
num_gpu: 0
manual_seed: 0

datasets:
  train:
    name: tiny  # the training set
    type: PairedImageDataset
    dataroot_gt: data/HR
    dataroot_lq: data/LR
    filename_tmpl: '{}'
    io_backend:
      type: disk
      # type: lmdb
    gt_size: 24
    FLIP: true
    use_rot: true
    COLOR
    num_worker_per_gpu: 0
    batch_size_per_gpu: 4
    dataset_enlarge_ratio: 20
"""
TAIL = """\
path:
  pretrain_network_g: ~
  strict_load_g: true
  resume_state: ~

train:
  ema_decay: 0.999
  optim_g:
    type: Adam
    lr: !!float 2e-4
    betas: [0.9, 0.99]
  scheduler:
    type: MultiStepLR
    milestones: [2]
    gamma: 0.5
  total_iter: 2
  warmup_iter: -1  # no warm up
  pixel_opt:
    type: L1Loss
    loss_weight: 1.0
    reduction: mean

logger:
  print_freq: 1
  save_checkpoint_freq: !!float 2
  use_tb_logger: false
"""


def stock_file(backbone, model="SRModel", flip="use_hflip", color="# color: y"):
    network = yaml.safe_dump({"network_g": backbone}, sort_keys=False)
    return HEAD.replace("MODEL", model).replace("FLIP", flip).replace("COLOR", color) + network + TAIL


CASES = {
    "EDSR": stock_file(tiny("EDSR")),
    "RCAN": stock_file(tiny("RCAN"), flip="use_flip"),
    "MSRResNet": stock_file(tiny("MSRResNet")),
    "RRDBNet": stock_file(tiny("RRDBNet")),
    "SwinIR": stock_file(tiny("SwinIR"), "SwinIRModel"),
    "ECBSR": stock_file({**tiny("ECBSR"), "num_in_ch": 1, "num_out_ch": 1}, color="color: y"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_stock_file_becomes_one_that_trains(name, tmp_path, capsys):
    write_pairs(tmp_path / "data")
    (tmp_path / "theirs.yml").write_text(CASES[name])
    assert main(["wrap", "-opt", "theirs.yml", "--width", "0.5", "-o", "mine.yml"]) == 0
    said = capsys.readouterr().out
    assert "model_type: " in said and "network_g: " in said and "written to mine.yml" in said
    text = (tmp_path / "mine.yml").read_text()
    for comment in ("# my experiment", "# the training set", "# type: lmdb", "# no warm up", "200 / 255"):
        assert comment in text
    theirs, mine = read_options("theirs.yml"), read_options("mine.yml")
    assert mine["network_g"]["backbone"] == theirs["network_g"]
    assert mine["train"]["optim_g"] == theirs["train"]["optim_g"]
    assert mine["train"]["negatives"]["num"] == 3
    assert mine["datasets"]["train"]["use_hflip"] is True
    assert main(["train", "-opt", "mine.yml", "--force_yml", "train:contrastive_opt:vgg_weights=random"]) == 0
    assert "params_ema" in load(tmp_path / "experiments/csd_mine/models/net_g_student_2.pth")


VIDEO_HEAD = (
    HEAD[: HEAD.index("datasets:")].replace("scale: 2", "scale: 4").replace("MODEL", "VideoRecurrentModel")
    + """\
datasets:
  train:
    name: REDS  # the training set
    type: REDSRecurrentDataset
    dataroot_gt: data/HR
    dataroot_lq: data/LR
    meta_info_file: data/meta.txt
    val_partition: REDS4  # set to 'official' when use the official validation partition
    test_mode: False
    io_backend:
      type: disk
      # type: lmdb
    num_frame: 2
    gt_size: 132
    interval_list: [1]
    random_reverse: false
    use_hflip: true
    use_rot: true
    use_shuffle: true
    num_worker_per_gpu: 0
    batch_size_per_gpu: 2
    dataset_enlarge_ratio: 1
    prefetch_mode: ~
"""
)


def test_a_video_file_becomes_one_that_trains(tmp_path, capsys):
    write_clips(tmp_path / "data", size=132)
    network = {**tiny("BasicVSR"), "spynet_path": "experiments/pretrained_models/flownet/not_there_yet.pth"}
    tail = TAIL.replace("warmup_iter: -1", "fix_flow: 2\n  flow_lr_mul: 0.125\n  warmup_iter: -1")
    tail = tail.replace("L1Loss", "CharbonnierLoss") + "\nfind_unused_parameters: true\n"
    text = VIDEO_HEAD + yaml.safe_dump({"network_g": network}, sort_keys=False) + tail
    (tmp_path / "theirs.yml").write_text(text)
    assert main(["wrap", "-opt", "theirs.yml", "--width", "0.5", "-o", "mine.yml"]) == 0
    assert "model_type: VideoRecurrentModel -> CSDVideoRecurrentModel" in capsys.readouterr().out
    mine = read_options("mine.yml")
    assert mine["network_g"]["backbone"] == network
    assert mine["train"]["negatives"] == {"source": "pool", "num": 10}
    assert "# set to 'official'" in (tmp_path / "mine.yml").read_text()
    overrides = ["train:contrastive_opt:vgg_weights=random", "train:contrastive_opt:layer_weights={relu1_1: 1.0}"]
    command = ["train", "-opt", "mine.yml", "--force_yml", *overrides]
    assert main(command) == 2
    assert "not_there_yet.pth" in capsys.readouterr().err
    assert main([*command, "network_g:backbone:spynet_path=~"]) == 0
    assert "params_ema" in load(tmp_path / "experiments/csd_mine/models/net_g_student_2.pth")


def test_the_contrast_keeps_its_share_of_a_summed_loss(tmp_path):
    text = CASES["EDSR"].replace("reduction: mean", "reduction: sum")
    (tmp_path / "theirs.yml").write_text(text)
    assert main(["wrap", "-opt", "theirs.yml", "--width", "0.5", "-o", "mine.yml"]) == 0
    weight = read_options("mine.yml")["train"]["contrastive_opt"]["loss_weight"]
    assert weight == pytest.approx(0.784 * 4 * 3 * 24 * 24, rel=1e-4)


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (CASES["EDSR"].replace("SRModel", "ESRGANModel"), [], "expected a whole file with model_type SRModel"),
        (CASES["EDSR"].replace("pixel_opt", "perceptual_opt"), [], "expected a pixel loss and no other"),
        (CASES["EDSR"], ["--width", "2"], "expected a ratio in (0, 1], got 2.0"),
        (CASES["EDSR"].replace("use_rot", "use_rott"), [], "datasets:train:use_rott; did you mean 'use_rot'?"),
        (CASES["EDSR"].replace("type: EDSR", "type: SpyNet"), [], "unknown option network_g:backbone:num_in_ch"),
    ],
)
def test_what_cannot_be_wrapped_leaves_nothing(text, arguments, message, tmp_path, capsys):
    (tmp_path / "theirs.yml").write_text(text)
    assert main(["wrap", "-opt", "theirs.yml", "-o", "mine.yml", *(arguments or ["--width", "0.5"])]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["theirs.yml"]


def test_an_existing_file_is_replaced_only_when_asked(tmp_path, capsys):
    (tmp_path / "theirs.yml").write_text(CASES["EDSR"])
    (tmp_path / "mine.yml").write_text("precious")
    command = ["wrap", "-opt", "theirs.yml", "--width", "0.5", "-o", "mine.yml"]
    assert main(command) == 2
    assert "mine.yml exists" in capsys.readouterr().err
    assert (tmp_path / "mine.yml").read_text() == "precious"
    assert main([*command, "--overwrite"]) == 0


def test_stock_files_with_keys_of_their_own_run_as_ever(pairs, tmp_path):
    options = base_options(model_type="SRModel", network_g=tiny("EDSR"))
    options["datasets"]["train"]["use_flip"] = True
    options["my_plugin"] = {"anything": 1}
    for key in ("teacher_opt", "contrastive_opt", "negatives"):
        del options["train"][key]
    assert main(["train", "-opt", write_options(options)]) == 0

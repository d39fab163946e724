import copy

import pytest
import torch
from basicsr.models import build_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from csd_plugin import CSDModel, OptionError
from csd_plugin.slicing.widths import build_backbone
from tests.conftest import EDSR, base_options, load, train

STUDENT = {**EDSR, "num_feat": 4}


def model(**changes):
    options = base_options(**changes)
    options |= {"dist": False, "rank": 0, "world_size": 1, "is_train": True}
    options["path"] |= {"models": "models", "training_states": "states", "visualization": "vis"}
    return build_model(options)


def batch(seed=0, count=4):
    generator = torch.Generator().manual_seed(seed)
    lq, gt = (torch.rand(count, 3, n, n, generator=generator) for n in (8, 16))
    return {"lq": lq, "gt": gt}


def step(csd, iteration=1, seed=0):
    csd.feed_data(batch(seed))
    csd.optimize_parameters(iteration)
    return csd.log_dict


def test_losses_are_named():
    assert list(step(model())) == ["l_pix_student", "l_pix_teacher", "l_contrast"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train:contrastive_opt": None}, ["l_pix_student", "l_pix_teacher"]),
        ({"train:contrastive_opt": None, "train:teacher_opt": None}, ["l_pix_student"]),
        ({"train:teacher_opt": None}, ["l_pix_student", "l_contrast"]),
        ({"train:positive": "gt", "train:negatives": {"num": 0}}, ["l_pix_student", "l_pix_teacher", "l_contrast"]),
        (
            {"network_g:width": [0.25, 0.5]},
            ["l_pix_student_0.25", "l_pix_student_0.5", "l_pix_teacher", "l_contrast_0.25", "l_contrast_0.5"],
        ),
    ],
)
def test_ablations_are_one_option_away(changes, expected):
    assert list(step(model(**changes))) == expected


def test_the_named_losses_are_what_they_say():
    csd = model()
    net, sampler = copy.deepcopy(csd.net_g), copy.deepcopy(csd.negative_sampler)
    losses = step(csd)
    outputs = net(csd.lq, width=[1.0, 0.5])
    negatives = sampler.sample(csd.lq, 1)
    l1 = torch.nn.functional.l1_loss
    contrast = csd.cri_contrast(outputs[0.5], outputs[1.0], negatives.images, negatives.pair_weights)
    assert losses["l_pix_student"] == pytest.approx(float(l1(outputs[0.5], csd.gt)), rel=1e-5)
    assert losses["l_pix_teacher"] == pytest.approx(float(l1(outputs[1.0], csd.gt)), rel=1e-5)
    assert losses["l_contrast"] == pytest.approx(float(contrast), rel=1e-5)


@pytest.mark.parametrize(("detach", "outside_moves"), [(True, False), (False, True)])
def test_contrast_moves_the_teacher_by_option_only(detach, outside_moves):
    csd = model(**{"train:teacher_opt": None, "train:contrastive_opt:detach_positive": detach})
    step(csd)
    outside = csd.net_g.teacher.conv_first.weight.grad[4:]
    assert bool(outside.any()) is outside_moves


def test_the_teachers_own_loss_ends_after_its_last_iteration():
    csd = model(**{"train:teacher_stop_iter": 2})
    assert "l_pix_teacher" in step(csd, 2)
    assert "l_pix_teacher" not in step(csd, 3)
    assert not csd.net_g.teacher.conv_first.weight.grad[4:].any()


def test_a_student_alone_trains_as_the_stock_narrow_network_does():
    """The control `sliced_l1`: equal to plain L1 training of the exported student."""
    csd = model(**{"train:contrastive_opt": None, "train:teacher_opt": None, "train:ema_decay": 0})
    stock = csd.net_g.export(0.5).train()
    optimizer = torch.optim.Adam(stock.parameters(), lr=1e-3, betas=(0.9, 0.99))
    for iteration in range(1, 6):
        step(csd, iteration, seed=iteration)
        data = batch(iteration)
        optimizer.zero_grad()
        torch.nn.functional.l1_loss(stock(data["lq"]), data["gt"]).backward()
        optimizer.step()
    for ours, theirs in zip(csd.net_g.export(0.5).parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("optimizer", ["AdamW", "Adamax", "SGD", "RMSprop"])
def test_optimizers_of_torch_go_by_name(optimizer):
    csd = model(**{"train:optim_g": {"type": optimizer, "lr": 1e-3}})
    assert type(csd.optimizer_g) is getattr(torch.optim, optimizer)
    step(csd)


def test_evaluation_uses_the_ema_student_and_the_ensemble_by_option():
    csd = model()
    step(csd)
    csd.test()
    torch.testing.assert_close(csd.output, csd.net_g_ema(csd.lq, width=0.5))
    plain = csd.output
    ensemble = model(**{"val:self_ensemble": True})
    ensemble.net_g_ema.load_state_dict(csd.net_g_ema.state_dict())
    ensemble.feed_data(batch())
    ensemble.test()
    assert not torch.allclose(ensemble.output, plain)
    assert (ensemble.output - plain).abs().mean() < 0.1


def test_unknown_options_are_refused_when_the_model_is_built_directly():
    with pytest.raises(OptionError, match="unknown option train:teacher_optt; did you mean 'teacher_opt'"):
        model(**{"train:teacher_optt": {}})


def test_the_options_are_not_changed():
    options = base_options() | {"dist": False, "rank": 0, "world_size": 1, "is_train": True}
    options["path"]["models"] = "models"
    before = copy.deepcopy(options)
    build_model(options)
    assert options == before


def test_a_run_leaves_what_a_basicsr_user_expects(pairs, tmp_path):
    assert train(base_options(**{"logger:use_tb_logger": True, "val:save_img": True})) == 0
    folder = tmp_path / "experiments/tiny"
    names = sorted(p.name for p in (folder / "models").iterdir())
    assert names == sorted(
        [f"net_g_{i}.pth" for i in (2, 4, "latest")] + [f"net_g_student_{i}.pth" for i in (2, 4, "best", "latest")]
    )
    shared, student = load(folder / "models/net_g_4.pth"), load(folder / "models/net_g_student_4.pth")
    assert set(shared) == set(student) == {"params", "params_ema"}
    for key in shared:
        stock, narrow = build_backbone(EDSR), build_backbone(STUDENT)
        stock.load_state_dict(shared[key], strict=True)
        narrow.load_state_dict(student[key], strict=True)
        assert torch.equal(stock.conv_first.weight[:4], narrow.conv_first.weight)
    assert sorted(p.name for p in (folder / "training_states").iterdir()) == ["2.state", "4.state"]
    assert (folder / "visualization/im0/im0_2.png").is_file()
    assert (folder / "visualization/teacher/im0/im0_2.png").is_file()
    log = next(folder.glob("train_*.log")).read_text()
    for text in (
        "csd_plugin 0.",
        "Validation held\n",
        "Validation held_teacher",
        "l_contrast",
        "network_g: {type: EDSR",
    ):
        assert text in log
    events = EventAccumulator(str(tmp_path / "tb_logger/tiny")).Reload()
    tags = events.Tags()["scalars"]
    assert {"metrics/held/psnr", "metrics/held_teacher/psnr", "losses/l_contrast", "losses/l_pix_teacher"} <= set(tags)
    values = {tag: [e.value for e in events.Scalars(tag)] for tag in tags}
    assert values["metrics/held/psnr"] != values["metrics/held_teacher/psnr"]


def test_several_students_are_each_validated_saved_and_exported(pairs, tmp_path):
    assert train(base_options(**{"network_g:width": [0.25, 0.5], "val:save_img": True})) == 0
    folder = tmp_path / "experiments/tiny"
    shared = load(folder / "models/net_g_latest.pth")["params"]
    for width, channels in ((0.25, 2), (0.5, 4)):
        student = load(folder / f"models/net_g_student_{width}_latest.pth")["params"]
        build_backbone({**EDSR, "num_feat": channels}).load_state_dict(student, strict=True)
        assert torch.equal(student["conv_first.weight"], shared["conv_first.weight"][:channels])
        assert (folder / f"models/net_g_student_{width}_best.pth").is_file()
        assert (folder / f"visualization/student_{width}/im0/im0_2.png").is_file()
    log = next(folder.glob("train_*.log")).read_text()
    for name in ("held_student_0.25", "held_student_0.5", "held_teacher"):
        assert f"Validation {name}" in log


def test_the_best_student_is_kept(pairs, tmp_path, monkeypatch):
    from csd_plugin.models import csd_model

    scores = iter([30.0, 10.0, 20.0, 10.0, 25.0, 10.0])

    def scripted(self, dataloader, current_iter, tb_logger, save_img):
        name = dataloader.dataset.opt["name"]
        self._initialize_best_metric_results(name)
        self._update_best_metric_result(name, "psnr", next(scores), current_iter)

    monkeypatch.setattr(csd_model.SRModel, "nondist_validation", scripted)
    assert train(base_options()) == 0
    models = tmp_path / "experiments/tiny/models"
    best, second = load(models / "net_g_student_best.pth"), load(models / "net_g_student_2.pth")
    assert all(torch.equal(best["params"][k], second["params"][k]) for k in best["params"])


def _states(folder, iteration):
    return load(folder / f"models/net_g_{iteration}.pth"), load(folder / f"training_states/{iteration}.state")


def test_auto_resume_continues_everything(pairs, tmp_path):
    # One batch is the whole set and K takes all others, so that the order within a batch, which BasicSR draws anew
    # for the epoch it resumes in, does not matter.
    whole = base_options(**{"name": "whole", "train:total_iter": 8, "train:negatives:num": 3})
    whole["datasets"]["train"] |= {"gt_size": 48, "use_hflip": False, "use_rot": False, "dataset_enlarge_ratio": 1}
    assert train(whole) == 0
    cut = copy.deepcopy(whole) | {"name": "cut"}
    cut["train"]["total_iter"] = 4
    assert train(cut) == 0
    _, state = _states(tmp_path / "experiments/cut", 4)
    assert state["best_metric_results"]["held"]["psnr"]["iter"] > 0
    cut["train"]["total_iter"] = 8
    cut["path"]["pretrain_network_g"] = "gone.pth"  # of no use any more
    assert train(cut, "--auto_resume") == 0
    (nets_a, state_a), (nets_b, state_b) = (_states(tmp_path / f"experiments/{n}", 8) for n in ("whole", "cut"))
    for key in ("params", "params_ema"):
        for name in nets_a[key]:
            torch.testing.assert_close(nets_a[key][name], nets_b[key][name])
    assert state_b["iter"] == 8
    assert state_a["schedulers"] == state_b["schedulers"]
    assert state_a["best_metric_results"] == state_b["best_metric_results"]
    torch.testing.assert_close(state_a["optimizers"], state_b["optimizers"])


def test_the_pool_of_negatives_survives_a_resume(pairs, tmp_path):
    options = base_options(**{"train:negatives": {"source": "pool", "num": 6, "pool_size": 9}})
    assert train(options) == 0
    _, state = _states(tmp_path / "experiments/tiny", 4)
    assert state["negative_pool"].shape == (9, 3, 12, 12)
    resumed = model(**{"train:negatives": options["train"]["negatives"]})
    resumed.resume_training(state)
    assert torch.equal(resumed.negative_sampler.pool, state["negative_pool"])


def test_a_failed_write_raises_and_leaves_the_older_file(tmp_path, monkeypatch):
    from csd_plugin import checkpoint

    path = tmp_path / "net.pth"
    checkpoint.save_atomically({"params": {}}, path)
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save_atomically({"params": {"a": torch.zeros(9)}}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_it_is_an_srmodel():
    from basicsr.models.sr_model import SRModel
    from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, MODEL_REGISTRY

    assert issubclass(CSDModel, SRModel)
    assert MODEL_REGISTRY.get("CSDModel") is CSDModel
    assert "CSSRNet" in ARCH_REGISTRY
    assert "ContrastiveLoss" in LOSS_REGISTRY


DISTILL = {"type": "L1Loss", "loss_weight": 0.5, "reduction": "mean"}
ALONE = {"train:teacher_opt": None, "train:contrastive_opt": None, "train:ema_decay": 0}


def teacher_file(path="teacher.pth", seed=5):
    torch.manual_seed(seed)
    teacher = build_backbone(EDSR)
    torch.save({"params": teacher.state_dict()}, path)
    return teacher


def test_distillation_pulls_the_student_to_the_teachers_output():
    csd = model(**ALONE, **{"train:distill_opt": DISTILL})
    net = copy.deepcopy(csd.net_g)
    losses = step(csd)
    outputs = net(csd.lq, width=[1.0, 0.5])
    expected = 0.5 * torch.nn.functional.l1_loss(outputs[0.5], outputs[1.0])
    assert list(losses) == ["l_pix_student", "l_distill_student"]
    assert losses["l_distill_student"] == pytest.approx(float(expected), rel=1e-5)
    assert not csd.net_g.teacher.conv_first.weight.grad[4:].any()


def test_a_teacher_of_its_own_guides_and_stays_as_it_is():
    stock = teacher_file()
    csd = model(**ALONE, **{"train:distill_opt": DISTILL, "path:pretrain_network_teacher": "teacher.pth"})
    student = csd.net_g.export(0.5)
    losses = step(csd)
    lq = batch()["lq"]
    expected = 0.5 * torch.nn.functional.l1_loss(student(lq), stock(lq))
    assert losses["l_distill_student"] == pytest.approx(float(expected), rel=1e-5)
    for iteration in range(2, 5):
        step(csd, iteration)
    torch.testing.assert_close(csd.frozen_teacher.state_dict(), dict(stock.state_dict()))
    assert not any(p is q for p in csd.frozen_teacher.parameters() for q in csd.optimizer_g.param_groups[0]["params"])


def test_the_contrast_pulls_to_the_teacher_of_its_own():
    stock = teacher_file()
    csd = model(**{"path:pretrain_network_teacher": "teacher.pth", "train:teacher_opt": None})
    net, sampler = copy.deepcopy(csd.net_g), copy.deepcopy(csd.negative_sampler)
    losses = step(csd)
    negatives = sampler.sample(csd.lq, 1)
    contrast = csd.cri_contrast(net(csd.lq, width=0.5), stock(csd.lq), negatives.images, negatives.pair_weights)
    assert losses["l_contrast"] == pytest.approx(float(contrast), rel=1e-5)
    assert not csd.net_g.teacher.conv_first.weight.grad[4:].any()


def test_a_run_with_a_teacher_of_its_own_resumes(pairs, tmp_path):
    teacher_file()
    changes = {
        **ALONE,
        "train:distill_opt": DISTILL,
        "path:pretrain_network_teacher": "teacher.pth",
        "val:teacher": False,
    }
    assert train(base_options(**changes, **{"train:total_iter": 2})) == 0
    assert train(base_options(**changes), "--auto_resume") == 0
    assert (tmp_path / "experiments/tiny/models/net_g_student_4.pth").is_file()


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({}, [1, 1, 1, 1]),
        ({"contrast_stop_iter": 2}, [1, 1, 0, 0]),
        ({"contrast_decay": "linear"}, [1, 0.75, 0.5, 0.25]),
        ({"contrast_decay": "linear", "contrast_stop_iter": 2}, [1, 0.5, 0, 0]),
        ({"contrast_decay": "cosine", "contrast_stop_iter": 2}, [1, 0.5, 0, 0]),
        ({"contrast_every": 2}, [0, 2, 0, 2]),
        ({"contrast_stop_iter": 0}, [0, 0, 0, 0]),
    ],
)
def test_the_weight_of_the_contrast_follows_its_schedule(options, weights):
    torch.manual_seed(0)
    csd = model(**{f"train:{key}": value for key, value in options.items()})
    torch.manual_seed(0)
    constant = model()
    assert [csd.train_options.contrast_weight(i) for i in (1, 2, 3, 4)] == pytest.approx(weights)
    first, plain = step(csd, 2), step(constant, 2)
    if weights[1]:
        assert first["l_contrast"] == pytest.approx(weights[1] * plain["l_contrast"])
    else:
        assert "l_contrast" not in first


def test_history_negatives_are_what_the_average_student_makes():
    csd = model(**{"train:negatives:kind": "history"})
    step(csd)
    with torch.no_grad():
        expected = csd.net_g_ema(csd.lq, width=0.5).clamp(0, 1)
    drawn = csd.negative_sampler.sample(csd.lq, 7).images
    assert all(any(torch.allclose(image, other, atol=1e-6) for other in expected) for image in drawn)
    assert not drawn.requires_grad

"""The comparison of arms: its option files, a cut and resumed run, and the document as the results have it."""

import json
import os

import cv2
import pytest
import torch

from benchmarks.quality import document
from benchmarks.quality.__main__ import runs_of
from benchmarks.quality.data import prepare_data
from benchmarks.quality.recipe import Recipe, Run, load_recipe, recipe_names, stock_network
from benchmarks.quality.runs import Runner, rate_run, result_file
from csd_plugin import OptionError
from csd_plugin.cli import main as basicsr
from csd_plugin.config.preflight import check_options
from csd_plugin.losses.vgg import VGGFeatures
from tests.conftest import forget_logging, photograph

ALL = [(name, run) for name in recipe_names() for run in runs_of(load_recipe(name), seeds=[0])]


class InProcess(Runner):
    """Runs what the runner would start in this process, which saves the imports."""

    def _call(self, run, arguments, cwd=None):
        forget_logging()
        if arguments[0] != "csd_plugin":
            rate_run(run, self.work)
            return True
        before = os.getcwd()
        os.chdir(cwd)
        try:
            return basicsr(arguments[1:]) == 0
        finally:
            os.chdir(before)


def tiny(**changes):
    content = load_recipe("cpu_small").model_dump()
    content |= {"name": "tiny", "seeds": [0, 1], "teacher": {"iterations": 10, "lr": 1e-3}}
    content["data"] |= {"train": "train", "held_out": 1, "crop_size": 48, "step": 24, "vgg": "vgg.pth"}
    content["data"]["tests"] = {"held": {"hr": "test"}}
    options = content["options"]
    options["network_g"]["backbone"] |= {"num_feat": 8, "num_block": 1}
    options["network_g"]["width"] = 0.5
    options["datasets"]["train"] |= {"gt_size": 32, "batch_size_per_gpu": 3}
    options["train"] |= {"total_iter": 4, "negatives": {"source": "batch", "num": 2}}
    options["train"]["scheduler"]["periods"] = [4]
    options["train"]["contrastive_opt"]["layer_weights"] = {"relu1_1": 1.0}
    options["val"]["val_freq"] = 2
    options["logger"] |= {"print_freq": 1, "save_checkpoint_freq": 2}
    return Recipe.model_validate(content | changes)


@pytest.fixture
def data(tmp_path):
    """Photographs to train on and to test on, and a VGG."""
    for folder, count in (("train", 5), ("test", 2)):
        (tmp_path / "DATA" / folder).mkdir(parents=True)
        for i in range(count):
            cv2.imwrite(str(tmp_path / "DATA" / folder / f"{i}.png"), photograph(i, 60, 73))
    state = VGGFeatures(("relu1_1",), "random").state_dict()
    weights = [tensor for name, tensor in state.items() if tensor.dim() in (1, 4) and name.endswith(("weight", "bias"))]
    keys = ("features.0.weight", "features.0.bias")
    torch.save(dict(zip(keys, weights, strict=True)), tmp_path / "DATA/vgg.pth")
    return tmp_path / "DATA"


@pytest.mark.parametrize(("recipe", "run"), ALL, ids=lambda v: v if isinstance(v, str) else v.name)
def test_every_arm_is_a_valid_option_file(recipe, run):
    for stage in run.stages():
        check_options(stage.options, is_train=True)


@pytest.mark.parametrize("name", recipe_names())
def test_all_arms_end_in_the_same_student_after_the_same_updates(name):
    recipe = load_recipe(name)
    for run in runs_of(recipe, seeds=recipe.seeds[:1])[1:]:
        stages = run.stages()
        assert sum(stage.options["train"]["total_iter"] for stage in stages) == recipe.options["train"]["total_iter"]
        width = 0.5 if run.arm.endswith("_half") else recipe.options["network_g"]["width"]
        assert stages[-1].network == stock_network({**recipe.options["network_g"], "width": width})
        assert all(stage.options["manual_seed"] == run.seed for stage in stages)
        data = [stage.options["datasets"] for stage in stages]
        assert all(d == Run(recipe, "csd", run.seed).stages()[0].options["datasets"] for d in data)


def test_the_teacher_takes_part_where_the_arm_says_so():
    recipe = load_recipe("cpu_small")
    trains = {run.arm: run.stages()[0].options["train"].get("teacher_opt") for run in runs_of(recipe, seeds=[0])[1:]}
    without = {arm for arm, block in trains.items() if block is None}
    assert without == {"scratch", "sliced_l1", "logits_kd", "scratch_half", "sliced_l1_half"}


def test_a_recipe_runs_is_cut_and_goes_on(data, tmp_path):
    recipe = tiny(arms=["scratch", "sliced_l1", "csd_finetuned"])
    work, results = tmp_path / "work", tmp_path / "results"
    prepare_data(recipe, data, work)
    runs = runs_of(recipe, seeds=[0])
    runner = InProcess(work, 1, results=results)
    assert runner.all(runs[:2], jobs=1) == 0
    before = result_file(runs[1], results).read_bytes()
    prepare_data(recipe, data, work)
    assert InProcess(work, 1, results=results).all(runs, jobs=1) == 0
    assert result_file(runs[1], results).read_bytes() == before
    found = {run.name: json.loads(result_file(run, results).read_text()) for run in runs}
    assert set(found["teacher"]["rating"]) == {"teacher", "bicubic"}
    assert set(found["sliced_l1_0"]["rating"]) == {"student"}
    assert set(found["csd_finetuned_0"]["rating"]) == {"student", "teacher"}
    assert set(found["teacher"]["rating"]["bicubic"]) == {"held_out", "held"}
    assert [step for step, _ in found["csd_finetuned_0"]["curves"]["held_out/psnr"]] == [2, 3, 4]
    assert found["scratch_0"]["network"] == found["csd_finetuned_0"]["network"]
    with pytest.raises(OptionError, match="is of other options: remove it"):
        changed = tiny(arms=["scratch"], teacher={"iterations": 11, "lr": 1e-3})
        InProcess(work, 1, results=results).all(runs_of(changed, seeds=[0]), jobs=1)


def test_after_its_time_nothing_is_begun(data, tmp_path):
    recipe = tiny(arms=["scratch"])
    prepare_data(recipe, data, tmp_path / "work")
    assert Runner(tmp_path / "work", 1, until=0, results=tmp_path / "results").all(runs_of(recipe, seeds=[0]), 2) == 2
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no_such",), "no recipe 'no_such', expected one of cpu_"),
        (("cpu_small", ["no_arm"]), "no arm 'no_arm' (recipe cpu_small)"),
    ],
)
def test_unknown_names_are_refused(arguments, message):
    with pytest.raises(OptionError) as error:
        runs_of(load_recipe(arguments[0]), *arguments[1:])
    assert message in str(error.value)


def test_gains_are_paired_by_seed():
    def result(arm, seed, value):
        return {"arm": arm, "seed": seed, "rating": {"student": {"held": {"psnr": value}}}}

    by_run = {f"{a}_{s}": result(a, s, v) for a, s, v in (("a", 0, 30), ("a", 1, 31), ("b", 1, 30.5), ("b", 2, 9))}
    results = document.Results(tiny(), by_run)
    assert results.gain("a", "b") == [0.5]
    assert document.spread([1.0, 2.0]) == "1.50 ± 0.71"
    assert document.spread([1.0], sign=True) == "+1.00"


def test_the_document_is_what_the_results_say():
    """A hand edit of docs/quality.md, or a result that is not in it yet, fails here."""
    assert document.DOCUMENT.read_text(encoding="utf-8") == document.render()

"""An exported student in a BasicSR that knows nothing of this package."""

import subprocess
import sys

import yaml

from tests.conftest import EDSR, base_options, load, train

SCRIPT = """
import sys, types
from torchvision.transforms.functional import rgb_to_grayscale
stand_in = types.ModuleType("torchvision.transforms.functional_tensor")
stand_in.rgb_to_grayscale = rgb_to_grayscale
sys.modules.setdefault(stand_in.__name__, stand_in)
from basicsr.test import test_pipeline
from basicsr.train import train_pipeline
sys.argv = ["test", "-opt", "test.yml"]
test_pipeline(".")
import basicsr.utils.logger
basicsr.utils.logger.initialized_logger.clear()
sys.argv = ["train", "-opt", "train.yml"]
train_pipeline(".")
assert not any(name.startswith("csd_plugin") for name in sys.modules)
"""


def test_it_tests_trains_and_loads_strictly(pairs, tmp_path):
    assert train(base_options()) == 0
    options = base_options()
    options |= {"name": "stock", "model_type": "SRModel", "network_g": {**EDSR, "num_feat": 4}}
    options["path"] |= {
        "pretrain_network_g": "experiments/tiny/models/net_g_student_latest.pth",
        "param_key_g": "params_ema",
    }
    for key in ("teacher_opt", "contrastive_opt", "negatives"):
        del options["train"][key]
    testing = {k: v for k, v in options.items() if k not in ("train", "logger")}
    testing["datasets"] = {"test_1": options["datasets"]["val"]}
    testing["val"] = {**options["val"], "suffix": None}
    for name, block in (("train", options), ("test", testing)):
        text = yaml.safe_dump(block, sort_keys=False)
        assert "csd" not in text.lower()
        (tmp_path / f"{name}.yml").write_text(text)
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "params_ema" in load(tmp_path / "experiments/stock/models/net_g_4.pth")
    ours = _psnr(next((tmp_path / "experiments/tiny").glob("*.log")).read_text())[-2]
    assert _psnr(next((tmp_path / "results/stock").glob("*.log")).read_text())[0] == ours


def _psnr(log):
    return [line.split()[2] for line in log.splitlines() if "# psnr" in line]

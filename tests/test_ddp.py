"""Several ranks give what one rank gives on the joined batch."""

import os
import subprocess
import sys

import pytest
import torch

from tests.conftest import base_options, load, train, write_options, write_pairs


def _options(name, batch, **changes):
    options = base_options(
        **{"name": name, "train:total_iter": 5, "train:optim_g": {"type": "SGD", "lr": 0.05}, "val": None, **changes}
    )
    options["logger"]["save_checkpoint_freq"] = 5
    # Whole images without flips: a rank's own random numbers then decide nothing.
    options["datasets"]["train"] |= {"gt_size": 48, "use_hflip": False, "use_rot": False, "batch_size_per_gpu": batch}
    return options


@pytest.mark.parametrize(
    ("negatives", "parts"), [({"source": "batch", "num": 3}, 1), ({"source": "pool", "num": 8}, 2)]
)
def test_two_ranks_equal_one_on_the_joined_batch(tmp_path, negatives, parts):
    write_pairs(tmp_path / "data", count=12)
    changes = {"train:negatives": negatives}
    assert train(_options("one", 4, **changes)) == 0
    path = write_options(_options("two", 2, **changes, **{"train:accumulate": parts}), "two.yml")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "csd_plugin", "train", "-opt", path, "--launcher", "pytorch"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (load(tmp_path / f"experiments/{n}/models/net_g_5.pth") for n in ("one", "two"))
    start = _start(tmp_path)
    for key in ("params", "params_ema"):
        for name in one[key]:
            torch.testing.assert_close(one[key][name], two[key][name], atol=1e-6, rtol=1e-5)
            assert not torch.equal(one["params"][name], start[name]), f"{name} did not move"


def _start(tmp_path):
    """The weights that both runs start from."""
    torch.manual_seed(1)
    import random

    import numpy as np
    from basicsr.utils import set_random_seed

    from csd_plugin import CSSRNet

    state = random.getstate(), np.random.get_state()
    set_random_seed(1)
    net = CSSRNet(base_options()["network_g"]["backbone"], 0.5)
    random.setstate(state[0])
    np.random.set_state(state[1])
    return net.state_dict()

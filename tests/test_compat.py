import sys
import types
from types import SimpleNamespace

import basicsr.train
import pytest
import torch
from basicsr.models.base_model import BaseModel

from csd_plugin import compat, import_mends
from csd_plugin.cli import load_plugins, main
from csd_plugin.registry import register


def test_functional_tensor_is_put_in_place_only_where_it_is_missing(monkeypatch):
    name = "torchvision.transforms.functional_tensor"
    own = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, own)
    import_mends.provide_functional_tensor()
    assert sys.modules[name] is own
    monkeypatch.delitem(sys.modules, name)
    import_mends.provide_functional_tensor()
    gray = sys.modules[name].rgb_to_grayscale(torch.ones(3, 2, 2))
    torch.testing.assert_close(gray, torch.full((1, 2, 2), 0.9999))


def test_applying_twice_changes_nothing():
    before = basicsr.train.parse_options, basicsr.train.get_env_info, BaseModel.get_optimizer
    compat.apply()
    assert (basicsr.train.parse_options, basicsr.train.get_env_info, BaseModel.get_optimizer) == before


def test_a_basicsr_that_knows_the_optimizer_keeps_its_own():
    wrapped = compat._with_torch_optimizers(lambda self, optim_type, params, lr: f"own {optim_type}")
    assert wrapped(None, "AdamW", [], 1e-3) == "own AdamW"


def test_the_version_line_names_what_runs():
    line = compat.version_line()
    for text in ("csd_plugin ", "BasicSR 1.", "PyTorch 2.", "site-packages" if "site-packages" in line else "basicsr"):
        assert text in line
    assert line in basicsr.train.get_env_info()


def _opt(tmp_path, **path):
    folders = {"training_states": str(tmp_path / "states"), "models": str(tmp_path / "models")}
    return {"auto_resume": True, "path": {**folders, "resume_state": None, **path}, "network_g": {}}


def test_the_newest_complete_checkpoint_is_resumed(tmp_path):
    (tmp_path / "states").mkdir()
    (tmp_path / "models").mkdir()
    assert compat.load_resume_state(_opt(tmp_path)) is None
    for iteration in (5, 40, 300):
        torch.save({"iter": iteration, "epoch": 0}, tmp_path / f"states/{iteration}.state")
    (tmp_path / "states/notes.state").write_text("not a number")
    for iteration in (5, 40):
        torch.save({}, tmp_path / f"models/net_g_{iteration}.pth")
    opt = _opt(tmp_path)
    assert compat.load_resume_state(opt)["iter"] == 40
    assert opt["path"]["pretrain_network_g"].endswith("net_g_40.pth")


def test_an_unreadable_state_is_named(tmp_path):
    (tmp_path / "broken.state").write_bytes(b"\x80")
    opt = _opt(tmp_path, resume_state=str(tmp_path / "broken.state")) | {"auto_resume": False}
    with pytest.raises(compat.OptionError, match=r"broken.state: no file of PyTorch weights .*path:resume_state"):
        compat.load_resume_state(opt)


def test_a_data_set_of_any_type_that_cannot_fill_a_batch_is_refused():
    loader = SimpleNamespace(dataset=range(3))
    create = compat._refusing_empty_epochs(lambda opt, logger: (loader, None, [], 1, 1))
    opt = {"datasets": {"train": {"batch_size_per_gpu": 4}}, "world_size": 1}
    with pytest.raises(compat.OptionError, match="batch of 4 images but 3 a rank"):
        create(opt, None)
    assert create(opt | {"datasets": {"train": {"batch_size_per_gpu": 3}}}, None)[0] is loader


def test_a_name_clash_names_both_owners():
    registry = basicsr.utils.registry.Registry("test")

    class Thing:
        pass

    first = Thing
    register(registry, first)
    register(registry, first)
    clash = type("Thing", (), {"__module__": "elsewhere"})
    with pytest.raises(KeyError, match=r"Thing of elsewhere .* tests.test_compat has registered"):
        register(registry, clash)


def test_plugins_ride_along_and_a_broken_one_is_reported(monkeypatch, caplog):
    loaded = []

    def broken():
        raise ImportError("no such module")

    plugins = [
        SimpleNamespace(name="bad", value="bad_plugin", load=broken),
        SimpleNamespace(name="good", value="good_plugin", load=lambda: loaded.append("good")),
    ]
    monkeypatch.setattr("csd_plugin.cli.entry_points", lambda group: plugins if group == "basicsr.plugins" else [])
    load_plugins()
    assert loaded == ["good"]
    assert "plugin bad (bad_plugin) cannot be loaded: no such module" in caplog.text


def test_this_package_is_an_installed_plugin():
    from importlib.metadata import entry_points

    assert "csd_plugin" in {plugin.value for plugin in entry_points(group="basicsr.plugins")}


def test_version_and_help(capsys):
    from csd_plugin import __version__

    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert f"csd_plugin {__version__}" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert all(command in out for command in ("train", "test", "prepare", "summary", "wrap"))

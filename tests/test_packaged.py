"""The option files that come with the package."""

from csd_plugin.cli import main
from tests.conftest import ROOT


def test_the_option_files_are_those_of_the_repository(tmp_path, capsys):
    assert main(["options"]) == 0
    names = {path.relative_to(ROOT / "options") for path in (ROOT / "options").rglob("*.yml")}
    assert {path.relative_to(tmp_path / "options") for path in (tmp_path / "options").rglob("*.yml")} == names
    for name in names:
        assert (tmp_path / "options" / name).read_bytes() == (ROOT / "options" / name).read_bytes()
    assert f"{len(names)} option files written" in capsys.readouterr().out


def test_files_that_are_there_are_kept(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/csd_demo.yml").write_text("name: mine\n")
    assert main(["options", "-o", "mine"]) == 0
    assert (tmp_path / "mine/csd_demo.yml").read_text() == "name: mine\n"
    assert "1 that were there are kept" in capsys.readouterr().out
    assert main(["options", "-o", "mine", "--overwrite"]) == 0
    assert (tmp_path / "mine/csd_demo.yml").read_text() != "name: mine\n"


def test_a_folder_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["options", "-o", "file/below"]) == 2
    assert "(option -o)" in capsys.readouterr().err

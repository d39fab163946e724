"""What the documents show works."""

import re
import shlex
import subprocess
import sys

import pytest

from csd_plugin.cli import _parser, main
from tests.conftest import ROOT

DEPLOYMENT = (ROOT / "docs/deployment.md").read_text()
DOCUMENTS = sorted((ROOT / "docs").glob("*.md"))


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def demo(tmp_path):
    """The demo after two iterations."""
    (tmp_path / "options").symlink_to(ROOT / "options")
    assert main(["prepare", "--demo"]) == 0
    short = ["train:total_iter=2", "logger:use_tb_logger=false", "val:val_freq=2"]
    assert main(["train", "-opt", "options/csd_demo.yml", "--force_yml", *short]) == 0
    return tmp_path


def test_deployment_from_export_to_a_program_without_torch(demo, capsys):
    commands = [line for block in blocks(DEPLOYMENT, "bash") for line in block.splitlines() if line]
    assert len(commands) == 6
    for command in commands:
        words = shlex.split(command)
        assert words[0] == "basicsr" and main(words[1:]) == 0, command
    out = capsys.readouterr().out
    assert "are there already" in out and "teacher" in out
    for path in re.findall(r"`(csd_demo_0\.5\.\w+|test_csd_demo_0\.5\.yml)`", DEPLOYMENT):
        assert (demo / "experiments/csd_demo/export" / path).is_file()
    for path in ("compared/compare.csv", "compared/compare.png", "experiments/csd_demo/report.html"):
        assert (demo / path).is_file()
    small = next((demo / "datasets/demo/val_LR_bicubic_X2").iterdir())
    (demo / "small.png").write_bytes(small.read_bytes())
    (code,) = blocks(DEPLOYMENT, "python")
    without_torch = "import sys; sys.modules['torch'] = None\n"
    subprocess.run([sys.executable, "-c", without_torch + code], check=True, cwd=demo)
    by_command = (demo / "enlarged" / small.name).read_bytes()
    import cv2
    import numpy as np

    ours = cv2.imdecode(np.frombuffer(by_command, np.uint8), cv2.IMREAD_COLOR).astype(int)
    assert np.abs(ours - cv2.imread("large.png").astype(int)).max() <= 1


def test_the_quick_start_runs(tmp_path, capsys):
    (commands,) = blocks((ROOT / "docs/index.md").read_text(), "bash")
    for command in commands.splitlines():
        words = shlex.split(command)[1:]
        short = ["train:total_iter=2", "logger:use_tb_logger=false", "val:val_freq=2"]
        assert main(words + (["--force_yml", *short] if words[0] == "train" else [])) == 0, command
    assert (tmp_path / "experiments/csd_demo/report.html").is_file()


def test_the_documents_build_as_a_site(tmp_path):
    build = pytest.importorskip("mkdocs.commands.build")
    from mkdocs.config import load_config

    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True)
    build.build(config)
    pages = {path.stem for path in DOCUMENTS}
    built = {path.parent.name for path in (tmp_path / "site").rglob("index.html")}
    assert pages - {"index"} <= built


COMMANDS = (
    "compare",
    "export",
    "options",
    "prepare",
    "profile",
    "report",
    "summary",
    "test",
    "train",
    "upscale",
    "wrap",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_that_is_accepted(command, capsys):
    with pytest.raises(SystemExit) as stop:
        _parser().parse_args([command, "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith(f"usage: basicsr {command}")
    (example,) = re.findall(r"example: basicsr (.*)$", text)
    assert _parser().parse_args(shlex.split(example)).command == command


@pytest.mark.parametrize("document", [ROOT / "README.md", *DOCUMENTS], ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), target

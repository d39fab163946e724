"""The progress bar, and validation that survives images which do not fit into memory."""

import io
import logging

import pytest
import torch
from basicsr.utils import get_root_logger

from csd_plugin.models import csd_model as module
from csd_plugin.models.progress import Progress
from tests.conftest import base_options, train
from tests.test_csd_model import batch, model, step


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_bar_shows_where_a_run_is_and_how_it_does():
    terminal = Terminal()
    progress = Progress(10, stream=terminal)
    progress.reach(4)  # a resumed run
    progress.reach(5)
    progress.show({"student": 31.234, "teacher": 33.0})
    progress.reach(10)
    text = terminal.getvalue()
    assert "5/10" in text and "10/10" in text and "student=31.23, teacher=33.00" in text
    progress.reach(10)
    assert terminal.getvalue() == text


def test_log_lines_leave_the_terminal_while_the_bar_is_there(tmp_path):
    logger = get_root_logger(log_file=str(tmp_path / "run.log"))
    screen = io.StringIO()
    (handler,) = (h for h in logger.handlers if type(h) is logging.StreamHandler)
    handler.setStream(screen)
    progress = Progress(2, stream=Terminal())
    progress.reach(1)
    logger.info("a line")
    logger.warning("a warning")
    progress.reach(2)
    logger.info("the end")
    assert screen.getvalue().count("\n") == 2 and "a line" not in screen.getvalue()
    for text in ("a line", "a warning", "the end"):
        assert text in (tmp_path / "run.log").read_text()


def test_where_nobody_watches_there_is_no_bar():
    for terminal, wanted in ((io.StringIO(), True), (Terminal(), False)):
        progress = Progress(2, wanted, terminal)
        progress.reach(1)
        progress.show({"student": 1.0})
        assert terminal.getvalue() == ""


def test_a_run_drives_the_bar(pairs, monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(module, "Progress", lambda total, wanted: Progress(total, wanted, terminal))
    assert train(base_options()) == 0
    assert "4/4" in terminal.getvalue() and "student=" in terminal.getvalue() and "teacher=" in terminal.getvalue()
    assert "iter:       3" not in capsys.readouterr().err


def test_tiles_change_nothing_in_validation():
    whole, tiled = model(), model(**{"val:tile": 16})
    tiled.net_g_ema.load_state_dict(whole.net_g_ema.state_dict())
    lq = torch.rand(1, 3, 40, 37)
    for csd in (whole, tiled):
        csd.feed_data({"lq": lq})
        csd.test()
    torch.testing.assert_close(tiled.output, whole.output, atol=1e-5, rtol=0)


def test_an_image_too_large_for_memory_is_validated_in_tiles(monkeypatch):
    csd = model()
    step(csd)
    forward, seen = csd.net_g_ema.forward, []

    def limited(lq, **options):
        seen.append(max(lq.shape[-2:]))
        if max(lq.shape[-2:]) > 110:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return forward(lq, **options)

    monkeypatch.setattr(csd.net_g_ema, "forward", limited)
    csd.feed_data({"lq": torch.rand(1, 3, 20, 150)})
    csd.test()
    assert csd.output.shape == (1, 3, 40, 300) and csd.validation_tile == 75
    del seen[:]
    csd.test()
    assert max(seen) <= 110  # what did not fit is not tried again


def test_tiles_are_not_for_clips(capsys, tmp_path):
    options = base_options(**{"model_type": "CSDVideoRecurrentModel", "val:tile": 32})
    assert train(options) == 2
    assert "tiles are for images, not for clips (option val:tile)" in capsys.readouterr().err


def test_a_batch_still_validates_with_self_ensemble():
    csd = model(**{"val:tile": 16, "val:self_ensemble": True})
    csd.feed_data(batch())
    csd.test()
    assert csd.output.shape == (4, 3, 16, 16)
    with pytest.raises(Exception, match="tile"):
        model(**{"val:tile": 3})

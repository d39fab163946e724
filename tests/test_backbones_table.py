import pytest

from benchmarks.backbones import NETWORKS, TABLE, row
from csd_plugin.slicing.widths import BACKBONES


def test_the_table_has_every_backbone():
    assert set(NETWORKS) == {name for name, spec in BACKBONES.items() if spec.width_args}
    lines = TABLE.read_text().splitlines()
    assert all(any(line.startswith(f"| {name} |") for line in lines) for name in NETWORKS)


@pytest.mark.parametrize(
    "name", ["CARN", "ECBSR", "MSRResNet", "RIDNet", "RRDBNet", "SRVGGNetCompact", "SwinIR", "EDVR"]
)
def test_the_table_is_current(name):
    assert row(name) in TABLE.read_text()

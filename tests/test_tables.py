"""The tables: numbers in one way of writing, plain text without a terminal, and whole numbers in narrow ones."""

import io

import pytest
from rich.console import Console
from torch import nn

from splore.design.decompose import Design, decompose
from splore.measure.cost import cost
from splore.measure.tables import StageRow, count, layer_table, percent, show, size, stage_table


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (860, "860"), (1000, "1.00 k"), (272_474, "272.47 k"), (999_994, "999.99 k"), (999_996, "1.00 M"),
     (20_035_018, "20.04 M"), (1_814_073_344, "1.81 G")],
)  # fmt: skip
def test_counts(number, text):
    assert count(number) == text


@pytest.mark.parametrize(
    ("number", "text"), [(512, "512 B"), (2_400_000, "2.4 MB"), (999_949, "999.9 kB"), (999_950, "1.0 MB")]
)
def test_sizes(number, text):
    assert size(number) == text


@pytest.mark.parametrize(
    ("fraction", "text"), [(0.0314, "3.14 %"), (1.0, "100.00 %"), (0.0, "0.00 %"), (1e-6, "<0.01 %"), (None, "")]
)
def test_shares(fraction, text):
    assert percent(fraction) == text


@pytest.fixture
def layers():
    name = "a_block[bold]_with_a_long_name"
    model = nn.Sequential()
    model.add_module(name, nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)))
    model.add_module("head", nn.Sequential(nn.Flatten(), nn.Linear(576, 10)))
    decompose(model, Design(rank=2))
    return layer_table(cost(model, (3, 8, 8)))


@pytest.fixture
def stages():
    return stage_table(
        [
            StageRow("dense", 93.456, 20_035_018, 1.0, 1.0, 80_192_800),
            StageRow("cut", None, 629_099, 0.0314, 0.05, 2_400_000),
        ]
    )


def test_plain_text_is_whole(layers, stages):
    out = io.StringIO()
    show(layers, out)
    show(stages, out)
    text = out.getvalue()
    assert "\x1b" not in text and text.isascii()
    assert "a_block[bold]_with_a_long_name.0" in text and "16x3x3x3" in text and "channel" in text
    assert "| dense |  93.46 % |  20.04 M |    100.00 % |  100.00 % | 80.2 MB |" in text
    assert "| cut   |          | 629.10 k |      3.14 % |    5.00 % |  2.4 MB |" in text
    assert len({len(line) for line in str(layers).splitlines()}) == 1


@pytest.mark.parametrize("width", [48, 60, 80, 120, 200])
def test_terminals_of_any_width_keep_the_numbers(layers, stages, width):
    console = Console(width=width, force_terminal=True, color_system=None, file=io.StringIO(), legacy_windows=False)
    console.print(layers)
    console.print(stages)
    text = console.file.getvalue()
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert "80.2 MB" in text and "3.14 %" in text and "params kept" in text and "total" in text
    assert ("MACs kept" in text) == (width >= 60)

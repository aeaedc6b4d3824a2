"""What files in eight bits take on disk, beside what they must take at the least."""

import pytest

import splore
from splore.design.eight_bits import round_weights

NETS = [
    ("vgg19", 10, (3, 32, 32), 4, 0.03, 1.1e6),
    ("torchvision:resnet50", 1000, (3, 64, 64), 0.04, 0.2, 7e6),
    ("torchvision:resnet50", 1000, (3, 64, 64), 0.08, 0.3757, 12e6),
]


@pytest.mark.slow
@pytest.mark.parametrize("name, classes, image, rank, kept, most", NETS)
def test_a_net_in_eight_bits_and_blocks_takes_little_more_on_disk_than_it_must(
    tmp_path, name, classes, image, rank, kept, most
):
    model = splore.build(name, classes)
    splore.decompose(model, splore.Design(rank=rank, block=4, start="random"))
    splore.prune(model, params=kept, score=splore.magnitude)
    round_weights(model)
    model.activation_ranges = {f"some.layer.of.the.net.{i}": (-1.234567, 3.456789) for i in range(200)}
    splore.save(model, tmp_path / "model.safetensors")
    size = (tmp_path / "model.safetensors").stat().st_size
    found = splore.cost(model, image)
    assert found.bytes < size <= most
    assert size <= 1.25 * found.bytes_least

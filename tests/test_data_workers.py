"""Batches that workers read from folders of large images, or from data sets of a user's own."""

import random
import sys

import numpy as np
import pytest
import torch
from images import CPU, equal, write_images
from PIL import Image

from splore.runs.prepare import prepare
from splore.runs.recipe import DataRecipe, HardwareRecipe, Recipe
from splore.vision import Augment, open_data

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities of TorchVision")


@pytest.fixture
def large(tmp_path):
    """A folder of images too large to be held in memory."""
    write_images(tmp_path, (120, 100), counts={"train": 8, "val": 5}, suffix="jpg")
    return tmp_path


def imagenet(root, workers=0, seed=0, rank=0, world_size=1, batch_size=4):
    return open_data("imagenet", str(root), batch_size, seed, CPU, rank, world_size, workers)


def test_workers_do_not_change_a_batch(large):
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    alone = imagenet(large)
    assert alone.image_shape == (3, 224, 224) and alone.train.samples == 16 and alone.test.samples == 10
    whole = list(alone.train.epoch(1))
    assert whole[0][0].shape == (4, 3, 224, 224) and whole[0][0].dtype == torch.float32
    for start in (0, 1, 3, 4):
        assert equal(alone.train.epoch(1, start), whole[start:])
    assert not equal(alone.train.epoch(2), whole)
    assert not equal(imagenet(large, seed=1).train.epoch(1), whole)
    assert (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()) == (
        state[0].tolist(),
        *state[1:],
    )
    two = imagenet(large, workers=2)
    next(two.train.epoch(0))  # begun and left: what the workers read ahead must not turn up later
    assert equal(two.train.epoch(1), whole)
    assert equal(two.train.epoch(1, 2), whole[2:])
    assert equal(two.test.epoch(0), alone.test.epoch(1))


def test_ranks_share_what_workers_read(large):
    one, two = imagenet(large), [imagenet(large, rank=rank, world_size=2) for rank in range(2)]
    for split in ("train", "test"):
        for (x, y), *shares in zip(*(getattr(data, split).epoch(1) for data in (one, *two)), strict=True):
            images, labels = (torch.cat(each) for each in zip(*shares, strict=True))
            assert torch.equal(images, x) and torch.equal(labels, y)


def test_only_one_epoch_at_a_time(large):
    data = imagenet(large)
    first = data.train.epoch(0)
    next(first)
    next(data.train.epoch(1))
    with pytest.raises(RuntimeError, match="only one can be read at a time"):
        next(first)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", ["truncated", "nonsense", "empty", "removed"])
def test_a_damaged_image_is_named(large, damage, workers):
    path = large / "train" / "bee" / "5.jpg"
    content = path.read_bytes()
    if damage == "removed":
        data = imagenet(large, workers)
        path.unlink()
    else:
        path.write_bytes({"truncated": content[: len(content) // 2], "nonsense": b"x" * 99, "empty": b""}[damage])
        data = imagenet(large, workers)
    with pytest.raises(ValueError, match=r"^cannot read the image .*train.bee.5\.jpg: .*; replace or remove it$"):
        list(data.train.epoch(0))


def test_a_damaged_small_image_is_named(tmp_path):
    write_images(tmp_path)
    path = tmp_path / "test" / "bee" / "1.png"
    path.write_bytes(path.read_bytes()[:80])
    with pytest.raises(ValueError, match=r"cannot read the image .*test.bee.1\.png"):
        open_data("folder", str(tmp_path), 4, 0, CPU)


def test_what_torchvision_cannot_decode_goes_to_pillow(tmp_path, monkeypatch):
    from splore.vision.data.images import read_image

    draws = np.random.default_rng(0).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    Image.fromarray(draws, mode="CMYK").save(tmp_path / "cmyk.jpg")
    Image.fromarray(draws[..., :3]).save(tmp_path / "plain.tif")
    Image.fromarray(draws[..., :3]).save(tmp_path / "first.gif")
    for name in ("cmyk.jpg", "plain.tif", "first.gif"):
        assert read_image(str(tmp_path / name)).shape == (3, 9, 7)
    Image.fromarray(draws[..., :3]).save(tmp_path / "plain.png")
    by_torchvision = read_image(str(tmp_path / "plain.png"))
    monkeypatch.setitem(sys.modules, "torchvision.io", None)  # as in a release without decoders
    assert torch.equal(read_image(str(tmp_path / "plain.png")), by_torchvision)
    assert torch.equal(read_image(str(tmp_path / "plain.tif")), torch.from_numpy(draws[..., :3]).permute(2, 0, 1))


# A user's own data


@pytest.fixture
def own_data(tmp_path, monkeypatch):
    (tmp_path / "own_data.py").write_text(
        "import random\n"
        "import numpy as np\n"
        "import torch\n"
        "class Noise:\n"
        "    num_classes = 3\n"
        "    def __len__(self): return 10\n"
        "    def __getitem__(self, i):\n"
        "        if not 0 <= i < 10: raise IndexError\n"
        "        noise = random.random() + np.random.rand() + torch.rand(1, 2, 2)\n"
        "        return noise + i, i % 3\n"
        "class Labels(Noise):\n"
        "    classes = ['one']\n"
        "class Sizes(Noise):\n"
        "    def __getitem__(self, i): return torch.zeros(1, 2 + i, 2), 0\n"
        "class Bytes(Noise):\n"
        "    def __getitem__(self, i): return torch.zeros(1, 2, 2, dtype=torch.uint8), 0\n"
        "class Pictures(Noise):\n"
        "    def __getitem__(self, i): return 'picture', 0\n"
        "class Unnumbered(Noise):\n"
        "    num_classes = None\n"
        "class Targets(Unnumbered):\n"
        "    targets = [0, 4]\n"
        "def noise(): return Noise(), Noise()\n"
        "def rooted(root): assert root == 'here'; return Noise(), Noise()\n"
        "def labels(): return Labels(), Labels()\n"
        "def sizes(): return Sizes(), Sizes()\n"
        "def bytes_(): return Bytes(), Bytes()\n"
        "def pictures(): return Pictures(), Pictures()\n"
        "def unnumbered(): return Unnumbered(), Unnumbered()\n"
        "def targets(): return Targets(), Targets()\n"
        "def one(): return Noise()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def own(factory, workers=0, root=None):
    return open_data(f"own_data:{factory}", root, 4, 0, CPU, workers=workers)


def test_own_data_repeats_whatever_it_draws_from(own_data):
    data = own("noise")
    assert data.num_classes == 3 and data.image_shape == (1, 2, 2)
    whole = list(data.train.epoch(1))
    assert equal(own("noise", workers=2).train.epoch(1), whole)
    assert equal(data.train.epoch(1, 1), whole[1:])
    assert own("rooted", root="here").train.samples == 10
    assert own("targets").num_classes == 5


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("one", r"must return two data sets .* found Noise"),
        ("unnumbered", "cannot tell the number of classes"),
        ("bytes_", "expected normalised images as floats, found torch.uint8"),
        ("pictures", r"expected an image as a tensor \(C, H, W\), found str"),
        ("labels", r"expected a label in 0 ... 0, found"),
        ("sizes", "expected images of one shape"),
        ("noisy", "did you mean 'noise'"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_own_data_that_is_wrong(own_data, factory, message, workers):
    with pytest.raises(ValueError, match=rf"^.*{message}[^\n]*$"):
        list(own(factory, workers).train.epoch(0))  # one line: without the traceback of a worker


def test_augment_is_for_data_in_memory(large):
    with pytest.raises(ValueError, match="`augment` holds for data sets in memory"):
        open_data("folder", str(large), 4, 0, CPU, augment=Augment())
    with pytest.raises(ValueError, match="padding must be 0 pixels or more"):
        Augment(pad=-1)


@pytest.mark.parametrize("shape", [(8, 8), (120, 100)])
def test_the_layout_of_a_batch(tmp_path, shape):
    """In memory, and read by workers; three channels, for with one both layouts are the same."""
    write_images(tmp_path, shape)
    last, plain = (
        open_data("folder", str(tmp_path), 4, 0, CPU, workers=0, memory_format=layout)
        for layout in (torch.channels_last, torch.contiguous_format)
    )
    for split in ("train", "test"):
        batches, others = (list(getattr(each, split).epoch(0)) for each in (last, plain))
        assert equal(batches, others)
        assert all(x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous() for x, _ in batches)
        assert all(x.is_contiguous() for x, _ in others)


@pytest.mark.parametrize("wanted", [True, False])
def test_a_run_has_its_images_in_the_layout_of_its_recipe(tmp_path, wanted):
    write_images(tmp_path)
    data = DataRecipe("folder", str(tmp_path), batch_size=4)
    images = prepare(Recipe(data=data, hardware=HardwareRecipe(channels_last=wanted)), tmp_path).data
    for batches in (images.train, images.test):
        x, _ = next(batches.epoch(0))
        assert x.is_contiguous(memory_format=torch.channels_last) == wanted

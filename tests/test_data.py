import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from splore.data import Augment, open_data
from splore.data.folder import list_splits
from splore.data.memory import MemoryBatches
from splore.data.order import TestOrder, TrainOrder
from splore.data.scale import Scale

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities of TorchVision")


def digits(batch_size=64, seed=0, rank=0, world_size=1, **options):
    return open_data("digits", None, batch_size, seed, CPU, rank, world_size, **options)


def equal(some, others):
    some, others = list(some), list(others)
    return len(some) == len(others) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(some, others, strict=True)
    )


def write_images(root, shape=(8, 8), classes=("ant", "bee"), counts=None, suffix="png", mode="RGB"):
    """Random images in `root`/{train,test}/<class>/; returns those of train in the order of a listing."""
    draws = np.random.default_rng(0)
    train = []
    for split, count in (counts or {"train": 6, "test": 3}).items():
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = draws.integers(0, 256, (*shape, 3) if mode == "RGB" else shape, dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.{suffix}")
                if split == "train":
                    train.append(pixels)
    return train


@pytest.fixture
def large(tmp_path):
    """A folder of images too large to be held in memory."""
    write_images(tmp_path, (120, 100), counts={"train": 8, "val": 5}, suffix="jpg")
    return tmp_path


# The order of the samples


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("samples", [12, 13, 14, 17, 23, 24, 25, 40])
def test_ranks_share_each_batch(samples, world_size):
    one = TrainOrder(samples, 12, seed=5)
    ranks = [TrainOrder(samples, 12, 5, rank, world_size) for rank in range(world_size)]
    assert {len(order) for order in ranks} == {len(one)}
    for step in range(len(one)):
        spans = [order.span(step) for order in ranks]
        places = [place for first, last in spans for place in range(first, last)]
        first, last = one.span(step)
        assert len({last - first for first, last in spans}) == 1 and spans[0][1] - spans[0][0] >= 2
        assert places[: last - first] == list(range(first, last))
        assert all(place >= samples for place in places[last - first :])  # filled up with the epoch's start
    assert one.span(len(one) - 1)[1] == samples - (samples % 12 == 1)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("samples", range(4, 30))
def test_every_test_sample_falls_to_one_rank(samples, world_size):
    ranks = [TestOrder(samples, 5, rank, world_size) for rank in range(world_size)]
    assert len({len(order) for order in ranks}) == 1
    spans = [order.span(step) for step in range(len(ranks[0])) for order in ranks]
    assert all(last > first for first, last in spans)
    assert [place for first, last in spans for place in range(first, last)] == list(range(samples))


@pytest.mark.parametrize(
    ("order", "options", "message"),
    [
        (TrainOrder, {"batch_size": 7, "world_size": 2}, "multiple of 2 and at least 4, found 7"),
        (TrainOrder, {"batch_size": 1}, "at least 2, found 1"),
        (TrainOrder, {"batch_size": 4, "samples": 1}, "at least 2 training samples"),
        (TrainOrder, {"batch_size": 4, "rank": 2, "world_size": 2}, "rank must lie in 0 ... 1, found 2"),
        (TestOrder, {"batch_size": 0}, "batch_size must be at least 1"),
        (TestOrder, {"batch_size": 4, "samples": 0}, "found none"),
        (TestOrder, {"batch_size": 4, "samples": 3, "world_size": 4}, "4 ranks cannot share 3 test samples"),
    ],
)
def test_orders_that_cannot_be(order, options, message):
    seed = {"seed": 0} if order is TrainOrder else {}
    with pytest.raises(ValueError, match=message):
        order(**{"samples": 10, **seed, **options})


# Batches in memory


def test_digits():
    data = digits()
    assert (data.train.samples, data.test.samples) == (1347, 450)
    assert data.num_classes == 10 and data.image_shape == (1, 8, 8)
    images, labels = (torch.cat(each) for each in zip(*data.test.epoch(0), strict=True))
    assert images.dtype == torch.float32 and labels.dtype == torch.int64
    assert images.min() == 0 and images.max() == 1
    assert all(44 <= count <= 46 for count in labels.bincount().tolist())
    assert equal(data.test.epoch(0), data.test.epoch(3))


def test_the_split_of_the_digits_has_each_once():
    data = digits(augment=Augment(0, flip=False))
    batches = [batch for split in (data.train, data.test) for batch in split.epoch(0)]
    seen = torch.cat([images for images, _ in batches]).flatten(1) * 16
    from sklearn.datasets import load_digits

    assert sorted(map(tuple, seen.round().int().tolist())) == sorted(
        map(tuple, load_digits().data.astype(int).tolist())
    )


def test_a_batch_depends_on_seed_epoch_and_step_alone():
    state = torch.get_rng_state()
    data = digits()
    whole = list(data.train.epoch(2))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    list(data.train.epoch(1))
    assert equal(data.train.epoch(2), whole)
    assert equal(digits().train.epoch(2), whole)
    for start in (1, 7, len(whole)):
        assert equal(data.train.epoch(2, start), whole[start:])
    assert not equal(data.train.epoch(3), whole)
    assert not equal(digits(seed=1).train.epoch(2), whole)


def test_two_ranks_see_what_one_does():
    one, two = digits(), [digits(rank=rank, world_size=2) for rank in range(2)]
    for split in ("train", "test"):
        batches = zip(*(getattr(data, split).epoch(1) for data in (one, *two)), strict=True)
        for (x, y), *shares in batches:
            images, labels = (torch.cat(each) for each in zip(*shares, strict=True))
            # 1,347 = 21 * 64 + 3: the last training batch is filled up to two for each rank
            assert len(labels) == len(y) + (split == "train" and len(y) == 3)
            assert torch.equal(images[: len(y)], x) and torch.equal(labels[: len(y)], y)


def test_crops_and_flips():
    """Each image comes out as one of the windows of its padded self, mirrored half the time, all equally often."""
    samples, height, width, pad = 4000, 5, 6, 2
    numbered = torch.arange(1, height * width + 1, dtype=torch.uint8).view(1, 1, height, width)
    images = numbered.repeat(samples, 2, 1, 1)
    order = TrainOrder(samples, 500, seed=3)
    batches = MemoryBatches(images, torch.arange(samples), order, Scale((0.0,), (1.0,)), CPU, Augment(pad, flip=True))
    seen = torch.cat([x for x, _ in batches.epoch(0)])
    padded = torch.nn.functional.pad(numbered[0, 0].float(), (pad, pad, pad, pad))
    counts = {}
    for flip in (False, True):
        for top in range(2 * pad + 1):
            for left in range(2 * pad + 1):
                window = padded[top : top + height, left : left + width]
                window = window.flip(1) if flip else window
                counts[flip, top, left] = int((seen == window).flatten(1).all(1).sum())
    assert sum(counts.values()) == samples
    assert abs(sum(n for (flip, _, _), n in counts.items() if flip) / samples - 0.5) < 0.04
    assert min(counts.values()) > 45 and max(counts.values()) < 125  # 80 expected


def test_normalisation():
    images = torch.randint(0, 256, (10, 3, 4, 4), dtype=torch.uint8)
    scale = Scale((10.0, 20.0, 30.0), (2.0, 3.0, 4.0))
    batches = MemoryBatches(images, torch.arange(10), TestOrder(10, 4), scale, CPU)
    seen = torch.cat([x for x, _ in batches.epoch(0)])
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (scale.mean, scale.std))
    torch.testing.assert_close(seen, (images - mean) / std)


def test_a_folder_of_small_images(tmp_path):
    written = write_images(tmp_path)
    (tmp_path / "train" / "ant" / "notes.txt").write_text("no image")
    data = open_data("folder", str(tmp_path), 4, 0, CPU, augment=Augment(0, flip=False))
    assert data.classes == ["ant", "bee"] and data.image_shape == (3, 8, 8)
    assert (data.train.samples, data.test.samples) == (12, 6)
    pixels, labels = (torch.cat(each) for each in zip(*data.train.epoch(0), strict=True))
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    seen = {
        (tuple(x.flatten().tolist()), y)
        for x, y in zip(pixels.mul(std).add(mean).mul(255).round(), labels.tolist(), strict=True)
    }
    expected = {(tuple(x.transpose(2, 0, 1).ravel().tolist()), i // 6) for i, x in enumerate(written)}
    assert seen == expected
    usual = open_data("cifar10", str(tmp_path), 4, 0, CPU)
    assert usual.train.samples == 12


def test_a_folder_of_grey_images(tmp_path):
    write_images(tmp_path, mode="L")
    assert open_data("folder", str(tmp_path), 4, 0, CPU).image_shape == (1, 8, 8)


def test_many_small_images_are_decoded_alike_by_workers(tmp_path, monkeypatch):
    write_images(tmp_path)
    listing, _ = list_splits(str(tmp_path), ("test",))
    from splore.data import images

    alone = images.decode_all(listing, (3, 8, 8), workers=0)
    monkeypatch.setattr(images, "FEW", 0)
    monkeypatch.setattr(images, "CHUNK", 5)
    assert torch.equal(images.decode_all(listing, (3, 8, 8), workers=2), alone)
    (tmp_path / "train" / "bee" / "3.png").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"^cannot read the image .*bee.3\.png: it is not an image"):
        images.decode_all(listing, (3, 8, 8), workers=2)


def test_cifar_as_torchvision_stores_it(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    draws = np.random.default_rng(0)
    pixels = draws.integers(0, 256, (6, 3 * 32 * 32), dtype=np.uint8)
    for name in ("data_batch_1", "test_batch"):
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": list(range(6))}))
    names = [f"class {i}" for i in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    with pytest.raises(ValueError, match="incomplete or altered: remove that folder"):
        open_data("cifar10", str(tmp_path), 4, 0, CPU)
    for attribute, value in (
        ("train_list", [["data_batch_1", None]]),
        ("test_list", [["test_batch", None]]),
        ("meta", {**CIFAR10.meta, "md5": None}),
    ):
        monkeypatch.setattr(CIFAR10, attribute, value)
    data = open_data("cifar10", str(tmp_path), 4, 0, CPU)
    assert data.classes == names and data.image_shape == (3, 32, 32)
    seen = torch.cat([x for x, _ in data.test.epoch(0)])
    red = (seen[:, 0] * 0.2470 + 0.4914) * 255
    torch.testing.assert_close(red.flatten(1), torch.from_numpy(pixels[:, :1024]).float(), rtol=0, atol=1e-3)


# Batches that workers read


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
    from splore.data.images import read_image

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


# Bad input


def test_unknown_names_and_missing_folders(tmp_path):
    with pytest.raises(ValueError, match="no data set 'cifar-10'; did you mean 'cifar10'"):
        open_data("cifar-10", None, 4, 0, CPU)
    with pytest.raises(ValueError, match="known are cifar10, .*package.module:factory"):
        open_data("zzz", None, 4, 0, CPU)
    with pytest.raises(ValueError, match="imagenet needs the folder"):
        open_data("imagenet", None, 4, 0, CPU)
    with pytest.raises(FileNotFoundError, match="no data folder .*missing; expected .*train/<class>/<image>"):
        open_data("folder", str(tmp_path / "missing"), 4, 0, CPU)
    with pytest.raises(FileNotFoundError, match="the train split is missing.* found no folders"):
        open_data("folder", str(tmp_path), 4, 0, CPU)
    with pytest.raises(FileNotFoundError, match="no cifar100 in .*set download to true"):
        open_data("cifar100", str(tmp_path), 4, 0, CPU)


def test_incomplete_folders(tmp_path):
    write_images(tmp_path, counts={"train": 2})
    with pytest.raises(FileNotFoundError, match="the test split is missing.*found the folders train"):
        open_data("folder", str(tmp_path), 4, 0, CPU)
    (tmp_path / "val").mkdir()
    with pytest.raises(ValueError, match="holds no class folders"):
        open_data("folder", str(tmp_path), 4, 0, CPU)
    (tmp_path / "val" / "ant").mkdir()
    with pytest.raises(ValueError, match=r"the class folder .*val.ant holds no images"):
        open_data("folder", str(tmp_path), 4, 0, CPU)
    Image.new("RGB", (8, 8)).save(tmp_path / "val" / "ant" / "0.png")
    with pytest.raises(ValueError, match=r"only in train \['bee'\], only in val \[\]"):
        open_data("folder", str(tmp_path), 4, 0, CPU)
    (tmp_path / "val" / "bee").mkdir()
    Image.new("RGB", (9, 8)).save(tmp_path / "val" / "bee" / "0.png")
    with pytest.raises(ValueError, match=r"differ in size: expected 8 x 8 .* found 8 x 9 in .*val.bee.0\.png"):
        open_data("folder", str(tmp_path), 4, 0, CPU)


def test_download_without_a_network(tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(FileNotFoundError, match="cifar10 is not in .* and could not be downloaded .*connect"):
        open_data("cifar10", str(tmp_path), 4, 0, CPU, download=True)


def test_augment_is_for_data_in_memory(large):
    with pytest.raises(ValueError, match="`augment` holds for data sets in memory"):
        open_data("folder", str(large), 4, 0, CPU, augment=Augment())
    with pytest.raises(ValueError, match="padding must be 0 pixels or more"):
        Augment(pad=-1)


def test_imports_are_light():
    heavy = "{'torchvision', 'timm', 'sklearn', 'PIL'}"
    code = f"import sys, splore.data, splore.zoo; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"

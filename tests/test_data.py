"""Data sets held in memory, and names and folders that can't be opened."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from images import CPU, equal, write_images
from PIL import Image

from splore.vision import Augment, open_data
from splore.vision.data.class_folders import list_splits
from splore.vision.data.images import Normalisation
from splore.vision.data.in_memory import MemoryBatches
from splore.vision.data.order import TestOrder, TrainOrder

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities of TorchVision")


def digits(batch_size=64, seed=0, rank=0, world_size=1, **options):
    return open_data("digits", None, batch_size, seed, CPU, rank, world_size, **options)


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
    batches = MemoryBatches(
        images, torch.arange(samples), order, Normalisation((0.0,), (1.0,)), CPU, augment=Augment(pad, flip=True)
    )
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
    scale = Normalisation((10.0, 20.0, 30.0), (2.0, 3.0, 4.0))
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
    from splore.vision.data import images

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


def test_imports_are_light():
    heavy = "{'torchvision', 'timm', 'sklearn', 'PIL'}"
    code = f"import sys, splore.vision.data.open, splore.vision.nets.build; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"

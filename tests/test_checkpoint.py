"""Checkpoints: a kill at any moment leaves a whole one to go on from, and none can run code."""

import hashlib
import pickle
import random
import resource
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from splore.train.checkpoint import Checkpoints, random_state, set_random_state


def state(number):
    return {"number": number, "weights": torch.full((3, 2), float(number)), "nested": {"list": [1, None, "a", 2.5]}}


def saved(folder, count=2):
    checkpoints = Checkpoints(folder / "checkpoints")
    for number in range(count):
        checkpoints.save(state(number))
    return checkpoints


def files(checkpoints):
    return sorted(checkpoints.directory.glob("*.pt"))


def test_the_newest_state_comes_back_as_it_was(tmp_path):
    found = saved(tmp_path, 3).load()
    assert found["number"] == 2 and found["nested"] == {"list": [1, None, "a", 2.5]}
    assert torch.equal(found["weights"], torch.full((3, 2), 2.0))


def test_another_process_finds_and_continues_them(tmp_path):
    saved(tmp_path, 3)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.load()["number"] == 2
    checkpoints.save(state(3))
    assert Checkpoints(tmp_path / "checkpoints").load()["number"] == 3


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_last_two_are_kept_and_nothing_else(tmp_path, count):
    checkpoints = saved(tmp_path, count)
    names = {path.name for path in checkpoints.directory.iterdir()}
    kept = range(max(0, count - 2), count)
    assert names == {f"{i:06d}.{ending}" for i in kept for ending in ("pt", "sha256")}


def test_without_any_checkpoint_nothing_is_loaded(tmp_path):
    assert Checkpoints(tmp_path / "none").load() is None
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "notes.pt").write_text("not ours")
    assert Checkpoints(tmp_path / "none").load() is None


def test_a_newest_one_torn_at_any_byte_gives_way_to_the_one_before(tmp_path):
    checkpoints = saved(tmp_path)
    newest = files(checkpoints)[-1]
    whole = newest.read_bytes()
    for length in [*range(0, len(whole), 37), len(whole) - 1]:
        newest.write_bytes(whole[:length])
        assert checkpoints.load()["number"] == 0, length
    newest.write_bytes(whole)
    assert checkpoints.load()["number"] == 1


@pytest.mark.parametrize("garbage", [b"", b"\x00" * 64, b"\xff\xfe garbage", b"PK\x03\x04"])
@pytest.mark.parametrize("ending", [".pt", ".sha256"])
def test_garbage_in_the_newest_one_or_its_digest_gives_way_to_the_one_before(tmp_path, garbage, ending):
    checkpoints = saved(tmp_path)
    files(checkpoints)[-1].with_suffix(ending).write_bytes(garbage)
    assert checkpoints.load()["number"] == 0


@pytest.mark.parametrize("ending", [".pt", ".sha256"])
def test_a_newest_one_of_which_a_part_is_missing_gives_way_to_the_one_before(tmp_path, ending):
    checkpoints = saved(tmp_path)
    files(checkpoints)[-1].with_suffix(ending).unlink()
    assert checkpoints.load()["number"] == 0


def test_one_flipped_bit_is_noticed(tmp_path):
    checkpoints = saved(tmp_path)
    newest = files(checkpoints)[-1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert checkpoints.load()["number"] == 0


def test_with_all_of_them_torn_nothing_is_loaded(tmp_path):
    checkpoints = saved(tmp_path)
    for path in files(checkpoints):
        path.write_bytes(path.read_bytes()[:50])
    assert checkpoints.load() is None


def test_what_a_kill_left_half_written_is_neither_loaded_nor_in_the_way(tmp_path):
    checkpoints = saved(tmp_path)
    (checkpoints.directory / ".000002.pt.0a1b2c3d.tmp").write_bytes(b"half")
    (checkpoints.directory / "000002.sha256").write_text("0" * 64)
    assert checkpoints.load()["number"] == 1
    checkpoints.save(state(2))
    assert checkpoints.load()["number"] == 2
    assert not list(checkpoints.directory.glob("*.tmp"))


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))])
def test_no_code_in_a_checkpoint_is_run(tmp_path, write):
    checkpoints = saved(tmp_path)
    newest, trace = files(checkpoints)[-1], tmp_path / "trace"
    write({"model": Payload(str(trace))}, newest)
    newest.with_suffix(".sha256").write_text(hashlib.sha256(newest.read_bytes()).hexdigest())
    with pytest.raises(pickle.UnpicklingError):
        checkpoints.load()
    assert not trace.exists()


@contextmanager
def files_of_at_most(limit):
    """Larger files can't be written within: the error comes from the kernel, as that of a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_an_error_that_leaves_the_earlier_ones_whole(tmp_path):
    checkpoints = saved(tmp_path)
    before = {path: path.read_bytes() for path in checkpoints.directory.iterdir()}
    with (
        files_of_at_most(200_000),
        pytest.raises(OSError, match="could not be written .* what was there before is whole"),
    ):
        checkpoints.save({"number": 9, "weights": torch.zeros(100_000)})
    assert {path: path.read_bytes() for path in checkpoints.directory.iterdir()} == before
    assert checkpoints.load()["number"] == 1


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(NotADirectoryError, match="checkpoints"):
        Checkpoints(tmp_path / "file" / "checkpoints").save(state(0))


def test_after_a_torn_newest_one_the_whole_one_before_is_kept_beside_the_next(tmp_path):
    checkpoints = saved(tmp_path, 3)
    newest = files(checkpoints)[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    checkpoints = Checkpoints(checkpoints.directory)
    assert checkpoints.load()["number"] == 1
    checkpoints.save(state(3))
    assert files(checkpoints)[-1] == checkpoints.newest()
    checkpoints.newest().write_bytes(b"torn too")
    assert checkpoints.load()["number"] == 1


def draws():
    return [torch.randn(3).tolist(), np.random.randn(3).tolist(), random.gauss(0, 1), random.random()]


def test_the_generators_go_on_where_a_checkpoint_found_them(tmp_path):
    # An odd number of normal draws leaves one in store, which is part of the state.
    np.random.randn(1), random.gauss(0, 1)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save({"random": random_state()})
    expected = draws()
    assert draws() != expected
    set_random_state(checkpoints.load()["random"])
    assert draws() == expected

"""Files are written whole or not at all, and what is read out of JSON is what it should be."""

import errno
import os
import stat

import pytest

from splore.files import is_temporary, json_object, numbers, remove_temporaries, sha256, typed, write_whole
from splore.machine import cores_per_process, cpu_quota, usable_cores
from splore.names import nearest


def test_a_file_is_its_parts_and_has_the_usual_permissions(tmp_path):
    path = tmp_path / "file"
    for content in (b"first", b""):
        write_whole(path, "the file", content, memoryview(b"second"))
        assert path.read_bytes() == content + b"second"
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    assert os.listdir(tmp_path) == ["file"]


def test_file_and_folder_are_synced_before_and_after_the_rename(tmp_path, monkeypatch):
    calls = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(stat.S_ISDIR(os.fstat(fd).st_mode)), sync(fd)))
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("rename"), replace(*paths)))
    write_whole(tmp_path / "file", "the file", b"content")
    assert calls == [False, "rename", True]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_what_cannot_be_written_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "file"
    write_whole(path, "the file", b"old")
    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="the thing could not be written .No space left") as caught:
        write_whole(path, "the thing", b"new")
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(path)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_only_what_a_kill_left_is_removed(tmp_path):
    for name in (".file.0123abcd.tmp", "file", "notes.tmp", ".hidden"):
        (tmp_path / name).touch()
    remove_temporaries(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".hidden", "file", "notes.tmp"]
    assert not any(is_temporary(name) for name in os.listdir(tmp_path))


def test_the_digest_does_not_depend_on_how_the_bytes_are_parted():
    assert sha256([b"ab", memoryview(b"c")]) == sha256([b"abc"]) == sha256(iter([b"", b"abc"]))
    assert sha256([]).startswith("e3b0c442")


@pytest.mark.parametrize("text", ["", "[1]", "{", "1", '"{}"', "[" * 100_000, '{"a":' * 100_000])
def test_what_is_no_json_object_is_a_value_error(text):
    with pytest.raises(ValueError):
        json_object(text)


@pytest.mark.parametrize(
    ("value", "kind"), [(True, int), (1, bool), (1.0, int), (None, dict), ("1", int), ((1,), list)]
)
def test_a_value_of_another_kind_is_refused(value, kind):
    with pytest.raises(ValueError, match="expected .*, found"):
        typed(value, kind)


def test_lists_of_whole_numbers():
    assert numbers([1, -2]) == (1, -2) and numbers([], least=1) == ()
    for wrong in ([1, True], [0.5], 3, "12"):
        with pytest.raises(ValueError):
            numbers(wrong)
    with pytest.raises(ValueError, match="at least 1"):
        numbers([2, 0], least=1)


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/a/b", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000", "cpu.max": "400000 100000"}, 2.0),
        ("0::/hidden", {"cpu.max": "50000 100000"}, 0.5),
        ("3:cpuset:/\n2:cpu,cpuacct:/job\n0::/", {"cpu,cpuacct/job/cpu.cfs_quota_us": "300000\n"}, 3.0),
        ("2:cpu,cpuacct:/job", {"cpu,cpuacct/cpu.cfs_quota_us": "-1\n"}, None),
        ("4:memory:/", {"memory/cpu.cfs_quota_us": "100000\n"}, None),
        ("nonsense\n0::/", {"cpu.max": "nonsense"}, None),
        ("", {}, None),
    ],
)
def test_the_quota_of_a_control_group(tmp_path, groups, files, quota):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups + "\n")
    for name, content in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.with_name("cpu.cfs_period_us").write_text("100000\n")
    assert cpu_quota(tmp_path) == quota


def test_cores_are_those_of_the_affinity_at_most_and_shared_by_the_processes_of_a_job(monkeypatch):
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "100000")
    assert cores_per_process() == 1


def test_names_near_the_one_that_was_typed():
    assert nearest("vgg91", ["vgg19", "resnet20"]) == "did you mean 'vgg19'?"
    assert nearest("zzz", ["b", "a"]) == "known are a, b."
    assert nearest("train.energy", ["cut.energy", "x"]) == "did you mean 'cut.energy'?"
    assert nearest("zzz", map(str, range(20))) == "none of the 20 known names is close to it."

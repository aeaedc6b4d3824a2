"""Program files: the same again, whole or not at all, refused where wrong, bounded in what they take."""

import json
import os
import stat
import struct
import traceback

import fuzz_program
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import random_program
from test_program import conv, sparse

from splore.engine import memory, program_file
from splore.engine.program import Conv, Program, arrays
from splore.engine.weight import Weight


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**30))
def test_saving_and_loading_is_the_identity(tmp_path_factory, seed):
    program = random_program(seed)
    path = tmp_path_factory.mktemp("files") / "net.splore"
    program_file.save(program, path)
    loaded = program_file.load(path)
    assert program_file.describe(loaded) == program_file.describe(program)
    for a, b in zip(program.ops, loaded.ops, strict=True):
        assert [name for name, _ in arrays(a)] == [name for name, _ in arrays(b)]
        for (_, left), (_, right) in zip(arrays(a), arrays(b), strict=True):
            np.testing.assert_array_equal(left, right)


def test_a_file_is_replaced_at_once(tmp_path, monkeypatch):
    path = tmp_path / "net.splore"
    program_file.save(random_program(1), path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        program_file.save(random_program(2), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["net.splore"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def write(path, structure, tensors):
    path.write_bytes(fuzz_program.signed(structure, tensors))
    return path


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s, t: s.update(version=2), "expected version 1 or below, found 2"),
        (lambda s, t: s.update(version=True), "expected version 1"),
        (lambda s, t: s.pop("input"), "attributes missing: \\['input'\\]"),
        (lambda s, t: s.update(extra=1), "unknown: \\['extra'\\]"),
        (lambda s, t: s["ops"][0].update(op="convolve"), "op must be one of"),
        (lambda s, t: s["ops"][0].update(op=["conv"]), "op must be one of"),
        (lambda s, t: s["ops"][0].update(stride=[1]), "expected 2 whole numbers"),
        (lambda s, t: s["ops"][0].update(stride=[1, True]), "expected a (list|whole number)"),
        (lambda s, t: s["ops"][0].update(stride=[1, 1.0]), "expected a (list|whole number)"),
        (lambda s, t: s["ops"][0].update(groups=10**400), "groups must divide"),
        (lambda s, t: s["ops"][0].update(act="tangent"), "tangent"),
        (lambda s, t: s["ops"][0].update(name="\ud800"), "printable"),
        (lambda s, t: s.update(flat_input=1), "expected true or false"),
        (lambda s, t: s.update(ops={}), "expected a list"),
        (lambda s, t: s.update(ops=[1]), "expected a JSON object"),
        (lambda s, t: t.pop("0.bias"), "'bias' is missing"),
        (lambda s, t: t.update({"7.bias": t["0.bias"]}), "no operation uses"),
        (lambda s, t: t.update({"0.bias": t["0.bias"].astype(np.float64)}), "must be F32, U32, I8 or U8"),
        (lambda s, t: t.update({"0.bias": t["0.bias"].view(np.uint32)}), "bias must be"),
    ],
)
def test_a_file_that_is_not_valid_is_refused(tmp_path, change, message):
    structure, tensors = fuzz_program.parts(Program((3, 9, 8), (conv(weight=sparse()),)))
    change(structure, tensors)
    with pytest.raises(ValueError, match=message):
        program_file.load(write(tmp_path / "net.splore", structure, tensors))


def test_altered_and_cut_files_are_refused(tmp_path):
    path = tmp_path / "net.splore"
    program_file.save(Program((3, 9, 8), (conv(),)), path)
    data = path.read_bytes()
    for end in (0, 7, 8, 100, len(data) - 1):
        path.write_bytes(data[:end])
        with pytest.raises(ValueError, match="not a whole safetensors file"):
            program_file.load(path)
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match="checksum"):
        program_file.load(path)
    path.write_bytes(struct.pack("<Q", 2) + b"{}")
    with pytest.raises(ValueError, match="no 'splore.program'"):
        program_file.load(path)
    with pytest.raises(FileNotFoundError):
        program_file.load(tmp_path / "nothing.splore")


def test_deep_and_wide_json_is_refused(tmp_path):
    for text in ("[" * 100_000 + "]" * 100_000, "[1]", "{", "9" * 5000, json.dumps({"version": 1})):
        metadata = {program_file.PROGRAM: text, program_file.CHECKSUM: program_file.checksum(text, {})}
        path = tmp_path / "net.splore"
        path.write_bytes(fuzz_program.save({}, metadata))
        with pytest.raises(ValueError, match="is not a valid program"):
            program_file.load(path)


def padded(side: int) -> Program:
    """A program of a few hundred bytes, that pads one pixel to side x side of them."""
    one = Weight(dense=np.ones((1, 1), np.float32))
    return Program((1, 1, 1), (Conv("", (0,), one, np.zeros(1, np.float32), pad=(side // 2,) * 4),))


def test_what_a_small_file_takes_to_run_is_limited(tmp_path):
    path = tmp_path / "net.splore"
    program_file.save(padded(10_000), path)
    assert path.stat().st_size < 1000
    with pytest.raises(ValueError, match="an image takes 11.. MiB to run, more than the limit of 256 MiB"):
        program_file.load(path)
    assert program_file.load(path, image_bytes=2 << 30).output == (1, 10_001, 10_001)
    program_file.save(padded(100), path)
    with pytest.raises(ValueError, match="more than the limit"):
        program_file.load(path, image_bytes=1000)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("c, kernel, pad", [(4, 1, 90), (2, 150, 149), (300, 1, 0)])
def test_the_memory_of_an_image_is_what_the_engine_takes(c, kernel, pad, layers, fast_plans):
    native = pytest.importorskip("splore.engine.native")
    none = {"values": np.zeros(0, np.float32), "columns": np.zeros(0, np.uint32), "rows": np.zeros(c + 1, np.uint32)}
    ops = [
        Conv("", (0,), Weight(**none), np.zeros(c, np.float32), (kernel, kernel), (3, 3), (pad,) * 4)
        for _ in range(layers)
    ]
    program = Program((c, 30, 30), tuple(ops))
    for batch in (1, 16):
        engine = native.NativeProgram(program, threads=1)
        engine.plan(batch)
        assert engine.workspace_bytes < batch * memory.image_bytes(program) + (1 << 20)


def test_messages_do_not_repeat_the_file(tmp_path):
    for change in (
        lambda s, t: s["ops"][0].update(act="x" * 10**6),
        lambda s, t: s["ops"][0].update(op="x" * 10**6),
        lambda s, t: s["ops"][0].update(inputs=list(range(10**5))),
        lambda s, t: s.update({"x" * 10**6: 1}),
        lambda s, t: t.update({"x" * 10**6: t["0.bias"]}),
        lambda s, t: s.update(input=[10**4000] * 3),
    ):
        structure, tensors = fuzz_program.parts(Program((3, 9, 8), (conv(weight=sparse()),)))
        change(structure, tensors)
        with pytest.raises(ValueError, match="is not a valid program") as caught:
            program_file.load(write(tmp_path / "net.splore", structure, tensors))
        assert len("".join(traceback.format_exception(caught.value)).splitlines()[-1]) < 500 + len(str(tmp_path))
        assert caught.value.__suppress_context__


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(ValueError, match="something that is no file"):
            program_file.load(path)


def test_two_thousand_mutated_files(tmp_path):
    _, run = fuzz_program.native_or_reference()
    found = fuzz_program.fuzz(2000, 1, tmp_path, run)
    assert found["refused"] > 1000
    assert found["valid"] > 50

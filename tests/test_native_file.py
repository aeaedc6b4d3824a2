"""Program files read by the native library itself, and its C interface where callers are careless."""

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from fuzz_program import mutate, parts, signed
from kernels import ISAS, conv_program, in_bytes
from native_file import opened, run, saved_plans
from programs import floats, random_program

from splore import __version__
from splore.engine import program_file
from splore.engine.engine import Engine
from splore.engine.library import NativeError, Options, RawProgram, library_path, load_library
from splore.engine.native import NativeProgram

pytestmark = [
    pytest.mark.skipif(not ISAS, reason="the native library is not built"),
    pytest.mark.usefixtures("fast_plans"),
]
DOCS = Path(__file__).parents[1] / "docs" / "engine.md"


def test_a_file_runs_as_its_program_does(tmp_path):
    for seed in range(80):
        program = random_program(seed) if seed % 2 else in_bytes(random_program(seed), seed)
        program_file.save(program, tmp_path / "net.splore")
        x = floats(np.random.default_rng(seed), 5, *program.input)
        want = NativeProgram(program, threads=1).run(x)
        for file in (str(tmp_path / "net.splore"), (tmp_path / "net.splore").read_bytes()):
            with opened(file) as engine:
                assert run(engine, x).tobytes() == want.tobytes()


def test_what_either_reader_takes_the_other_takes(tmp_path):
    rng, found = np.random.default_rng(5), {True: 0, False: 0}
    path = tmp_path / "net.splore"
    for seed in range(300):
        program = random_program(seed) if seed % 3 else in_bytes(random_program(seed), seed)
        path.write_bytes(mutate(program, rng))
        try:
            program_file.load(path)
        except ValueError as error:
            if "a name must be" in str(error):  # names are nothing to the native library
                continue
            taken = False
        else:
            taken = True
        found[taken] += 1
        try:
            with opened(path.read_bytes()):
                assert taken
        except NativeError as error:
            assert str(error).strip()
            assert not taken, error
    assert found[True] > 20 and found[False] > 100


@pytest.mark.parametrize("left", ["gaps", "rows"])
def test_both_readers_refuse_blocks_that_lack_a_part(left, tmp_path):
    structure, tensors = parts(in_bytes(conv_program(3, 12, 16, (12, 12), 3, 0.3, 2), 0))
    number = next(name.split(".")[0] for name in tensors if name.endswith(".gaps"))
    for name in {"gaps", "rows", "blocks"} - {left}:
        del tensors[f"{number}.{name}"]
    (tmp_path / "net.splore").write_bytes(signed(structure, tensors))
    with pytest.raises(ValueError, match="come together|must be bytes, and have rows"):
        program_file.load(tmp_path / "net.splore")
    with pytest.raises(NativeError, match="come together|must be bytes, and have rows"):
        opened(str(tmp_path / "net.splore")).__enter__()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: b"", "not whole"),
        (lambda file: file[:-4], "not whole: its tensors take"),
        (lambda file: file[:-1], "not whole: its tensors take"),
        (lambda file: file[:-1] + bytes([file[-1] ^ 1]), "checksum"),
        (lambda file: b"\xff" * 8 + file[8:], "no safetensors file"),
        (lambda file: file.replace(b'{"', b'["', 1), "JSON"),
        (lambda file: (10**6).to_bytes(8, "little") + b"[" * 10**6, "nested too deeply"),
        (lambda file: file.replace(b"U32", b"I32", 1), "must be F32, U32, I8 or U8"),
    ],
)
def test_the_refusal_says_why(change, message, tmp_path):
    program_file.save(conv_program(3, 12, 16, (12, 12), 3, 0.3, 2), tmp_path / "net.splore")
    with pytest.raises(NativeError, match=message), opened(change((tmp_path / "net.splore").read_bytes())):
        pass


def test_what_can_not_be_read_as_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("none", "No such file"), ("pipe", "it is no file"), (".", "it is no file")):
        with pytest.raises(NativeError, match=message), opened(str(tmp_path / name)):
            pass


def test_what_an_image_takes_is_bounded(tmp_path):
    file = signed(*parts(conv_program(3, 12, 16, (500, 500), 3, 0.3, 2)))
    message = "an image takes .. MiB to run, more than the limit of 10 MiB"
    with pytest.raises(NativeError, match=message), opened(file, image_bytes=10 << 20):
        pass
    with opened(file):
        pass


def test_plans_in_a_file(tmp_path, monkeypatch):
    monkeypatch.delenv("SPLORE_PLAN")
    program = conv_program(3, 12, 16, (12, 12), 3, 0.3, 2)
    engine = NativeProgram(program, threads=2)
    engine.plan(3)
    plans, path = engine.save_plans(), tmp_path / "net.splore"
    foreign = plans.replace('"version":"', '"version":"9')
    for saved, replan, planned in (
        (plans, False, True),
        (foreign, False, False),
        (foreign, True, True),
        ("x", True, False),
    ):
        program_file.save(program, path, plans=saved)
        with opened(str(path), threads=2, replan=replan) as native:
            assert (saved_plans(native) == plans) == (saved == plans)
            assert ('"batch":3' in saved_plans(native)) == planned
        loaded = Engine.load(path, threads=2, replan=replan)
        assert ("runs untimed" in summary_of_batch(loaded, 3)) != planned
        assert ("plans that came with the program are left: they were made for the version 9" in loaded.summary()) == (
            saved == foreign
        )
    program_file.save(program, path)
    with opened(str(path)) as native:
        assert saved_plans(native) == ""


def summary_of_batch(engine, images):
    engine(np.zeros((images, *engine.input), np.float32))
    return engine.summary()


def test_null_pointers_are_errors():
    library, engine, error = load_library(), ctypes.c_void_p(), ctypes.create_string_buffer(200)
    last = (error, len(error))
    failing = {
        "splore_create": [(None, None, ctypes.byref(engine)), (ctypes.byref(RawProgram()), None, None)],
        "splore_open": [(None, None, ctypes.byref(engine)), (b"x", None, None)],
        "splore_open_memory": [(None, 9, None, ctypes.byref(engine)), (b"x", 1, None, None)],
        "splore_force": [(None, None)],
        "splore_plan": [(None, 1)],
        "splore_load_plans": [(None, b""), (None, None)],
        "splore_run": [(None, None, None, 1)],
    }
    for name, calls in failing.items():
        for arguments in calls:
            error.value = b""
            assert getattr(library, name)(*arguments, *last) != 0
            assert b"null pointer" in error.value, (name, error.value)
            assert getattr(library, name)(*arguments, None, 0) != 0
    with opened(signed(*parts(random_program(0)))) as made:
        assert library.splore_run(made, None, None, 1, *last) and b"the input is missing" in error.value
        assert library.splore_run(made, None, None, 0, *last) == 0
        assert library.splore_load_plans(made, None, *last) != 0
        library.splore_input(made, None)
    shape = (ctypes.c_int64 * 3)(7, 7, 7)
    library.splore_output(None, shape)
    assert list(shape) == [0, 0, 0] and library.splore_isa(None) == b""
    assert library.splore_workspace(None) == library.splore_packed(None) == library.splore_peak(None) == 0
    assert library.splore_table(None, None, 0) == 3 and library.splore_save_plans(None, None, 0) == 1
    library.splore_destroy(None)


def test_structs_tell_their_size():
    library, engine, error = load_library(), ctypes.c_void_p(), ctypes.create_string_buffer(200)
    assert library.splore_version().decode() == __version__
    file = signed(*parts(random_program(0)))
    for size, failed in (
        (0, True),
        (8, False),
        (ctypes.sizeof(Options) - 16, False),
        (ctypes.sizeof(Options) + 64, False),
    ):
        options = (Options * 3)(Options(size, None, 1))  # a newer header's members follow, all 0
        arguments = (file, len(file), options, ctypes.byref(engine), error, len(error))
        assert (library.splore_open_memory(*arguments) != 0) == failed
        if not failed:
            library.splore_destroy(engine)
    assert library.splore_create(ctypes.byref(RawProgram()), None, ctypes.byref(engine), error, len(error))
    assert b"another version of splore.h" in error.value


def c_program():
    """The program in the docs, and the CMake file that builds it."""
    found = re.findall(r"```(c|cmake)\n(.*?)```", DOCS.read_text(), re.DOTALL)
    return dict(found)["c"], dict(found)["cmake"]


@pytest.mark.skipif(not shutil.which("cmake") or not shutil.which("cc"), reason="there is no cmake, or no C compiler")
def test_the_c_program_of_the_docs_builds_and_runs(tmp_path):
    prefix = library_path().parent
    if not (prefix / "cmake").is_dir():
        pytest.skip("the library was not installed")
    for name, text in zip(("run.c", "CMakeLists.txt"), c_program(), strict=True):
        (tmp_path / name).write_text(text)
    program = conv_program(3, 12, 16, (12, 12), 3, 0.3, 2)
    program_file.save(program, tmp_path / "net.splore")
    steps = (["cmake", "-S", ".", "-B", "build", f"-Dsplore_ROOT={prefix}"], ["cmake", "--build", "build"])
    for step in steps:
        made = subprocess.run(step, cwd=tmp_path, capture_output=True, text=True)
        assert made.returncode == 0, made.stdout + made.stderr
    x = floats(np.random.default_rng(0), 3, *program.input)
    ran = subprocess.run(
        [tmp_path / "build" / "run", tmp_path / "net.splore", "3"], input=x.tobytes(), capture_output=True
    )
    assert ran.returncode == 0, ran.stderr
    want = NativeProgram(program, threads=1).run(x)
    np.testing.assert_allclose(np.frombuffer(ran.stdout, np.float32).reshape(want.shape), want, rtol=1e-5, atol=1e-5)
    failed = subprocess.run([tmp_path / "build" / "run", DOCS, "3"], capture_output=True, text=True)
    assert failed.returncode == 1 and f"{DOCS}: it is no safetensors file" in failed.stderr

"""The command line in a process of its own, without the seconds that its imports take.

A server imports everything once and forks for each command; what runs in the fork is `splore.cli.main` with the words
given, its own working folder, environment and outputs, and the exit code is the process's. It can be killed, limited
and watched as any other.
"""

import contextlib
import json
import multiprocessing
import os
import re
import resource
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
SPLORE = Path(sys.executable).with_name("splore")
os.environ["PYTHONPATH"] = str(HERE)  # where the server finds report_ready
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["splore.cli", "splore.runs.run", "sklearn.datasets", "ruamel.yaml", "torch.distributed", "torch._dynamo"]
    + ["report_ready"]
)
Process = _context.Process

TINY = [
    "--model=tests_support:tiny", "--data.name=tests_support:blobs", "--data.batch_size=32", "--data.workers=0",
    "--design.rank=1", "--train.epochs=2", "--finetune.epochs=2", "--cut.params=0.6", "--cut.recalibrate_batches=2",
    "--hardware.threads=1", "--hardware.device=cpu",
]  # fmt: skip
RUN = ["run", *TINY, "--out=out"]
"""The options of a run of a second: three steps to an epoch."""


@dataclass
class Done:
    code: int
    out: str
    err: str

    def refused(self, *parts, code=None):
        """Asserts one clear message: an exit code that isn't 0, one line on stderr with these parts, no traceback."""
        assert self.code in ((1, 2) if code is None else (code,)), self
        lines = [line for line in self.err.splitlines() if line.strip()]
        assert len(lines) == 1 and lines[0].startswith("splore: "), self
        for part in parts:
            assert str(part) in lines[0], (part, lines[0])
        return self


class Command:
    """A command under way."""

    def __init__(self, words, folder, env=None, file_limit=None, nobody=False, terminal=None):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        number = sum(1 for _ in self.folder.glob("*.stdout"))
        self.outputs = [self.folder / f"{number}.stdout", self.folder / f"{number}.stderr"]
        for output in self.outputs:
            output.touch()
        shown = [terminal or self.outputs[0], self.outputs[1]]
        arguments = ([str(word) for word in words], shown, str(self.folder), env or {}, file_limit, nobody)
        self.process = _context.Process(target=_main, args=arguments)
        self.process.start()

    def wait(self, timeout=240):
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"{self.outputs[0].read_text()}\n{self.outputs[1].read_text()}")
        return Done(self.process.exitcode, *(output.read_text() for output in self.outputs))


def _main(words, outputs, folder, env, file_limit, nobody):
    os.chdir(folder)
    os.environ.update(env, PYTHONPATH=str(HERE), COLUMNS="200")
    sys.path.insert(0, str(HERE))
    for descriptor, output in zip((1, 2), outputs, strict=True):
        os.dup2(os.open(output, os.O_WRONLY | os.O_APPEND), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(d, "w", buffering=1, closefd=False) for d in (1, 2))
    sys.stdin = open(os.devnull)  # noqa: SIM115
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    if nobody and os.geteuid() == 0:
        os.setuid(65534)
    from splore.cli import main

    main(words)


def splore(*words, folder, **how):
    """Runs a command to its end."""
    return Command(words, folder, **how).wait()


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def ranks(words, folder, env=None, separate=False):
    """Starts a command in two processes as torchrun does; with `separate`, the second in a folder of its own."""
    job = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    job |= {"OMP_NUM_THREADS": "1"}
    folders = [folder, folder / "second" if separate else folder]
    return [
        Command(words, where, env=job | (env or {}) | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank, where in enumerate(folders)
    ]


def views(folder):
    """The views of the two ranks at each forward pass of an evaluation, in order; see SEE in tests_support."""
    import torch

    first, second = (sorted((folder / "seen").glob(f"*-{rank}.pt")) for rank in (0, 1))
    finished = (folder / "out" / "summary.json").stat().st_mtime_ns
    first = [path for path in first if path.stat().st_mtime_ns <= finished]  # not those of the report, which follow
    assert [path.name[:5] for path in first] == [path.name[:5] for path in second]
    for one, other in zip(first, second, strict=True):
        yield torch.load(one, weights_only=True), torch.load(other, weights_only=True)


def script(*words, folder, env=None, timeout=240):
    """Runs the installed script, with nothing shared."""
    done = subprocess.run(
        [SPLORE, *map(str, words)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(HERE), "COLUMNS": "200"} | (env or {}),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def until(condition, seconds=120):
    """Waits until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)


def journal(out):
    """The lines of metrics.jsonl without their timings."""
    lines = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


def epochs(out):
    """(stage, epoch) of each epoch in metrics.jsonl."""
    return [(line["stage"], line["epoch"]) for line in journal(out) if "epoch" in line]


def tensors(file):
    """All tensors of a model file, bit for bit."""
    from files import parts

    return parts(Path(file))[1]


def same_weights(one, other):
    """Asserts that two model files hold the same bits."""
    a, b = tensors(one), tensors(other)
    assert a.keys() == b.keys() and a
    for key, value in a.items():
        assert value.dtype == b[key].dtype and value.shape == b[key].shape, key
        assert value.numpy().tobytes() == b[key].numpy().tobytes(), key


def same_curves(one, two, rel=1e-4):
    """Asserts that the journals of two runs agree within rounding."""
    from pytest import approx

    one, two = journal(one), journal(two)
    assert len(one) == len(two) > 0
    for a, b in zip(one, two, strict=True):
        a, b = a.get("row", a), b.get("row", b)
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert b[key] == (approx(value, rel=rel) if isinstance(value, float) else value), (key, a, b)


def checkpoints(out):
    return sorted((Path(out) / "checkpoints").glob("*.pt"))


def contents(folder):
    """Every file below a folder with what it holds, to see that nothing was lost."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        with contextlib.suppress(IsADirectoryError):
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def plain(text):
    """A text without the escape sequences of a terminal."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def nothing_written(folder):
    return not (folder / "out").exists()

"""Drives `examples/serve.py` for a while as clients do, and looks for what only time shows.

    python benchmarks/soak.py --seconds 600 --json benchmarks/results/soak.json

Clients send batches of 1 to 16 images, drawn at random, and compare every answer with the network's own. In the first
half of the time the server is replaced again and again under load: the next one is started, then the old one gets a
SIGTERM. In the second half its memory is watched; afterwards, what it computes when nobody asks. The socket is this
process's, so no client ever waits for a server that is not there.
"""

import argparse
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import numpy as np
from rows import add_row

SERVER = Path(__file__).parents[1] / "examples" / "serve.py"
MOST = 16  # images of a request
CLOSE = 1e-4  # of the largest number of an answer
KEY = ("net", "seconds", "clients", "workers")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--net", default="resnet20", help="a net for images of CIFAR")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--restarts", type=int, default=10)
    parser.add_argument("--json", type=Path, help="file to add the row to")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "net.splore"
        images, answers = compiled(options.net, program)
        row = soak(program, images, answers, options)
    print(json.dumps(row, indent=1))
    if options.json is not None:
        add_row(options.json, row, KEY)
    return int(bool(row["errors"]))


def compiled(net: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Writes a compressed net with its plans; images, and what the dense net gives for them."""
    import torch

    import splore

    torch.manual_seed(0)
    model = splore.build(net, num_classes=10).eval()
    splore.decompose(model, splore.Design(rank=2))
    splore.prune(model, params=0.2)
    images = torch.randn(4 * MOST, 3, 32, 32)
    splore.compile(model, images[:1], threads=1, batches=[4, MOST]).save(path)
    with torch.no_grad():
        return images.numpy(), model(images).numpy()


def soak(program: Path, images: np.ndarray, answers: np.ndarray, options: argparse.Namespace) -> dict:
    """What the clients saw, and what the server took."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        server = start(program, listener, options.workers)
        clients = [Client(seed, listener.getsockname()[1], images, answers) for seed in range(options.clients)]
        for client in clients:
            client.start()
        for _ in range(options.restarts):
            time.sleep(options.seconds / 2 / (options.restarts + 1))
            old, server = server, start(program, listener, options.workers)
            stop(old)
        time.sleep(options.seconds / 2 / (options.restarts + 1))
        memory = []
        for _ in range(20):
            time.sleep(options.seconds / 2 / 20)
            memory.append(memory_mib(server.pid))
        for client in clients:
            client.over.set()
        for client in clients:
            client.join()
        time.sleep(1)
        before = cpu_seconds(server.pid)
        time.sleep(3)
        idle = (cpu_seconds(server.pid) - before) / 3
        stop(server)
    times = sorted(took for client in clients for took in client.times)
    return {
        "net": options.net,
        "seconds": options.seconds,
        "clients": options.clients,
        "workers": options.workers,
        "restarts": options.restarts,
        "requests": len(times),
        "errors": sum(client.errors for client in clients),
        "p50_ms": round(1e3 * times[len(times) // 2], 3),
        "p99_ms": round(1e3 * times[len(times) * 99 // 100], 3),
        "most_ms": round(1e3 * times[-1], 3),
        "memory_mib": [round(median(memory[:5]), 2), round(median(memory[-5:]), 2)],  # of the second half: first, last
        "idle_cpu_percent": round(100 * idle, 2),  # of a core
    }


class Client(threading.Thread):
    """Asks one request after another until it is over."""

    def __init__(self, seed: int, port: int, images: np.ndarray, answers: np.ndarray) -> None:
        super().__init__(daemon=True)
        self.rng, self.port, self.images, self.answers = np.random.default_rng(seed), port, images, answers
        self.over, self.times, self.errors = threading.Event(), [], 0

    def run(self) -> None:
        while not self.over.is_set():
            first, count = int(self.rng.integers(len(self.images) - MOST)), int(self.rng.integers(1, MOST + 1))
            want = self.answers[first : first + count]
            start = time.perf_counter()
            try:
                found = self.ask(self.images[first : first + count]).reshape(want.shape)
            except (OSError, ValueError, http.client.HTTPException) as error:
                self.errors += 1
                print(f"no answer: {error!r}", flush=True)
                continue
            self.times.append(time.perf_counter() - start)
            if not np.abs(found - want).max() <= CLOSE * np.abs(self.answers).max():
                self.errors += 1
                print(f"a wrong answer for {count} images", flush=True)

    def ask(self, images: np.ndarray) -> np.ndarray:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("POST", "/", images.tobytes())
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise ValueError(f"status {response.status}")
        return np.frombuffer(body, np.float32)


def start(program: Path, listener: socket.socket, workers: int) -> subprocess.Popen:
    """A server on this socket, when it is ready."""
    fd = listener.fileno()
    words = [sys.executable, str(SERVER), str(program), "--fd", str(fd), "--workers", str(workers)]
    server = subprocess.Popen(words, pass_fds=[fd], stdout=subprocess.PIPE, text=True)
    if not server.stdout or server.stdout.readline() != "ready\n":
        raise RuntimeError(f"the server did not start: exit state {server.wait()}")
    return server


def stop(server: subprocess.Popen) -> None:
    """Ends a server as an init system does. Raises where it does not end well."""
    server.send_signal(signal.SIGTERM)
    if server.wait(60):
        raise RuntimeError(f"the server ended with exit state {server.returncode}")


def family(pid: int) -> list[int]:
    """A process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def memory_mib(pid: int) -> float:
    """Of a process and its children, what they share counted once."""
    lines = (line for one in family(pid) for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines())
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def cpu_seconds(pid: int) -> float:
    """That a process and its children have computed."""
    fields = (Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split() for one in family(pid))
    return sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())

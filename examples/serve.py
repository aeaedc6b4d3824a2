"""A server of one program file on the loopback interface, without PyTorch.

    python examples/serve.py net.splore [--port 8000] [--workers 4]
    curl --data-binary @images.bin http://127.0.0.1:8000/ > answers.bin

A request's body is images one after another, as float32; the answer is what the network gives for them. The file is
read once, in a process that then forks its workers: they share the weights and plans. Each takes requests in threads of
its own, all with the one engine. SIGTERM ends the server when the requests at hand are answered.

For a restart that no client sees, the socket belongs to somebody else, systemd for example, who starts the next server
before he stops this one: --fd takes its number in place of a port.
"""

import argparse
import os
import signal
import socket
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from splore.engine.engine import Engine


class Server(ThreadingHTTPServer):
    """One worker: takes connections off a socket that it shares with others."""

    daemon_threads = False  # closing waits for the requests at hand

    def __init__(self, listener: socket.socket, engine: Engine) -> None:
        super().__init__(listener.getsockname(), Answer, bind_and_activate=False)
        self.socket, self.engine = listener, engine


class Answer(BaseHTTPRequestHandler):
    """Images in, results out."""

    server: Server
    timeout = 30  # seconds that a client may take

    def do_POST(self) -> None:
        engine = self.server.engine
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        image = 4 * int(np.prod(engine.input))
        if not body or len(body) % image:
            self.send_error(HTTPStatus.BAD_REQUEST, explain=f"expected {image} bytes an image, found {len(body)}")
            return
        answer = engine(np.frombuffer(body, np.float32).reshape(-1, *engine.input)).tobytes()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Says nothing of single requests."""


def work(listener: socket.socket, engine: Engine) -> None:
    """The life of a worker."""
    server = Server(listener, engine)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    server.serve_forever()  # looks twice a second whether it shall end
    server.server_close()


def supervise(listener: socket.socket, engine: Engine, count: int) -> None:
    """Keeps so many workers running until SIGTERM."""
    workers: set[int] = set()
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True
        for worker in workers:
            os.kill(worker, signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    while workers or not stopping:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # a worker has its own answer to it
        while len(workers) < count and not stopping:
            worker = os.fork()
            if not worker:
                work(listener, engine)
                sys.stdout.flush()
                os._exit(0)
            workers.add(worker)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        workers.discard(os.wait()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", help="a file of Engine.save")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--fd", type=int, help="a socket that listens already, in place of a port")
    parser.add_argument("--workers", type=int, default=4)
    options = parser.parse_args()
    engine = Engine.load(options.program, threads=1)  # the workers fill the cores
    listener = (
        socket.create_server(("127.0.0.1", options.port), backlog=128)
        if options.fd is None
        else socket.socket(fileno=options.fd)
    )
    listener.setblocking(False)  # who comes too late for a connection goes on
    print("ready", flush=True)
    supervise(listener, engine, options.workers)


if __name__ == "__main__":
    main()

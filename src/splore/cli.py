"""The command line: words into commands, and what went wrong into one line and an exit code."""

import importlib
import os
import select
import sys
from collections.abc import Sequence
from typing import NoReturn

from splore.commands.parser import Misuse
from splore.failures import exit_code, explained
from splore.names import nearest

COMMANDS = (
    "run", "sweep", "recipe", "inspect", "evaluate", "quantize", "report", "compile", "bench", "export", "push",
)  # fmt: skip
"""Each is a module of `splore.commands`, imported when it is asked for."""

USAGE = """\
splore learns every weight of a network as a low-rank plus a sparse matrix, W = A·B + S.

  splore run RECIPE [--KEY=VALUE ...] --out DIR [--resume]    one run, from images to a compressed file
  splore run RECIPE --seeds 0 1 2 --out DIR [--resume]        the same run with several seeds, and their mean
  splore sweep RECIPE --seeds 0 1 2 --methods dense sparse low-rank+sparse --kept 0.3 0.15 --out DIR [--resume]
                                                              every seed with every method and share kept, compared
  splore recipe                                               the default recipe, each key explained
  splore inspect FILE_OR_MODEL                                the table of layers: rank, density, cost
  splore evaluate FILE --data.name NAME [--data.root DIR]     accuracy of a model file on the test images
  splore quantize FILE --data.name NAME [-o FILE]             the same net in eight bits, and what it loses
  splore report RUN [RUN ...] [--out FILE] [--time]           one HTML page on finished runs, to open offline
  splore compile FILE [--image C,H,W] -o NET.splore           a program that the engine runs, without PyTorch
  splore bench FILE [--batch N ...] [--threads N]             its latency, throughput and memory, and other runtimes'
  splore export FILE --to TARGET [-o FILE]                    for onnx, openvino, pt2, dense, executorch or engine
  splore push RUN_OR_FILE USER/NAME                           to the Hugging Face Hub, with a model card

splore COMMAND --help explains each; splore --version tells the version. Exit codes: 0 done, 1 something went wrong,
2 asked wrongly, 130 interrupted; with SPLORE_DEBUG=1 in the environment every error comes with its traceback."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point: exits 0, 1 for what went wrong on the way, 2 for what was asked wrongly, 130 for Ctrl-C.

    Where the reader of the output has left, as `head` does, it exits 141 without a word.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        raise SystemExit(0 if words else 2)
    if words[0] == "--version":
        from splore import __version__

        print(f"splore {__version__}")
        raise SystemExit(0)
    command, rest = words[0], words[1:]
    try:
        if command not in COMMANDS:
            raise Misuse(f"there is no command {command!r}; {nearest(command, COMMANDS)} splore --help lists them")
        code = importlib.import_module(f"splore.commands.{command}").command(rest)
        print(end="", flush=True)  # what can't be written is to fail here, not at the interpreter's end
        raise SystemExit(code)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _is_unread():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be written
            raise SystemExit(141) from None  # as shells say it of SIGPIPE
        found = exit_code(error)
        if found is None or os.environ.get("SPLORE_DEBUG"):
            raise
        _fail(explained(error), found)


def _is_unread() -> bool:
    """Whether the reader of the output has closed it."""
    output = select.poll()
    output.register(sys.stdout)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in output.poll(0))


def _fail(message: str, code: int) -> NoReturn:
    print(f"splore: {message}", file=sys.stderr)
    raise SystemExit(code)

"""What a program takes to run, reckoned before it runs: a file of a few bytes may ask for any amount."""

import math

from splore.engine.program import Conv, Op, Program
from splore.engine.tensor_ops import Reorder

IMAGE_BYTES = 1 << 28
"""What one image may take unless the caller says otherwise: 256 MiB, some ten times what VGG-16 takes at 224 x 224."""

FLOAT = 4  # bytes of a number, and of a place
TILE = 256  # numbers of the largest tile


def image_bytes(program: Program) -> int:
    """Bytes that one image takes at the most: the values that are alive at once, with the zero padding that their
    readers want, and the most that a convolution wants beside them: a table of what its windows read, and a copy of
    its input where it has a stride.

    A run takes that for each image that is under way: at most a batch, and at most 16 a thread.
    """
    shapes, last = program.shapes, len(program.ops)
    dies = {value: index for index, op in enumerate(program.ops) for value in op.inputs} | {last: last}
    # Maps of one height and width share a layout, with the padding that any reader of one of them wants.
    pads: dict[tuple[int, int], list[int]] = {}
    for index, op in enumerate(program.ops):
        if isinstance(op, Conv):
            for _, height, width in (shapes[op.inputs[0]], shapes[index + 1])[: 1 + (max(op.stride) > 1)]:
                known = pads.get((height, width), [0] * 4)
                pads[height, width] = [max(sides) for sides in zip(known, op.pad, strict=True)]
    sizes = []
    for c, height, width in shapes:
        top, left, bottom, right = pads.get((height, width), [0] * 4)
        sizes.append(FLOAT * c * (height + top + bottom) * (width + left + right))
    alive, most = sizes[0], sizes[0]
    for index in range(last):
        alive += sizes[index + 1]
        most = max(most, alive)
        ended = [value for value in {*program.ops[index].inputs, index + 1} if dies.get(value, index) == index]
        alive -= sum(sizes[value] for value in ended)
    # Most of what is left out is small: the engine pads planes to whole vectors.
    return most + max(_table(op, program, index) for index, op in enumerate(program.ops))


def check(program: Program, most: int) -> None:
    """Raises ValueError where an image takes more than so many bytes."""
    found = image_bytes(program)
    if found > most:
        raise ValueError(
            f"an image takes {found >> 20} MiB to run, more than the limit of {most >> 20} MiB: "
            "pass a larger `image_bytes` if the file is to be trusted"
        )


def _table(op: Op, program: Program, index: int) -> int:
    """Bytes of the places that a reordering or a convolution reads: of each column of its weight, and of each tap of
    each output; of what it gathers for a tile; and of its input, every so many pixels, where it has a stride."""
    if isinstance(op, Reorder):
        return 2 * FLOAT * sum(program.shapes[index + 1])
    if not isinstance(op, Conv):
        return 0
    taps = math.prod(op.kernel)
    channels, _, _ = program.shapes[op.inputs[0]]
    _, height, width = program.shapes[index + 1]
    top, left, bottom, right = op.pad
    copied = min(taps, math.prod(op.stride)) * channels * (height + top + bottom) * (width + left + right)
    return FLOAT * (taps * (channels + height * width + TILE) + copied * (max(op.stride) > 1))

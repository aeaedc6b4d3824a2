"""splore inspect: the table of layers."""

import json
import os
from collections.abc import Sequence

from splore.commands.net import loaded
from splore.commands.parser import Misuse, Parser, image_shape


def command(words: list[str]) -> int:
    """Parses the words and carries the command out; returns its exit code."""
    parser = Parser("inspect", inspect.__doc__ or "")
    parser.add_argument("file_or_model", help="a model file, or a net's name as in a recipe")
    parser.add_argument("--model", help="package.module:factory, for a file with a net of your own")
    parser.add_argument("--classes", type=int, default=1000, help="outputs of a named net")
    parser.add_argument(
        "--image",
        type=image_shape,
        metavar="C,H,W",
        help="channels, height and width of an image; the usual ones of the net by default",
    )
    parser.add_argument("--json", action="store_true", help="print the table as JSON, with the sums")
    values = parser.parse_args(words)
    return inspect(values.file_or_model, values.model, values.classes, values.image, values.json)


def inspect(
    file_or_model: str,
    model: str | None = None,
    classes: int = 1000,
    image: Sequence[int] | None = None,
    as_json: bool = False,
) -> int:
    """Prints the table of layers of a model file, or of a net that is named as in a recipe."""
    from splore.measure.cost import cost
    from splore.measure.tables import layer_table, show
    from splore.vision import build, usual_image

    if image is not None and (len(image) != 3 or min(image) < 1):
        raise Misuse(f"--image is channels, height and width, found {list(image)}")
    if os.path.exists(file_or_model) or file_or_model.endswith(".safetensors"):
        net, source, channels = loaded(file_or_model, model)
        usual = usual_image(source, channels)
    else:
        usual = usual_image(file_or_model)
        net = build(file_or_model, classes, image[0] if image else usual[0])
    shape = tuple(image) if image else usual
    try:
        found = cost(net, shape)
    except RuntimeError as error:
        raise Misuse(f"the net can't take images of shape {shape}, give theirs as --image: {error}") from error
    if as_json:
        print(json.dumps(found.as_dict(), indent=2))
    else:
        show(layer_table(found))
    return 0

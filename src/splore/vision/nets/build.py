"""Nets by name, and where a net came from."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from splore.names import UnknownName, nearest
from splore.task import Preprocessing
from splore.vision.nets.own import call, import_callable, takes
from splore.vision.nets.plain import digits_cnn, vgg11, vgg16, vgg19
from splore.vision.nets.residual import preactresnet20, preactresnet56, preactresnet110, resnet20, resnet56
from splore.vision.nets.weights import start_from

NETS: dict[str, Callable[[int, int], nn.Module]] = {
    net.__name__: net
    for net in (
        vgg11,
        vgg16,
        vgg19,
        resnet20,
        resnet56,
        preactresnet20,
        preactresnet56,
        preactresnet110,
        digits_cnn,
    )
}
"""The nets that splore brings itself; each is called with num_classes and in_channels."""


@dataclass(frozen=True)
class Origin:
    """Enough to build the same net again, untrained; `dataclasses.asdict` of it is plain JSON.

    Raises ValueError for values of the wrong type or range, so that one read from a file is checked too.
    """

    source: str
    """A zoo name, "torchvision:NAME", "timm:NAME" or "package.module:factory"."""
    num_classes: int
    in_channels: int = 3

    def __post_init__(self) -> None:
        if not isinstance(self.source, str) or not self.source:
            raise ValueError(f"expected the name of a net, found {self.source!r}")
        for name in ("num_classes", "in_channels"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, found {value!r}")


def build(source: str, num_classes: int, in_channels: int = 3, pretrained: bool = False) -> nn.Module:
    """The net that `source` names, with an attribute `origin` that says so.

    Args:
        source: a name from `NETS`, "torchvision:NAME" and "timm:NAME" for their classification models, or
            "package.module:factory" for a function that returns a module. The factory is given `num_classes`,
            `in_channels` and `pretrained` where its signature has them.
        num_classes: width of the output.
        in_channels: channels of the images; torchvision's models take 3 only.
        pretrained: start from the weights that torchvision or timm publish. With another number of classes than
            theirs, the last layer starts untrained and all others from those weights.

    Raises:
        UnknownName: nothing has that name; the nearest are offered. A ValueError.
        ValueError: the source can't give what is asked.
        ImportError: torchvision or timm is not installed.
        OSError: published weights could not be fetched.
    """
    origin = Origin(source, num_classes, in_channels)
    head, colon, name = source.partition(":")
    if not colon:
        model = _zoo(origin, pretrained)
    elif head == "torchvision":
        model = _torchvision(name, origin, pretrained)
    elif head == "timm":
        model = _timm(name, origin, pretrained)
    else:
        model = _factory(origin, pretrained)
    model.origin = origin  # type: ignore[assignment]
    return model


def usual_image(source: str, channels: int = 0) -> tuple[int, int, int]:
    """(C, H, W) of the images that a net is usually given; 3 channels (1 for the digits) unless `channels` says."""
    if source == "digits_cnn":
        return channels or 1, 8, 8
    side = 32 if source in NETS else 224
    return channels or 3, side, side


def trained_with(source: str) -> Preprocessing | None:
    """How the images were preprocessed that the published weights of a net of timm or torchvision were trained with.

    None where the library publishes no weights of it, and for other nets.
    """
    head, _, name = source.partition(":")
    if head == "timm":
        from timm import get_pretrained_cfg
        from timm.models import is_model

        cfg = get_pretrained_cfg(name) if is_model(name.partition(".")[0]) else None
        if cfg is None or len(cfg.mean) != 3:
            return None
        _, height, width = cfg.input_size
        shorter = max(round(min(height, width) / cfg.crop_pct), height, width)
        return Preprocessing((height, width), tuple(cfg.mean), tuple(cfg.std), shorter)
    if head == "torchvision":
        from torchvision.models import get_model_weights, list_models

        weights = list(get_model_weights(name)) if name in list_models() else []
        if not weights:
            return None
        images = get_model_weights(name).DEFAULT.transforms()
        (crop,), (resized,) = images.crop_size, images.resize_size
        return Preprocessing((crop, crop), tuple(images.mean), tuple(images.std), resized)
    return None


def rebuild(origin: Origin) -> nn.Module:
    """The untrained net that a model file names; imports no code and fetches nothing that the file could choose.

    Only names from `NETS`, torchvision and timm are built; ValueError for every other source.
    """
    head, colon, _ = origin.source.partition(":")
    if colon and head not in ("torchvision", "timm"):
        raise ValueError(
            f"the file names {origin.source!r}, and a file may not choose the code that is run: "
            "build that net yourself and pass it to the load as `model`"
        )
    return build(origin.source, origin.num_classes, origin.in_channels)


def _zoo(origin: Origin, pretrained: bool) -> nn.Module:
    if origin.source not in NETS:
        raise UnknownName(
            f"there is no net {origin.source!r} in the zoo; {nearest(origin.source, NETS)} "
            "All others are written 'torchvision:NAME', 'timm:NAME' or 'package.module:factory'"
        )
    if pretrained:
        raise ValueError(
            f"splore publishes no pretrained weights for its own {origin.source}: "
            "train it (pretrained: false), or name a net of torchvision or timm"
        )
    return NETS[origin.source](origin.num_classes, origin.in_channels)


def _torchvision(name: str, origin: Origin, pretrained: bool) -> nn.Module:
    try:
        from torchvision import models
    except ImportError as error:
        raise ImportError(f'{origin.source} needs torchvision: pip install "splore[vision]"') from error
    known = models.list_models(module=models)  # the classifiers: detection and the like live in modules of their own
    if name not in known:
        raise UnknownName(f"torchvision has no classification model {name!r}; {nearest(name, known)}")
    if origin.in_channels != 3:
        raise ValueError(
            f"torchvision's models take images of 3 channels, found in_channels = {origin.in_channels}: "
            "timm's take any number"
        )
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        # One output also in training, and the input that their published weights were trained on.
        options = {"aux_logits": False, "transform_input": True, "init_weights": True}
    model = models.get_model(name, weights=None, num_classes=origin.num_classes, **options)
    if pretrained:
        with _fetching(origin.source):
            trained = models.get_model(name, weights="DEFAULT").state_dict()
        start_from(model, trained, "the published weights")
    return model


def _timm(name: str, origin: Origin, pretrained: bool) -> nn.Module:
    if ":" in name or "/" in name:
        raise ValueError(
            f"expected the plain name of a timm model, found {name!r}: models from a hub or a folder are not built by "
            "name; write a factory and name it as 'package.module:factory'"
        )
    try:
        import timm
    except ImportError as error:
        raise ImportError(f'{origin.source} needs timm: pip install "splore[vision]"') from error
    architecture, _, tag = name.partition(".")
    known = timm.list_models()
    if architecture not in known:
        raise UnknownName(f"timm has no model {architecture!r}; {nearest(architecture, known)}")
    tagged = timm.list_pretrained(architecture + "*") if tag else []
    if tag and name not in tagged:
        raise UnknownName(f"timm has no weights {name!r}; {nearest(name, tagged)}")
    wanted: dict[str, Any] = {"num_classes": origin.num_classes, "in_chans": origin.in_channels}
    if not pretrained:
        return timm.create_model(name, pretrained=False, **wanted)
    with _fetching(origin.source):
        return timm.create_model(name, pretrained=True, **wanted)


def _factory(origin: Origin, pretrained: bool) -> nn.Module:
    factory = import_callable(origin.source)
    arguments: dict[str, Any] = {}
    if takes(factory, "num_classes", by_keywords=True):
        arguments["num_classes"] = origin.num_classes
    if takes(factory, "in_channels"):
        arguments["in_channels"] = origin.in_channels
    if takes(factory, "pretrained"):
        arguments["pretrained"] = pretrained
    elif pretrained:
        raise ValueError(
            f"{origin.source} has no parameter 'pretrained': give it one, or let it load its weights and "
            "leave pretrained off"
        )
    model = call(origin.source, factory, **arguments)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{origin.source} must return a torch.nn.Module, found {type(model).__name__}")
    return model


@contextmanager
def _fetching(source: str) -> Iterator[None]:
    """Turn what goes wrong while published weights are fetched into one OSError that says what to do."""
    try:
        yield
    except Exception as error:  # urllib, httpx and the hub have no error in common
        raise OSError(
            f"the published weights of {source} could not be fetched ({error}): "
            "connect to the network, put them into the cache beforehand, or set pretrained to false"
        ) from error

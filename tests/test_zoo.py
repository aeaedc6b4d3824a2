import dataclasses
import json

import pytest
import torch

from splore.vision import NETS, Origin, build, rebuild

PARAMETERS = {
    "vgg11": 9_228_362,
    "vgg16": 14_724_042,
    "vgg19": 20_035_018,
    "resnet20": 272_474,
    "resnet56": 855_770,
    "preactresnet20": 272_282,
    "preactresnet56": 855_578,
    "preactresnet110": 1_730_522,
    "digits_cnn": 371_402,
}


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def layout(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", NETS)
def test_parameters_and_shapes(name):
    channels, side = (1, 8) if name == "digits_cnn" else (3, 32)
    model = build(name, 10, channels)
    assert count(model) == PARAMETERS[name]
    assert model(torch.randn(2, channels, side, side)).shape == (2, 10)


@pytest.mark.parametrize("name", ["vgg16", "resnet20", "preactresnet20", "digits_cnn"])
def test_other_classes_and_channels(name):
    model = build(name, num_classes=7, in_channels=2).eval()
    assert model(torch.randn(1, 2, 32, 32)).shape == (1, 7)


@pytest.mark.parametrize("name", ["vgg16", "preactresnet20"])
def test_activations_keep_their_size_at_the_start(name):
    """Kaiming's fan-out weights with batch normalisation: no layer blows its input up or lets it vanish."""
    torch.manual_seed(0)
    model = build(name, 10)
    spreads = []
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
            expected = (2 / (9 * module.out_channels)) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.15)
            module.register_forward_hook(lambda _, __, y: spreads.append(y.std().item()))
    model(torch.randn(16, 3, 32, 32))
    assert min(spreads) > 0.1 and max(spreads) < 10


@pytest.mark.parametrize("source", ["vgg16", "torchvision:resnet18", "timm:resnet10t", "timm:resnet10t.c3_in1k"])
def test_rebuilds_from_json(source):
    model = build(source, 5)
    record = json.loads(json.dumps(dataclasses.asdict(model.origin)))
    again = rebuild(Origin(**record))
    assert layout(again) == layout(model)
    assert again.origin == model.origin == Origin(source, 5, 3)


def test_torchvision_nets_have_one_output_in_training():
    model = build("torchvision:googlenet", 4).train()
    assert isinstance(model(torch.randn(2, 3, 64, 64)), torch.Tensor)


def test_timm_takes_other_channels():
    assert build("timm:resnet10t", 4, in_channels=1).eval()(torch.randn(1, 1, 32, 32)).shape == (1, 4)


@pytest.mark.parametrize("classes", [1000, 6])
def test_published_weights(classes, tmp_path, monkeypatch):
    """Weights that lie in the download cache are used; only the last layer is new where the classes differ."""
    from torchvision import models

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    published = models.squeezenet1_1().state_dict()
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(published, cache / models.SqueezeNet1_1_Weights.DEFAULT.url.rpartition("/")[2])
    loaded = build("torchvision:squeezenet1_1", classes, pretrained=True).state_dict()
    same = {key for key, value in published.items() if torch.equal(value, loaded[key])}
    head = {"classifier.1.weight", "classifier.1.bias"}
    assert set(published) - same == (set() if classes == 1000 else head)


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))


def test_published_weights_without_a_network(no_network):
    with pytest.raises(OSError, match="torchvision:squeezenet1_1 could not be fetched"):
        build("torchvision:squeezenet1_1", 10, pretrained=True)


@pytest.fixture
def own_nets(tmp_path, monkeypatch):
    (tmp_path / "own_nets.py").write_text(
        "from torch import nn\n"
        "def plain(): return nn.Linear(4, 3)\n"
        "def sized(num_classes, in_channels=3, pretrained=False):\n"
        "    net = nn.Conv2d(in_channels, num_classes, 1)\n"
        "    net.pretrained = pretrained\n"
        "    return net\n"
        "def loose(**options): return nn.Linear(4, options['num_classes'])\n"
        "def wrong(): return 3\n"
        "number = 3\n"
    )
    (tmp_path / "broken_nets.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def test_own_factory(own_nets):
    assert build("own_nets:plain", 3).out_features == 3
    assert build("own_nets:loose", 5).out_features == 5
    model = build("own_nets:sized", 6, in_channels=2, pretrained=True)
    assert model.weight.shape == (6, 2, 1, 1) and model.pretrained
    assert model.origin == Origin("own_nets:sized", 6, 2)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        build("broken_nets:net", 3)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("vgg91", "no net 'vgg91'.*did you mean 'vgg19'"),
        ("zzz", "known are digits_cnn, .*torchvision:NAME"),
        ("", "expected the name of a net"),
        ("torchvision:resnet5", "did you mean .*'resnet50'"),
        ("torchvision:fasterrcnn_resnet50_fpn", "no classification model"),
        ("timm:resnet51", "did you mean .*'resnet50'"),
        ("timm:resnet10t.c4_in1k", "did you mean 'resnet10t.c3_in1k'"),
        ("timm:hf-hub:someone/net", "expected the plain name"),
        ("timm:someone/net", "expected the plain name"),
        ("own_nets:sised", "has no 'sised'; did you mean 'sized'"),
        ("own_nets:", "expected 'package.module:name'"),
        ("own_nets:number", "found int"),
        ("own_nets:wrong", "must return a torch.nn.Module, found int"),
        ("no_such_nets:net", "no module 'no_such_nets'"),
        ("own_nets.deeper:net", "no module 'own_nets.deeper'"),
    ],
)
def test_unknown_names(own_nets, source, message):
    with pytest.raises(ValueError, match=message):
        build(source, 10)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("vgg16", {"pretrained": True}, "no pretrained weights"),
        ("torchvision:resnet18", {"in_channels": 1}, "3 channels, found in_channels = 1"),
        ("own_nets:plain", {"pretrained": True}, "no parameter 'pretrained'"),
        ("vgg16", {"num_classes": 0}, "num_classes must be a whole number of at least 1, found 0"),
        ("vgg16", {"num_classes": True}, "num_classes"),
        ("vgg16", {"in_channels": "3"}, "in_channels"),
    ],
)
def test_wishes_that_cannot_be_met(own_nets, source, options, message):
    with pytest.raises(ValueError, match=message):
        build(source, **{"num_classes": 10, **options})


def test_a_file_cannot_choose_code(own_nets, tmp_path):
    (tmp_path / "trap.py").write_text("import pathlib\npathlib.Path('sprung').touch()\ndef net(): ...\n")
    for source in ("trap:net", "torchvision.models:resnet18", "os:system"):
        with pytest.raises(ValueError, match="may not choose the code"):
            rebuild(Origin(source, 3))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_missing_package_names_the_extra(package, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ImportError, match=r"pip install \"splore\[vision\]\""):
        build(f"{package}:resnet18", 10)

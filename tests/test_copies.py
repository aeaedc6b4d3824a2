"""Averages, wrappers and copies of a network: masks hold, the file has the network within, and it comes back."""

import copy
import io
import pickle

import pytest
import torch
from command import Process
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from splore.capture.compile import compile as to_engine
from splore.design.decompose import Design, decompose
from splore.design.layers import decomposed_layers
from splore.design.wrappers import check_average
from splore.measure.accuracy import evaluate
from splore.modelfile.file import load, save
from splore.postprocess.prune import prune
from splore.postprocess.rank_cut import cut_ranks
from splore.train.masks import hold_masks

X = torch.randn(8, 2, 5, 5, generator=torch.Generator().manual_seed(0))


def dense():
    return nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Sequential(nn.Flatten(), nn.Linear(72, 6)))


def decomposed(rank=2):
    model = dense()
    decompose(model, Design(rank=rank))
    prune(model, energy=0.6)
    return model


def train(model, after=lambda: None):
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    hold_masks(model, optimizer)
    for _ in range(4):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
        after()


def timm_average(version):
    def make(model):
        import timm.utils

        return getattr(timm.utils, version)(model, decay=0.7)

    return make


AVERAGES = {
    "plain": AveragedModel,
    "with buffers": lambda m: AveragedModel(m, use_buffers=True),
    "exponential": lambda m: AveragedModel(m, use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(0.7)),
    "exponential, one by one": lambda m: AveragedModel(m, use_buffers=True, avg_fn=get_ema_avg_fn(0.7)),
    "as on an accelerator": lambda m: AveragedModel(m, use_buffers=True, multi_avg_fn=get_swa_multi_avg_fn()),
    "timm's": timm_average("ModelEmaV3"),
    "timm's second": timm_average("ModelEmaV2"),
}


@pytest.mark.parametrize("average", AVERAGES.values(), ids=AVERAGES)
@pytest.mark.parametrize("rank", [0, 2])
def test_an_average_has_the_masks_and_its_file_the_network_within(average, rank, tmp_path):
    model = decomposed(rank)
    averaged = average(model)
    update = getattr(averaged, "update_parameters", None) or averaged.update
    train(model, lambda: update(model))
    layers = decomposed_layers(averaged.module)
    for name, layer in decomposed_layers(model).items():
        assert torch.equal(layers[name].mask, layer.mask) and not layers[name].S[~layer.mask].any()
        assert not torch.equal(layers[name].S, layer.S) and layers[name].S.any()
    save(averaged, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors", dense())
    assert torch.equal(again.eval()(X), averaged.module.eval()(X))


@pytest.mark.parametrize("average", AVERAGES.values(), ids=AVERAGES)
@pytest.mark.parametrize("cut", [lambda m: prune(m, energy=0.3), lambda m: cut_ranks(m, 0.1)], ids=["S", "ranks"])
def test_an_average_that_was_begun_before_a_cut_is_refused_and_one_begun_after_it_is_not(average, cut, tmp_path):
    model = decomposed(rank=3)
    early, other = average(model), copy.deepcopy(model)
    (getattr(early, "update_parameters", None) or early.update)(model)
    save(early, tmp_path / "model.safetensors")
    cut(model)
    late = average(model)
    for averaged in (early, late):
        update = getattr(averaged, "update_parameters", None) or averaged.update
        train(model, lambda: update(model))  # noqa: B023
    with pytest.raises(ValueError, match="begun before the network was cut.*in '0'"):
        save(early, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="begin it anew after the cut"):
        evaluate(early, [(X, torch.zeros(8, dtype=torch.long))])
    save(early.module, tmp_path / "model.safetensors")
    save(late, tmp_path / "model.safetensors")
    assert torch.equal(load(tmp_path / "model.safetensors", dense()).eval()(X), late.module.eval()(X))
    save(other, tmp_path / "model.safetensors")  # a copy is no average


def test_an_average_of_a_copy_follows_the_copy():
    model = decomposed()
    other = copy.deepcopy(model)
    prune(model, energy=0.2)
    check_average(AveragedModel(other))
    again = pickle.loads(pickle.dumps(AveragedModel(other)))
    prune(other, energy=0.2)
    check_average(again)  # a pickle follows nothing


class DeepSpeedEngine(nn.Module):
    """What DeepSpeed wraps a network in, as far as splore looks: it is told by its name."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


def compiled_child(model):
    model[2] = torch.compile(model[2])
    return model


COPIES = {
    "compiled": torch.compile,
    "a compiled child": compiled_child,
    "compiled in place": lambda m: (m.compile(), m)[1],
    "data parallel": nn.DataParallel,
    "an average of what is compiled": lambda m: AveragedModel(torch.compile(m)),
    "DeepSpeed's engine": lambda m: DeepSpeedEngine(m),
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
}


@pytest.mark.parametrize("wrap", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("held", [False, True])
def test_the_file_of_a_copy_or_wrapper_is_that_of_the_network(wrap, held, tmp_path):
    torch._dynamo.reset()
    model = decomposed()
    if held:
        train(model)
    wanted = model.eval()(X)
    save(wrap(model), tmp_path / "model.safetensors")
    assert torch.equal(load(tmp_path / "model.safetensors", dense()).eval()(X), wanted)


@pytest.mark.parametrize("wrap", [COPIES["data parallel"], COPIES["DeepSpeed's engine"], AVERAGES["timm's"]])
def test_an_engine_is_of_the_network_within(wrap):
    model = decomposed().eval()
    engine = to_engine(wrap(model), X)
    torch.testing.assert_close(torch.as_tensor(engine(X)), model(X), rtol=1e-4, atol=1e-5)


def test_a_copy_of_a_held_network_is_free_and_can_be_held_by_itself():
    model = decomposed()
    train(model)
    other = copy.deepcopy(model)
    other(X).sum().backward()
    assert all(layer.S.grad[~layer.mask].any() for layer in decomposed_layers(other).values())
    train(other)
    assert not any(layer.S[~layer.mask].any() for layer in decomposed_layers(other).values())


def test_the_masks_go_where_the_parameters_go_and_are_part_of_the_state():
    model = decomposed()
    assert all(
        layer.mask.device.type == "meta" for layer in decomposed_layers(copy.deepcopy(model).to("meta")).values()
    )
    assert all(layer.mask.dtype == torch.bool for layer in decomposed_layers(copy.deepcopy(model).half()).values())
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = decomposed(1)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    state = {name: value for name, value in model.state_dict().items() if name != "0.mask"}
    with pytest.raises(RuntimeError, match="Missing key.*0.mask"):
        other.load_state_dict(state)
    with pytest.raises(RuntimeError, match="size mismatch for 0.mask"):
        other.load_state_dict(state | {"0.mask": torch.ones(1, 2, dtype=torch.bool)})


def meet(folder, rank=0, size=1):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)


def holds_the_masks_of_the_first(rank, folder):
    """What each of two processes finds that have cut other entries before DDP made their weights equal."""
    meet(folder, rank, 2)
    torch.manual_seed(rank)
    model = decomposed()
    before = [layer.mask.clone() for layer in decomposed_layers(model).values()]
    train(nn.parallel.DistributedDataParallel(model))
    for layer, mask in zip(decomposed_layers(model).values(), before, strict=True):
        assert torch.equal(layer.mask, mask) == (rank == 0) and not layer.S[~layer.mask].any()
    states: list = [None, None]
    torch.distributed.all_gather_object(states, model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    torch.distributed.destroy_process_group()


def test_processes_hold_the_masks_of_the_first(tmp_path):
    processes = [Process(target=holds_the_masks_of_the_first, args=(rank, tmp_path)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]


def test_ddp_is_seen_through_and_shards_are_refused(tmp_path):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    meet(tmp_path)
    try:
        model = decomposed()
        train(nn.parallel.DistributedDataParallel(model))
        assert not any(layer.S[~layer.mask].any() for layer in decomposed_layers(model).values())
        save(nn.parallel.DistributedDataParallel(model), tmp_path / "model.safetensors")
        assert torch.equal(load(tmp_path / "model.safetensors", dense())(X), model(X))
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        train(model)
        for layer in decomposed_layers(model).values():
            assert not layer.S.full_tensor()[~layer.mask].any() and not layer.S.grad.full_tensor()[~layer.mask].any()
        with pytest.raises(ValueError, match="found a shard"):
            save(model, tmp_path / "model.safetensors")
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_flat_shards_are_refused_and_say_what_to_do(tmp_path):
    from torch.distributed.fsdp import FullyShardedDataParallel

    meet(tmp_path)
    try:
        for used in (True, False):
            model = decomposed()
            flat = FullyShardedDataParallel(model, use_orig_params=used, device_id=torch.device("cpu"))
            optimizer = torch.optim.SGD(flat.parameters(), 0.1)
            for use in (
                lambda: save(flat, tmp_path / "model.safetensors"),  # noqa: B023
                lambda: hold_masks(flat, optimizer),  # noqa: B023
                lambda: prune(flat, energy=0.5),  # noqa: B023
                lambda: decompose(flat, Design(rank=1)),  # noqa: B023
            ):
                with pytest.raises(ValueError, match=r"fully_shard \(FSDP2\), found FullyShardedDataParallel"):
                    use()
    finally:
        torch.distributed.destroy_process_group()


def test_shards_of_deepspeed_are_refused():
    model = decomposed()
    for p in model.parameters():  # as ZeRO-3 leaves them between steps
        p.ds_tensor, p.data = p.data.flatten(), p.data.new_empty(0)
    for use in (lambda: save(model, "nowhere"), lambda: prune(model, energy=0.5)):
        with pytest.raises(ValueError, match="ZeRO-3"):
            use()


@pytest.mark.parametrize("part", ["0.A", "0.S", "0.bias", "2.1.B"])
def test_a_nan_is_neither_saved_nor_compiled(part, tmp_path):
    model = decomposed().eval()
    with torch.no_grad():
        model.get_parameter(part).view(-1)[0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        save(model, tmp_path / "model.safetensors")
    assert not any(tmp_path.iterdir())
    with pytest.raises(ValueError, match="NaN"):
        to_engine(model, X)

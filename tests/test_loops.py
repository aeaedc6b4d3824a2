"""One line, and other people's loops learn what a loop of one's own does: step by step the same weights."""

import copy

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW

from splore.design.decompose import Design, decompose
from splore.design.layers import decomposed_layers
from splore.postprocess.prune import prune
from splore.train.attach import attach

STEPS, CLIP = 4, 0.5
IMAGES = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(16) % 4


class Net(nn.Module):
    """Takes and gives what a Hugging Face Trainer does."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 12, 3, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(48, 4),
        )

    def forward(self, images, labels=None):
        outputs = self.layers(images)
        return {"loss": cross_entropy(outputs, labels), "logits": outputs} if labels is not None else outputs


def start():
    torch.manual_seed(0)
    net = Net()
    decompose(net, Design(rank=1))
    prune(net, energy=0.8)
    return net


def optimise(net):
    optimizer = AdamW(net.parameters(), 0.01)
    attach(net, optimizer, l1=0.05, frobenius=0.01, nuclear=0.02)
    return optimizer


def own(net, folder):
    optimizer = optimise(net)
    for _ in range(STEPS):
        optimizer.zero_grad()
        cross_entropy(net(IMAGES), LABELS).backward()
        nn.utils.clip_grad_norm_(net.parameters(), CLIP)
        optimizer.step()


def compiled(net, folder):
    torch._dynamo.reset()
    net.compile(backend="aot_eager")
    own(net, folder)
    net._compiled_call_impl = None


def by_accelerate(net, folder):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    optimizer = AdamW(net.parameters(), 0.01)
    net, optimizer = accelerator.prepare(net, optimizer)
    attach(net, optimizer, l1=0.05, frobenius=0.01, nuclear=0.02)
    for _ in range(2 * STEPS):
        with accelerator.accumulate(net):
            accelerator.backward(cross_entropy(net(IMAGES), LABELS))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(net.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()


def by_timm(net, folder):
    from timm.models import model_parameters
    from timm.utils import NativeScaler

    optimizer, scaler = optimise(net), NativeScaler("cpu")
    for _ in range(STEPS):
        scaler(cross_entropy(net(IMAGES), LABELS), optimizer, clip_grad=CLIP, parameters=model_parameters(net))
        optimizer.zero_grad()


def by_lightning(net, folder):
    from lightning.pytorch import LightningModule, Trainer

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net

        def training_step(self, batch, number):
            return cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return optimise(self)

    batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(IMAGES, LABELS), 16)
    Trainer(
        accelerator="cpu", max_steps=STEPS, gradient_clip_val=CLIP, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    ).fit(Module(), batches)  # fmt: skip


def by_hugging_face(net, folder):
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=16, max_steps=STEPS, max_grad_norm=CLIP, use_cpu=True,
        lr_scheduler_type="constant", report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    samples = [{"images": image, "labels": label} for image, label in zip(IMAGES, LABELS, strict=True)]
    Trainer(net, arguments, train_dataset=samples, optimizers=(optimise(net), None)).train()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("loop", [compiled, by_accelerate, by_timm, by_lightning, by_hugging_face])
def test_the_loop_learns_what_a_loop_of_ones_own_does(loop, tmp_path):
    first, second = start(), start()
    before = copy.deepcopy(first.state_dict())
    own(first, tmp_path)
    loop(second, tmp_path)
    for name, parameter in first.named_parameters():
        torch.testing.assert_close(dict(second.named_parameters())[name], parameter, rtol=1e-3, atol=1e-4, msg=name)
        assert not torch.equal(parameter, before[name]), name
    for name, layer in decomposed_layers(second).items():
        mask = before[f"{name}.mask"]
        assert torch.equal(layer.mask, mask) and not layer.S[~mask].any()
        assert (layer.S[mask] == 0).any(), "the l1 must have made zeros of its own"
        assert torch.equal(layer.S == 0, decomposed_layers(first)[name].S == 0)

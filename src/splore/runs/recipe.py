"""One recipe = one run: the typed configuration that a YAML file and the command line fill in."""

from dataclasses import dataclass, field
from typing import Literal

from splore.design.decompose import Design
from splore.design.matrix import Scheme
from splore.design.ranks import Budget, Rank
from splore.design.start import Start
from splore.runs.recipe_data import DataRecipe

Method = Literal["dense", "low-rank", "sparse", "low-rank+sparse"]


@dataclass(frozen=True)
class DesignRecipe:
    """Stage a: the structure W = A·B + S.

    Attributes:
        rank: rank of L = A·B per layer: a whole number, a fraction of the full rank, {energy: share of the squared
            singular values to hold}, or {budget: share of the dense net's parameters that the net may hold without S}.
        scheme: channel (k x k convolution, then 1 x 1) or spatial (k x 1, then 1 x k).
        include: layers to decompose: names, globs, re: patterns or class names; * is all that can be.
        exclude: layers to leave dense, in the same terms.
        start: from scratch, svd (L and S are parts of the weight that the dense layer draws) or random (A, B and S are
            drawn apart); trained keeps the weights that the net has, and so do pretrained and weights.
        density: share of the entries of S that a start from a pre-trained net fills, 0 to 1; below 1 its weights are
            approximated. Training may fill the rest.
        block: what of S is kept or cut together: so many neighbouring input channels of one output channel and one tap;
            1 as in the paper, 4 for the engine in eight bits.
    """

    rank: Rank = 4
    scheme: Literal["channel", "spatial"] = "channel"
    include: list[str] = field(default_factory=lambda: ["*"])
    exclude: list[str] = field(default_factory=list)
    start: Start = "svd"
    density: float = 1.0
    block: int = 1


@dataclass(frozen=True)
class TrainRecipe:
    """Stage b: training with an l1 on S. The dense baseline shares the optimiser's settings.

    Attributes:
        epochs: passes over the training images, at least 1.
        optimizer: sgd, or adamw, whose learning rates are about a hundredth of sgd's; fine-tuning has the same.
        lr: peak learning rate.
        final_lr: learning rate at the end of stage b; with that of finetune.lr both stages are one schedule. The dense
            baseline ends at 0.
        momentum: Nesterov momentum of sgd, the first beta of adamw, 0 to 1.
        weight_decay: of dense weights, and of S where no l1 is on it, per step and unit of learning rate.
        warmup_epochs: epochs of linear warm-up before the cosine.
        label_smoothing: share of the target spread over all classes, 0 to 1.
        l1: strength of the l1 on S.
        l1_scaling: pca (by 1/sqrt of the layer's larger side) or none.
        proximal: take the l1 as a proximal step (exact zeros) rather than in the loss (the paper's way).
        frobenius: strength of the decay on ||A·B||^2.
        nuclear: strength of the nuclear norm of A·B, in strengths of l1; 1 makes of both the objective of robust PCA.
        density: below 1, S is trained behind a threshold that lets through this share of its entries in the end, and
            all of its gradients; for long trainings without l1.
    """

    epochs: int = 30
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    final_lr: float = 0.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.0
    l1: float = 1e-3
    l1_scaling: Literal["pca", "none"] = "pca"
    proximal: bool = True
    frobenius: float = 5e-4
    nuclear: float = 1.0
    density: float = 1.0


@dataclass(frozen=True)
class CutRecipe:
    """Stage c, the cut of S.

    Attributes:
        params: share of the dense net's parameters to hold after the cut, met exactly over the whole net.
        bytes: instead, share of the bytes of the dense net's file in float32; set params to null. With quantize.images
            it is the file in eight bits that is to hold it.
        macs: instead, share of the dense net's multiply-adds; set params to null.
        ms: instead, milliseconds that the engine may take on this machine for a batch of `batch` images with `threads`
            threads, in eight bits with quantize.images; set params to null.
        batch: images of a batch that ms is for.
        threads: threads that ms is for; every core when null.
        budgets: more budgets in the same currency: the trained net is cut and fine-tuned to each of them, too, in
            folders within the run's.
        energy: instead, per layer as in the paper: share of S's energy to hold; set params to null.
        score: what params ranks entries by: lamp, magnitude, relative, or energy_share (the paper's rule, with the one
            energy for all layers that meets the budget).
        ranks: what becomes of the ranks of L before S is cut: shared (its singular directions compete with the entries
            of S for params), keep (so does shared without params), or a number, the share of L's energy to hold.
        steps: fine-tuning epochs over which the cut is spread, on a cubic schedule; 1 cuts at once.
        recalibrate_batches: training batches, augmented as in training, to measure batch-norm statistics on after a
            cut; 0 leaves them stale.
    """

    params: float | None = 0.05
    bytes: float | None = None
    macs: float | None = None
    ms: float | None = None
    batch: int = 1
    threads: int | None = None
    budgets: list[float] = field(default_factory=list)
    energy: float | None = None
    score: Literal["lamp", "magnitude", "relative", "energy_share"] = "lamp"
    ranks: float | Literal["shared", "keep"] = "shared"
    steps: int = 1
    recalibrate_batches: int = 50


@dataclass(frozen=True)
class FinetuneRecipe:
    """Stage c, fine-tuning with the masks held.

    Attributes:
        epochs: passes over the training images; 0 leaves this out.
        lr: peak learning rate.
        warmup_epochs: epochs of linear warm-up before the cosine.
        distill: weight of a dense net's outputs in the loss, 0 to 1; above 0 needs a teacher, or baseline: true.
        temperature: of the distillation's softmax.
        teacher: weights of the dense net to learn from, a file like that of `weights`; null: the baseline's.
    """

    epochs: int = 10
    lr: float = 0.05
    warmup_epochs: float = 0.0
    distill: float = 0.0
    temperature: float = 4.0
    teacher: str | None = None


@dataclass(frozen=True)
class QuantizeRecipe:
    """Eight bits, after all else.

    Attributes:
        images: training images to measure the ranges of activations by, some hundreds; 0 leaves the net in float32.
        ranges: mse (least squared error of rounding and clipping), percentile (99.99 % of the values) or max (all).
        epochs: passes over the training images with weights and activations rounded and the masks held.
        lr: peak learning rate of SGD in these.
    """

    images: int = 0
    ranges: Literal["mse", "percentile", "max"] = "mse"
    epochs: int = 0
    lr: float = 0.005


@dataclass(frozen=True)
class HardwareRecipe:
    """How it runs; the results' meaning does not change.

    Attributes:
        device: auto (a GPU when there is one) or cpu.
        precision: fp32, bf16 or fp16: the type that convolutions run in.
        compile: compile the training step with torch.compile (on a CPU that needs a C++ compiler, and gains little).
        cuda_graphs: replay the passes of a step as one CUDA graph, in a run of one process on a GPU. That then need not
            wait for Python: for nets of many small layers. Ignored on a CPU.
        channels_last: keep images and convolutions in the channels-last layout.
        parallel: how several processes share a run: ddp (each holds all of the training's state) or fsdp (parameters,
            gradients and momentum are cut into shards, FSDP2); one process alone has nothing to share.
        threads: CPU threads for PyTorch; PyTorch's own choice when null.
        checkpoint_minutes: minutes between checkpoints within an epoch; each epoch ends with one too.
        trackers: where scalars go: tensorboard, wandb, mlflow, trackio.
        keep_checkpoints: keep the last checkpoints of a finished run, too; they are many times its result.
    """

    device: Literal["auto", "cpu"] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    cuda_graphs: bool = False
    channels_last: bool = True
    parallel: Literal["ddp", "fsdp"] = "ddp"
    threads: int | None = None
    checkpoint_minutes: float = 10.0
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = field(default_factory=list)
    keep_checkpoints: bool = False


@dataclass(frozen=True)
class Recipe:
    """A run of the method, from data to compressed file.

    Attributes:
        model: a net of the zoo (vgg19, preactresnet56, resnet20, ...), torchvision:NAME, timm:NAME or
            package.module:factory.
        pretrained: start from the weights that torchvision or timm offer.
        weights: start from a state dict of your own instead: a .safetensors file, or one that torch.save wrote.
        method: dense; low-rank (no S; where cut.params is set, ranks are chosen to meet it in place of design.rank);
            sparse (no L); or low-rank+sparse.
        baseline: also train the dense net, for train.epochs + finetune.epochs, to compare with and to distil from.
        seed: of weights, order and augmentation.
        evaluate_every: epochs between evaluations on the test images, or on those of data.validation; each stage ends
            with one.
        data: the images.
        design: stage a.
        train: stage b.
        cut: stage c, the cut.
        finetune: stage c, fine-tuning.
        quantize: eight bits.
        hardware: how it runs.
    """

    model: str = "digits_cnn"
    pretrained: bool = False
    weights: str | None = None
    method: Method = "low-rank+sparse"
    baseline: bool = True
    seed: int = 0
    evaluate_every: int = 1
    data: DataRecipe = field(default_factory=DataRecipe)
    design: DesignRecipe = field(default_factory=DesignRecipe)
    train: TrainRecipe = field(default_factory=TrainRecipe)
    cut: CutRecipe = field(default_factory=CutRecipe)
    finetune: FinetuneRecipe = field(default_factory=FinetuneRecipe)
    quantize: QuantizeRecipe = field(default_factory=QuantizeRecipe)
    hardware: HardwareRecipe = field(default_factory=HardwareRecipe)

    @property
    def trained(self) -> bool:
        """Whether the net starts from trained weights."""
        return self.pretrained or self.weights is not None or self.design.start == "trained"


def design_of(recipe: Recipe) -> Design:
    """Stage a of a recipe. Low rank alone meets the budget of the cut by its ranks, so that methods compare."""
    design = recipe.design
    rank = design.rank
    if recipe.method == "sparse":
        rank = 0
    elif recipe.method == "low-rank" and recipe.cut.params is not None:
        rank = Budget(recipe.cut.params)
    return Design(
        rank=rank,
        sparse=recipe.method != "low-rank",
        block=design.block,
        scheme=Scheme(design.scheme),
        include=tuple(design.include),
        exclude=tuple(design.exclude),
        start="trained" if recipe.trained else design.start,
        density=design.density,
    )

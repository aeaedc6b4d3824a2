"""The layer whose weight is learned as W = A·B + S; what the convolution and the linear layer share.

With m x k the matrix of the weight (see `splore.design.matrix`):

- `A` (m, r) and `B` (r, k): the low-rank part L = A·B, or None for rank 0;
- `S` (m, k): the sparse part, or None for a layer that is low-rank only;
- `mask` (m, k), bool, stored with the state: where S may be non-zero. It is never inferred from S. It is structure, as
  the rank is, and no buffer: averages of networks leave it alone, and processes do not send it at every step.
- `blocks`: what of S is kept or cut together (see `splore.design.blocks`); the mask is a union of such blocks.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from splore.design.blocks import Blocks
from splore.design.composed import ComposedWeight
from splore.design.matrix import Scheme, fold, matrix_shape, unfold
from splore.design.own_forward import HOOKS, Shell, has_own_forward
from splore.design.wrappers import Lineage

KINDS = (nn.Linear, nn.Conv2d, nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
"""The classes of layers that can be decomposed, and their subclasses."""


class LowRankSparse(nn.Module):
    """A layer with the weight W = A·B + S.

    Built from a dense layer, as `LowRankSparseConv2d(dense, rank)` or `LowRankSparseLinear(dense, rank)`, A, B and S
    still zero; `splore.decompose` does so for a whole network and fills them. Used as it stands for convolutions of
    other kinds.
    """

    kind: type[nn.Linear | _ConvNd]  # PyTorch's class of the dense layer
    shell: Shell | None  # what computes in its stead, unless it is a plain Linear or Conv2d
    A: nn.Parameter  # None, like B, in a layer of rank 0
    B: nn.Parameter
    S: nn.Parameter  # None, like its mask, in a layer that is low-rank only
    mask: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        dense: nn.Linear | _ConvNd,
        rank: int,
        sparse: bool,
        scheme: Scheme,
        block: int,
    ) -> None:
        super().__init__()
        weight = dense.weight
        self.scheme, self.lineage = scheme, Lineage(self)
        self.weight_shape = tuple(weight.shape)
        self.kind = next(kind for kind in KINDS if isinstance(dense, kind))
        plain = self.kind in (nn.Linear, nn.Conv2d) and not has_own_forward(dense, self.kind)
        self.shell = None if plain else Shell(dense)
        self.blocks = Blocks.of(block, self.weight_shape, self.transposed)
        m, k = self.matrix_shape
        if not 0 <= rank <= min(m, k):
            raise ValueError(f"rank must lie between 0 and {min(m, k)} for a {m} x {k} matrix, found {rank}")
        if rank == 0 and not sparse:
            raise ValueError(
                "a layer of rank 0 without a sparse part has no weight: give a rank or keep the sparse part"
            )
        like: dict[str, Any] = {"dtype": weight.dtype, "device": weight.device}
        self.register_parameter("A", nn.Parameter(torch.zeros(m, rank, **like)) if rank else None)
        self.register_parameter("B", nn.Parameter(torch.zeros(rank, k, **like)) if rank else None)
        self.register_parameter("S", nn.Parameter(torch.zeros(m, k, **like)) if sparse else None)
        self.mask = torch.ones(m, k, dtype=torch.bool, device=weight.device) if sparse else None  # type: ignore[assignment]
        for part in self.parameters():
            part.requires_grad_(weight.requires_grad)  # a frozen layer stays frozen
        self.register_parameter("bias", dense.bias)  # type: ignore[arg-type]
        self.train(dense.training)

    @property
    def transposed(self) -> bool:
        """Whether the weight is that of a transposed convolution."""
        return issubclass(self.kind, _ConvTransposeNd)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """m and k."""
        return matrix_shape(self.weight_shape, self.scheme, self.transposed)

    def fold(self, matrix: Tensor) -> Tensor:
        """A matrix (m, k) in the shape of the dense layer's weight."""
        return fold(matrix, self.weight_shape, self.scheme, self.transposed)

    @property
    def rank(self) -> int:
        """r, the rank that the low-rank part can have."""
        return 0 if self.A is None else self.A.shape[1]

    @property
    def factors(self) -> tuple[nn.Parameter, ...]:
        """A and B; empty for rank 0."""
        return () if self.A is None else (self.A, self.B)

    @property
    def reference(self) -> nn.Parameter:
        """A part that the layer has, for its dtype and device: A, or S where the rank is 0."""
        return self.S if self.A is None else self.A

    @property
    def low_rank(self) -> Tensor:
        """L = A·B as a matrix (m, k)."""
        return torch.zeros_like(self.S) if self.A is None else self.A @ self.B

    @property
    def matrix(self) -> Tensor:
        """A·B + S as a matrix (m, k)."""
        if self.A is None:
            return self.S.clone()  # a tensor of its own, as any other sum is
        return self.A @ self.B if self.S is None else torch.addmm(self.S, self.A, self.B)

    @property
    def support(self) -> Tensor:
        """The entries that S holds (m, k), bool: its non-zeros, or all of the blocks that have one."""
        return self.blocks.spread(self.blocks.any(self.S.detach()))

    @property
    def nnz(self) -> Tensor:
        """How many entries S holds, a scalar on its device; 0 in a layer without S."""
        if self.S is None:
            return self.reference.new_zeros((), dtype=torch.int64)
        return torch.count_nonzero(self.S.detach() if self.blocks.size == 1 else self.support)

    @property
    def weight(self) -> Tensor:
        """W = A·B + S in the shape of the dense layer's weight; differentiable.

        What is written into it in place goes into S, so that W is what was written; ValueError where S can't take it.
        """
        return ComposedWeight.of(self.fold(self.matrix).contiguous(), self)

    def compose(self) -> Tensor:
        """W = A·B + S in the shape of the dense layer's weight, as a plain tensor; differentiable."""
        return self.fold(self.S if self.A is None else self.matrix)

    def forward(self, x: Tensor) -> Tensor:
        """What the dense layer gives for the weight W."""
        assert self.shell is not None  # a plain layer's class has a forward of its own
        return self.shell(x, self.compose(), self.bias)

    def _dense(self) -> nn.Module:
        """A plain dense layer of the same geometry, without weights."""
        raise NotImplementedError

    def to_dense(self) -> nn.Module:
        """A layer of the dense one's class that computes the same, with the same hooks; A·B + S is rounded once."""
        weight, bias = self.compose().detach(), self.bias
        dense: Any = self._dense() if self.shell is None else self.shell.dense()
        dense.weight = nn.Parameter(weight.clone(memory_format=torch.contiguous_format), self.reference.requires_grad)
        dense.bias = None if bias is None else nn.Parameter(bias.detach().clone(), bias.requires_grad)
        vars(dense).update({name: vars(self)[name] for name in HOOKS})
        return dense.train(self.training)

    def __setattr__(self, name: str, value: Tensor | nn.Module) -> None:
        if name == "weight" and isinstance(value, ComposedWeight) and value.is_of(self):
            return  # `layer.weight *= 2`, which S has taken
        if name == "weight":
            raise ValueError(
                "the weight of a decomposed layer is A·B + S, no parameter to be replaced or tied: write into it "
                "(layer.weight.copy_(...) without gradients), give its parts by set_parts, or materialise the model"
            )
        super().__setattr__(name, value)

    @torch.no_grad()
    def absorb(self, weight: Tensor) -> None:
        """Sets S so that A·B + S is `weight`, in the shape of the dense layer's. What is written into `weight` does so.

        Raises:
            ValueError: the layer has no S, or its mask would have to open.
        """
        if self.S is None:
            raise ValueError(
                "the weight of a layer without a sparse part can't be written: it is A·B; give these by set_parts"
            )
        S = unfold(weight.detach(), self.scheme, self.transposed) - self.low_rank
        outside = S.masked_fill(self.mask, 0).abs().max()
        if outside > 4 * torch.finfo(S.dtype).eps * weight.abs().max():
            raise ValueError(
                "the weight that was written is not of the form A·B + S where entries of S were cut: change S and its "
                "mask by set_parts, or write only where the mask is open"
            )
        self.S.copy_(S.masked_fill(~self.mask, 0))

    @torch.no_grad()
    def set_parts(
        self, A: Tensor | None, B: Tensor | None, S: Tensor | None = None, mask: Tensor | None = None
    ) -> None:
        """Replaces A (m, r), B (r, k) and, where the layer has them, S and its mask (m, k). The rank may change.

        None, or r = 0, for A and B means rank 0. A and B are new parameters where the rank changes.
        """
        m, k = self.matrix_shape
        if (A is None) != (B is None):
            raise ValueError("expected both of A and B or neither, found one")
        rank = 0
        if A is not None and B is not None:
            rank = A.shape[1] if A.dim() == 2 else -1
            if A.shape != (m, rank) or B.shape != (rank, k):
                raise ValueError(
                    f"expected A ({m}, r) and B (r, {k}) with one r, found {tuple(A.shape)} and {tuple(B.shape)}"
                )
        for name, part in {"S": S, "mask": mask}.items():
            if part is not None and self.S is None:
                raise ValueError("this layer has no sparse part")
            if part is not None and part.shape != (m, k):
                raise ValueError(f"expected {name} ({m}, {k}), found {tuple(part.shape)}")
        if mask is not None and not self.blocks.whole(mask):
            raise ValueError(f"expected a mask of whole blocks of {self.blocks.size}, found parts of blocks")
        self._resize(rank)
        if rank and A is not None and B is not None:
            self.A.copy_(A)
            self.B.copy_(B)
        if S is not None:
            self.S.copy_(S)
        if mask is not None:
            self.mask.copy_(mask)
        if S is not None or mask is not None:
            self.S.masked_fill_(~self.mask, 0)

    def _resize(self, rank: int) -> None:
        """Gives A and B the places for another rank; nothing happens where they have it."""
        if rank == self.rank:
            return
        if rank == 0 and self.S is None:
            raise ValueError("a layer without a sparse part can't have rank 0: it would have no weight")
        m, k = self.matrix_shape
        like = self.reference
        for name, shape in {"A": (m, rank), "B": (rank, k)}.items():
            part = nn.Parameter(like.new_empty(shape), requires_grad=like.requires_grad) if rank else None
            self.register_parameter(name, part)

    # The mask goes where the parameters go, and is part of the state.

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LowRankSparse":
        super()._apply(fn, recurse)
        if self.mask is not None:
            self.mask = fn(self.mask)
        return self

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.mask is not None:
            destination[prefix + "mask"] = self.mask if keep_vars else self.mask.detach()

    def _load_from_state_dict(
        self,
        state_dict: dict,
        prefix: str,
        local_metadata: dict,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        self._take_rank(state_dict, prefix)
        mask = state_dict.pop(prefix + "mask", None) if self.mask is not None else None
        if mask is not None and mask.shape == self.mask.shape and self.blocks.whole(mask):
            self.mask.copy_(mask)
        elif mask is not None and mask.shape == self.mask.shape:
            error_msgs.append(f"{prefix}mask has parts of blocks of {self.blocks.size}: it is of another design")
        elif mask is not None:
            error_msgs.append(f"size mismatch for {prefix}mask: {tuple(mask.shape)} for {tuple(self.mask.shape)}")
        elif strict and self.mask is not None:
            missing_keys.append(prefix + "mask")
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _take_rank(self, state_dict: dict, prefix: str) -> None:
        """Takes the rank of a state: one whose singular values were cut loads into a layer that was not.

        A state of rank 0 has no A and B; older ones have empty ones.
        """
        m, k = self.matrix_shape
        A, B = state_dict.get(prefix + "A"), state_dict.get(prefix + "B")
        if A is None and B is None:
            if self.S is not None and prefix + "S" in state_dict:
                self._resize(0)
        elif A is not None and B is not None and A.dim() == 2 and A.shape[0] == m and B.shape == (A.shape[1], k):
            if A.shape[1] == 0 and self.S is not None:
                del state_dict[prefix + "A"], state_dict[prefix + "B"]
            if A.shape[1] or self.S is not None:
                self._resize(A.shape[1])

    def extra_repr(self) -> str:
        return f"{self.kind.__name__}, {self._describe()}"

    def _describe(self) -> str:
        sparse = "" if self.S is None else ", sparse"
        sparse += f", block={self.blocks.size}" if sparse and self.blocks.size > 1 else ""
        return f"rank={self.rank}{sparse}, scheme={self.scheme.value}, bias={self.bias is not None}"

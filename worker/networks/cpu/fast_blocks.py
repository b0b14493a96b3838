"""diffusers' blocks with the same weights in fewer operations: sums fused into convolutions, and attention."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.networks.cpu.jit.layers import CompiledConv2d, CompiledGeglu, CompiledLinear, CompiledNorm


def is_plain_resnet(block: Any) -> bool:
    """Whether this is a ResnetBlock2D as in DDPM's U-Net, the kind that `FastResnetBlock` computes."""
    return bool(
        type(block).__name__ == "ResnetBlock2D"
        and isinstance(block.nonlinearity, nn.SiLU)
        and block.time_embedding_norm == "default"
        and not block.skip_time_act
        and block.time_emb_proj is not None
        and block.upsample is None
        and block.downsample is None
    )


class _Latest(threading.local):
    """The last call's embedding and shifts, separate for each thread."""

    temb: Tensor | None = None
    shifts: tuple[Tensor, ...] = ()


class TimeShifts(nn.Module):
    """The time embedding's shift of every residual block: the blocks' linear layers fused into one matrix product.

    The first block that passes a new embedding computes the shifts of all blocks. Threads that evaluate different
    parts of a batch don't share them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._linears: list[Any] = []
        self._sizes: list[int] = []
        self.fused: nn.Module | None = None
        self._latest = _Latest()

    def add(self, linear: Any) -> int:
        """Add a block's layer before `fuse`; returns its index for `forward`."""
        self._linears.append(linear)
        return len(self._linears) - 1

    def fuse(self, make: Callable[[nn.Linear], nn.Module]) -> None:
        """Fuse the added layers into one, in the form that `make` gives to a linear layer."""
        if not self._linears:
            return
        self._sizes = [len(linear.weight) for linear in self._linears]
        self.fused = make(_fused(self._linears))
        self._linears.clear()

    def forward(self, temb: Tensor, index: int) -> Tensor:
        """[N, E] → [N, C'], the shift of the layer `index`."""
        latest = self._latest
        if latest.temb is not temb:
            assert self.fused is not None, "called before `fuse`"
            latest.temb, latest.shifts = temb, self.fused(F.silu(temb)).split(self._sizes, dim=1)
        return latest.shifts[index]


class FastResnetBlock(nn.Module):
    """A residual block whose convolutions add the time shift and the residual, as `FixedConv2d` does."""

    def __init__(self, block: Any, time_shifts: TimeShifts) -> None:
        super().__init__()
        self.norm1, self.conv1, self.norm2, self.conv2 = block.norm1, block.conv1, block.norm2, block.conv2
        self.conv_shortcut = block.conv_shortcut
        self.output_scale_factor = float(block.output_scale_factor)
        self.time_shifts = time_shifts
        self.index = time_shifts.add(block.time_emb_proj)
        for norm in (self.norm1, self.norm2):
            if isinstance(norm, CompiledNorm):
                norm.silu = True

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        """[N, C, H, W] and the time's embedding [N, E] → [N, C', H, W]."""
        h = _normed(self.norm1, self.conv1, x, shift=self.time_shifts(temb, self.index))
        residual = x if self.conv_shortcut is None else self.conv_shortcut(x)
        y = _normed(self.norm2, self.conv2, h, residual=residual)
        return y if self.output_scale_factor == 1 else y / self.output_scale_factor


def _normed(norm: nn.Module, conv: nn.Module, x: Tensor, **added: Tensor) -> Tensor:
    """Norm, SiLU, convolution, and what it adds: in as few passes over memory as the layers allow."""
    if not isinstance(norm, CompiledNorm):
        y: Tensor = conv(F.silu(norm(x), inplace=True), **added)
    elif isinstance(conv, CompiledConv2d):
        y = conv(x, norm=norm, **added)
    else:
        y = conv(norm(x), **added)
    return y


def join_last_norm(network: Any) -> None:
    """Have the norm before a U-Net's last convolution do the SiLU after it too."""
    norm = getattr(network, "conv_norm_out", None)
    if isinstance(norm, CompiledNorm) and isinstance(getattr(network, "conv_act", None), nn.SiLU):
        norm.silu = True
        network.conv_act = nn.Identity()


NOT_PLAIN = ("spatial_norm", "norm_q", "norm_k", "norm_cross", "add_k_proj")
"""What attention of other kinds has."""


def is_plain_attention(block: Any) -> bool:
    """Whether this is plain self-attention with a residual connection, the kind that `FastAttention` computes."""
    return bool(
        type(block).__name__ == "Attention"
        and block.group_norm is not None
        and block.to_k is not None
        and block.residual_connection
        and not any(getattr(block, extra, None) for extra in NOT_PLAIN)
    )


IMAGES_AT_ONCE = 4
"""Images in one matrix product: few enough sizes for the probe at load to cover them all."""


class FastAttention(nn.Module):
    """Self-attention over pixels: one product for queries, keys and values, then plain batched products."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.group_norm = block.group_norm
        self.heads = int(block.heads)
        qkv, out = _fused([block.to_q, block.to_k, block.to_v]), block.to_out[0]
        is_compiled = isinstance(out, CompiledLinear)
        self.qkv = CompiledLinear(qkv, out.kernels) if is_compiled else WholeLinear(qkv)
        self.out = out if is_compiled else WholeLinear(out)
        self.rescale_output_factor = float(block.rescale_output_factor)

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        """[N, C, H, W] → the same shape, in channels_last."""
        x = x.contiguous(memory_format=torch.channels_last)
        normed = self.group_norm(x).permute(0, 2, 3, 1)  # [N, H, W, C]
        N, H, W, C = normed.shape
        y: Tensor
        if isinstance(self.qkv, CompiledLinear):
            q, k, v = self.qkv(normed.reshape(N, H * W, C)).chunk(3, dim=-1)
            y = self.out(self.qkv.kernels.attention(q, k, v, self.heads)).view(N, H, W, -1)
        else:
            y = torch.cat([self._attend(some) for some in normed.split(IMAGES_AT_ONCE)])
        y = (y.add_(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        y = y if self.rescale_output_factor == 1 else y / self.rescale_output_factor
        return y

    def _attend(self, normed: Tensor) -> Tensor:
        n, H, W, C = normed.shape
        qkv = self.qkv(normed.reshape(n * H * W, C))
        qkv = qkv.view(n, H * W, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # [3, n, heads, H*W, d]
        query, key, value = qkv.reshape(3, n * self.heads, H * W, -1).unbind()
        scores = torch.bmm(query, key.transpose(1, 2)).mul_(query.shape[-1] ** -0.5)
        mixed = torch.bmm(scores.softmax(dim=-1), value).view(n, self.heads, H * W, -1)
        rows = mixed.transpose(1, 2).reshape(n * H * W, -1)
        projected: Tensor = self.out(rows)
        return projected.view(n, H, W, C)


def is_transformers_attention(block: Any) -> bool:
    """Whether this is attention as in a Transformer's block, the kind that `CompiledAttention` computes."""
    return bool(
        type(block).__name__ == "Attention"
        and isinstance(block.to_q, CompiledLinear)
        and block.to_k is not None
        and not block.residual_connection
        and block.rescale_output_factor == 1
        and not any(getattr(block, extra, None) for extra in (*NOT_PLAIN, "group_norm"))
    )


class CompiledAttention(nn.Module):
    """Attention to itself or to a text in the kernels, as a Transformer's block calls it."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.heads = int(block.heads)
        self.kernels, self.out = block.to_q.kernels, block.to_out[0]
        self.reads_text = bool(block.is_cross_attention)
        if self.reads_text:
            self.to_q, self.to_k, self.to_v = block.to_q, block.to_k, block.to_v
        else:
            self.qkv = CompiledLinear(_fused([block.to_q, block.to_k, block.to_v]), self.kernels)

    def forward(
        self,
        x: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """[N, L, C] → the same shape, with the residual added."""
        if self.reads_text:
            q, k, v = self.to_q(x), self.to_k(encoder_hidden_states), self.to_v(encoder_hidden_states)
        else:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
        y: Tensor = self.out(self.kernels.attention(q, k, v, self.heads), residual)
        return y


def is_plain_transformer(block: Any) -> bool:
    """Whether this is a Transformer's block as in Stable Diffusion, the kind that `FastTransformerBlock` computes."""
    return bool(
        type(block).__name__ == "BasicTransformerBlock"
        and block.norm_type == "layer_norm"
        and block.pos_embed is None
        and not hasattr(block, "fuser")
        and not block.only_cross_attention
        and isinstance(block.attn1, CompiledAttention)
        and not block.attn1.reads_text
        and isinstance(block.attn2, CompiledAttention)
        and [type(layer) for layer in block.ff.net] == [CompiledGeglu, nn.Dropout, CompiledLinear]
    )


class FastTransformerBlock(nn.Module):
    """Attention to the pixels, attention to the text and two layers for each pixel, which add what they got."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = block.norm1, block.norm2, block.norm3
        self.attn1, self.attn2 = block.attn1, block.attn2
        self.gated, _, self.out = block.ff.net

    def forward(self, x: Tensor, encoder_hidden_states: Tensor, **_: object) -> Tensor:
        """[N, L, C] → the same shape; as diffusers calls the block, nothing else that it gives is read."""
        x = self.attn1(self.norm1(x), residual=x)
        x = self.attn2(self.norm2(x), encoder_hidden_states, residual=x)
        y: Tensor = self.out(self.gated(self.norm3(x)), x)
        return y


class WholeLinear(nn.Module):
    """A linear layer as one product of all rows, for callers whose numbers of rows are few."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, rows: Tensor) -> Tensor:
        """[N, K] → [N, K']."""
        return F.linear(rows, self.weight, self.bias)


def _fused(linears: Sequence[Any]) -> nn.Linear:
    """Layers of one input, as one."""
    first = linears[0].weight
    sizes = [len(linear.weight) for linear in linears]
    whole = nn.Linear(first.shape[1], sum(sizes), device=first.device, dtype=first.dtype)
    biases = [
        linear.weight.new_zeros(n) if linear.bias is None else linear.bias.detach()
        for linear, n in zip(linears, sizes, strict=True)
    ]
    weights = torch.cat([linear.weight.detach() for linear in linears])
    whole.weight = nn.Parameter(weights, requires_grad=False)
    whole.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    return whole

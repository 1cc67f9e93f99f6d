"""Blocks shared by the models: residual block, CBAM, frame-wise convolution, non-local block, atrous pyramid."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def initialise_layers(module: nn.Module, generator: torch.Generator) -> None:
    """Give every convolution and linear layer inside `module` PyTorch's default start, drawn from `generator` alone.

    Weights and biases are uniform in +-1/sqrt(fan_in). Every sub-module with a `weight` of two or more dimensions
    counts.
    """
    for layer in module.modules():
        weight = layer._parameters.get("weight")
        if weight is None or weight.dim() < 2:
            continue
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
        bias = layer._parameters.get("bias")
        if bias is not None:
            bound = 1 / math.sqrt(weight[0].numel())
            nn.init.uniform_(bias, -bound, bound, generator=generator)


def use_channels_last(module: nn.Module) -> None:
    """Lay out every 2D convolution weight of `module` channels last, in place.

    `module.to(memory_format=torch.channels_last)` stops at the five-dimensional weights of frame convolutions.
    """
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def convolve_joined(convolution: nn.Conv2d, own: Tensor, shared: Tensor, *, shared_first: bool = False) -> Tensor:
    """`convolution` of [own, shared] joined over channels, with the part of `shared` computed once for all objects.

    own (B, O, C1, h, w), shared (B, C2, h, w), convolution over C1 + C2 channels, [shared, own] with shared_first.
    Returns (B, O, C, h', w').
    """
    channels = [shared.shape[1], own.shape[2]] if shared_first else [own.shape[2], shared.shape[1]]
    first, second = convolution.weight.split(channels, dim=1)
    own_weight, shared_weight = (second, first) if shared_first else (first, second)
    stride, padding = int(convolution.stride[0]), int(convolution.padding[0])
    of_own = F.conv2d(own.flatten(0, 1), own_weight, convolution.bias, stride=stride, padding=padding)
    of_shared = F.conv2d(shared, shared_weight, stride=stride, padding=padding)
    return of_own.unflatten(0, own.shape[:2]) + of_shared.unsqueeze(1)


class ShortcutConv(nn.Conv2d):
    """The 1x1 convolution of a residual block's shortcut: (B, C, h, w) -> (B, num_out, h/stride, w/stride).

    Computes a convolution with a stride. On a CPU, narrow ones drop the positions that the stride leaves out first:
    with AVX-512, several threads and channels last in memory, oneDNN (torch 2.13) writes beyond the gradient of strided
    1x1 convolutions whose channels are no multiple of 16, which ends the process or spoils other tensors.
    """

    def __init__(self, num_in: int, num_out: int, stride: int, *, bias: bool) -> None:
        super().__init__(num_in, num_out, 1, stride, bias=bias)

    def forward(self, features: Tensor) -> Tensor:
        if features.is_cuda or self.in_channels % 16 == 0:
            return super().forward(features)
        step_y, step_x = self.stride
        return F.conv2d(features[..., ::step_y, ::step_x], self.weight, self.bias)


class ResBlock(nn.Module):
    """s(x) + conv2(relu(conv1(relu(x)))), all 3x3, no norm; s: the identity, or a convolution of x where widths differ.

    Maps (B, C, h, w) to (B, num_out, h, w).
    """

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.downsample = None if num_in == num_out else nn.Conv2d(num_in, num_out, 3, padding=1)
        self.conv1 = nn.Conv2d(num_in, num_out, 3, padding=1)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        branch = self.conv2(F.relu(self.conv1(F.relu(features))))
        return branch + (features if self.downsample is None else self.downsample(features))

    def forward_joined(self, own: Tensor, shared: Tensor) -> Tensor:
        """The block on [own, shared] joined over channels, with the part of `shared` computed once for all objects.

        own (B, O, C1, h, w), shared (B, C2, h, w), C1 + C2 = num_in != num_out. Returns (B*O, num_out, h, w).
        """
        assert self.downsample is not None
        branch = convolve_joined(self.conv1, F.relu(own), F.relu(shared)).flatten(0, 1)
        return self.conv2(F.relu(branch)) + convolve_joined(self.downsample, own, shared).flatten(0, 1)


class ChannelGate(nn.Module):
    """Scale each channel of (B, C, h, w) by sigmoid(mlp(mean over space) + mlp(max over space))."""

    def __init__(self, num_channels: int, ratio: int) -> None:
        super().__init__()
        hidden = num_channels // ratio
        self.mlp = nn.Sequential(
            nn.Flatten(), nn.Linear(num_channels, hidden), nn.ReLU(), nn.Linear(hidden, num_channels)
        )

    def forward(self, features: Tensor) -> Tensor:
        gate = self.mlp(features.mean((2, 3))) + self.mlp(features.amax((2, 3)))
        return features * gate.sigmoid()[:, :, None, None]


class SpatialGate(nn.Module):
    """Scale each position of (B, C, h, w) by sigmoid(conv7x7([max over channels, mean over channels]))."""

    def __init__(self) -> None:
        super().__init__()
        self.spatial = nn.Sequential(OrderedDict(conv=nn.Conv2d(2, 1, 7, padding=3)))

    def forward(self, features: Tensor) -> Tensor:
        pooled = torch.cat([features.amax(1, keepdim=True), features.mean(1, keepdim=True)], 1)
        return features * self.spatial(pooled).sigmoid()


class Cbam(nn.Module):
    """Channel gate, then spatial gate; shape kept. Source: CBAM, Woo et al. 2018 (without its norm layer)."""

    def __init__(self, num_channels: int, ratio: int = 16) -> None:
        super().__init__()
        self.ChannelGate = ChannelGate(num_channels, ratio)
        self.SpatialGate = SpatialGate()

    def forward(self, features: Tensor) -> Tensor:
        return self.SpatialGate(self.ChannelGate(features))


class FrameConv(nn.Module):
    """A (num_frames, k, k) 3D convolution without temporal padding, computed as one 2D convolution over folded frames.

    The weight is (num_out, num_in, num_frames, k, k), as of `Conv3d`; a real 3D convolution would leave
    `channels_last`. Maps frames (N*T, num_in, h, w), time fastest, to (N*T / num_frames, num_out, h, w): each group
    of `num_frames` frames becomes one. Same size in space.
    """

    def __init__(
        self, num_in: int, num_out: int, size: int, *, num_frames: int = 1, dilation: int = 1, bias: bool = True
    ) -> None:
        super().__init__()
        self.num_frames = num_frames
        self.dilation = dilation
        self.padding = dilation * (size // 2)
        self.weight = nn.Parameter(torch.empty(num_out, num_in, num_frames, size, size))
        self.bias = nn.Parameter(torch.empty(num_out)) if bias else None

    def forward(self, frames: Tensor) -> Tensor:
        kernel = self.weight.flatten(1, 2)  # (num_out, num_in*num_frames, k, k), a view
        merged = frames
        if self.num_frames > 1:
            grouped = frames.unflatten(0, (-1, self.num_frames)).transpose(1, 2)  # (N, num_in, num_frames, h, w)
            merged = grouped.flatten(1, 2)
        return F.conv2d(merged, kernel, self.bias, padding=self.padding, dilation=self.dilation)


class NonLocal(nn.Module):
    """x + W(y): every position of T frames looks at every (2x2 max-pooled) position of them; dot products, no softmax.

    Maps frames (N*T, C, h, w), time fastest, to the same shape. h and w at least 2.
    Source: Wang et al. 2018, dot-product form.
    """

    def __init__(self, num_channels: int, num_frames: int) -> None:
        super().__init__()
        inner = num_channels // 2
        self.num_frames = num_frames
        self.g = nn.Sequential(FrameConv(num_channels, inner, 1), nn.MaxPool2d(2))
        self.W = FrameConv(inner, num_channels, 1)
        self.theta = FrameConv(num_channels, inner, 1)
        self.phi = nn.Sequential(FrameConv(num_channels, inner, 1), nn.MaxPool2d(2))

    def forward(self, frames: Tensor) -> Tensor:
        theta, phi, g = (self._positions(layer(frames)) for layer in (self.theta, self.phi, self.g))  # (N, C/2, T*h*w)
        # Without a softmax (theta^T phi) g^T = theta^T (phi g^T): a C/2 x C/2 matrix instead of one of positions
        # squared. The division by the number of positions comes first, shared by both factors, so that half precision
        # holds it.
        scale = phi.shape[2] ** -0.5
        context = (g * scale) @ (phi * scale).transpose(1, 2)  # (N, C/2, C/2)
        seen = (context @ theta).unflatten(2, (self.num_frames, *frames.shape[2:]))  # (N, C/2, T, h, w)
        return frames + self.W(seen.transpose(1, 2).flatten(0, 1))

    def _positions(self, frames: Tensor) -> Tensor:
        """(N*T, C, h, w) -> (N, C, T*h*w)."""
        return frames.unflatten(0, (-1, self.num_frames)).transpose(1, 2).flatten(2)


class Aspp(nn.Module):
    """x + relu(conv1(concat_i relu(aspp_i(x)))): four parallel atrous convolutions; frames (N*T, C, h, w) kept."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        quarter = num_channels // 4
        self.aspp1 = _atrous(num_channels, quarter, size=1, dilation=1)
        self.aspp2 = _atrous(num_channels, quarter, size=3, dilation=2)
        self.aspp3 = _atrous(num_channels, quarter, size=3, dilation=4)
        self.aspp4 = _atrous(num_channels, quarter, size=3, dilation=6)
        self.conv1 = FrameConv(num_channels, num_channels, 3, bias=False)

    def forward(self, frames: Tensor) -> Tensor:
        pyramid = torch.cat([level(frames) for level in (self.aspp1, self.aspp2, self.aspp3, self.aspp4)], 1)
        return frames + F.relu(self.conv1(F.relu(pyramid)))


def _atrous(num_in: int, num_out: int, *, size: int, dilation: int) -> nn.Sequential:
    convolution = FrameConv(num_in, num_out, size, dilation=dilation, bias=False)
    return nn.Sequential(OrderedDict(atrous_conv=convolution))

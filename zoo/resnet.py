"""The ResNet of SimCLRv2, exactly as the authors' TensorFlow code builds it: stem, selective kernels, blocks, network.

Registration order is the authors' graph order (in a block: shortcut first); zoo/convert.py relies on it.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.registry import Spec

SK_RATIO = 1 / 16  # width of the bottleneck that decides between the two streams (code: resnet.py, sk_ratio)
SMALL_IMAGE = 32  # models for images up to this size have a 3x3 stem without a pool
_TRUNCATED_STD = 0.87962566103423978  # std of a standard normal cut at +-2


Normalise = Callable[[Tensor, Tensor, Tensor | None, float], tuple[Tensor, Tensor, Tensor]]


def normalise_batch(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(B, C, ...) normalised by the statistics of the batch itself; with them: its mean and biased variance, (C,).

    A single value a channel is its own mean, which leaves the bias, as in TensorFlow; torch's function refuses it.
    """
    mean, variance = torch.zeros_like(weight), torch.zeros_like(weight)
    count = x.numel() // x.shape[1]
    if count == 1:
        alone = x.reshape(-1)
        out = (alone - alone) * weight + (0 if bias is None else bias)
        return out.to(x.dtype).reshape(x.shape), alone.detach().to(weight.dtype), variance
    out = F.batch_norm(x, mean, variance, weight, bias, True, 1.0, eps)
    return out, mean, variance * ((count - 1) / count)


class BatchNorm(nn.Module):
    """Batch normalisation over all but the channel axis of (B, C) or (B, C, H, W).

    epsilon 1e-5, momentum 0.1. Unlike torch's, the moving variance keeps the biased batch variance, as the authors'
    global batch norm does. ``shift=False`` leaves beta out (last layer of the projection head).

    ``normalise`` says over what the statistics are taken, here the batch itself (training puts all processes in its
    place); ``moves`` whether a pass in training mode moves the running statistics.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, *, shift: bool = True, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.normalise: Normalise = normalise_batch
        self.moves = True
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels)) if shift else None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    @torch.no_grad()
    def reset(self) -> None:
        """Back to the initial values: the identity, up to epsilon."""
        for ones in (self.weight, self.running_var):
            ones.fill_(1.0)
        for zeros in (self.bias, self.running_mean):
            if zeros is not None:
                zeros.zero_()

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        out, mean, variance = self.normalise(x, self.weight, self.bias, self.eps)
        if self.moves:
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance, self.momentum)
        return out

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, shift={self.bias is not None}"


def conv(channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias, padded (k - 1) // 2 on both sides: the code's fixed padding, and SAME at stride 1."""
    return nn.Conv2d(channels_in, channels_out, kernel, stride, padding=(kernel - 1) // 2, bias=False)


def convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution as it is; training may put a form that is faster on its processor in the place of this."""
    out: Tensor = conv(x)
    return out


class ConvNorm(nn.Module):
    """Convolution, then batch norm."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = conv(channels_in, channels_out, kernel, stride)
        self.norm = BatchNorm(channels_out)
        self.convolve: Callable[[nn.Conv2d, Tensor], Tensor] = convolve

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.convolve(self.conv, x))


def max_pool_same(x: Tensor) -> Tensor:
    """3x3 max-pool, stride 2, TensorFlow's SAME: even sizes are padded at bottom and right only, odd ones all round.

    ``ceil_mode`` clips the windows that hang over the edge, which is what padding with -inf does.
    """
    return F.max_pool2d(x, 3, 2, padding=(x.shape[2] % 2, x.shape[3] % 2), ceil_mode=True)


class ResNetDPool(nn.Module):
    """2x2 average before the 1x1 shortcut of an SK block (ResNet-D).

    Stride 2: one zero row and column at the bottom and right, counted (matters at odd sizes). Stride 1: SAME, the
    padding not counted, which equals repeating the last row and column.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            return F.avg_pool2d(F.pad(x, (0, 1, 0, 1), mode="replicate"), 2, 1)
        return F.avg_pool2d(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)), 2, self.stride)


class SelectiveKernel(nn.Module):
    """Two 3x3 streams computed as one convolution, mixed by a softmax over the streams (code: resnet.sk_conv2d)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        squeezed = max(int(channels * SK_RATIO), 32)
        self.streams = ConvNorm(channels_in, 2 * channels, 3, stride)
        self.squeeze = ConvNorm(channels, squeezed, 1)
        self.choose = conv(squeezed, 2 * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        stream0, stream1 = F.relu_(self.streams(x)).chunk(2, dim=1)  # (B, C, H, W) each
        summary = (stream0 + stream1).mean((2, 3), keepdim=True)  # (B, C, 1, 1)
        score0, score1 = self.choose(F.relu(self.squeeze(summary))).chunk(2, dim=1)
        share0 = torch.sigmoid(score0 - score1)  # softmax over two
        return share0 * stream0 + (1 - share0) * stream1


def shortcut(channels_in: int, channels_out: int, stride: int, sk: bool) -> nn.Module:
    """The projection shortcut of a group's first block."""
    if sk:
        return nn.Sequential(ResNetDPool(stride), ConvNorm(channels_in, channels_out, 1))
    return ConvNorm(channels_in, channels_out, 1, stride)


class Residual(nn.Module):
    """Two 3x3 convolutions (depth 18 and 34)."""

    expansion = 1

    def __init__(self, channels_in: int, channels: int, stride: int, *, project: bool, sk: bool) -> None:
        super().__init__()
        self.shortcut = shortcut(channels_in, channels, stride, sk) if project else None
        self.conv1 = ConvNorm(channels_in, channels, 3, stride)
        self.conv2 = ConvNorm(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.shortcut is None else self.shortcut(x)
        out = self.conv2(F.relu_(self.conv1(x)))
        return F.relu_(out.add_(skip))


class Bottleneck(nn.Module):
    """1x1, 3x3 (or a selective kernel), 1x1 with four times the channels; the stride is on the 3x3."""

    expansion = 4

    def __init__(self, channels_in: int, channels: int, stride: int, *, project: bool, sk: bool) -> None:
        super().__init__()
        self.shortcut = shortcut(channels_in, 4 * channels, stride, sk) if project else None
        self.conv1 = ConvNorm(channels_in, channels, 1)
        self.conv2 = SelectiveKernel(channels, channels, stride) if sk else ConvNorm(channels, channels, 3, stride)
        self.conv3 = ConvNorm(channels, 4 * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.shortcut is None else self.shortcut(x)
        out = F.relu_(self.conv1(x))
        out = self.conv2(out) if isinstance(self.conv2, SelectiveKernel) else F.relu_(self.conv2(out))
        return F.relu_(self.conv3(out).add_(skip))


class Stem(nn.Module):
    """Images to the first feature map: 7x7/2, or three 3x3 (SK), then the pool; one 3x3 for small images."""

    def __init__(self, width: float, *, sk: bool, small: bool) -> None:
        super().__init__()
        channels = int(64 * width)
        half = int(32 * width)
        if small:
            layers = [ConvNorm(3, channels, 3)]
        elif sk:
            layers = [ConvNorm(3, half, 3, 2), ConvNorm(half, half, 3), ConvNorm(half, channels, 3)]
        else:
            layers = [ConvNorm(3, channels, 7, 2)]
        self.layers = nn.ModuleList(layers)
        self.pool = not small

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu_(layer(x))
        return max_pool_same(x) if self.pool else x


def run_block(block: nn.Module, x: Tensor) -> Tensor:
    """A block as it is; training may put another in the place of this, which computes it again in the backward pass."""
    out: Tensor = block(x)
    return out


class ResNet(nn.Module):
    """Images (B, 3, H, W) in [0, 1] to pooled features h (B, feature_width).

    Activations are changed in place, as in torchvision's: a hook that keeps what a layer gives must copy it.
    """

    def __init__(self, spec: Spec, *, image_size: int = 224) -> None:
        super().__init__()
        block = Bottleneck if spec.bottleneck else Residual
        self.stem = Stem(spec.width, sk=spec.sk, small=image_size <= SMALL_IMAGE)
        self.groups = nn.ModuleList()
        self.run_block: Callable[[nn.Module, Tensor], Tensor] = run_block
        channels_in = int(64 * spec.width)
        for group, blocks in enumerate(spec.blocks):
            channels = int(64 * 2**group * spec.width)
            layers = []
            for index in range(blocks):
                stride = 2 if group > 0 and index == 0 else 1
                layers.append(block(channels_in, channels, stride, project=index == 0, sk=spec.sk))
                channels_in = channels * block.expansion
            self.groups.append(nn.Sequential(*layers))

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for group in self.groups:
            for block in group.children():
                x = self.run_block(block, x)
        return x.mean((2, 3))  # (B, feature_width)


@torch.no_grad()
def initialise(backbone: ResNet) -> None:
    """The authors' initial values: truncated-normal convolutions, and gamma 0 where a block ends."""
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            std = math.sqrt(1 / fan_in) / _TRUNCATED_STD
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        elif isinstance(module, BatchNorm):
            module.reset()
    for module in backbone.modules():
        if isinstance(module, Bottleneck | Residual):
            last = module.conv3 if isinstance(module, Bottleneck) else module.conv2
            nn.init.zeros_(last.norm.weight)

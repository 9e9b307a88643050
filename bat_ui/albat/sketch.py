"""Sketches: each image's LoRA gradient and curvature vectors as k numbers (theory.md, ALBAT step 3).

In: a module with LoRA layers, a callable that predicts a batch of images x draws, a seeded projection. Out: per image
the projected gradient g_c and r projected curvature vectors u_c. One forward, one backward for the gradients and one
more for each Gauss-Newton vector, whatever the number of images; the gradients exist one layer at a time, never as
(images x parameters). Left out on purpose: gradients of anything but LoRA weights, DoRA and other LoRA variants, and
the loop over batches: every image is independent of its batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bat_ui.errors import UserError

# Numbers of one weight's gradients that exist at a time: in the caches of a CPU; many on a GPU, which likes large products.
AT_ONCE, MOST_AT_ONCE = {"cpu": 2**19}, 2**26
Predict = Callable[[Any, slice], tuple[Tensor, Tensor, Tensor | float]]


@dataclass(frozen=True)
class LoraLayer:
    """One adapter of one adapted Linear or Conv2d: the down matrix a (lora_A) and the up matrix b (lora_B)."""

    name: str
    adapter: str
    a: nn.Module
    b: nn.Module

    @property
    def a_weight(self) -> str:
        return f"{self.name}.lora_A.{self.adapter}.weight"

    @property
    def b_weight(self) -> str:
        return f"{self.name}.lora_B.{self.adapter}.weight"


def lora_layers(model: nn.Module) -> list[LoraLayer]:
    """The active LoRA layers in the model's own order, recognised by their lora_A, lora_B and scaling.

    Raises UserError if there is none, or if one is of a kind whose gradient is not formed here.
    """
    layers = []
    for name, module in model.named_modules():
        if not (hasattr(module, "lora_A") and hasattr(module, "lora_B") and hasattr(module, "scaling")):
            continue
        for adapter in module.active_adapters:
            if adapter not in module.lora_A:
                continue
            layer = LoraLayer(name, adapter, module.lora_A[adapter], module.lora_B[adapter])
            if adapter in getattr(module, "lora_variant", {}) or not _supported(layer):
                raise UserError(f"The adapter of {name} cannot be sketched: use plain LoRA on Linear and Conv2d.")
            layers.append(layer)
    if not layers:
        raise UserError("The model has no active LoRA layers: add an adapter before sketching.")
    return layers


def _supported(layer: LoraLayer) -> bool:
    if isinstance(layer.a, nn.Linear):
        return layer.b.bias is None
    if not (isinstance(layer.a, nn.Conv2d) and isinstance(layer.b, nn.Conv2d)):
        return False
    plain_a = layer.a.groups == 1 and layer.a.padding_mode == "zeros" and not isinstance(layer.a.padding, str)
    return plain_a and layer.b.groups == 1 and layer.b.kernel_size == (1, 1) and layer.b.bias is None


@dataclass(frozen=True)
class Projection:
    """A seeded linear map from all LoRA weights to `size` numbers that keeps inner products: E<s(x), s(y)> = <x, y>.

    A balanced CountSketch: in each weight every entry gets a random sign and a slot of its own among ceil(p / k) rows
    of k, and the rows are added up. The signs alone make it unbiased; the relative variance of an inner product is
    about 1 / k, as for a dense sign or Gaussian matrix, but it costs one gather and one sum, b p operations instead of
    b p k, needs no atomic adds, and so gives the same bits whatever else is in the batch.

    tables: for each weight's name, source (slots,) and sign (slots,) with sign 0 in empty slots.
    """

    size: int
    tables: dict[str, tuple[Tensor, Tensor]]

    def apply(self, name: str, values: Tensor) -> Tensor:
        """Project values (b, p) of the weight called name to (b, size), in float32 or better."""
        source, sign = self.tables[name]
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        slots = values.index_select(1, source).mul_(sign.to(values.dtype))
        return slots.view(len(values), -1, self.size).sum(1)


def make_projection(model: nn.Module, size: int, seed: int) -> Projection:
    """The projection of the model's LoRA weights to `size` numbers; it depends on their shapes and the seed alone."""
    generator, tables = torch.Generator().manual_seed(seed), {}
    for layer in lora_layers(model):
        for name, weight in ((layer.a_weight, layer.a.weight), (layer.b_weight, layer.b.weight)):
            count = weight.numel()
            padded = math.ceil(count / size) * size
            slots = torch.randperm(padded, generator=generator)[:count]
            source, sign = torch.zeros(padded, dtype=torch.int32), torch.zeros(padded)
            source[slots] = torch.arange(count, dtype=torch.int32)
            sign[slots] = torch.randint(0, 2, (count,), generator=generator).mul(2).sub(1).float()
            tables[name] = source.to(weight.device), sign.to(weight.device)
    return Projection(size, tables)


class BatchSketch(NamedTuple):
    """gradients (b, k), curvature (b, r, k) and loss (b,): float32, on the model's device."""

    gradients: Tensor
    curvature: Tensor
    loss: Tensor


def sketch(
    model: nn.Module,
    predict: Predict,
    batch: Any,
    keys: Tensor,
    projection: Projection,
    *,
    draws: int = 1,
    draws_at_once: int | None = None,
    vectors: int = 1,
    curvature: str = "gauss_newton",
    seed: int = 0,
) -> BatchSketch:
    """Sketch the LoRA gradient and curvature of each of b images, whose loss is the mean of its draws' losses.

    predict(batch, part) gives prediction, target (b * draws in part, ...) and a weight that broadcasts against them, rows
    ordered image by image; a row's loss is the mean over its E elements of weight * (prediction - target)^2.
    draws_at_once: in one forward, since everything is a sum over draws; None: all, which is fastest where memory allows.
    keys (b,): one integer for each image, the same in every batch and shard; they seed the random cotangents.

    gradients: g_c, the gradient of the image's loss. curvature: r = `vectors` vectors u with E[sum_r u u'] = H_c, the
    Gauss-Newton matrix (2 / (E draws)) sum over draws of J' diag(weight) J (theory.md, Words):

    - "gauss_newton": u = sqrt(2 / (E draws r)) J' sqrt(weight) v, v independent signs for every output element;
      exact in expectation, one more backward for each vector.
    - "fisher": u = sqrt(E / (2 loss draws r)) sum over draws of +- that draw's gradient, the gradient of the SUM taken
      over draws' own row losses. It equals H_c in expectation only where residuals are white, and needs draws > 1, but
      comes out of the gradients' own backward, at the price of some small products.

    vectors = 0 gives gradients alone. Raises UserError for layers that mix the images of a batch.
    """
    if curvature not in ("gauss_newton", "fisher"):
        raise ValueError(f"curvature is gauss_newton or fisher, not {curvature}")
    if curvature == "fisher" and vectors and draws < 2:
        raise UserError("Curvature from gradients needs at least 2 draws of each image.")
    images, fisher, parts = len(keys), curvature == "fisher" and vectors > 0, []
    for first in range(0, draws, draws_at_once or draws):
        part = slice(first, min(first + (draws_at_once or draws), draws))
        count = part.stop - part.start
        with _taps(model, projection, images, count) as tap, torch.enable_grad():
            prediction, target, weight = predict(batch, part)
            if prediction.shape[0] != images * count:
                raise UserError(f"The prediction has {prediction.shape[0]} rows for {images} images x {count} draws.")
            keys = keys.to(prediction.device)
            residual = prediction.detach().float() - target.detach().float()
            weight = torch.as_tensor(weight, device=residual.device).float()
            elements = residual[0].numel()
            # Cotangents of order one keep half precision from underflowing; the small factors are applied to the sketch.
            backward = (weight * residual).to(prediction.dtype)
            if fisher:
                signs = torch.stack([_signs(seed, keys, q, part.start, count) for q in range(vectors)], 1)
                rows = [tap.backward(prediction, backward, torch.cat([torch.ones_like(signs[:, :1]), signs], 1), last=True)]
            else:
                rows = [tap.backward(prediction, backward, None, last=vectors == 0)]
                for q in range(vectors):
                    v = _signs(seed, keys, q, part.start * elements, count * elements)
                    cotangent = (weight.sqrt() * v.reshape(prediction.shape)).to(prediction.dtype)
                    rows.append(tap.backward(prediction, cotangent, None, last=q == vectors - 1))
        parts.append((torch.cat(rows, 1), (weight * residual**2).view(images, -1).sum(1)))
    total, losses = (torch.stack(sums).sum(0) for sums in zip(*parts))
    loss = losses / (elements * draws)
    size = math.sqrt(2 / (elements * draws * max(vectors, 1)))
    if fisher:
        size = (size / loss.clamp_min(1e-20).sqrt())[:, None, None]
    return BatchSketch(total[:, 0] * (2 / (elements * draws)), total[:, 1:] * size, loss)


class _Tap:
    """Turns the gradients that reach the LoRA matrices' outputs in one backward into one projected row for each image."""

    def __init__(self, projection: Projection, images: int, draws: int) -> None:
        self.projection, self.images, self.draws = projection, images, draws
        self.mix: Tensor | None = None
        self.total: Tensor | None = None
        self.last = False

    def backward(self, prediction: Tensor, cotangent: Tensor, mix: Tensor | None, last: bool) -> Tensor:
        """Rows (images, s, k): the draws' gradients summed (mix None, s = 1) or combined by mix (images, s, draws)."""
        if not prediction.requires_grad:
            raise UserError("The prediction does not depend on the LoRA layers: is the adapter active?")
        count = 1 if mix is None else mix.shape[1]
        self.mix, self.last = mix, last
        self.total = torch.zeros(self.images, count, self.projection.size, device=prediction.device)
        torch.autograd.backward(prediction, cotangent, retain_graph=not last)
        return self.total

    def receive(self, name: str, module: nn.Module, saved: list[Tensor], grad: Tensor) -> None:
        """Add what the gradient of a module's output makes of its weight's, given the module's input in `saved`."""
        x = saved[0]
        if self.last:
            saved.clear()  # frees the input as the backward goes on, as plain training does
        numbers = self.draws * module.weight.numel()  # of an image
        at_once = max(AT_ONCE.get(grad.device.type, MOST_AT_ONCE) // numbers, 1)
        x, grad = (t.unflatten(0, (self.images, -1)).split(at_once) for t in (x, grad))
        mixes = repeat(None) if self.mix is None else self.mix.split(at_once)
        for total, mix, *pair in zip(self.total.split(at_once), mixes, x, grad):
            values = _weight_gradients(module, *(t.flatten(0, 1) for t in pair), len(total), self.draws, mix)
            total += self.projection.apply(name, values.flatten(0, 1)).view_as(total)


def _weight_gradients(module: nn.Module, x: Tensor, grad: Tensor, images: int, draws: int, mix: Tensor | None) -> Tensor:
    """(images, s, p): of the weight of a Linear or Conv2d, from its input and its output's gradient, image by image; the
    draws summed (mix None, s = 1) or combined by mix (images, s, draws)."""
    x = x.to(grad.dtype)
    if isinstance(module, nn.Linear):  # tokens, and draws that are only to be summed, are summed inside one product
        blocks = images if mix is None else images * draws
        x, grad = (t.reshape(blocks, -1, t.shape[-1]) for t in (x, grad))
        found = grad.mT @ x
    elif module.kernel_size == (1, 1) and module.stride == (1, 1) and module.padding == (0, 0):
        found = grad.flatten(2) @ x.flatten(2).mT
    else:
        found = _wide_gradients(module, x, grad)
    found = found.view(images, -1, module.weight.numel()).float()
    found = found.sum(1, keepdim=True) if mix is None else mix.float() @ found
    out, within = module.weight.shape[:2]  # kernels come before channels, and after them once the draws are one
    return found.view(images, -1, out, module.weight[0, 0].numel(), within).mT.flatten(2)


def _wide_gradients(conv: nn.Conv2d, x: Tensor, grad: Tensor) -> Tensor:
    """(n, out * kernel, in). The gradient is unfolded onto the input's grid, not the input onto the gradient's: a LoRA
    down convolution has fewer channels out than in."""
    pads = []
    for axis in (0, 1):
        stride, size, out = conv.stride[axis], x.shape[2 + axis], grad.shape[2 + axis]
        before = conv.dilation[axis] * (conv.kernel_size[axis] - 1) - conv.padding[axis]
        after = size - (out - 1) * stride - 1 + conv.padding[axis]
        pads = [before, after, *pads]
    if conv.stride != (1, 1):
        height, width = ((n - 1) * s + 1 for n, s in zip(grad.shape[2:], conv.stride))
        spread = grad.new_zeros(*grad.shape[:2], height, width)
        spread[:, :, :: conv.stride[0], :: conv.stride[1]] = grad
        grad = spread
    grad, (height, width) = F.pad(grad.contiguous(), pads), x.shape[2:]
    rows, columns = (range(0, n * d, d) for n, d in zip(conv.kernel_size, conv.dilation))
    shifted = [grad[:, :, i : i + height, j : j + width] for i in reversed(rows) for j in reversed(columns)]
    patches = torch.stack(shifted, 2)  # (n, out, kernel, h, w)
    return patches.reshape(len(x), -1, height * width) @ x.flatten(2).mT


@contextmanager
def _taps(model: nn.Module, projection: Projection, images: int, draws: int) -> Iterator[_Tap]:
    """Freezes every parameter and puts the model in eval mode, taps the LoRA layers, and undoes all of it at the end.

    With the weights frozen autograd forms no summed weight gradient; the graph starts at the taps instead.
    """
    layers, tap, handles = lora_layers(model), _Tap(projection, images, draws), []
    trained = [p for p in model.parameters() if p.requires_grad]
    modes = [(m, m.training) for m in model.modules()]

    def tapped(name: str, layer: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if args[0].shape[0] % (images * draws):
                raise UserError(f"The layer {layer} mixes the images of a batch: leave it out of the adapter.")
            saved = [args[0].detach()]
            if not output.requires_grad:
                output.requires_grad_(True)
                output.register_post_accumulate_grad_hook(_forget)
            output.register_hook(lambda grad: tap.receive(name, module, saved, grad))

        return hook

    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        model.eval()
        for layer in layers:
            handles.append(layer.a.register_forward_hook(tapped(layer.a_weight, layer.name)))
            handles.append(layer.b.register_forward_hook(tapped(layer.b_weight, layer.name)))
        yield tap
    finally:
        for handle in handles:
            handle.remove()
        for parameter in trained:
            parameter.requires_grad_(True)
        for module, mode in modes:
            module.training = mode


def _forget(tensor: Tensor) -> None:
    tensor.grad = None


def _mix(x: Tensor) -> Tensor:
    """A 32-bit integer hash held in int64."""
    x = (x ^ (x >> 16)) * 0x7FEB352D & 0xFFFFFFFF
    x = (x ^ (x >> 15)) * 0x846CA68B & 0xFFFFFFFF
    return x ^ (x >> 16)


def _signs(seed: int, keys: Tensor, stream: int, first: int, count: int) -> Tensor:
    """Random signs (b, count), float32: of each row's endless sequence, a function of (seed, key, stream), those from
    `first` on, whatever the batch or device."""
    keys = keys.to(torch.int64)
    state = _mix(torch.full_like(keys, (seed * 0x9E3779B9 + stream * 0x85EBCA6B + 1) & 0xFFFFFFFF))
    state = _mix(_mix(state ^ (keys & 0xFFFFFFFF)) ^ (keys >> 32 & 0xFFFFFFFF))
    words = torch.arange(first // 32, (first + count + 31) // 32, device=keys.device)
    bits = _mix(_mix(state[:, None] ^ words) + state[:, None] & 0xFFFFFFFF)
    signs = (bits[:, :, None] >> torch.arange(32, device=keys.device) & 1).flatten(1)[:, first % 32 :][:, :count]
    return signs.to(torch.float32).mul_(2).sub_(1)

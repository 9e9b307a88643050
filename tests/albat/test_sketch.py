"""Sketches against torch.func gradients of one image at a time, projected by the explicit matrix."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from bat_ui.albat.sketch import lora_layers, make_projection, sketch
from bat_ui.errors import UserError


class Net(nn.Module):
    """A convolution of stride 2, one of kernel 1, a linear layer over tokens and one over a pooled vector."""

    def __init__(self, conv_a=None):
        super().__init__()
        self.first = conv_a or nn.Conv2d(2, 6, 3, stride=2, padding=1)
        self.point = nn.Conv2d(6, 5, 1)
        self.token = nn.Linear(5, 4)
        self.pooled = nn.Linear(4, 4)

    def forward(self, x):
        x = torch.tanh(self.point(torch.tanh(self.first(x))))
        x = torch.tanh(self.token(x.flatten(2).mT))
        return x + self.pooled(x.mean(1))[:, None]


def adapted(dtype=torch.float32, conv_a=None, dropout=0.0):
    torch.manual_seed(0)
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["first", "point", "token", "pooled"], lora_dropout=dropout)
    model = get_peft_model(Net(conv_a), config).to(dtype)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def data(model, images=5, draws=3, dtype=torch.float32):
    x = torch.randn(images * draws, 2, 7, 6, dtype=dtype)
    y = model(x).detach()
    return x, y + torch.randn_like(y), torch.rand(images * draws, 1, 1).to(dtype) + 0.5


def predictor(model, draws=1):
    """`draws` of each image, where a sketch takes a part of them at once."""

    def predict(batch, part):
        rows = torch.arange(len(batch[0])).view(-1, draws)[:, part].flatten()
        x, y, w = (t[rows] if isinstance(t, torch.Tensor) else t for t in batch)
        return model(x), y, w

    return predict


def explicit(model, projection):
    """The projection as a matrix (k, p), and the LoRA weights by name in the same order."""
    names = list(projection.tables)
    parameters = dict(model.named_parameters())
    blocks = [projection.apply(n, torch.eye(parameters[n].numel())).T for n in names]
    return torch.cat(blocks, 1), {n: parameters[n].detach() for n in names}


def jacobians(model, weights, batch, images, draws):
    """Exact gradient (images, p) and Gauss-Newton matrix (images, p, p) by torch.func, one image at a time."""
    gradients, matrices = [], []
    for i in range(images):
        x, y, w = (t[i * draws : (i + 1) * draws] for t in batch)

        def predict(values, x=x):
            return torch.func.functional_call(model, values, (x,))

        jacobian = torch.func.jacrev(predict)(weights)
        j = torch.cat([jacobian[n].reshape(y.numel(), -1) for n in weights], 1)
        scale = (w / y.numel()).expand_as(y).reshape(-1, 1)
        residual = (predict(weights) - y).reshape(-1, 1)
        gradients.append((2 * scale * residual * j).sum(0))
        matrices.append(2 * j.T @ (scale * j))
    return torch.stack(gradients), torch.stack(matrices)


CONVOLUTIONS = {
    "stride": None,
    "dilated": lambda: nn.Conv2d(2, 6, (3, 2), padding=(2, 0)),
    "wide padding": lambda: nn.Conv2d(2, 6, 3, stride=(3, 2), padding=3),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_gradients_equal_per_sample_gradients_projected_by_the_explicit_matrix(kind):
    make = CONVOLUTIONS[kind]
    model = adapted(conv_a=make and make())
    batch, projection = data(model), make_projection(model, 64, seed=3)
    matrix, weights = explicit(model, projection)
    gradients, _ = jacobians(model, weights, batch, 5, 3)
    got = sketch(model, predictor(model), batch, torch.arange(5), projection, draws=3)
    torch.testing.assert_close(got.gradients, gradients @ matrix.T, rtol=1e-4, atol=1e-6)
    x, y, w = batch
    torch.testing.assert_close(got.loss, (w * (model(x) - y) ** 2).view(5, -1).mean(1))


def test_curvature_vectors_average_to_the_gauss_newton_matrix():
    model = adapted()
    batch, projection = data(model, images=2), make_projection(model, 24, seed=3)
    matrix, weights = explicit(model, projection)
    _, exact = jacobians(model, weights, batch, 2, 3)
    u = sketch(model, predictor(model), batch, torch.arange(2), projection, draws=3, vectors=200).curvature
    estimate, wanted = u.mT @ u, matrix @ exact @ matrix.T
    error = (estimate - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)
    assert error.max() < 0.3
    trace = torch.einsum("brk,brk->b", u, u) / wanted.diagonal(dim1=1, dim2=2).sum(1)
    assert (trace - 1).abs().max() < 0.12


@pytest.mark.parametrize("kind", ["gauss_newton", "fisher"])
@pytest.mark.parametrize("at_once", [1, 2])
def test_a_sketch_is_the_same_however_many_draws_go_through_the_model_at_once(kind, at_once):
    model = adapted()
    batch, projection, options = data(model), make_projection(model, 24, seed=3), {"vectors": 2, "curvature": kind}
    whole = sketch(model, predictor(model, 3), batch, torch.arange(5), projection, draws=3, **options)
    parts = sketch(model, predictor(model, 3), batch, torch.arange(5), projection, draws=3, draws_at_once=at_once, **options)
    for one, other in zip(whole, parts):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_fisher_vectors_are_signed_sums_of_the_draws_gradients():
    model = adapted()
    batch, projection = data(model, images=2), make_projection(model, 24, seed=3)
    one = sketch(model, predictor(model), batch, torch.arange(6), projection, vectors=0).gradients.view(2, 3, 24)
    got = sketch(model, predictor(model), batch, torch.arange(2), projection, draws=3, vectors=400, curvature="fisher")
    torch.testing.assert_close(got.gradients, one.mean(1), rtol=1e-4, atol=1e-6)
    elements = batch[1][0].numel()
    wanted = (one.mT @ one) * (elements / (2 * got.loss * 3))[:, None, None]
    error = (got.curvature.mT @ got.curvature - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)
    assert error.max() < 0.2


def test_fisher_vectors_have_the_size_of_gauss_newton_vectors_under_white_residuals():
    model = adapted()
    x, _, _ = data(model, images=60)
    y = model(x).detach()
    batch, projection = (x, y + torch.randn_like(y), 1.0), make_projection(model, 64, seed=3)
    sizes = [
        sketch(model, predictor(model), batch, torch.arange(60), projection, draws=3, curvature=kind)[1].norm() ** 2
        for kind in ("gauss_newton", "fisher")
    ]
    assert abs(sizes[1] / sizes[0] - 1) < 0.2


def test_projection_keeps_inner_products_without_bias_and_with_variance_of_one_over_k():
    model, size = adapted(), 16
    count = sum(layer.a.weight.numel() + layer.b.weight.numel() for layer in lora_layers(model))
    x, y = torch.randn(2, count, generator=torch.Generator().manual_seed(1))
    products = []
    for seed in range(300):
        projection = make_projection(model, size, seed)
        rows, start = 0, 0
        for name, (_, sign) in projection.tables.items():
            stop = start + int(sign.abs().sum())
            rows, start = rows + projection.apply(name, torch.stack([x, y])[:, start:stop]), stop
        products.append(rows[0] @ rows[1])
    products = torch.stack(products)
    spread = products.std()
    assert abs(products.mean() - x @ y) < 4 * spread / 300**0.5
    dense = ((x @ x * (y @ y) + (x @ y) ** 2) / size).sqrt()
    assert spread < 1.15 * dense


def test_a_shard_gives_the_rows_of_the_whole_and_another_seed_other_cotangents():
    model = adapted()
    x, y, w = data(model)
    projection = make_projection(model, 32, seed=3)
    keys = torch.tensor([11, 2**40 + 5, 7, 5, 3])
    whole = sketch(model, predictor(model), (x, y, w), keys, projection, draws=3, vectors=2, seed=4)
    shard = (x[6:12], y[6:12], w[6:12])
    part = sketch(model, predictor(model), shard, keys[2:4], projection, draws=3, vectors=2, seed=4)
    for a, b in zip(whole, part):
        torch.testing.assert_close(a[2:4], b, rtol=1e-5, atol=1e-7)
    other = sketch(model, predictor(model), (x, y, w), keys, projection, draws=3, vectors=2, seed=5)
    torch.testing.assert_close(whole.gradients, other.gradients)
    assert not torch.allclose(whole.curvature, other.curvature, rtol=0.1)
    assert not torch.allclose(whole.curvature[:, 0], whole.curvature[:, 1], rtol=0.1)


def test_sketching_leaves_the_model_as_it_was_even_after_an_error():
    model = adapted(dropout=0.5)
    model.train()
    model.base_model.model.point.eval()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    modes = {n: m.training for n, m in model.named_modules()}
    batch, projection = data(model), make_projection(model, 16, seed=0)
    first = sketch(model, predictor(model), batch, torch.arange(5), projection, draws=3)
    second = sketch(model, predictor(model), batch, torch.arange(5), projection, draws=3)
    torch.testing.assert_close(first.gradients, second.gradients)
    with pytest.raises(UserError):
        sketch(model, predictor(model), batch, torch.arange(4), projection, draws=3)
    assert trained == {n for n, p in model.named_parameters() if p.requires_grad}
    assert modes == {n: m.training for n, m in model.named_modules()}
    assert not any(m._forward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_a_bfloat16_model_gives_float32_sketches_near_the_float32_ones():
    model = adapted()
    batch, projection = data(model), make_projection(model, 32, seed=0)
    full = sketch(model, predictor(model), batch, torch.arange(5), projection, draws=3)
    batch = [t.bfloat16() for t in batch]
    half = sketch(model.bfloat16(), predictor(model), batch, torch.arange(5), projection, draws=3)
    assert half.gradients.dtype == half.curvature.dtype == torch.float32
    for a, b in ((full.gradients, half.gradients), (full.curvature, half.curvature)):
        assert (a - b).norm() < 0.05 * a.norm()


def test_a_model_without_adapter_is_refused_with_a_sentence():
    with pytest.raises(UserError, match="no active LoRA"):
        make_projection(nn.Linear(2, 2), 8, 0)

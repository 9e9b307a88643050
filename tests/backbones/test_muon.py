import pytest
import torch

from bat_ui.backbones.sticker.muon import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(24, 24), (16, 50), (50, 16)])
def test_keeps_singular_vectors_and_sets_every_singular_value_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    rotated = left.T @ orthogonalize(matrix) @ right.T
    resolved = values / values.norm() > 0.01  # smaller ones grow, but not all the way
    diagonal = rotated.diagonal()[resolved]
    assert diagonal.min() > 0.6 and diagonal.max() < 1.25
    assert (rotated - torch.diag(rotated.diagonal())).abs().max() < 1e-3


def test_update_of_a_convolution_is_that_of_its_matrix():
    weight = torch.randn(8, 3, 3, 3)
    convolution = torch.nn.Parameter(weight.clone().contiguous(memory_format=torch.channels_last))
    matrix = torch.nn.Parameter(weight.reshape(8, -1).clone())
    optimizers = [Muon([p], lr=0.1) for p in (convolution, matrix)]
    for _ in range(3):
        gradient = torch.randn(8, 27)
        convolution.grad, matrix.grad = gradient.view(8, 3, 3, 3).clone(), gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(convolution.detach().reshape(8, -1), matrix.detach())


def test_agrees_with_the_optimiser_of_torch():
    ours, theirs = (torch.nn.Parameter(torch.eye(12, 20)) for _ in range(2))
    reference = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    optimizer = Muon([ours], lr=0.1)
    for _ in range(2):
        ours.grad = torch.randn(12, 20, generator=torch.Generator().manual_seed(1))
        theirs.grad = ours.grad.clone()
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours.detach(), theirs.detach(), atol=0.02, rtol=0.05)  # theirs is in bfloat16

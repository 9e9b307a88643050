"""The training loop: the BAT objective, its batches, and an adapter that starts as the backbone itself."""

import torch

from bat_ui.seeds import step_generator
from bat_ui.settings import TrainingSettings
from bat_ui.training.loop import Encoded, new_optimizer, train
from bat_ui.training.lora import lora


def test_a_new_adapter_changes_nothing(backbone, pictures):
    x, (t, noise) = pictures(2, 0), backbone.draw(2, step_generator(0, 0))
    with torch.no_grad():
        before, _ = backbone.predict(x.latents, x.states, t, noise)
        with lora(backbone, 2, 0):
            after, _ = backbone.predict(x.latents, x.states, t, noise)
    torch.testing.assert_close(before, after)


def test_the_backbone_is_as_it_was_after_training(backbone, pictures):
    before = {name: p.clone() for name, p in backbone.unet.state_dict().items()}
    settings = TrainingSettings(steps=2, rank=2, batch_size=2)
    with lora(backbone, 2, 0) as weights:
        list(train(backbone, weights, new_optimizer(weights, settings), pictures(2, 0), None, settings))
    after = backbone.unet.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_one_step_follows_the_gradient_of_subject_loss_plus_strength_times_backbone_loss(backbone, pictures):
    """An explicit twin of the first step: plain autograd on the two mean losses, then AdamW."""
    settings = TrainingSettings(steps=1, rank=2, batch_size=4, backbone_share=0.5, strength=0.3, seed=5)
    subject, chosen = pictures(1, 1), pictures(1, 2)  # one picture each, so that the rows are known
    with lora(backbone, 2, 0) as weights:
        list(train(backbone, weights, new_optimizer(weights, settings), subject, chosen, settings))
        trained = {name: p.detach().clone() for name, p in weights.items()}
    with lora(backbone, 2, 0) as weights:
        rng = step_generator(5, 0)
        torch.randint(1, (2,), generator=rng)
        torch.multinomial(torch.ones(1), 2, replacement=True, generator=rng)
        t, noise = backbone.draw(4, rng)
        losses = []
        for x, rows in ((subject, slice(0, 2)), (chosen, slice(2, 4))):
            latents, states = x.latents.expand(2, -1, -1, -1), x.states.expand(2, -1, -1)
            prediction, target = backbone.predict(latents, states, t[rows], noise[rows])
            losses.append(((prediction - target) ** 2).mean())
        (losses[0] + 0.3 * losses[1]).backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        new_optimizer(weights, settings).step()
        for name, p in weights.items():
            torch.testing.assert_close(p.detach(), trained[name], atol=1e-5, rtol=1e-3)


def test_weights_decide_how_often_a_backbone_picture_is_drawn(backbone, pictures):
    """With no weight on the first picture, it must not matter what that picture is."""
    settings = TrainingSettings(steps=4, rank=2, batch_size=2, seed=3)
    two, subject = pictures(2, 4), pictures(1, 1)
    heavy = Encoded(two.latents, two.states, torch.tensor([0.0, 1.0]))
    twins = Encoded(two.latents[[1, 1]], two.states[[1, 1]], torch.tensor([0.0, 1.0]))
    even = Encoded(two.latents, two.states)
    rows = []
    for chosen in (heavy, twins, even):
        with lora(backbone, 2, 0) as weights:
            steps = list(train(backbone, weights, new_optimizer(weights, settings), subject, chosen, settings))
            rows.append([s.backbone_loss for s in steps])
    assert rows[0] == rows[1] != rows[2]

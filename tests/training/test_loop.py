"""The training loop: the BAT objective, its batches, and an adapter that starts as the backbone itself."""

import copy
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from diffusers.optimization import get_scheduler

from bat_ui.albat.strength import most_strength
from bat_ui.backbones.encoded import Encoded
from bat_ui.errors import UserError
from bat_ui.presets import PLENTY
from bat_ui.seeds import step_generator
from bat_ui.settings import TrainingSettings
from bat_ui.training import loop
from bat_ui.training.checkpoint import restore_checkpoint, save_checkpoint
from bat_ui.training.loop import LOSS_SCALE, _draw_subject, backbone_part, new_optimizer, strength_at, train
from bat_ui.training.lora import lora
from bat_ui.training.processes import Processes
from bat_ui.training.speed import repays_compiling


def test_a_new_adapter_changes_nothing(backbone, pictures):
    x, (t, noise) = pictures(2, 0), backbone.draw(2, step_generator(0, 0))
    with torch.no_grad():
        before, _ = backbone.predict(x, t, noise)
        with lora(backbone, 2, 0):
            after, _ = backbone.predict(x, t, noise)
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
    settings = TrainingSettings(steps=1, rank=2, batch_size=4, strength=0.8, subject_steps=0, seed=5)
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
            prediction, target = backbone.predict(x[[0, 0]], t[rows], noise[rows])
            losses.append(((prediction - target) ** 2).mean())
        ((losses[0] + 0.8 * losses[1]) / 1.8).backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        new_optimizer(weights, settings).step()
        for name, p in weights.items():
            torch.testing.assert_close(p.detach(), trained[name], atol=1e-5, rtol=1e-3)


def test_backbone_pictures_come_in_after_the_subject_steps_and_leave_the_subject_a_part_that_falls(backbone, pictures):
    """The subject's part of the sum is subject_steps / t from there on."""
    settings = TrainingSettings(steps=400, strength=most_strength(400, 40), subject_steps=40)
    parts = [(1 + strength_at(t, settings)) * 40 / t for t in (40, 50, 100, 400)]
    assert parts == pytest.approx([1.0] * 4) and strength_at(39, settings) == 0
    settings = TrainingSettings(steps=4, rank=2, batch_size=4, subject_steps=2, seed=1)
    with lora(backbone, 2, 0) as weights:
        steps = list(train(backbone, weights, new_optimizer(weights, settings), pictures(2, 1), pictures(2, 2), settings))
    assert [s.backbone_loss is None for s in steps] == [True, True, False, False]


@pytest.mark.parametrize("batch_size", [1, 2, 4, 8])
@pytest.mark.parametrize("strength", [0.0, 0.01, 0.3, 1.0, 5.0, 16.0])
def test_a_batch_has_as_many_backbone_pictures_as_they_count(strength, batch_size):
    part = backbone_part(strength, batch_size)
    if not strength:
        assert part == 0
    else:
        nearest = min(range(batch_size + 1), key=lambda n: abs(n / batch_size - strength / (1 + strength)))
        assert part == (1 if batch_size == 1 else min(max(nearest, 1), batch_size - 1))


def test_before_backbone_pictures_come_in_a_run_is_that_of_the_subject_alone(backbone, pictures):
    settings = TrainingSettings(steps=4, rank=2, batch_size=3, subject_steps=2, seed=1)
    losses = []
    for chosen in (None, pictures(2, 2)):
        with lora(backbone, 2, 0) as weights:
            steps = list(train(backbone, weights, new_optimizer(weights, settings), pictures(2, 1), chosen, settings))
            losses.append([s.subject_loss for s in steps])
    assert losses[0][:2] == losses[1][:2] and losses[0][2] != losses[1][2]


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_the_learning_rate_goes_as_diffusers_has_it_also_in_a_run_that_goes_on(name, backbone, pictures):
    settings = TrainingSettings(steps=6, rank=2, batch_size=2, learning_rate=0.01, lr_scheduler=name, lr_warmup_steps=2)
    twin = torch.optim.SGD([torch.zeros(1)], lr=0.01)
    schedule = get_scheduler(
        name.replace("constant", "constant_with_warmup"), twin, num_warmup_steps=2, num_training_steps=6
    )
    expected = []
    for _ in range(6):
        expected.append(twin.param_groups[0]["lr"])
        twin.step()
        schedule.step()

    def rates(start: int) -> list[float]:
        with lora(backbone, 2, 0) as weights:
            optimizer = new_optimizer(weights, settings)
            steps = train(backbone, weights, optimizer, pictures(2, 1), None, settings, start)
            return [optimizer.param_groups[0]["lr"] for _ in steps]

    assert rates(0) == pytest.approx(expected) and rates(4) == pytest.approx(expected[4:])
    assert settings.subject_alone(3).lr_scheduler == "constant"


def test_weights_decide_how_often_a_backbone_picture_is_drawn(backbone, pictures):
    """With no weight on the first picture, it must not matter what that picture is."""
    settings = TrainingSettings(steps=4, rank=2, batch_size=2, subject_steps=0, seed=3)
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


# Losses of the tiny sticker backbone, from the loop as it was before other families came: changes must not change them.
FORMER_LOSSES = [1.1456257, 1.1298971, 1.1639827, 1.1406515, 1.1023339, 1.1461055, 1368.4660593]


def test_stickers_train_as_ever(backbone, pictures, monkeypatch):
    monkeypatch.setattr(loop, "strength_at", lambda step, settings: settings.strength)  # as it was for no steps alone
    monkeypatch.setattr(loop, "backbone_part", lambda strength, batch_size: 2)
    settings = TrainingSettings(steps=3, rank=2, batch_size=5, strength=0.3, subject_steps=0, seed=2)
    weights_of = torch.tensor([1.0, 2.0, 0.5])
    chosen = Encoded(pictures(3, 2).latents, pictures(3, 2).states, weights_of)
    with lora(backbone, 2, 0) as weights:
        steps = list(train(backbone, weights, new_optimizer(weights, settings), pictures(4, 1), chosen, settings))
        size = sum(float(p.detach().double().square().sum()) for p in weights.values())
    found = [value for s in steps for value in (s.subject_loss, s.backbone_loss)] + [size]
    assert found == pytest.approx(FORMER_LOSSES, rel=1e-5)


def shaped(*shapes):
    rng = torch.Generator().manual_seed(0)
    latents = tuple(torch.randn(4, *shape, generator=rng) for shape in shapes)
    return Encoded(latents, torch.randn(len(shapes), 24, 16, generator=rng))


def test_batches_are_of_one_shape_and_every_picture_is_drawn_equally_often():
    images, counts = shaped((8, 8), (8, 16), (8, 8), (8, 8), (16, 8)), torch.zeros(5)
    for step in range(2000):
        batch = _draw_subject(images, 2, step_generator(0, step))
        assert isinstance(batch.latents, torch.Tensor)
        for state in batch.states:
            counts += (images.states == state).all(-1).all(-1)
    assert counts.sum() == 4000 and (counts - 800).abs().max() < 150  # five standard deviations, at most


def test_pictures_of_several_shapes_train_and_resume_to_the_same_weights(backbone):
    settings = TrainingSettings(steps=4, rank=2, batch_size=4, subject_steps=1, seed=1)
    subject, chosen, ends = shaped((8, 8), (8, 16)), shaped((16, 8), (8, 8), (8, 16)), []
    for parts in ([(0, 4)], [(0, 2), (2, 4)]):
        with lora(backbone, 2, 0) as weights:
            optimizer = new_optimizer(weights, settings)
            for start, end in parts:
                for step in train(backbone, weights, optimizer, subject, chosen, settings, start):
                    if step.number == end:
                        break
            ends.append([p.detach().clone() for p in weights.values()])
    assert all(torch.equal(a, b) for a, b in zip(*ends))


def test_processes_add_up_to_the_step_of_one(backbone, pictures):
    """Each of three processes makes its part of the step; their gradients together are those of one process."""
    settings = TrainingSettings(steps=1, rank=2, batch_size=5, seed=4)

    class Alone(Processes):
        def add_up(self, weights, losses):
            found.append(([p.grad.clone() for p in weights], losses.clone()))

    found = []
    for together in (Alone(1, 0), *(Alone(3, rank) for rank in range(3))):
        with lora(backbone, 2, 0) as weights:
            optimizer = new_optimizer(weights, settings)
            list(train(backbone, weights, optimizer, pictures(3, 1), pictures(2, 2), settings, 0, together))
    (whole, losses), *parts = found
    for i, gradient in enumerate(whole):
        torch.testing.assert_close(sum(p[0][i] for p in parts), gradient, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(sum(p[1] for p in parts), losses)


def test_half_precision_trains_with_scaled_losses_and_float32_adapters(backbone, pictures):
    half = replace(backbone, pipeline=copy.deepcopy(backbone.pipeline).to(torch.float16))
    settings = TrainingSettings(steps=3, rank=2, batch_size=2, learning_rate=1e-2)
    images, losses = pictures(2, 0), []
    for model in (backbone, half):
        subject = Encoded(images.latents.to(model.dtype), images.states.to(model.dtype))
        with lora(model, 2, 0) as weights:
            steps = list(train(model, weights, new_optimizer(weights, settings), subject, None, settings))
            assert all(p.dtype == torch.float32 and p.isfinite().all() for p in weights.values())
            assert any(p.abs().max() > 0 for name, p in weights.items() if "lora_B" in name)
        losses.append([s.subject_loss for s in steps])
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


@pytest.mark.parametrize("rank", (0, 1))
def test_a_process_without_a_row_of_the_first_batch_trains_in_half_precision_too(rank, backbone, pictures):
    half = replace(backbone, pipeline=copy.deepcopy(backbone.pipeline).to(torch.float16))
    settings, images = TrainingSettings(steps=2, rank=2, batch_size=1), pictures(2, 0)
    subject = Encoded(images.latents.half(), images.states.half())

    class Alone(Processes):
        def add_up(self, weights, losses):
            for weight in weights:
                weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad

    with lora(half, 2, 0) as weights:
        steps = list(train(half, weights, new_optimizer(weights, settings), subject, None, settings, 0, Alone(2, rank)))
        assert len(steps) == 2 and all(p.isfinite().all() for p in weights.values())


def test_a_resumed_run_of_half_precision_ends_as_one_that_went_through(backbone, pictures, tmp_path):
    """Its losses begin at a scale at which the first gradients overflow, as they do on real GPUs now and then."""
    half = replace(backbone, pipeline=copy.deepcopy(backbone.pipeline).to(torch.float16))
    settings, images = TrainingSettings(steps=6, rank=2, batch_size=2, learning_rate=1e-2), pictures(2, 0)
    subject = Encoded(images.latents.half(), images.states.half())
    with lora(half, 2, 0) as weights:
        optimizer = new_optimizer(weights, settings)
        optimizer.param_groups[0][LOSS_SCALE] = 2.0**40
        for step in train(half, weights, optimizer, subject, None, settings):
            if step.number == 3:
                at = save_checkpoint(tmp_path, 3, half, weights, optimizer)
        scale, through = optimizer.param_groups[0][LOSS_SCALE], {n: p.detach().clone() for n, p in weights.items()}
    assert scale < 2.0**40
    with lora(half, 2, 1) as weights:
        optimizer = new_optimizer(weights, settings)
        list(train(half, weights, optimizer, subject, None, settings, restore_checkpoint(at, weights, optimizer)))
        assert optimizer.param_groups[0][LOSS_SCALE] == scale
        assert all(torch.equal(p, through[name]) for name, p in weights.items())


def test_losses_that_are_no_numbers_end_a_run_and_not_the_adapter(backbone, pictures):
    settings, images = TrainingSettings(steps=3, rank=2, batch_size=2), pictures(2, 0)
    broken = Encoded(images.latents * float("nan"), images.states)
    with lora(backbone, 2, 0) as weights:
        with pytest.raises(UserError, match="smaller learning rate"):
            list(train(backbone, weights, new_optimizer(weights, settings), broken, None, settings))
        assert all(p.isfinite().all() for p in weights.values())


def test_half_precision_goes_on_after_a_few_steps_whose_losses_overflow(backbone, pictures, monkeypatch):
    half = replace(backbone, pipeline=copy.deepcopy(backbone.pipeline).to(torch.float16))
    settings, images = TrainingSettings(steps=6, rank=2, batch_size=2), pictures(2, 0)
    broken = Encoded(images.latents.half() * float("nan"), images.states.half())
    for patience, fails in ((6, False), (5, True)):
        monkeypatch.setattr(loop, "SKIPPED", patience)
        with lora(half, 2, 0) as weights, pytest.raises(UserError) if fails else nullcontext():
            list(train(half, weights, new_optimizer(weights, settings), broken, None, settings))


def test_a_text_encoder_that_learns_stays_on_the_device_where_memory_is_scarce(photo_backbone, monkeypatch):
    backbone = replace(photo_backbone("sd15"), preset=replace(PLENTY, offload=True), device=torch.device("meta"))
    [encoder], moves = backbone.text_encoders, []
    monkeypatch.setattr(encoder, "to", lambda place: moves.append(str(place)))
    with lora(backbone, 2, 0, text_encoder=True):
        with backbone.at_work(encoder):
            pass
        assert moves == ["meta", "meta"]
    assert moves == ["meta", "meta", "cpu"]
    with backbone.at_work(encoder):
        pass
    assert moves[3:] == ["meta", "cpu"]


def test_the_first_timesteps_have_their_noise_in_bfloat16_too(backbone, pictures, monkeypatch):
    small, seen = replace(backbone, pipeline=copy.deepcopy(backbone.pipeline).to(torch.bfloat16)), {}
    images, (_, noise) = pictures(1, 0), backbone.draw(1, step_generator(0, 0))
    for model in (backbone, small):
        x = Encoded(torch.zeros_like(images.latents).to(model.dtype), images.states.to(model.dtype))
        model.unet.register_forward_pre_hook(lambda _, args, model=model: seen.update({model.dtype: args[0].float()}))
        model.predict(x, torch.tensor([2]), noise.to(model.dtype))
    torch.testing.assert_close(seen[torch.bfloat16], seen[torch.float32], rtol=0.01, atol=1e-4)


def test_attention_is_fused(backbone):
    """PyTorch's scaled_dot_product_attention, which picks flash or memory-efficient kernels."""
    assert {type(p).__name__ for p in backbone.unet.attn_processors.values()} == {"AttnProcessor2_0"}


def test_compiling_is_for_long_runs_on_gpus_alone():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert repays_compiling(cuda, 5000) and not repays_compiling(cuda, 100) and not repays_compiling(cpu, 5000)

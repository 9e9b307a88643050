"""The whole line on tiny checkpoints of Stable Diffusion 1.5, 2.1 and XL, in both file formats."""

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from bat_ui import generation
from bat_ui.albat.sketch import make_projection
from bat_ui.backbones import checkpoints
from bat_ui.cli import main
from bat_ui.evaluation.metrics import denoising_loss
from bat_ui.presets import PLENTY
from bat_ui.seeds import step_generator
from bat_ui.settings import GenerationSettings, TrainingSettings
from bat_ui.sketching import _gradient_by_draw, sketch_images
from bat_ui.subject import Subject
from bat_ui.training.loop import new_optimizer, train
from bat_ui.training.lora import lora, save_lora
from tests.tiny_models import make_pipeline, write_single_file

QUICK = ["--shortlist", "12", "--surrogate-steps", "1", "--draws", "2", "--sketch-size", "32", "--steps", "2"]
QUICK += ["--num-images", "2", "--sampling-steps", "2", "--rank", "2", "--batch-size", "2"]
QUICK += ["--validation-images=1", "--validation-steps=1"]
FAMILIES = ("sd15", "sd21", "sdxl")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Four noisy photographs of three shapes."""
    folder = tmp_path_factory.mktemp("photos")
    for i, size in enumerate([(96, 64), (64, 96), (80, 80), (96, 64)]):
        pixels = np.random.default_rng(i).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"photo{i}.png")
    return folder


@pytest.fixture(scope="module")
def store(tiny_clip_folder, tmp_path_factory):
    """A store of thirty pictures of noise with captions, by the tiny CLIP model."""
    folder = tmp_path_factory.mktemp("store")
    for i in range(30):
        pixels = np.random.default_rng(100 + i).integers(0, 255, (48, 64, 3), dtype=np.uint8)
        (folder / "pictures").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / "pictures" / f"{i:02d}.png")
        (folder / "pictures" / f"{i:02d}.txt").write_text(f"a photo of thing {i}")
    place = folder / "store"
    assert main(["ingest", str(folder / "pictures"), "--store", str(place), "--clip", str(tiny_clip_folder)]) == 0
    return place


@functools.cache
def some_photos():
    """Three photographs of noise, the same at every call."""
    return [Image.effect_noise(size, 90).convert("RGB") for size in ((40, 40), (64, 40), (40, 64))]


CAPTIONS = ["a photo of sks dog", "a dog on a beach", "two dogs"]


@pytest.mark.parametrize("family", FAMILIES)
def test_personalize_runs_from_photographs_to_samples(
    family, photos, store, photo_backbone_folders, tiny_clip_folder, tmp_path
):
    out, backbone = tmp_path / "out", photo_backbone_folders[family]
    arguments = ["personalize", str(photos), "--class-noun", "dog", "--out", str(out), "--backbone", str(backbone)]
    arguments += ["--clip", str(tiny_clip_folder), "--store", str(store)]
    assert main([*arguments, *QUICK, "--prompt", "a photo of sks dog"]) == 0
    subject = Subject.load(out / "subject")
    assert set(subject.captions) == {"a photo of sks dog"}
    assert {image.size for image in subject.images} == {(96, 64), (64, 96), (80, 80)}
    report = json.loads((out / "report.json").read_text())
    assert report["training"]["settings"]["learning_rate"] == 1e-4 and report["generation"]["settings"]["guidance"] == 7.0
    assert Image.open(out / "samples" / "000.png").size == (32, 32)
    pipeline = make_pipeline(family)
    pipeline.load_lora_weights(out / "lora")
    assert any("lora_" in name for name, _ in pipeline.unet.named_modules())


def test_a_backbone_without_pictures_of_its_own_asks_for_a_store(
    photos, photo_backbone_folders, tiny_clip_folder, tmp_path, capsys
):
    arguments = ["select", str(photos), "--class-noun", "dog", "--out", str(tmp_path / "out")]
    arguments += ["--backbone", str(photo_backbone_folders["sd15"]), "--clip", str(tiny_clip_folder)]
    assert main([*arguments, *QUICK[:8]]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: This backbone comes without pictures")
    assert main([*arguments, "--rule", "none"]) == 0


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_the_line_runs_on_a_single_file(family, photos, store, tiny_clip_folder, tiny_config_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "CONFIGS", tiny_config_folder)
    file = write_single_file(make_pipeline(family), tmp_path / "model.safetensors")
    out = tmp_path / "out"
    more = [
        "--backbone",
        str(file),
        "--clip",
        str(tiny_clip_folder),
        "--rule",
        "nearest",
        "--num-backbone",
        "3",
        "--store",
        str(store),
        "--memory=8",
    ]
    assert main(["personalize", str(photos), "--class-noun", "dog", "--out", str(out), *QUICK, *more]) == 0
    assert len(list((out / "samples").glob("*.png"))) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_that_the_pipeline_itself_draws_with(family, photo_backbone):
    backbone = photo_backbone(family)
    ours = backbone.encode(some_photos(), CAPTIONS)
    theirs = backbone.pipeline.encode_prompt(
        prompt=CAPTIONS, device=backbone.device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    torch.testing.assert_close(ours.states, theirs[0])
    assert (ours.pooled is None) == (family != "sdxl")
    if family == "sdxl":
        torch.testing.assert_close(ours.pooled, theirs[2])


def test_sizes_are_those_before_the_crop_the_crop_and_those_after_it(photo_backbone):
    backbone = photo_backbone("sdxl")  # 32 pixels, sides in steps of 8
    sizes = backbone.encode([Image.new("RGB", s) for s in ((32, 32), (100, 50), (24, 64))], CAPTIONS).sizes.tolist()
    assert sizes == [[32, 32, 0, 0, 32, 32], [50, 100, 0, 16, 32, 32], [64, 24, 26, 0, 32, 32]]
    bucketed = backbone.encode([Image.new("RGB", s) for s in ((32, 32), (90, 50), (24, 64))], CAPTIONS, bucketed=True)
    assert bucketed.sizes.tolist() == [[32, 32, 0, 0, 32, 32], [50, 90, 0, 1, 24, 40], [64, 24, 0, 1, 48, 16]]
    assert [tuple(x.shape) for x in bucketed.latents] == [(4, 16, 16), (4, 12, 20), (4, 24, 8)]


@pytest.mark.parametrize("family", FAMILIES)
def test_prediction_and_target_are_those_of_the_training_scripts(family, photo_backbone):
    """The scripts' own way, row by row: noise by alphas_cumprod, the UNet with SDXL's added conditions, epsilon or v."""
    backbone = photo_backbone(family)
    images = backbone.encode(some_photos(), CAPTIONS)
    timesteps, noise = backbone.draw(3, step_generator(0, 0))
    prediction, target = backbone.predict(images, timesteps, noise)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alphas = torch.cumprod(1 - betas, 0)
    for i, t in enumerate(timesteps):
        signal, spread = alphas[t].sqrt(), (1 - alphas[t]).sqrt()
        noisy = signal * images.latents[i] + spread * noise[i]
        added = None
        if family == "sdxl":
            added = {"text_embeds": images.pooled[i : i + 1], "time_ids": images.sizes[i : i + 1]}
        made = backbone.unet(noisy[None], t[None], images.states[i : i + 1], added_cond_kwargs=added).sample[0]
        wanted = signal * noise[i] - spread * images.latents[i] if family == "sd21" else noise[i]
        torch.testing.assert_close(prediction[i], made, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(target[i], wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text_encoder", [False, True])
def test_the_adapter_loads_back_with_equal_outputs(family, text_encoder, photo_backbone, tmp_path):
    backbone, quick = photo_backbone(family), GenerationSettings(steps=2, guidance=3.0)
    before = np.asarray(generation.generate(backbone, ["a photo of sks dog"], quick)[0], int)
    with lora(backbone, 2, 0, text_encoder) as weights:
        rng = torch.Generator().manual_seed(0)
        for p in weights.values():
            p.data += 0.3 * torch.randn(p.shape, generator=rng)
        save_lora(backbone, tmp_path)
        trained = np.asarray(generation.generate(backbone, ["a photo of sks dog"], quick)[0], int)
    if not text_encoder:
        assert not any(name.startswith("text_encoder") for name in weights)
    loaded = np.asarray(generation.generate(backbone, ["a photo of sks dog"], quick, tmp_path)[0], int)
    after = np.asarray(generation.generate(backbone, ["a photo of sks dog"], quick)[0], int)
    assert np.abs(trained - loaded).max() <= 1
    assert np.abs(before - after).max() <= 1 < np.abs(before - trained).max()


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_losses_are_the_same_with_and_without_caching(family, photo_backbone):
    """The twin encodes pictures and captions in every step, as the official scripts do."""
    backbone, settings = photo_backbone(family), TrainingSettings(steps=3, rank=2, batch_size=3, seed=1)
    images = some_photos()
    cached = backbone.encode(images, CAPTIONS)

    class Encoding(type(cached)):
        def __getitem__(self, rows):
            rows = rows.tolist()
            return backbone.encode([images[i] for i in rows], [CAPTIONS[i] for i in rows])

    fresh = Encoding(cached.latents, cached.states, None, cached.pooled, cached.sizes, cached.captions)
    losses = []
    for subject in (cached, fresh):
        with lora(backbone, 2, 0) as weights:
            optimizer = new_optimizer(weights, settings)
            losses.append([s.subject_loss for s in train(backbone, weights, optimizer, subject, None, settings)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_text_encoder_that_learns_changes_and_is_as_before_after_it(family, photo_backbone):
    backbone, settings = photo_backbone(family), TrainingSettings(steps=2, rank=2, batch_size=2, learning_rate=0.01)
    subject = backbone.encode(some_photos(), CAPTIONS)
    before = backbone.encode_captions(CAPTIONS)[0]
    with lora(backbone, 2, 0, text_encoder=True) as weights:
        list(train(backbone, weights, new_optimizer(weights, settings), subject, None, settings))
        assert not torch.allclose(before, backbone.encode_captions(CAPTIONS)[0])
        parts = {name.split(".")[0] for name in weights if name.startswith("text_encoder")}
    assert parts == ({"text_encoder", "text_encoder_2"} if family == "sdxl" else {"text_encoder"})
    assert torch.equal(before, backbone.encode_captions(CAPTIONS)[0])


@pytest.mark.parametrize("preset", [{"rows": 1}, {"rows": 2, "checkpointing": True}, {"pictures": 1, "offload": True}])
def test_what_saves_memory_changes_no_result(preset, photo_backbone):
    plain = replace(photo_backbone("sdxl"), preset=PLENTY)
    settings = TrainingSettings(steps=2, rank=2, batch_size=4)
    learned = []
    for backbone in (plain, replace(plain, preset=replace(PLENTY, **preset))):
        subject, chosen = (backbone.encode(some_photos(), CAPTIONS, bucketed=b) for b in (False, True))
        with lora(backbone, 2, 0) as weights:
            start = torch.cat([p.detach().flatten() for p in weights.values()])
            # Plain descent: AdamW would make whole steps out of rounding where a gradient is next to nothing.
            optimizer = torch.optim.SGD(weights.values(), lr=0.1)
            list(train(backbone, weights, optimizer, subject, chosen, settings))
            learned.append(torch.cat([p.detach().flatten() for p in weights.values()]) - start)
    assert (learned[1] - learned[0]).norm() < 1e-3 * learned[0].norm()


@pytest.mark.parametrize("preset", [{"rows": 1}, {"rows": 3, "checkpointing": True}])
def test_sketches_and_losses_keep_to_the_preset_and_are_the_same(preset, photo_backbone):
    plain, asked = replace(photo_backbone("sdxl"), preset=PLENTY), []
    careful = replace(plain, preset=replace(PLENTY, **preset))
    draw = plain.draw(4, step_generator(0, 0))
    images = plain.encode(some_photos(), CAPTIONS)

    def everything(backbone):
        backbone.unet.register_forward_hook(lambda _, __, output: asked.append(len(output.sample)))
        with lora(backbone, 2, 0) as weights:
            rng = torch.Generator().manual_seed(1)
            for p in weights.values():
                p.data += 0.1 * torch.randn(p.shape, generator=rng)
            projection = make_projection(backbone.unet, 64, 0)
            keys = torch.arange(len(images))
            for vectors, kind in ((1, "fisher"), (2, "gauss_newton")):
                yield from sketch_images(backbone, images, keys, draw, projection, vectors, kind, 0)
            yield _gradient_by_draw(backbone, images, draw, projection)
            yield denoising_loss(backbone, images, draw)

    whole = list(everything(plain))
    assert max(asked) > preset["rows"]
    asked.clear()
    for one, other in zip(whole, everything(careful), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-5)
    assert max(asked) == preset["rows"]


@pytest.mark.gpu
@pytest.mark.parametrize("memory", ["8", "24"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_line_runs_on_a_gpu_in_half_precision(
    family, memory, photos, store, photo_backbone_folders, tiny_clip_folder, tmp_path
):
    out, backbone = tmp_path / "out", photo_backbone_folders[family]
    more = [f"--backbone={backbone}", f"--clip={tiny_clip_folder}", f"--store={store}", f"--memory={memory}", *QUICK]
    assert main(["personalize", str(photos), "--class-noun=dog", f"--out={out}", *more]) == 0
    losses = [json.loads(row) for row in (out / "losses.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["subject"]) for row in losses)

"""The build, a few steps a stage: what it leaves is what ordinary loaders load, and starting it again changes nothing."""

import json

import numpy as np
import open_clip
import pytest
import torch
from diffusers import StableDiffusionPipeline

from bat_ui.backbones.sticker import build, data, train_autoencoder, train_clip, train_unet
from bat_ui.clip_space import ClipSpace


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    for module in (train_clip, train_autoencoder, train_unet):
        patch.setattr(module, "BATCH", 8)
    few = data.load_stickers()[::100]
    patch.setattr(data, "training_stickers", lambda: few)
    patch.setattr(data, "recall_holdout", lambda stickers: set())
    work, out = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("out")
    settings = build.BuildSettings(*[0.01] * 4)
    build.build_sticker(settings, work, out)
    yield work, out, settings
    patch.undo()


def test_the_pipeline_folder_loads_and_draws(built):
    pipeline = StableDiffusionPipeline.from_pretrained(built[1] / "pipeline", use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    pictures = pipeline("a flat sticker of sks cat", num_inference_steps=2, num_images_per_prompt=2).images
    assert [p.size for p in pictures] == [(64, 64)] * 2


def test_the_text_encoder_is_the_clip_models_text_tower(built):
    folder = built[1]
    model = open_clip.create_model(f"local-dir:{folder / 'clip'}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder / 'clip'}")(["a flat sticker of sks cat", "an outlined sticker"])
    encoder = StableDiffusionPipeline.from_pretrained(folder / "pipeline").text_encoder
    with torch.no_grad():
        expected = model.encode_text(tokens)
        found = encoder(tokens).pooler_output @ model.text_projection
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_all_weights_are_half_precision_safetensors_of_at_most_60_megabytes(built):
    files = [p for p in built[1].rglob("*") if p.is_file()]
    weights = [p for p in files if p.suffix == ".safetensors"]
    assert len(weights) == 4 and not [p for p in files if p.suffix in (".bin", ".pt", ".ckpt", ".pkl")]
    assert sum(p.stat().st_size for p in weights) < 60e6


def test_latents_are_the_principal_components_of_patches(built):
    """Against NumPy's own singular values of the same 4 x 4 patches."""
    pipeline = StableDiffusionPipeline.from_pretrained(built[1] / "pipeline")
    pictures = build.cached_pictures(data.training_stickers(), built[0])
    latents = build.encode_pictures(pipeline.vae, pictures).permute(0, 2, 3, 1).reshape(-1, 16).double()
    patches = (pictures / 255).reshape(-1, 16, 4, 16, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 48)
    deviations = np.linalg.svd(patches - patches.mean(0), compute_uv=False)[:16] / len(patches) ** 0.5
    expected = deviations**0.5 / np.sqrt(np.mean(deviations))  # half whitened, variance 1 over all channels
    covariance = torch.cov(latents.T, correction=0).numpy()
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), expected, rtol=0.02)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 0.01
    assert latents.mean(0).abs().max() < 0.01


def test_the_clip_folder_is_a_clip_space(built):
    clip = ClipSpace.load(built[1] / "clip")
    assert clip.embed_images([data.render(data.training_stickers()[0])]).shape == (1, 192)


def test_started_again_it_trains_no_further(built):
    work, out, settings = built
    before = json.loads((out / "build.json").read_text())["stages"] if (out / "build.json").exists() else None
    weights = (out / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    build.build_sticker(settings, work, out)
    assert (out / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == weights
    assert json.loads((out / "build.json").read_text())["stages"] == before


def test_built_weights_go_on_in_another_folder(built, tmp_path):
    """Of all the stages only the UNet trains on, its time counted from where it was; the others' weights stay."""
    record = json.loads((built[1] / "build.json").read_text())["stages"]
    build.unpack(built[1], tmp_path / "work")
    unet_minutes = record["unet"]["minutes"] + 0.02
    build.build_sticker(build.BuildSettings(*[0.01] * 3, unet_minutes), tmp_path / "work", tmp_path / "out")
    after = json.loads((tmp_path / "out" / "build.json").read_text())["stages"]
    assert after["unet"]["step"] > record["unet"]["step"]
    assert after["unet"]["minutes"] == pytest.approx(unet_minutes, abs=0.1)
    assert {name: after[name] for name in build.STAGES[:3]} == {name: record[name] for name in build.STAGES[:3]}
    for part, same in (("vae", True), ("text_encoder", True), ("unet", False)):
        [before] = (built[1] / "pipeline" / part).glob("*.safetensors")
        [now] = (tmp_path / "out" / "pipeline" / part).glob("*.safetensors")
        assert (before.read_bytes() == now.read_bytes()) == same
    name = "clip/open_clip_model.safetensors"
    assert (built[1] / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_the_model_card_names_data_families_time_and_limits(built):
    card = (built[1] / "README.md").read_text()
    for word in ("CC BY-SA 4.0", "CC BY 4.0", "cat-faces", "1f638", "minutes", "Hardware", "## Limits"):
        assert word in card

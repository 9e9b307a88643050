import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from bat_ui.backbones.sticker.tokenizer import build_tokenizer
from bat_ui.clip_space import ClipSpace
from bat_ui.errors import UserError

TEXTS = ["a red cat", "two blue dogs", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny CLIP model with random weights in open_clip's local-dir format, stored in half precision."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = build_tokenizer(TEXTS)
    tokenizer.save_pretrained(folder)
    config = {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {
            "context_length": 8,
            "vocab_size": len(tokenizer),
            "hf_tokenizer_name": "local",
            "width": 16,
            "heads": 2,
            "layers": 1,
        },
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.CLIP(**config)
    save_file({k: v.half() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    return folder


@pytest.fixture(scope="module")
def clip(folder):
    return ClipSpace.load(folder)


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    sizes = [(32, 32), (50, 90), (7, 3), (1, 1)]
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


def test_pictures_are_embedded_as_open_clip_itself_does(folder, clip, pictures):
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    with torch.no_grad():
        expected = torch.cat([model.eval().encode_image(preprocess(p)[None]) for p in pictures])
    expected = expected / expected.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(clip.embed_images(pictures).numpy(), expected.numpy(), atol=1e-5)


def test_texts_are_embedded_as_open_clip_itself_does(folder, clip):
    model, tokenizer = open_clip.create_model(f"local-dir:{folder}"), open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.no_grad():
        expected = model.eval().encode_text(tokenizer(TEXTS))
    expected = expected / expected.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(clip.embed_texts(TEXTS).numpy(), expected.numpy(), atol=1e-5)


def test_vectors_are_unit_float32_rows_that_autograd_can_use(clip, pictures):
    for vectors in (clip.embed_images(pictures), clip.embed_texts(TEXTS)):
        assert vectors.shape[1] == clip.dim == 12
        assert vectors.dtype == torch.float32 and vectors.device.type == "cpu" and not vectors.requires_grad
        np.testing.assert_allclose(vectors.norm(dim=1).numpy(), 1, atol=1e-6)
        weight = torch.ones(12, requires_grad=True)
        (vectors @ weight).sum().backward()
        assert torch.allclose(weight.grad, vectors.sum(0))


def test_batches_do_not_change_the_result(clip, pictures):
    many = [pictures[i % 4] for i in range(130)]
    alone = torch.cat([clip.embed_images([p]) for p in pictures])
    np.testing.assert_allclose(clip.embed_images(many).numpy(), alone[torch.arange(130) % 4].numpy(), atol=1e-5)


def test_nothing_gives_no_rows(clip):
    assert clip.embed_images([]).shape == (0, 12)
    assert clip.embed_texts([]).shape == (0, 12)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P", "1", "CMYK", "I;16"])
def test_pictures_of_any_mode_are_taken(clip, mode):
    assert torch.isfinite(clip.embed_images([Image.new(mode, (40, 20))])).all()


def test_transparency_is_seen_as_white(clip):
    clear = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    clear.paste((200, 30, 30, 255), (8, 8, 24, 24))
    white = Image.new("RGB", (32, 32), "white")
    white.paste((200, 30, 30), (8, 8, 24, 24))
    assert torch.equal(clip.embed_images([clear]), clip.embed_images([white]))


def test_the_digest_tells_weights_apart(folder, clip):
    again = ClipSpace.load(f"local-dir:{folder}")
    assert again.digest == clip.digest
    changed = ClipSpace.load(folder)
    next(changed.model.parameters()).data.view(-1)[0] += 1
    assert changed.digest != clip.digest


def test_a_folder_with_pickled_weights_only_is_refused(folder, tmp_path):
    (tmp_path / "open_clip_config.json").write_text((folder / "open_clip_config.json").read_text())
    torch.save({}, tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(UserError, match="open_clip_model.safetensors"):
        ClipSpace.load(tmp_path)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("/no/such/folder", "neither a folder nor"),
        ("local-dir:/no/such/folder", "has no open_clip_config.json"),
        ("ViT-B-33:laion2b", "neither a folder nor"),
        ("ViT-B-32", "ViT-B-32:TAG"),  # would be random weights
        ("ViT-B-32:nonsense", "laion2b_s34b_b79k"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_a_sentence(source, says):
    with pytest.raises(UserError, match=says):
        ClipSpace.load(source)


def test_broken_weights_are_said_in_a_sentence(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match="could not be loaded"):
        ClipSpace.load(tmp_path)

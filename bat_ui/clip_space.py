"""CLIP space: pictures and texts as unit vectors whose dot product says how alike they are.

In: any open_clip model, named or in a local folder (safetensors only).  Out: float32 vectors on the CPU, one row each.
Left out on purpose: training, and any say in what is near enough; that is the store's and the selection's business.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError

from bat_ui.errors import UserError, in_one_line

BATCH = 64
LOCAL = "local-dir:"  # open_clip's scheme for a folder
HUB = "hf-hub:"  # open_clip's scheme for a repository on the Hugging Face hub
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


class ClipSpace:
    """One loaded CLIP model, in evaluation mode and float32; make it with `ClipSpace.load`."""

    def __init__(
        self,
        model: torch.nn.Module,
        preprocess: Callable[[Image.Image], torch.Tensor],
        tokenizer: Callable,
        device: str | torch.device,
        source: str = "",
    ):
        self.model, self.preprocess, self.tokenizer = model.eval().requires_grad_(False), preprocess, tokenizer
        self.device, self.source = torch.device(device), source

    @classmethod
    def load(cls, source: str | Path, device: str | torch.device = "cpu") -> ClipSpace:
        """Load a local folder in open_clip's local-dir format, or a model by its open_clip name.

        `source` is a folder with open_clip_config.json, open_clip_model.safetensors and a tokenizer; `NAME:PRETRAINED`
        as open_clip lists them, such as 'ViT-B-32:laion2b_s34b_b79k'; or 'hf-hub:OWNER/REPOSITORY'.  Named weights are
        downloaded on first use.  Raises UserError if there is no such model or its weights cannot be read.
        """
        import open_clip  # here, since it takes seconds to import and the page should be up before

        name, pretrained = _resolve(str(source), open_clip)
        try:
            model, preprocess = open_clip.create_model_from_pretrained(name, pretrained, device=device)
            tokenizer = open_clip.get_tokenizer(name)
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as e:
            raise UserError(f"The CLIP model '{source}' could not be loaded: {in_one_line(e, 300)}") from e
        return cls(model, preprocess, tokenizer, device, str(source))

    @cached_property
    def dim(self) -> int:
        """Length d of every vector."""
        return self.embed_texts(["a picture"]).shape[1]

    @cached_property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of the weights and the picture preprocessing: equal digests give equal vectors."""
        digest = hashlib.sha256(repr(self.preprocess).encode())
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def embed_images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Unit vectors (n, d), float32 on the CPU, of pictures of any size and mode; transparency is seen on white."""
        return self._embed(images, lambda batch: torch.stack([self.preprocess(_on_white(i)) for i in batch]), "image")

    @torch.no_grad()
    def embed_prepared(self, batch: torch.Tensor) -> torch.Tensor:
        """Unit vectors (n, d), float32 on the CPU, of pictures (n, 3, size, size) that went through `preprocess`."""
        return self.model.encode_image(batch.to(self.device), normalize=True).float().cpu()

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit vectors (n, d), float32 on the CPU; what exceeds the model's context length is cut off."""
        return self._embed(texts, self.tokenizer, "text")

    @torch.no_grad()
    def _embed(self, items: Sequence, prepare: Callable, tower: str) -> torch.Tensor:
        if not items:
            return torch.empty(0, self.dim)
        encode = getattr(self.model, f"encode_{tower}")
        batches = (prepare(list(items[i : i + BATCH])).to(self.device) for i in range(0, len(items), BATCH))
        return torch.cat([encode(batch, normalize=True).float().cpu() for batch in batches])


def _resolve(source: str, open_clip) -> tuple[str, str | None]:
    """open_clip's model name and pretrained tag; refuses what would end in random or pickled weights."""
    folder = Path(source.removeprefix(LOCAL))
    if source.startswith(LOCAL) or folder.is_dir():
        missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
        if missing:
            raise UserError(f"The CLIP folder '{folder}' has no {' and no '.join(missing)}.")
        return f"{LOCAL}{folder}", None
    if source.startswith(HUB):
        return source, None
    name, _, pretrained = source.partition(":")
    if name not in open_clip.list_models():
        raise UserError(f"'{source}' is neither a folder nor a CLIP model that open_clip knows, such as ViT-B-32.")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained not in tags:
        raise UserError(f"Name the weights of {name} as '{name}:TAG', with TAG one of: {', '.join(tags) or 'none'}.")
    return name, pretrained


def _on_white(image: Image.Image) -> Image.Image:
    """RGB; transparent parts become white, as open_clip's own conversion would make them black."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")

"""Checkpoint files: what kind of model a folder or file holds, and the pipeline in it; never unpickled, never fetched.

In: a diffusers folder, or one .safetensors file with Stability's original key names.  Out: a diffusers pipeline and its
family.  A file is looked through by its header before a weight is read, so that a wrong one is refused in one sentence.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.loaders.single_file_utils import SingleFileComponentError
from safetensors import SafetensorError, safe_open
from transformers import CLIPTokenizer

from bat_ui.errors import UserError, in_one_line
from bat_ui.pictures import shown_name
from bat_ui.settings import PREDICTIONS

CONFIGS = Path(__file__).parent / "configs"  # of single files, one diffusers folder without weights for each family
PICKLED = (".ckpt", ".bin", ".pt", ".pth", ".pkl")
MODEL_FILES = (".safetensors", *PICKLED)
WEIGHTS = ("unet", "vae", "text_encoder", "text_encoder_2")
HALF = ".fp16"  # in the names of files in half precision, shards and their index included
UNET = "model.diffusion_model."
ZERO_TERMINAL = "ztsnr"  # a marker of SDXL checkpoints, as v_pred is
FIRST_CONVOLUTION = UNET + "input_blocks.0.0.weight"
PIPELINES = {"StableDiffusionPipeline": StableDiffusionPipeline, "StableDiffusionXLPipeline": StableDiffusionXLPipeline}
ENCODERS = {  # of each family's single files: the beginning of a key that no other family has
    "sdxl": "conditioner.embedders.1.model.",
    "sd21": "cond_stage_model.model.",
    "sd15": "cond_stage_model.transformer.",
}


@dataclass(frozen=True)
class Found:
    """What a checkpoint is: its family (sd15, sd21, sdxl), what its UNet predicts, and whether it was trained on a schedule
    that ends in pure noise (zero terminal SNR)."""

    family: str
    prediction: str
    zero_terminal: bool = False


def load_pipeline(source: Path, dtype: torch.dtype, prediction: str | None = None):
    """The pipeline in a diffusers folder or .safetensors file, on the CPU, and its family.

    `prediction` overrides what the checkpoint says of itself.  Raises UserError for whatever is no complete
    Stable Diffusion 1.5, 2.1 or XL.
    """
    if prediction not in (None, *PREDICTIONS):
        raise UserError(f'There is no prediction type "{prediction}": choose {" or ".join(PREDICTIONS)}.')
    with quiet():
        pipeline, found = (_from_folder if source.is_dir() else _from_file)(source, dtype)
        predicted = prediction or found.prediction
        if predicted not in PREDICTIONS:
            raise UserError(f'{shown_name(source)} predicts "{predicted}": only {" and ".join(PREDICTIONS)} are supported.')
        said = {"prediction_type": predicted}
        if found.zero_terminal:
            said |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        if any(pipeline.scheduler.config.get(key) != value for key, value in said.items()):
            pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **said)
        if found.family == "sd21" and predicted == "epsilon" and source.is_file():
            pipeline.unet.register_to_config(sample_size=64)  # the 512 pixel version, otherwise the same
    return pipeline, found.family


def check_source(source: Path) -> None:
    """Raises UserError for what can be told to be no backbone without reading its weights."""
    _kind_of_folder(source) if source.is_dir() else recognise(source)


def _check_file(source: Path) -> None:
    """Raises UserError for a kind of file that can hold code, that is none of ours, or that is not there."""
    name = shown_name(source)
    if source.suffix.lower() in PICKLED:
        raise UserError(f"{name} is a pickle file, which can run code when it is opened: use its .safetensors version.")
    if source.suffix.lower() != ".safetensors":
        raise UserError(f"{name} is no model: give a diffusers folder or a .safetensors file.")
    if not source.is_file():
        raise UserError(f'There is no file "{source}": check the path.')


def recognise(source: Path) -> Found:
    """What the .safetensors file `source` holds, by its header alone.  Raises UserError if it is no backbone."""
    _check_file(source)
    name = shown_name(source)
    try:
        with safe_open(source, "pt") as file:
            keys, metadata = set(file.keys()), file.metadata() or {}
            channels = file.get_slice(FIRST_CONVOLUTION).get_shape()[1] if FIRST_CONVOLUTION in keys else None
    except (SafetensorError, OSError) as problem:
        raise UserError(f"{name} cannot be read as a .safetensors file: download it again.") from problem
    if any("lora" in key or ".hada_" in key or "lokr_" in key for key in keys):
        raise UserError(f"{name} is a LoRA, which is added to a backbone: give the backbone that it was trained for.")
    if any(key.startswith(("control_model.", "controlnet_")) for key in keys):
        raise UserError(f"{name} is a ControlNet, not a backbone: give a Stable Diffusion 1.5, 2.1 or XL checkpoint.")
    if channels is None:
        raise UserError(f"{name} is no Stable Diffusion 1.5, 2.1 or XL checkpoint: other models are not supported.")
    if channels != 4:
        kind = {9: "an inpainting model", 8: "a picture-editing model", 5: "a depth model"}.get(channels, "a special model")
        raise UserError(f"{name} is {kind}, whose UNet takes {channels} channels: give the plain text-to-image version.")
    family = next((f for f, start in ENCODERS.items() if any(key.startswith(start) for key in keys)), None)
    if family is None:
        if any(key.startswith("conditioner.embedders.0.model.") for key in keys):
            raise UserError(f"{name} is the SDXL refiner: give the SDXL base checkpoint.")
        raise UserError(f"{name} has no text encoder that is known: give the full checkpoint, not the UNet alone.")
    if not any(key.startswith("first_stage_model.") for key in keys):
        raise UserError(f"{name} has no autoencoder: give the full checkpoint, not the UNet alone.")
    return Found(family, _prediction(family, source.stem.lower(), keys, metadata), zero_terminal=ZERO_TERMINAL in keys)


def _prediction(family: str, stem: str, keys: set[str], metadata: dict[str, str]) -> str:
    """What a single file's UNet predicts.  Nothing in the weights tells; so its metadata, its marker, its name do."""
    said = metadata.get("modelspec.prediction_type", "")
    if said:
        return {"v": "v_prediction"}.get(said, said)
    if "v_pred" in keys:  # the marker that SDXL checkpoints with v prediction carry
        return "v_prediction"
    if family == "sd21":
        return "epsilon" if "base" in stem or "512" in stem else "v_prediction"
    return "epsilon"


def _from_file(source: Path, dtype: torch.dtype):
    found = recognise(source)
    xl = found.family == "sdxl"
    # The first tokenizer of SD 1.5 and SDXL pads with its end token, those of the OpenCLIP encoders with "!".
    parts = {"tokenizer": clip_tokenizer("!" if found.family == "sd21" else "<|endoftext|>")}
    if xl:
        parts["tokenizer_2"] = clip_tokenizer("!")
    else:
        parts |= {"safety_checker": None, "feature_extractor": None}
    kind = StableDiffusionXLPipeline if xl else StableDiffusionPipeline
    try:
        pipeline = kind.from_single_file(
            str(source), config=str(CONFIGS / found.family), dtype=dtype, local_files_only=True, **parts
        )
    except (ValueError, KeyError, RuntimeError, OSError, SingleFileComponentError) as problem:
        said = in_one_line(problem)
        raise UserError(f"{shown_name(source)} is not a complete {found.family} checkpoint: {said}") from problem
    _check_complete(pipeline, shown_name(source))
    return pipeline, found


def _check_complete(pipeline, name: str) -> None:
    """Raises UserError where a file had no values for some weights."""
    for part, module in _parts(pipeline):
        lacking = [key for key, value in module.state_dict().items() if value.is_meta]
        if lacking:
            raise UserError(f"{name} is not complete: its {part} lacks {lacking[0]}. Download it again.")


def _check_text_encoders(pipeline, source: Path) -> None:
    """Raises UserError for a folder's text encoder that was given random numbers in place of weights it has no file of."""
    for part, module in _parts(pipeline):
        files = list((source / part).glob("*.safetensors"))
        if not part.startswith("text_encoder") or not files:
            continue
        found = set()
        for path in files:
            with safe_open(path, "pt") as file:
                found |= {key.replace("text_model.", "") for key in file.keys()}
        wanted = {key.replace("text_model.", "") for key in module.state_dict()}
        unknown = {key for key in found - wanted if not key.endswith("position_ids")}
        if wanted - found and not unknown:  # else they go by other names, which the library knows
            lacking = min(wanted - found)
            raise UserError(f"{shown_name(source)} is not complete: its {part} lacks {lacking}. Download it again.")


def _parts(pipeline) -> Iterator[tuple[str, torch.nn.Module]]:
    for part in WEIGHTS:
        if (module := getattr(pipeline, part, None)) is not None:
            yield part, module


def _kind_of_folder(source: Path) -> type:
    """The pipeline that a diffusers folder says it is.  Raises UserError for any other folder."""
    name = shown_name(source)
    try:
        index = json.loads((source / "model_index.json").read_text(encoding="utf-8"))
        return PIPELINES[index["_class_name"]]
    except FileNotFoundError as problem:
        raise UserError(f"{name} has no model_index.json: give a diffusers folder or a .safetensors file.") from problem
    except (ValueError, KeyError, TypeError) as problem:
        raise UserError(f"{name} is no plain Stable Diffusion 1.5, 2.1 or XL: other models are not supported.") from problem


def _from_folder(source: Path, dtype: torch.dtype):
    name, kind = shown_name(source), _kind_of_folder(source)
    weights = {part: [p.name for p in (source / part).glob("*.safetensors")] for part in WEIGHTS}
    if not weights["unet"]:
        raise UserError(f"{name} has no .safetensors weights in unet: pickled ones are not opened, since they can run code.")
    only_half = (names and all(HALF in name for name in names) for names in weights.values())
    options = {"variant": "fp16"} if any(only_half) else {}
    if kind is StableDiffusionPipeline:
        options |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    try:
        pipeline = kind.from_pretrained(source, dtype=dtype, use_safetensors=True, local_files_only=True, **options)
    except (ValueError, KeyError, RuntimeError, OSError, TypeError, SafetensorError) as problem:
        said = in_one_line(problem)
        raise UserError(f"{name} is not a complete diffusers folder: {said}") from problem
    if pipeline.unet.config.in_channels != pipeline.vae.config.latent_channels:
        raise UserError(f"{name} is an inpainting or editing model: give the plain text-to-image version of it.")
    _check_complete(pipeline, name)
    _check_text_encoders(pipeline, source)
    _check_tokenizers(pipeline, name)
    if kind is StableDiffusionXLPipeline:
        if pipeline.text_encoder is None:
            raise UserError(f"{name} is the SDXL refiner: give the SDXL base model.")
        family = "sdxl"
    else:
        family = "sd21" if pipeline.unet.config.use_linear_projection else "sd15"
    return pipeline, Found(family, pipeline.scheduler.config.prediction_type)


def _check_tokenizers(pipeline, name: str) -> None:
    """Raises UserError for a tokenizer with fewer words than its text encoder, such as one whose word list is missing.

    It would be opened all the same, and make one and the same of all captions.
    """
    for number in ("", "_2"):
        tokenizer, encoder = (getattr(pipeline, part + number, None) for part in ("tokenizer", "text_encoder"))
        if encoder is not None and (tokenizer is None or len(tokenizer) < encoder.config.vocab_size):
            part = f"tokenizer{number}"
            raise UserError(f"{name} has an incomplete {part}: fetch the model again, from the hub with --download.")


def clip_tokenizer(pad: str) -> CLIPTokenizer:
    """The tokenizer of every CLIP text encoder, out of the word list in the open_clip package."""
    import open_clip

    with gzip.open(Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz", "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    letters = list(open_clip.tokenizer.bytes_to_unicode().values())
    words = letters + [letter + "</w>" for letter in letters] + ["".join(merge) for merge in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({word: i for i, word in enumerate(words)}, merges, pad_token=pad, model_max_length=77)


@contextmanager
def quiet() -> Iterator[None]:
    """No loading bars, and no warnings about parts that are left out or of another class than usual."""
    libraries = (diffusers.utils.logging, transformers.utils.logging)
    levels = [library.get_verbosity() for library in libraries]
    bars = [library.is_progress_bar_enabled() for library in libraries]
    try:
        for library in libraries:
            library.set_verbosity_error()
            library.disable_progress_bar()
        yield
    finally:
        for library, level, bar in zip(libraries, levels, bars):
            library.set_verbosity(level)
            if bar:
                library.enable_progress_bar()

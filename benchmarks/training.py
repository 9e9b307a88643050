"""Steps a second and peak memory of our training beside diffusers' official DreamBooth LoRA script.

    python benchmarks/training.py [--quick] [--cases sd15,sdxl:small] [--batch 1] [--steps 50] [--rounds 3]

Both train the same LoRA (rank, targets, batch, resolution, precision) on the same pictures and the same randomly
initialised model, each in a process of its own, turn about.  The peer's step is the published script's (examples/
dreambooth/train_dreambooth_lora.py and its SDXL sister, defaults): pictures are read and encoded in every step, captions,
too, under accelerate.  A case is a family at its own size or, with :small, with a tenth of the channels.  Writes
docs/benchmarks/training.md and .json; --quick takes one small model and a few steps and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import record
import torch
from PIL import Image

from bat_ui.backbones import LORA_TARGETS, PHOTO_CLIP
from bat_ui.backbones.checkpoints import CONFIGS, clip_tokenizer
from bat_ui.backbones.stable_diffusion import Backbone
from bat_ui.hardware import best_device, best_dtype, gigabytes
from bat_ui.presets import choose_preset
from bat_ui.settings import TrainingSettings
from bat_ui.subject import TEMPLATE
from bat_ui.training.loop import new_optimizer, train
from bat_ui.training.lora import lora

RANK, PICTURES, WARM_UP = 4, 6, 3
FASTER = 1.3  # times the peer's speed, which is wanted
CAPTION = "a photo of sks dog"
SMALL = {"channels": 10, "width": 64, "pixels": 64}  # channels divided by, width of text states, resolution
ON_CPU, ON_GPU = ("sd15:small", "sd21:small", "sdxl:small", "sd15"), ("sd15", "sd21", "sdxl")
LARGE_ON_CPU = {"steps": 4, "rounds": 1}  # a step takes half a minute there


def random_pipeline(family: str, small: bool, dtype: torch.dtype, device: torch.device):
    """A model of the family's own architecture, without trained weights."""
    from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
    from diffusers import UNet2DConditionModel as UNet
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    def config(part: str) -> dict:
        return json.loads((CONFIGS / family / part / "config.json").read_text(encoding="utf-8"))

    xl = family == "sdxl"
    unet, vae, text = config("unet"), config("vae"), config("text_encoder")
    second = config("text_encoder_2") if xl else None
    if small:
        unet["block_out_channels"] = [c // SMALL["channels"] for c in unet["block_out_channels"]]
        unet["attention_head_dim"] = 4
        unet["sample_size"] = SMALL["pixels"] // 8
        vae["block_out_channels"] = [c // 4 for c in vae["block_out_channels"]]
        for part in filter(None, (text, second)):
            part |= {
                "hidden_size": SMALL["width"],
                "intermediate_size": 4 * SMALL["width"],
                "projection_dim": SMALL["width"],
            }
            part |= {"num_attention_heads": 2, "num_hidden_layers": 4}
        unet["cross_attention_dim"] = SMALL["width"] * (2 if xl else 1)
        if xl:
            unet["projection_class_embeddings_input_dim"] = SMALL["width"] + 6 * unet["addition_time_embed_dim"]
    torch.manual_seed(0)
    with device:
        parts = {"unet": UNet.from_config(unet), "vae": AutoencoderKL.from_config(vae)}
        parts["text_encoder"] = CLIPTextModel(CLIPTextConfig(**text))
        if xl:
            parts["text_encoder_2"] = CLIPTextModelWithProjection(CLIPTextConfig(**second))
    parts = {name: part.to(dtype) for name, part in parts.items()}
    noise = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "steps_offset": 1,
    }
    parts |= {"tokenizer": clip_tokenizer("<|endoftext|>"), "scheduler": DDPMScheduler(**noise)}
    if xl:
        return StableDiffusionXLPipeline(**parts, tokenizer_2=clip_tokenizer("!"))
    return StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def ours(pipeline, args: argparse.Namespace, pictures: list[Path]):
    """Yields after every step of our loop, with all that it needs beforehand: encoding is in the first one's time."""
    device = pipeline.unet.device
    preset = choose_preset(args.family, args.memory, gigabytes(device))
    parts = {"caption_template": TEMPLATE, "lora_targets": LORA_TARGETS, "clip_source": PHOTO_CLIP}
    backbone = Backbone("random", args.family, pipeline, device, preset=preset, **parts)
    subject = backbone.encode([Image.open(path).convert("RGB") for path in pictures], [CAPTION] * len(pictures))
    settings = TrainingSettings(steps=args.steps + WARM_UP, rank=RANK, batch_size=args.batch, learning_rate=1e-4)
    with lora(backbone, RANK, 0) as weights:
        yield from train(backbone, weights, new_optimizer(weights, settings, preset), subject, None, settings)


def peer(pipeline, args: argparse.Namespace, pictures: list[Path]):
    """Yields after every step as the published script makes it."""
    from accelerate import Accelerator
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig
    from torchvision import transforms

    dtype = pipeline.unet.dtype
    mixed = {torch.float16: "fp16", torch.bfloat16: "bf16"}.get(dtype, "no")
    accelerator = Accelerator(mixed_precision=mixed, cpu=pipeline.unet.device.type == "cpu")
    noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    unet, vae = pipeline.unet, pipeline.vae
    encoders = [e for e in (pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)) if e is not None]
    for part in (unet, vae, *encoders):
        part.requires_grad_(False)
    targets = ["to_k", "to_q", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=targets))
    cast_training_params([unet], dtype=torch.float32)
    parameters = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    side = unet.config.sample_size * pipeline.vae_scale_factor
    steps = [transforms.Resize(side, interpolation=transforms.InterpolationMode.BILINEAR), transforms.RandomCrop(side)]
    prepare = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])

    class Photos(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, i: int):
            pixels = prepare(Image.open(pictures[i]).convert("RGB"))
            tokenize = {"truncation": True, "padding": "max_length", "max_length": 77, "return_tensors": "pt"}
            return pixels, pipeline.tokenizer(CAPTION, **tokenize).input_ids[0]

    loader = torch.utils.data.DataLoader(Photos(), batch_size=args.batch, shuffle=True)
    lr_scheduler = get_scheduler("constant", optimizer=optimizer)
    unet, optimizer, loader, lr_scheduler = accelerator.prepare(unet, optimizer, loader, lr_scheduler)
    added = None
    if len(encoders) > 1:  # the SDXL script encodes its one prompt before the loop
        backbone_states = pipeline.encode_prompt(CAPTION, device=accelerator.device, do_classifier_free_guidance=False)
        prompt, pooled = backbone_states[0], backbone_states[2]
        ids = torch.tensor([[side, side, 0, 0, side, side]], device=accelerator.device, dtype=dtype)
        added = pooled, ids
    unet.train()
    done = 0
    while True:
        for pixels, tokens in loader:
            with accelerator.accumulate(unet):
                latents = vae.encode(pixels.to(dtype=dtype)).latent_dist.sample() * vae.config.scaling_factor
                noise = torch.randn_like(latents)
                count = len(latents)
                timesteps = torch.randint(0, 1000, (count,), device=latents.device).long()
                noisy = noise_scheduler.add_noise(latents, noise, timesteps)
                if added is None:
                    states, conditions = encoders[0](tokens)[0], None
                else:
                    states = prompt.repeat(count, 1, 1)
                    conditions = {"text_embeds": added[0].repeat(count, 1), "time_ids": added[1].repeat(count, 1)}
                prediction = unet(noisy, timesteps, states, added_cond_kwargs=conditions).sample
                loss = torch.nn.functional.mse_loss(prediction.float(), noise.float(), reduction="mean")
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                lr_scheduler.step()
                optimizer.zero_grad()
            loss.detach().item()
            yield loss
            done += 1
            if done == args.steps + WARM_UP:
                return


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Steps a second and peak memory in GB of one contender, in this process."""
    device = best_device()
    dtype = best_dtype(device)
    with tempfile.TemporaryDirectory() as folder:
        pictures = []
        for i in range(PICTURES):
            pictures.append(Path(folder) / f"{i}.jpg")
            side = 2 * SMALL["pixels"] if args.small else 1536
            pixels = np.random.default_rng(i).integers(0, 255, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(pictures[-1], quality=90)
        pipeline = random_pipeline(args.family, args.small, dtype, device)
        began, marks = time.perf_counter(), []
        for _ in {"ours": ours, "peer": peer}[args.only](pipeline, args, pictures):
            if device.type == "cuda":
                torch.cuda.synchronize()
            marks.append(time.perf_counter())
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated() / 1e9
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    steady = np.diff(marks[WARM_UP - 1 :])
    return {"steps_per_s": 1 / float(np.mean(steady)), "peak_gb": memory, "whole_run_s": marks[-1] - began}


def compare(family: str, small: bool, batch: int, steps: int, rounds: int, memory: str) -> dict[str, list[dict]]:
    """Each contender's runs, turn about, so that whatever else the machine does strikes both."""
    found: dict[str, list[dict]] = {"ours": [], "peer": []}
    for _ in range(rounds):
        for who in found:
            command = [
                sys.executable,
                __file__,
                f"--only={who}",
                f"--family={family}",
                f"--steps={steps}",
                f"--batch={batch}",
            ]
            command += [f"--memory={memory}", *(["--small"] if small else [])]
            answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[who].append(json.loads(answer.stdout.splitlines()[-1]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cases", help="FAMILY or FAMILY:small, with commas between")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", default="auto")
    for hidden in ("--only", "--family"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--small", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(args)))
        return
    on_gpu = best_device().type == "cuda"
    cases = args.cases.split(",") if args.cases else ("sd15:small",) if args.quick else ON_GPU if on_gpu else ON_CPU
    if args.quick:
        args.steps, args.rounds = 10, 1
    figures, rows, headline = {}, [], {}
    for case in cases:
        family, _, size = case.partition(":")
        effort = {"steps": args.steps, "rounds": args.rounds} if size or on_gpu else LARGE_ON_CPU
        found = compare(family, bool(size), args.batch, **effort, memory=args.memory)
        ours, theirs = ({k: statistics.median(run[k] for run in found[who]) for k in found[who][0]} for who in found)
        faster, smaller = (ours[k] / theirs[k] for k in ("steps_per_s", "peak_gb"))
        figures[case] = effort | {"runs": found}
        headline |= {f"{case}_times_faster": round(faster, 3), f"{case}_times_memory": round(smaller, 3)}
        pairs = " | ".join(f"{ours[k]:.2f} | {theirs[k]:.2f}" for k in ("steps_per_s", "peak_gb", "whole_run_s"))
        rows.append(f"| {case} | {effort['steps']} x {effort['rounds']} | {pairs} | {faster:.2f} | {smaller:.2f} |")
    head = "| model | steps x runs | steps/s | peer's | peak memory, GB | peer's | whole run, s | peer's | speed | memory |"
    table = "\n".join(rows)
    slow = ", ".join(k for k in cases if headline[f"{k}_times_faster"] < FASTER) or "none"
    large = ", ".join(k for k in cases if headline[f"{k}_times_memory"] > 1.005) or "none"
    text = f"""# Training beside diffusers' official script

Batch {args.batch}, LoRA of rank {RANK} on attention, random weights; small models have {SMALL["pixels"]} pixels and
a tenth of the channels.

{head}
{"| --- " * 10}|
{table}

`peer` is the step of `examples/dreambooth/train_dreambooth_lora*.py` with its defaults: it encodes pictures and captions in
every step (the SDXL script captions beforehand). Medians over the runs; the last two columns are ours over the peer's.
The whole run has our encoding beforehand in it.
Wanted: at least {FASTER} times as fast (missed by {slow}) at no more memory (missed by {large}).
"""
    if args.quick:
        print(text, json.dumps(headline), sep="\n")
    else:
        record.write("training", {"settings": vars(args), "cases": figures}, text, headline)


if __name__ == "__main__":
    main()

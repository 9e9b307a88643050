"""Does the validity check find what is wrong with a store?  Every second candidate near the class is spoiled on purpose.

    python benchmarks/spoiled.py [--work build/spoiled]

Three ways to spoil: a caption of another picture (which groups of pictures alike cannot tell apart), inverted colours, eight
pixels a side blown up.  ALBAT chooses among all candidates, with and without its check, and among the sound ones alone; the
loss on the held-out members says what the spoiled ones cost.  About half an hour a subject on two cores; --work keeps what
is done.  Writes docs/benchmarks/spoiled.md and .json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import record
import torch
from PIL import Image, ImageOps

from bat_ui.albat.selection import Selection, Sketches, assess, select
from bat_ui.albat.strength import most_strength
from bat_ui.albat.validity import DOUBTFUL, HARMFUL
from bat_ui.backbones import load_backbone
from bat_ui.backbones.encoded import Encoded
from bat_ui.backbones.stable_diffusion import Backbone
from bat_ui.evaluation import metrics
from bat_ui.evaluation.subjects import Case, load_case
from bat_ui.files import write_json
from bat_ui.left_out import left_out_losses, steps_alone, surrogate_steps
from bat_ui.project import silent
from bat_ui.search import find_candidates, fitting_captions, open_store
from bat_ui.settings import SelectionSettings, TrainingSettings
from bat_ui.sketching import sketch_candidates
from bat_ui.store.table import Store
from bat_ui.training.loop import new_optimizer, train
from bat_ui.training.lora import lora

SUBJECTS = ("outlined/sun-and-moon-faces", "flat/cat-faces", "flat/half-hours", "outlined/red-haired-woman")  # one of a kind
SETTINGS, TRAINING = SelectionSettings(), TrainingSettings()
AMONG = 100  # candidates nearest to the class, of which every second one is spoiled
STEPS, DRAWS, PRIOR, PRIOR_DRAWS = (100, 200, 400), 32, 128, 8
Spoil = Callable[[list[Image.Image], list[str], list[str]], tuple[list[Image.Image], list[str]]]


def captions_of_others(pictures: list[Image.Image], captions: list[str], store: list[str]) -> tuple[list, list[str]]:
    order = torch.randperm(len(store), generator=torch.Generator().manual_seed(0))[: len(captions)]
    return pictures, [store[i] for i in order.tolist()]


def inverted(pictures: list[Image.Image], captions: list[str], store: list[str]) -> tuple[list[Image.Image], list[str]]:
    return [ImageOps.invert(picture.convert("RGB")) for picture in pictures], captions


def blown_up(pictures: list[Image.Image], captions: list[str], store: list[str]) -> tuple[list[Image.Image], list[str]]:
    small = [picture.convert("RGB").resize((8, 8), Image.Resampling.BOX) for picture in pictures]
    return [few.resize(picture.size, Image.Resampling.BICUBIC) for few, picture in zip(small, pictures)], captions


WAYS: dict[str, Spoil] = {
    "captions of other pictures": captions_of_others,
    "inverted colours": inverted,
    "eight pixels a side": blown_up,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=Path("build/spoiled"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    backbone = load_backbone()
    store = open_store(backbone)
    found = {}
    for name in SUBJECTS:
        for way, spoil in WAYS.items():
            kept = args.work / f"{name} {way}.json".replace("/", "-").replace(" ", "-")
            if not kept.is_file():
                write_json(kept, try_out(backbone, store, load_case(name, seed=0), spoil))
            known = json.loads(kept.read_text(encoding="utf-8"))
            found[f"{name}, {way}"] = known | {"misfits": misfits(backbone, store, name, spoil)}
    record.write("spoiled", found, describe(found), headline(found))


def try_out(backbone: Backbone, store: Store, case: Case, spoil: Spoil) -> dict:
    """One subject, one way to spoil: what each choice holds, and its loss on the held-out members."""
    subject = case.given.encode(backbone)
    found_out = left_out_losses(backbone, subject, TRAINING, silent)
    alone, most = steps_alone(SETTINGS, TRAINING, found_out), most_strength(TRAINING.steps, found_out.turning)
    ids, spoiled, vectors, candidates = spoiled_candidates(backbone, store, case, spoil)
    surrogate = TRAINING.subject_alone(surrogate_steps(SETTINGS, TRAINING, alone))
    sketches = sketch_candidates(backbone, ids, vectors, candidates, subject, SETTINGS, surrogate, silent)
    assessment = assess(sketches)
    bad = tuple(name for name, is_bad in zip(ids, spoiled.tolist()) if is_bad)
    good = tuple(name for name in ids if name not in bad)
    choices = {
        "checked": select(sketches, assessment, most=most),
        "unchecked": select(sketches, assessment, "without_validity", most=most),
        "sound alone": select(sketches, assessment, most=most, excluded=bad),
        "spoiled alone": select(sketches, assessment, "without_validity", most=most, excluded=good),
    }
    measured = {"losses": backbone.encode(case.truths, case.captions), "prior": prior(backbone, store)}
    result = {"steps_alone": alone, "most": most, "groups": groups_of(sketches, assessment.verdicts("albat"), spoiled)}
    known: dict[tuple, dict[str, list[float]]] = {}
    for rule, choice in ({"none": None} | choices).items():
        key = (None,) if choice is None else (choice.chosen, choice.strength)
        if key not in known:
            known[key] = losses(backbone, subject, candidates, ids, choice, alone, measured)
        taken = () if choice is None else choice.chosen
        result[rule] = {"taken": len(taken), "spoiled": len(set(taken) & set(bad))} | known[key]
    return result


def misfits(backbone: Backbone, store: Store, name: str, spoil: Spoil) -> list:
    """Of how many spoiled and sound candidates the page says that their captions hardly fit, and how many there are."""
    _, spoiled, vectors, encoded = spoiled_candidates(backbone, store, load_case(name, seed=0), spoil)
    fits = torch.tensor(fitting_captions(vectors, backbone.clip.embed_texts(list(encoded.captions))))
    return [int((~fits & spoiled).sum()), int(spoiled.sum()), int((~fits & ~spoiled).sum()), int((~spoiled).sum())]


def spoiled_candidates(backbone: Backbone, store: Store, case: Case, spoil: Spoil):
    """Ids, which are spoiled (n,), CLIP vectors and encoded pictures; nearest to the class first, as they now look."""
    found = find_candidates(store, backbone, case.given, case.class_prompt, SETTINGS)
    pictures, captions = list(store.pictures(found.ids)), list(found.captions)
    rows = list(range(0, AMONG, 2))
    changed = spoil([pictures[i] for i in rows], [captions[i] for i in rows], list(store.captions))
    for i, picture, caption in zip(rows, *changed):
        pictures[i], captions[i] = picture, caption
    vectors = backbone.clip.embed_images(pictures)
    [prompt] = backbone.clip.embed_texts([case.class_prompt])
    order = (vectors @ prompt).argsort(descending=True, stable=True)
    spoiled = torch.zeros(len(pictures), dtype=torch.bool)
    spoiled[rows] = True
    encoded = backbone.encode(pictures, captions)
    return tuple(found.ids[i] for i in order.tolist()), spoiled[order], vectors[order], encoded[order]


def groups_of(sketches: Sketches, verdicts: dict[int, str], spoiled: torch.Tensor) -> list[dict]:
    """For each group its size, how many of it are spoiled, and the verdict."""
    members = {label: sketches.groups == label for label in verdicts}
    return [
        {"size": int(members[label].sum()), "spoiled": int(spoiled[members[label]].sum()), "verdict": verdict}
        for label, verdict in verdicts.items()
    ]


def prior(backbone: Backbone, store: Store) -> Encoded:
    """Some of the store's pictures as they are: what the backbone knew before."""
    order = torch.randperm(store.count, generator=torch.Generator().manual_seed(0))[:PRIOR].tolist()
    return backbone.encode(store.pictures([store.ids[i] for i in order]), [store.captions[i] for i in order])


def losses(
    backbone: Backbone,
    subject: Encoded,
    candidates: Encoded,
    ids: tuple[str, ...],
    choice: Selection | None,
    alone: int,
    measured: dict[str, Encoded],
) -> dict[str, list[float]]:
    """On each set of `measured` at STEPS of one training run."""
    settings, chosen = TRAINING, None
    if choice is not None:
        place = {name: i for i, name in enumerate(ids)}
        chosen = candidates[torch.tensor([place[name] for name in choice.chosen])]
        settings = replace(TRAINING, strength=choice.strength, subject_steps=alone)
    draws = {name: metrics.common_draws(backbone, PRIOR_DRAWS if name == "prior" else DRAWS) for name in measured}
    found: dict[str, list[float]] = {name: [] for name in measured}
    with lora(backbone, TRAINING.rank, TRAINING.seed) as weights:
        for step in train(backbone, weights, new_optimizer(weights, settings), subject, chosen, settings):
            if step.number in STEPS:
                for name, images in measured.items():
                    found[name].append(float(metrics.denoising_loss(backbone, images, draws[name]).mean()))
    return found


def describe(found: dict) -> str:
    rules = ("none", "checked", "unchecked", "sound alone", "spoiled alone")
    verdicts, members, others, captions = [], [], [], []
    for name, each in found.items():
        bad = [g for g in each["groups"] if 2 * g["spoiled"] > g["size"]]
        good = [g for g in each["groups"] if g not in bad]
        taken = [each[rule][key] for rule in ("checked", "unchecked") for key in ("taken", "spoiled")]
        verdicts.append([name, *found_in(bad), *found_in(good), *taken])
        members.append([name, *(f"{1000 * each[rule]['losses'][i]:.0f}" for i in range(len(STEPS)) for rule in rules)])
        captions.append([name, *each["misfits"]])
        others.append([name, *(f"{1000 * each[rule]['prior'][-1]:.0f}" for rule in rules)])
    head = ["subject, and how spoiled", "mostly spoiled groups", "harmful, doubtful", "other groups", "harmful, doubtful"]
    return f"""# A store with spoiled pictures

Of the {AMONG} candidates nearest to the class every second one is spoiled. Groups are those of all {SETTINGS.shortlist}
candidates by k-means in CLIP space; mostly spoiled is more than half.

{record.table([*head, "taken", "spoiled", "taken unchecked", "spoiled"], verdicts)}

Loss on the held-out members x 1000 after so many steps, of the subject alone, of ALBAT's choice, of the same without the
check, of ALBAT's choice among the sound pictures alone, and of the nearest spoiled ones:

{record.table([head[0], *(f"{rule}, {step}" for step in STEPS for rule in rules)], members)}

Loss on {PRIOR} random pictures of the store, as they are, x 1000 after {STEPS[-1]} steps: what the model forgets.

{record.table([head[0], *rules], others)}

Candidates of which the page says that their captions hardly fit:

{record.table([head[0], "of the spoiled", "there are", "of the sound", "there are"], captions)}
"""


def found_in(groups: list[dict]) -> tuple[int, str]:
    """How many there are, and of them how many are harmful and how many doubtful."""
    verdicts = [group["verdict"] for group in groups]
    return len(groups), f"{verdicts.count(HARMFUL)}, {verdicts.count(DOUBTFUL)}"


def headline(found: dict) -> dict[str, float]:
    """How much the spoiled pictures cost at the last step, as a part of the loss with sound ones alone."""
    return {
        f"{name}, {rule} over sound": round(each[rule]["losses"][-1] / each["sound alone"]["losses"][-1], 3)
        for name, each in found.items()
        for rule in ("checked", "unchecked", "spoiled alone")
    }


if __name__ == "__main__":
    main()

"""The shortlist: the part of a store that is worth the cost of a gradient sketch (theory.md, ALBAT, step 2).

In: a store, the subject's pictures and captions, and a prompt of its class.  Out: a `Shortlist`, the nearest in CLIP
space by turns from each side, without near-duplicates, and on request a random part of the rest of the store.
Left out on purpose: any judgement of benefit; near is not yet good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image

from bat_ui.clip_space import ClipSpace
from bat_ui.errors import UserError
from bat_ui.store.duplicates import SAME_PICTURE
from bat_ui.store.rows import fingerprint
from bat_ui.store.table import Store

# Root mean square between fingerprints, in grey levels.  What a CLIP model calls equal must be below to be a
# near-duplicate, or else arrows up and down and faces in other moods are lost.
ALIKE_PICTURE = 12.0


@dataclass(frozen=True, eq=False)
class Shortlist:
    """n candidates: the neighbours, nearest first, then the random part.

    `vectors` (n, d) are their unit CLIP vectors; `similarity` (n,) is the largest cosine to any of the subject's
    pictures, so that a candidate near to one pose counts as near; `class_similarity` (n,) is the cosine to the class
    prompt, which is of another modality and so on a lower scale.  `origins` says what brought each one in: 'subject',
    'class', 'caption' or 'random'.  `store_version` names the store that the ids belong to.
    """

    ids: tuple[str, ...]
    captions: tuple[str, ...]
    origins: tuple[str, ...]
    vectors: torch.Tensor
    similarity: torch.Tensor
    class_similarity: torch.Tensor
    store_version: str

    def __len__(self) -> int:
        return len(self.ids)

    def class_first(self) -> Shortlist:
        """The same candidates, those nearest to the class prompt first."""
        order = self.class_similarity.argsort(descending=True, stable=True)
        texts = {name: tuple(getattr(self, name)[i] for i in order.tolist()) for name in ("ids", "captions", "origins")}
        tensors = {name: getattr(self, name)[order] for name in ("vectors", "similarity", "class_similarity")}
        return replace(self, **texts, **tensors)


def shortlist(
    store: Store,
    clip: ClipSpace,
    subject_images: Sequence[Image.Image],
    subject_captions: Sequence[str],
    class_prompt: str,
    size: int = 400,
    *,
    num_random: int = 0,
    seed: int = 0,
    identifier: str = "sks",
    duplicate_cosine: float = 0.97,
) -> Shortlist:
    """Choose `size` neighbours and `num_random` further candidates; fewer if the store has no more.

    Three rankings take turns: by the largest cosine to a subject picture, by the cosine to the class prompt, and by
    the largest cosine to a caption without the identifier.  A candidate is left out as a duplicate, of a subject
    picture or of a candidate before it, if their fingerprints agree to SAME_PICTURE, or if their cosine exceeds
    `duplicate_cosine` and their fingerprints agree to ALIKE_PICTURE.  Equal arguments give equal results.
    Raises UserError without pictures or class prompt, if nothing is left, or if `clip` is not the model of the store.
    """
    if not subject_images:
        raise UserError("Add at least one picture of the subject.")
    if not class_prompt.strip():
        raise UserError("Say what the subject is, such as 'cat': backbone pictures of its class are searched with it.")
    store.check_encoder(clip.digest)
    subject, prompt = clip.embed_images(subject_images), clip.embed_texts([class_prompt])
    queries = {"subject": subject, "class": prompt}
    if plain := [text for text in (_without(identifier, caption) for caption in subject_captions) if text]:
        queries["caption"] = clip.embed_texts(list(dict.fromkeys(plain)))

    k = 2 * size
    while True:
        chosen = _Chosen(store, subject, subject_images, duplicate_cosine)
        chosen.add(_by_turns({origin: _ranking(store, query, k) for origin, query in queries.items()}), size)
        if len(chosen.ids) >= size or k >= store.count:
            break
        k *= 2
    size_before = len(chosen.ids)
    order = np.random.default_rng(seed).permutation(store.count) if num_random else []
    for start in range(0, len(order), _Chosen.CHUNK):
        missing = size_before + num_random - len(chosen.ids)
        if missing == 0:
            break
        chosen.add([(i, "random") for i in store.ids_at(order[start : start + _Chosen.CHUNK].tolist())], missing)

    if not chosen.ids:
        raise UserError("Every picture of this store is one of your own: choose another store.")
    vectors = store.vectors_of(chosen.ids)
    return Shortlist(
        ids=tuple(chosen.ids),
        captions=tuple(store.captions_of(chosen.ids)),
        origins=tuple(chosen.origins),
        vectors=vectors,
        similarity=(vectors @ subject.T).amax(dim=1),
        class_similarity=vectors @ prompt[0],
        store_version=store.info.version,
    )


class _Chosen:
    """The candidates so far, and the subject's pictures, as what a further candidate may not duplicate."""

    CHUNK = 256  # candidates whose vectors are read from the store at once

    def __init__(self, store: Store, subject: torch.Tensor, images: Sequence[Image.Image], duplicate_cosine: float):
        self.store, self.duplicate_cosine = store, duplicate_cosine
        self.ids: list[str] = []
        self.origins: list[str] = []
        self._vectors = subject.numpy()
        self._fingerprints = np.stack([fingerprint(image) for image in images])

    def add(self, candidates: Sequence[tuple[str, str]], count: int) -> None:
        """Take the first `count` of the (id, origin) pairs that are neither chosen nor duplicates."""
        known = set(self.ids)
        candidates = [(i, origin) for i, origin in candidates if i not in known]
        for start in range(0, len(candidates), self.CHUNK):
            chunk = candidates[start : start + self.CHUNK]
            ids = [i for i, _ in chunk]
            for (i, origin), vector, mark in zip(chunk, self.store.vectors_of(ids).numpy(), self.store.fingerprints_of(ids)):
                if count == 0:
                    return
                if self._is_duplicate(vector, mark):
                    continue
                self.ids.append(i)
                self.origins.append(origin)
                self._vectors = np.vstack([self._vectors, vector])
                self._fingerprints = np.vstack([self._fingerprints, mark])
                count -= 1

    def _is_duplicate(self, vector: np.ndarray, mark: np.ndarray) -> bool:
        apart = np.sqrt(np.square(self._fingerprints - mark).mean(axis=1))
        alike = self._vectors @ vector > self.duplicate_cosine
        return bool(np.any((apart < SAME_PICTURE) | (alike & (apart < ALIKE_PICTURE))))


def _ranking(store: Store, queries: torch.Tensor, k: int) -> list[str]:
    """Ids of the k rows with the largest cosine to any of the queries (q, d), largest first."""
    best: dict[str, float] = {}
    for ids, similarity in zip(*store.nearest(queries, k)):
        for i, value in zip(ids, similarity.tolist()):
            best[i] = max(value, best.get(i, value))
    return sorted(best, key=lambda i: (-best[i], i))[:k]


def _by_turns(rankings: dict[str, list[str]]) -> list[tuple[str, str]]:
    """(id, origin) pairs; at its turn each ranking gives its next id that none has given before."""
    taken: dict[str, str] = {}
    queues = {origin: iter(ids) for origin, ids in rankings.items()}
    while queues:
        for origin, queue in list(queues.items()):
            i = next((i for i in queue if i not in taken), None)
            if i is None:
                del queues[origin]
            else:
                taken[i] = origin
    return list(taken.items())


def _without(identifier: str, caption: str) -> str:
    return " ".join(word for word in caption.split() if word != identifier)

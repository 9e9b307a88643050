"""Encoded pictures: all that the UNet is told about captioned pictures, kept so that nothing is encoded twice.

In: latents and text states, as `Backbone.encode` gives them.  Out: `Encoded`, whose rows are taken by index.  The same for
every family: what a family lacks (SDXL's pooled states and sizes) is None.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Encoded:
    """n pictures: latents (n, c, h, w) and their captions' states (n, tokens, width).

    Pictures of several shapes have a tuple of n latents (c, h, w) instead; `buckets` are the rows of each shape.
    """

    latents: Tensor | tuple[Tensor, ...]
    states: Tensor
    weights: Tensor | None = None  # (n,) how often each is drawn, relative to the others; None: equally
    pooled: Tensor | None = None  # (n, width) pooled text state, for SDXL
    sizes: Tensor | None = None  # (n, 6) height and width before the crop, its top and left, height and width after; SDXL
    captions: tuple[str, ...] = ()  # only needed where the text encoder learns, too

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, rows: Tensor | Sequence[int] | slice) -> Encoded:
        """The pictures of these rows, in their order; latents of one shape come as one tensor."""
        if isinstance(rows, slice):
            rows = torch.arange(len(self))[rows]
        rows = torch.as_tensor(rows, dtype=torch.long)

        def take(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[rows.to(values.device)]

        if isinstance(self.latents, Tensor):
            latents = take(self.latents)
        else:
            latents = tuple(self.latents[i] for i in rows.tolist())
            if len({x.shape for x in latents}) == 1:
                latents = torch.stack(latents)
        captions = tuple(self.captions[i] for i in rows.tolist()) if self.captions else ()
        return Encoded(latents, take(self.states), take(self.weights), take(self.pooled), take(self.sizes), captions)

    @cached_property
    def buckets(self) -> tuple[Tensor, ...]:
        """The rows (m,) of each shape of latents, in the order in which the shapes appear."""
        if isinstance(self.latents, Tensor):
            return (torch.arange(len(self)),)
        shapes: dict[torch.Size, list[int]] = {}
        for i, latent in enumerate(self.latents):
            shapes.setdefault(latent.shape, []).append(i)
        return tuple(torch.tensor(rows) for rows in shapes.values())

    @staticmethod
    def cat(parts: Sequence[Encoded]) -> Encoded:
        """All parts' rows, one part after the other; drawn equally often unless every part has weights."""

        def joined(name: str) -> Tensor | None:
            values = [getattr(part, name) for part in parts]
            return None if any(v is None for v in values) else torch.cat(values)

        latents = [part.latents for part in parts]
        if all(isinstance(x, Tensor) for x in latents) and len({x.shape[1:] for x in latents}) == 1:
            latents = torch.cat(latents)
        else:
            latents = tuple(row for x in latents for row in x)
        captions = sum((part.captions for part in parts), ()) if all(part.captions for part in parts) else ()
        return Encoded(latents, torch.cat([p.states for p in parts]), *map(joined, ("weights", "pooled", "sizes")), captions)

"""Presets by graphics memory: what is traded for memory on this machine, chosen by what is there.

In: a family and the GPU's memory, or a preset's name.  Out: a `Preset`.  Results do not depend on it, but for rounding.
The figures are estimates for rank 8 at the family's own resolution.
"""

from __future__ import annotations

from dataclasses import dataclass

from bat_ui.errors import UserError


@dataclass(frozen=True)
class Preset:
    """How many pictures of a batch go through the UNet at once (`rows`), how many are encoded or drawn so (`pictures`)."""

    name: str
    rows: int | None = None  # None: the whole batch
    pictures: int = 64
    checkpointing: bool = False  # forget activations and compute them again: a quarter slower, a fraction of the memory
    offload: bool = False  # autoencoder and text encoders wait in main memory while they are not used
    eight_bit: bool = False  # optimiser states of 8 bits, where bitsandbytes is installed

    @property
    def rows_at_once(self) -> int:
        """Rows of one pass outside of training steps, whose batch has no size of its own."""
        return self.rows or 64


PLENTY = Preset("plenty")
ONE_BY_ONE = Preset("one by one", rows=1, pictures=1)  # one keeps a processor busy: more at once only take memory
MEMORY = ("auto", "8", "12", "16", "24", "plenty")  # gigabytes

SMALL = {  # the sticker backbone fits anywhere; Stable Diffusion 1.5 and 2.1
    "8": Preset("8", rows=1, pictures=2, checkpointing=True, offload=True, eight_bit=True),
    "12": Preset("12", rows=2, pictures=4, checkpointing=True, offload=True),
    "16": Preset("16", rows=2, pictures=4, offload=True),
    "24": Preset("24", rows=4, pictures=8),
    "plenty": Preset("plenty", rows=8, pictures=16),
}
LARGE = {  # SDXL
    "8": Preset("8", rows=1, pictures=1, checkpointing=True, offload=True, eight_bit=True),
    "12": Preset("12", rows=1, pictures=1, checkpointing=True, offload=True),
    "16": Preset("16", rows=2, pictures=2, checkpointing=True, offload=True),
    "24": Preset("24", rows=4, pictures=4, checkpointing=True),
    "plenty": Preset("plenty", rows=4, pictures=8),
}


def choose_preset(family: str, memory: str = "auto", gigabytes: float | None = None) -> Preset:
    """The preset called `memory`; "auto" is the largest that `gigabytes` hold, and ONE_BY_ONE without a GPU (None).

    Raises UserError for a name that is none of MEMORY.
    """
    if memory not in MEMORY:
        raise UserError(f'There is no memory preset "{memory}": choose one of {", ".join(MEMORY)}.')
    if family == "sticker":
        return PLENTY
    if memory == "auto" and gigabytes is None:
        return ONE_BY_ONE
    table = LARGE if family == "sdxl" else SMALL
    if memory != "auto":
        return table[memory]
    # Cards report a little less than their name says.
    fitting = [name for name in MEMORY[1:-1] if float(name) <= gigabytes * 1.06]
    if gigabytes >= 38:
        return table["plenty"]
    return table[fitting[-1] if fitting else "8"]

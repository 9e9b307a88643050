"""The work of an ingest by Ray Data, on one machine or a cluster: CPU tasks read and decode, actors encode, and all of
them write the table's files, which lance-ray then makes part of the table in one commit.

In and out as engine.py.  Parts are taken in waves; a wave is in the store as a whole or not at all, so a killed ingest
loses one at most.  All machines must reach the source and the store under the same address.  Needs
requirements-scale.txt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from bat_ui.clip_space import ClipSpace
from bat_ui.errors import UserError
from bat_ui.hardware import best_device
from bat_ui.store.engine import BATCH, KNOWN, Job, Stored, Tally, chunks, new_caption, prepare, recaption, records_of, remove
from bat_ui.store.ledger import Ledger
from bat_ui.store.records import Record
from bat_ui.store.rows import arrow_table, schema
from bat_ui.store.table import TABLE, open_table

PARTS_PER_WAVE = 4  # for each core of the cluster
READ = pa.schema(
    [("job", pa.int64()), ("position", pa.int64())]
    + [("id", pa.string()), ("caption", pa.string()), ("data", pa.binary()), ("uri", pa.string()), ("problem", pa.string())]
    + [("stored", pa.struct([("digest", pa.binary()), ("caption", pa.string())]))]
)
# What is told of each record, and what it is called beside a row of the store, which has an id of its own.
TALLY = {"job": "job", "id": "file", "problem": "problem", "replaces": "replaces", "recaption": "recaption"}
_TEXTS = ("id", "caption", "source", "licence", "uri", "problem", "recaption")
_NUMBERS = ("job", "row", "width", "height", "hash")
_BYTES = ("image", "digest", "fingerprint", "pixels")
DECODED = pa.schema(
    [
        (name, kind)
        for names, kind in ((_TEXTS, pa.string()), (_NUMBERS, pa.int64()), (_BYTES, pa.binary()), (["replaces"], pa.bool_()))
        for name in names
    ]
)


class RayEngine:
    """An engine as LocalEngine is one, on the cluster that Ray finds, or one that it starts on this machine."""

    def __init__(self, clip: ClipSpace, workers: int | None):
        try:
            import lance_ray
            import ray
        except ImportError as error:
            raise UserError("The engine 'ray' needs more packages: pip install -r requirements-scale.txt.") from error
        self.ray, self.write_lance, self.clip, self.workers = ray, lance_ray.write_lance, clip, workers

    def __call__(self, jobs: Sequence[Job], ledger: Ledger, tally: Tally) -> None:
        if not jobs:
            return
        if not self.ray.is_initialized():
            self.ray.init(logging_level="warning", log_to_driver=False)
        wave = max(1, int(PARTS_PER_WAVE * self.ray.cluster_resources().get("CPU", 1)))
        for some in chunks(jobs, wave):
            try:
                self._run(some, ledger)
            except self.ray.exceptions.RayTaskError as error:  # told with the traces of all machines
                if isinstance(error.cause, UserError):
                    raise UserError(str(error.cause).partition("\n")[0]) from error  # Ray adds lines to it
                raise error.cause from error
            for job in some:
                tally.end(job, job.entry.pictures)

    def _run(self, jobs: Sequence[Job], ledger: Ledger) -> None:
        on_gpu, dim = bool(self.ray.cluster_resources().get("GPU")), self.clip.dim
        machines = self.ray.cluster_resources()
        actors = self.workers or max(1, int(machines["GPU"] if on_gpu else machines.get("CPU", 1) // 2))  # others decode
        by_number = {job.entry.number: job for job in jobs}
        numbers = self.ray.data.from_arrow(pa.table({"job": list(by_number)})).repartition(len(jobs))
        done = (
            numbers.map_batches(_read, fn_args=(by_number,), batch_format="pyarrow", batch_size=1)
            .map_batches(_decode, fn_args=(by_number, self.clip.preprocess), batch_format="pyarrow", batch_size=BATCH)
            .map_batches(
                _Encoder,
                fn_constructor_args=(self.clip.source, dim),
                batch_format="pyarrow",
                batch_size=BATCH,
                compute=self.ray.data.ActorPoolStrategy(size=actors),
                num_gpus=1 if on_gpu else 0,
            )
            .materialize()
        )
        tally = done.select_columns(list(TALLY.values()))
        rows = [row for batch in tally.iter_batches(batch_size=None, batch_format="pyarrow") for row in batch.to_pylist()]
        table = open_table(jobs[0].place)
        remove(table, [row["file"] for row in rows if row["replaces"]])
        recaption(table, {row["file"]: row["recaption"] for row in rows if row["recaption"] is not None})
        if any(row["problem"] is None for row in rows):
            usable = done.map_batches(_usable, fn_args=(dim,), batch_format="pyarrow")
            self.write_lance(usable, f"{jobs[0].place.uri}/{TABLE}.lance", mode="append", schema=schema(dim))
        for row in rows:
            entry = by_number[row["job"]].entry
            if row["problem"] in (None, KNOWN):
                entry.pictures += 1
                entry.replaced += row["replaces"]
                entry.recaptioned += row["recaption"] is not None
            else:
                entry.broken.append({"file": row["file"], "reason": row["problem"]})
        ledger.add([job.entry for job in jobs])


def _read(numbers: pa.Table, jobs: dict[int, Job]) -> Iterator[pa.Table]:
    """The records of some parts."""
    for number in numbers["job"].to_pylist():
        job = jobs[number]
        for chunk in chunks(records_of(job), BATCH):
            rows = [
                vars(record) | {"job": number, "position": at, "stored": stored and vars(stored)}
                for at, record, stored in chunk
            ]
            yield pa.Table.from_pylist(rows, schema=READ)
    yield READ.empty_table()


def _decode(records: pa.Table, jobs: dict[int, Job], preprocess: Callable) -> pa.Table:
    """Records with their pictures' columns and what the encoder takes, as bytes; or with a problem."""
    rows = []
    for row in records.to_pylist():
        job, stored = jobs[row["job"]], row["stored"] and Stored(**row["stored"])
        record = Record(row["id"], row["caption"] or "", row["data"], row["uri"], row["problem"])
        made = prepare(record, preprocess, job.link, stored)
        tally = {"job": row["job"], "id": record.id, "replaces": False}
        if made == KNOWN:
            rows.append(tally | {"problem": made, "recaption": new_caption(record, stored)})
        elif isinstance(made, str):
            rows.append(tally | {"problem": made})
        else:
            columns, pixels = made
            columns["fingerprint"] = columns["fingerprint"].tobytes()
            tally["replaces"] = stored is not None
            rows.append(tally | job.columns(row["position"], record) | columns | {"pixels": pixels.numpy().tobytes()})
    return pa.Table.from_pylist(rows, schema=DECODED)


class _Encoder:
    """An actor with the CLIP model on its device."""

    def __init__(self, source: str, dim: int):
        self.clip, self.dim = ClipSpace.load(source, best_device()), dim

    def __call__(self, decoded: pa.Table) -> pa.Table:
        """Rows of the store beside the tally's columns; those with a problem have nothing else."""
        good = decoded.filter(pc.is_null(decoded["problem"]))
        rows = good.drop(["pixels", *(TALLY.keys() - {"id"})]).to_pylist()
        vectors = []
        if rows:
            flat = [torch.from_numpy(np.frombuffer(pixels, np.float32).copy()) for pixels in good["pixels"].to_pylist()]
            size = round((len(flat[0]) / 3) ** 0.5)
            vectors = self.clip.embed_prepared(torch.stack(flat).reshape(len(flat), 3, size, size))
        for row in rows:
            row["fingerprint"] = np.frombuffer(row["fingerprint"], np.uint8)
        stored = arrow_table(rows, vectors, self.dim) if rows else schema(self.dim).empty_table()
        return _beside(decoded.select(list(TALLY)), stored)


def _beside(tally: pa.Table, stored: pa.Table) -> pa.Table:
    """The stored rows, nulls where there was a problem, with the tally's columns beside them."""
    good = pc.is_null(tally["problem"]).to_numpy()
    places = pa.array(np.cumsum(good) - 1, pa.int64(), mask=~good)
    both = stored.take(places)
    for name, beside in TALLY.items():
        both = both.append_column(beside, tally[name])
    return both


def _usable(encoded: pa.Table, dim: int) -> pa.Table:
    """The rows that go into the store."""
    return encoded.filter(pc.is_null(encoded["problem"])).select(schema(dim).names).cast(schema(dim))

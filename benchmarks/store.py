"""What a store costs and finds as it grows: search beside an exact scan, indexing, memory and disk; and ingest's speed.

    python benchmarks/store.py [--quick] [--work runs/store]

Vectors are synthetic: 512 numbers, an uneven spectrum, clusters of unequal size, and queries of two kinds, as pictures and
texts have.  Everything that is measured is kept in the work folder, so that a stopped run goes on where it was.  With
--quick all is small and nothing is written to docs.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import record
import torch
from PIL import Image

from bat_ui.clip_space import ClipSpace
from bat_ui.files import read_json, write_json
from bat_ui.store import table as tables
from bat_ui.store.index import build_indexes, search
from bat_ui.store.ingest import ingest
from bat_ui.store.place import Place
from bat_ui.store.rows import GRID, arrow_table

DIM, CHUNK, QUERIES, K, BATCHES = 512, 8192, 20, 500, 9
SIZES, QUICK_SIZES = (10_000, 100_000, 1_000_000), (1_000, 4_000)
PICTURES, QUICK_PICTURES = 1500, 32
PICTURE_BYTES = 30_000  # of a web picture at 512 px, which docs/scale.md reckons with
HUNDRED_MILLION = 100_000_000


class World:
    """Unit vectors like CLIP's: a common direction, a few large and many small clusters, few strong dimensions."""

    CLUSTERS = 2000

    def __init__(self, dim: int):
        rng = np.random.default_rng(0)
        self.spectrum = (1 + np.arange(dim)) ** -0.5
        self.spectrum /= np.linalg.norm(self.spectrum)
        self.mean, self.other_mean = (0.8 * self._draw(rng, 1) for _ in range(2))
        self.centres = self._draw(rng, self.CLUSTERS)
        sizes = 1 / (5 + np.arange(self.CLUSTERS))
        self.shares = sizes / sizes.sum()

    def pictures(self, number: int, seed: int) -> np.ndarray:
        """(number, dim) float32."""
        return self._sample(self.mean, number, seed)

    def texts(self, number: int, seed: int) -> np.ndarray:
        """(number, dim) float32, about the same things, but away from all pictures."""
        return self._sample(self.other_mean, number, seed)

    def _sample(self, mean: np.ndarray, number: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng([1, seed])
        which = rng.choice(self.CLUSTERS, number, p=self.shares)
        vectors = mean + self.centres[which] + 0.7 * self._draw(rng, number)
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    def _draw(self, rng: np.random.Generator, number: int) -> np.ndarray:
        return rng.standard_normal((number, len(self.spectrum)), dtype=np.float32) * self.spectrum.astype(np.float32)


def fill(place: Place, rows: int) -> dict[str, float]:
    """Write and index a table of `rows`; pictures are left out, as they are with --link."""
    world, started = World(DIM), time.perf_counter()
    table = tables.open_table(place, dim=DIM)
    written = table.count_rows()
    rng = np.random.default_rng(2)
    for start in range(written, rows, CHUNK):
        vectors = world.pictures(CHUNK, start)[: rows - start]
        fingerprints = rng.integers(0, 256, (len(vectors), 3 * GRID * GRID), dtype=np.uint8)
        described = [
            {
                "row": start + n,
                "id": f"synthetic/{(start + n) // 10_000:05d}/{start + n:09d}",
                "caption": "a photograph of something, as captions of web pictures are long",
                "uri": f"/data/synthetic/{start + n:09d}.jpg",
                "width": 512,
                "height": 512,
                "digest": rng.bytes(32),
                "hash": int(rng.integers(2**62)),
                "fingerprint": fingerprints[n],
                "source": "synthetic",
                "licence": "none",
            }
            for n in range(len(vectors))
        ]
        table.add(arrow_table(described, vectors, DIM))
    write_s = time.perf_counter() - started
    data = _bytes(place)
    started = time.perf_counter()
    build_indexes(table, with_vectors=True)
    figures = {"index_s": time.perf_counter() - started, "data_bytes": data, "index_bytes": _bytes(place) - data}
    if not written:  # else a part of it was written by a run that was stopped
        figures["write_rows_per_s"] = rows / write_s
    return figures | {"fill_peak_bytes": _peak()}


def measure_search(place: Place, rows: int) -> dict[str, float]:
    """Recall of the index beside an exact scan by numpy, and the time of a batch of queries."""
    world, table = World(DIM), tables.open_table(place)
    half, first = QUERIES // 2, 10**9  # seeds that no row was drawn with
    batches = [
        torch.from_numpy(np.concatenate([world.pictures(half, first + b), world.texts(half, first + b)]))
        for b in range(BATCHES)
    ]
    search(table, batches[0], K)  # opens the index
    seconds = []
    for queries in batches:
        started = time.perf_counter()
        found, _ = search(table, queries, K)
        seconds.append(time.perf_counter() - started)
    best_value, best_id = np.full((QUERIES, K), -2.0, np.float32), np.zeros((QUERIES, K), int)
    scan = 0.0
    for start in range(0, rows, CHUNK):
        vectors = world.pictures(CHUNK, start)[: rows - start].astype(np.float16).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        started = time.perf_counter()
        values = np.concatenate([best_value, batches[-1].numpy() @ vectors.T], axis=1)
        ids = np.concatenate([best_id, np.broadcast_to(np.arange(start, start + len(vectors)), (QUERIES, len(vectors)))], 1)
        top = np.argpartition(-values, K - 1, axis=1)[:, :K]
        best_value, best_id = np.take_along_axis(values, top, 1), np.take_along_axis(ids, top, 1)
        scan += time.perf_counter() - started
    recalls = [len({int(i[-9:]) for i in ids} & set(truth.tolist())) / K for ids, truth in zip(found, best_id)]
    return {
        "recall_at_500": float(np.mean(recalls)),
        "recall_of_pictures": float(np.mean(recalls[:half])),
        "recall_of_texts": float(np.mean(recalls[half:])),
        "p50_batch_s": float(np.median(seconds)),
        "exact_scan_s": scan,
        "search_peak_bytes": _peak(),
    }


def measure_ingest(pictures: int) -> dict[str, float]:
    """Pictures a second of `ingest` beside the encoder alone, which gets them decoded; ViT-B-32, random weights."""
    import open_clip  # here, since it takes seconds to import and the other parts do without

    model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32", pretrained=None)
    clip = ClipSpace(model, preprocess, open_clip.get_tokenizer("ViT-B-32"), "cpu", "ViT-B-32, random weights")
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "pictures"
        source.mkdir()
        decoded = []
        for n in range(pictures):
            coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
            picture = coarse.resize((512, 512), Image.Resampling.BICUBIC)
            picture.save(source / f"{n:05d}.jpg", quality=90)
            (source / f"{n:05d}.txt").write_text("a picture")
            decoded.append(picture)
        first = Path(folder) / "first"  # imports, the model's digest and first use, before the clock runs
        first.mkdir()
        for suffix in (".jpg", ".txt"):
            shutil.copy(source / f"00000{suffix}", first)
        ingest(str(first), Path(folder) / "first-store", clip)
        started = time.perf_counter()
        clip.embed_images(decoded)
        bare = pictures / (time.perf_counter() - started)
        started = time.perf_counter()
        ingest(str(source), Path(folder) / "store", clip)
        whole = pictures / (time.perf_counter() - started)
    return {"bare_encoder_per_s": bare, "ingest_per_s": whole, "ingest_share": whole / bare}


def _bytes(place: Place) -> int:
    return sum(path.stat().st_size for path in Path(place.uri).rglob("*") if path.is_file())


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _run(part: str, rows: int, work: Path) -> dict:
    """One part in a process of its own, so that its peak of memory is its own; once measured it is kept."""
    kept = work / f"{part}-{rows}.json"
    if (figures := read_json(kept)) is None:
        subprocess.run([sys.executable, __file__, "--part", part, "--rows", str(rows), "--work", str(work)], check=True)
        figures = read_json(kept)
    return figures


def table_of_growth(growth: dict[int, dict]) -> str:
    """Markdown: one line a size, and what the largest says about 100 million."""
    rows = [
        f"| {n:,} | {_rate(f)} | {f['index_s']:.0f} | {f['data_bytes'] / n:.0f} "
        f"| {f['index_bytes'] / n:.0f} | {f['fill_peak_bytes'] / 1e9:.2f} | {f['search_peak_bytes'] / 1e9:.2f} "
        f"| {f['recall_at_500']:.4f} | {1000 * f['p50_batch_s']:.0f} | {1000 * f['exact_scan_s']:.0f} |"
        for n, f in growth.items()
    ]
    head = "| rows | written/s | index s | bytes/row | index bytes/row | peak GB, writing | peak GB, searching | recall@500 "
    return "\n".join([head + "| 20 queries, p50 ms | exact scan, ms |", "| --- " * 10 + "|", *rows])


def _rate(figures: dict) -> str:
    return f"{figures['write_rows_per_s']:,.0f}" if "write_rows_per_s" in figures else "(stopped once)"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--work", type=Path, default=Path("runs/store"))
    parser.add_argument("--part", choices=("fill", "search", "ingest"), help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        place = Place.of(args.work / f"table-{args.rows}")
        measure = {"fill": fill, "search": measure_search, "ingest": lambda _, pictures: measure_ingest(pictures)}[args.part]
        return write_json(args.work / f"{args.part}-{args.rows}.json", measure(place, args.rows))
    work = args.work / "quick" if args.quick else args.work
    if args.quick:
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    sizes, pictures = (QUICK_SIZES, QUICK_PICTURES) if args.quick else (SIZES, PICTURES)
    growth = {n: _run("fill", n, work) | _run("search", n, work) for n in sizes}
    speed, largest = _run("ingest", pictures, work), growth[sizes[-1]]
    headline = {
        "recall_at_500": round(largest["recall_at_500"], 4),
        "p50_batch_s": round(largest["p50_batch_s"], 3),
        "ingest_share": round(speed["ingest_share"], 3),
    }
    per_row = (largest["data_bytes"] + largest["index_bytes"]) / sizes[-1]
    text = f"""# Stores as they grow

{table_of_growth(growth)}

All at {DIM} dimensions in half precision, without the pictures; above {tables.EXACT_ROWS:,} rows a store is searched
by its index, which is measured here at every size. Recall is against an exact scan by numpy of the same vectors, 20 queries;
{largest["recall_of_pictures"]:.4f} of it for queries like pictures, {largest["recall_of_texts"]:.4f} for queries like texts.

100 million rows at the largest size's bytes: {per_row * HUNDRED_MILLION / 1e9:.0f} GB, and
{PICTURE_BYTES * HUNDRED_MILLION / 1e12:.0f} TB of pictures at {PICTURE_BYTES // 1000} kB each. See [scale.md](../scale.md).

## Ingest beside the encoder alone

| | pictures/s |
| --- | --- |
| encoder alone (ViT-B-32, pictures decoded) | {speed["bare_encoder_per_s"]:.1f} |
| ingest of a folder of JPEGs | {speed["ingest_per_s"]:.1f} |
| share | {speed["ingest_share"]:.3f} |
"""
    if args.quick:
        print(text, json.dumps(headline), sep="\n")
    else:
        record.write("store", {"growth": growth, "ingest": speed}, text, headline)


if __name__ == "__main__":
    main()

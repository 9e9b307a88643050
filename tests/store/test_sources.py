"""Each kind of source gives the pictures and captions that were put into it by other means than ours."""

import gzip
import io
import json
import tarfile
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bat_ui.errors import UserError
from bat_ui.store import sources
from bat_ui.store.ingest import ingest
from bat_ui.store.place import Place
from bat_ui.store.records import Options, clean
from bat_ui.store.shards import DOTTED
from bat_ui.store.sources import find_parts
from bat_ui.store.table import Store


def png(image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def read(source, **options) -> dict:
    """Records by id without the source's name: (caption, bytes) or the problem."""
    found = {}
    for part in find_parts(str(source), Options("s", **options)):
        for record in part.records():
            data = record.data if record.uri is None else Place(record.uri).read_bytes(10**9)
            found[record.id.removeprefix("s/")] = record.problem or (record.caption, data)
    return found


def shard(path, samples: dict[str, dict[str, bytes]]) -> None:
    """As img2dataset writes them: KEY.jpg, KEY.txt, KEY.json in turn."""
    with tarfile.open(path, "w") as archive:
        for key, files in samples.items():
            for suffix, data in files.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


@pytest.fixture
def folder(tmp_path, picture):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for path in ("a.png", "sub/b.png", "sub/.hidden.png"):
        picture(len(path)).save(tmp_path / "in" / path)
    return tmp_path / "in"


def captions(found: dict) -> dict:
    return {key: value if isinstance(value, str) else value[0] for key, value in found.items()}


def test_text_files_beside_the_pictures(folder):
    (folder / "a.txt").write_text("  a cat\n on a mat \n")
    (folder / "sub" / "b.txt").write_text("a dog")
    assert read(folder)["a.png"] == ("a cat on a mat", (folder / "a.png").read_bytes())
    assert captions(read(folder)) == {"a.png": "a cat on a mat", "sub/b.png": "a dog"}


@pytest.mark.parametrize("coding", ["utf-16", "latin-1"])
def test_a_caption_in_another_coding_is_a_problem(folder, tmp_path, coding):
    (folder / "a.txt").write_bytes("a caf\u00e9 cat".encode(coding))
    (folder / "sub" / "b.txt").write_bytes("\ufeffa dog".encode())
    assert captions(read(folder)) == {"a.png": "has a caption that is no UTF-8 text", "sub/b.png": "a dog"}
    shard(tmp_path / "a.tar", {"x": {"png": (folder / "a.png").read_bytes(), "txt": (folder / "a.txt").read_bytes()}})
    assert captions(read(tmp_path / "a.tar")) == {"a/x": "has a caption that is no UTF-8 text"}


def test_a_long_caption_may_be_cut_within_a_letter(folder):
    (folder / "a.txt").write_text("x" + 5000 * "\u20ac")
    assert captions(read(folder))["a.png"] == "x" + 1999 * "\u20ac"


@pytest.mark.parametrize("caption", ["text", "caption"])
def test_metadata_jsonl_has_paths_relative_to_itself(folder, caption):
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "./a.png", caption: "a cat"}) + "\n\n")
    (folder / "sub" / "metadata.jsonl").write_text(json.dumps({"file_name": "b.png", caption: "a dog"}))
    assert captions(read(folder)) == {"a.png": "a cat", "sub/b.png": "a dog"}


def test_csv_with_its_columns_found_or_named(folder):
    (folder / "list.csv").write_text('\ufeffFile_Name,caption,other\na.png,"a cat, asleep",x\nsub/b.png,a dog,y\n')
    (folder / "figures.csv").write_text("year,sum\n2020,1\n")
    assert captions(read(folder)) == {"a.png": "a cat, asleep", "sub/b.png": "a dog"}
    assert captions(read(folder, caption_column="other")) == {"a.png": "x", "sub/b.png": "y"}
    with pytest.raises(UserError, match="'nothing'.*caption, other"):
        read(folder, caption_column="nothing")


def test_metadata_parquet_as_hugging_face_writes_it(folder):
    rows = {"file_name": ["a.png", "sub/b.png"], "n": [1, 2], "text": ["a cat", "a dog"]}
    pq.write_table(pa.table(rows), folder / "metadata.parquet")
    assert captions(read(folder)) == {"a.png": "a cat", "sub/b.png": "a dog"}
    (folder / "metadata.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match="metadata.parquet is damaged"):
        read(folder)


def test_files_of_img2dataset_with_its_table_of_what_it_loaded(folder):
    pq.write_table(pa.table({"url": ["http://x/y.jpg"], "caption": ["c"]}), folder / "00000.parquet")
    (folder / "a.txt").write_text("a cat")
    assert captions(read(folder)) == {"a.png": "a cat", "sub/b.png": "has no caption"}
    pq.write_table(pa.table({"image": [(folder / "a.png").read_bytes()], "text": ["inside"]}), folder / "1.parquet")
    assert captions(read(folder)) == {"1/0": "inside"}


@pytest.mark.parametrize("line", ["{", "[" * 200_000])
def test_metadata_that_is_no_json_is_refused(folder, line):
    (folder / "metadata.jsonl").write_text(line)
    with pytest.raises(UserError, match="metadata.jsonl has a line that is no JSON"):
        read(folder)


@pytest.mark.parametrize("end", ["\u2028", "\x85", "\x0c"])
def test_a_line_of_metadata_ends_at_its_newline_only(folder, end):
    lines = [{"file_name": "a.png", "text": f"a{end}cat"}, {"file_name": "sub/b.png", "text": "a dog"}]
    (folder / "metadata.jsonl").write_text("\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    assert captions(read(folder)) == {"a.png": "a cat", "sub/b.png": "a dog"}


def test_the_first_line_of_metadata_may_lack_a_caption(folder):
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png"}\n{"file_name": "sub/b.png", "text": "a dog"}\n')
    assert captions(read(folder)) == {"a.png": "has no caption", "sub/b.png": "a dog"}


@pytest.mark.parametrize(("file", "separator"), [("list.csv", ";"), ("list.csv", "\t"), ("list.tsv", "\t")])
def test_a_sheet_may_have_other_separators(file, separator, folder):
    lines = [("image_name", "text"), ("a.png", "a cat, asleep"), ("sub/b.png", "a dog")]
    (folder / file).write_text("".join(f"{separator.join(line)}\n" for line in lines))
    assert captions(read(folder)) == {"a.png": "a cat, asleep", "sub/b.png": "a dog"}


def test_the_column_of_names_can_be_named_as_the_message_says(folder):
    rows = [{"bild": "a.png", "wort": "a cat"}, {"bild": "sub/b.png", "wort": "a dog"}]
    (folder / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.raises(UserError, match="--image-column"):
        read(folder)
    named = read(folder, image_column="bild", caption_column="wort")
    assert captions(named) == {"a.png": "a cat", "sub/b.png": "a dog"}


def test_captions_of_other_files_are_said(folder):
    (folder / "list.csv").write_text("file_name,text\n/home/ann/a.png,a cat\n")
    with pytest.raises(UserError, match="captions are of other files, such as '/home/ann/a.png', than 'a.png'"):
        read(folder)


def test_a_parquet_without_the_columns_stops_no_other(tmp_path, picture):
    data = png(picture(0))
    for name, table in {
        "a": {"image": [data], "text": ["a cat"]},
        "b": {"n": [1]},
        "c": {"image": [data], "text": ["c"]},
    }.items():
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
    found = read(tmp_path)
    assert found["a/0"] == ("a cat", data) and found["c/0"] == ("c", data) and "no column" in found["b"].lower()


def test_a_long_caption_in_a_csv_is_cut_as_others_are(folder):
    (folder / "list.csv").write_text(f"file_name,text\na.png,{'x' * 200_000}\nsub/b.png,a dog\n")
    assert captions(read(folder)) == {"a.png": "x" * 2000, "sub/b.png": "a dog"}


def test_a_table_of_labels_is_left_alone_where_captions_lie_beside_the_pictures(folder):
    (folder / "labels.csv").write_text("file_name,label\na.png,3\n")
    with pytest.raises(UserError, match="--caption-column"):
        read(folder)
    (folder / "a.txt").write_text("a cat")
    assert captions(read(folder)) == {"a.png": "a cat", "sub/b.png": "has no caption"}


def test_a_picture_without_caption_is_a_problem(folder):
    assert captions(read(folder)) == {"a.png": "has no caption", "sub/b.png": "has no caption"}


def test_a_file_over_the_limit_is_not_read(folder, monkeypatch):
    (folder / "a.txt").write_text("a cat")
    monkeypatch.setattr(sources, "MAX_BYTES", 10)
    assert "larger" in read(folder)["a.png"]


def test_shards_of_img2dataset(tmp_path, picture):
    images = [png(picture(n)) for n in range(3)]
    (tmp_path / "in").mkdir()
    shard(
        tmp_path / "in" / "00000.tar",
        {
            "000000000": {"jpg": images[0], "json": b'{"caption": "from json"}', "txt": b"a cat"},
            "000000001": {"json": b'{"caption": "a dog"}', "jpg": images[1]},
            "000000002": {"json": b'{"caption": "lost"}'},
            "000000003": {"webp": images[2]},
        },
    )
    (tmp_path / "in" / "00000.parquet").write_bytes(b"img2dataset's table of what it has loaded")
    assert read(tmp_path / "in") == {
        "00000/000000000": ("a cat", images[0]),
        "00000/000000001": ("a dog", images[1]),
        "00000/000000002": "has no JPEG, PNG or WebP picture beside its text: pack it again with tar --sort=name",
        "00000/000000003": "has no caption",
    }
    assert read(tmp_path / "in", caption_column="caption")["00000/000000000"][0] == "from json"


def test_a_shard_that_is_cut_short_gives_what_it_has_and_says_so(tmp_path, picture):
    images = [png(picture(n)) for n in range(3)]
    shard(tmp_path / "a.tar", {str(n): {"txt": b"a cat", "png": image} for n, image in enumerate(images)})
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(data[: data.index(images[2][:50]) + 100])
    found = read(tmp_path / "a.tar")
    assert found["a/0"] == ("a cat", images[0]) and found["a/1"] == ("a cat", images[1])
    assert "cut short" in found["a"]


@pytest.mark.parametrize(
    "harm",
    [
        lambda data, at: data[:at],
        lambda data, at: data[: at + 100],
        lambda data, at: data[: at + 700],
        lambda data, at: data[:at] + b"\xa5" * 512 + data[at + 512 :],
        lambda data, at: data[:at] + bytes(512) + data[at + 512 :],
    ],
    ids=["ends before a header", "ends in a header", "ends in a picture", "header overwritten", "header empty"],
)
def test_a_shard_harmed_between_pictures_says_so(tmp_path, picture, harm):
    images = [png(picture(n)) for n in range(4)]
    shard(tmp_path / "a.tar", {str(n): {"png": image, "txt": b"a cat"} for n, image in enumerate(images)})
    with tarfile.open(tmp_path / "a.tar") as archive:
        at = archive.getmember("2.png").offset
    (tmp_path / "a.tar").write_bytes(harm((tmp_path / "a.tar").read_bytes(), at))
    found = read(tmp_path / "a.tar")
    assert found["a/0"] == ("a cat", images[0]) and found["a/1"] == ("a cat", images[1])
    assert "cut short or damaged" in found["a"] and "a/3" not in found


def test_a_shard_of_which_reading_fails_is_read_again(tmp_path, picture, real_clip, monkeypatch):
    (tmp_path / "in").mkdir()
    shard(tmp_path / "in" / "a.tar", {str(n): {"txt": b"a cat", "png": png(picture(n))} for n in range(6)})
    stream = Place.stream

    class Hiccup(io.RawIOBase):
        def __init__(self, file):
            self.file, self.left = file, 2  # the first one is to see how it is packed

        def read(self, size=-1):
            self.left -= 1
            if self.left < 0:
                raise OSError("the network is away")
            return self.file.read(size)

    with monkeypatch.context() as patch:
        patch.setattr(Place, "stream", lambda self: Hiccup(stream(self)))
        first = ingest(str(tmp_path / "in"), tmp_path / "store", real_clip)
    second = ingest(str(tmp_path / "in"), tmp_path / "store", real_clip)
    assert 0 < first.added < 6 and "the network is away" in first.broken["in/a"]
    assert first.added + second.added == 6 and second.known == first.added and second.broken == {}


def test_links_in_a_shard_are_not_followed(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("x.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert read(tmp_path / "a.tar") == {}


@pytest.mark.parametrize("nested", [False, True])
def test_parquet_with_pictures_as_bytes_or_in_hugging_faces_struct(tmp_path, picture, nested):
    images = [png(picture(n)) for n in range(2)] + [None]
    column = [{"bytes": i, "path": "x.png"} for i in images] if nested else images
    pq.write_table(pa.table({"image": column, "text": ["a cat", "a dog", "none"]}), tmp_path / "p.parquet")
    found = read(tmp_path / "p.parquet")
    assert found["p/0"] == ("a cat", images[0]) and found["p/1"] == ("a dog", images[1])
    assert found["p/2"] == "has no picture file in it"


def test_parquet_of_addresses_is_refused_with_the_way_to_go(tmp_path):
    pq.write_table(pa.table({"URL": ["http://x/y.jpg"], "TEXT": ["a cat"]}), tmp_path / "p.parquet")
    with pytest.raises(UserError, match="img2dataset"):
        read(tmp_path / "p.parquet")


def test_parquet_columns_can_be_named_and_must_be_there(tmp_path, picture):
    data = png(picture(0))
    table = pa.table({"left": [data], "right": [data[:-1]], "words": ["a cat"]})
    pq.write_table(table, tmp_path / "p.parquet")
    assert read(tmp_path / "p.parquet", image_column="right", caption_column="words")["p/0"][1] == data[:-1]
    with pytest.raises(UserError, match="--image-column"):
        read(tmp_path / "p.parquet")
    with pytest.raises(UserError, match="--caption-column"):
        read(tmp_path / "p.parquet", image_column="left")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "no folder, file or data set"),
        (lambda path: path.mkdir(), "no picture"),
        (lambda path: path.write_text("x"), "neither a .tar nor a .parquet"),
    ],
)
def test_what_is_no_source_is_refused(tmp_path, make, says):
    make(tmp_path / "it")
    with pytest.raises(UserError, match=says):
        find_parts(str(tmp_path / "it"), Options("s"))


def test_a_damaged_parquet_stops_no_other_and_is_refused_alone(tmp_path, picture, real_clip):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match="damaged"):
        ingest(str(tmp_path / "in"), tmp_path / "store", real_clip)
    pq.write_table(pa.table({"image": [png(picture(0))], "text": ["a cat"]}), tmp_path / "in" / "b.parquet")
    report = ingest(str(tmp_path / "in"), tmp_path / "store", real_clip)
    assert (report.added, list(report.broken)) == (1, ["in/a"])
    pages = bytearray((tmp_path / "in" / "b.parquet").read_bytes())
    pages[4:200] = bytes(196)
    (tmp_path / "in" / "c.parquet").write_bytes(pages)
    report = ingest(str(tmp_path / "in"), tmp_path / "store", real_clip)
    assert report.info.count == 1 and set(report.broken) == {"in/a", "in/c"}


def test_captions_become_one_printable_line():
    assert clean(" a\tcat\n\x1b[31m red ") == "a cat [31m red"
    assert clean(None) == clean(3) == "" and len(clean("x" * 9999)) == 2000


def test_shards_go_into_a_store(tmp_path, picture, real_clip):
    shard(tmp_path / "a.tar", {str(n): {"txt": f"no {n}".encode(), "png": png(picture(n))} for n in range(3)})
    report = ingest(str(tmp_path / "a.tar"), tmp_path / "store", real_clip)
    store = Store.open(tmp_path / "store")
    assert report.added == 3 and store.ids == ("a/a/0", "a/a/1", "a/a/2") and store.captions[2] == "no 2"
    with pytest.raises(UserError, match="--link"):
        ingest(str(tmp_path / "a.tar"), tmp_path / "store", real_clip, link=True)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_corrected_captions_are_taken_from_large_files_too(kind, tmp_path, picture, real_clip):
    images = [png(picture(n)) for n in range(3)]

    def ingested(*texts):
        if kind == "tar":
            files = [{"txt": text.encode(), "png": image} for text, image in zip(texts, images)]
            shard(tmp_path / "p.tar", {str(n): file for n, file in enumerate(files)})
        else:
            pq.write_table(pa.table({"image": images, "text": texts}), tmp_path / "p.parquet")
        return ingest(str(tmp_path / f"p.{kind}"), tmp_path / "store", real_clip)

    ingested("a cat", "a dog", "a cow")
    report = ingested("a cat", "a red dog", "")
    assert (report.added, report.known, report.recaptioned, report.replaced) == (0, 3, 1, 0)
    assert Store.open(tmp_path / "store").captions == ("a cat", "a red dog", "a cow")


def test_a_packed_shard_is_read_as_the_plain_one(tmp_path, picture):
    shard(tmp_path / "a.tar", {str(n): {"txt": b"a cat", "png": png(picture(n))} for n in range(3)})
    plain = read(tmp_path / "a.tar")
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    packed = read(tmp_path / "a.tar.gz")
    assert len(plain) == 3 and packed == plain
    (tmp_path / "a.tar.gz").write_bytes((tmp_path / "a.tar.gz").read_bytes()[:-900])
    assert "cut short or damaged" in list(read(tmp_path / "a.tar.gz").values())[-1]


def test_pictures_with_a_dot_in_their_names_are_listed(tmp_path, picture):
    files = {"txt": b"a cat", "png": png(picture(0))}
    shard(tmp_path / "a.tar", {"cat.0": files, "cat.1": files, "dog": files | {"mask.png": b""}})
    assert captions(read(tmp_path / "a.tar")) == {"a/cat": DOTTED, "a/dog": "a cat"}


@pytest.mark.parametrize("other", ("a.tar.gz", "a/b.tar"))
def test_two_shards_whose_pictures_could_have_one_name_are_refused(other, tmp_path, picture):
    (tmp_path / "a").mkdir()
    for file in ("a.tar", other):
        shard(tmp_path / file, {"0": {"txt": b"a cat", "png": png(picture(0))}})
    with pytest.raises(UserError, match=f"a.tar and {other} .* remove one"):
        find_parts(str(tmp_path), Options("s"))


@pytest.mark.parametrize("kind", ("parquet", "tar"))
def test_another_column_of_captions_is_taken_on_a_second_run_and_on_the_way_back(kind, tmp_path, picture, real_clip):
    (tmp_path / "in").mkdir()
    texts = {"caption": "short", "long": "a long caption"}
    if kind == "tar":
        shard(tmp_path / "in" / "a.tar", {"0": {"json": json.dumps(texts).encode(), "png": png(picture(0))}})
    else:
        columns = {"image": [png(picture(0))]} | {name: [text] for name, text in texts.items()}
        pq.write_table(pa.table(columns), tmp_path / "in" / "a.parquet")
    for column, caption in ((None, "short"), ("long", "a long caption"), (None, "short")):
        report = ingest(str(tmp_path / "in"), tmp_path / "store", real_clip, caption_column=column)
        assert (report.info.count, Store.open(tmp_path / "store").captions) == (1, (caption,))


def test_a_wide_sheet_of_short_lines_takes_no_more_memory_than_its_file(folder):
    wide = ",".join(["file_name", "caption", *(f"c{n}" for n in range(5_000))])
    (folder / "captions.csv").write_text("\n".join([wide, "a.png,a cat", *["x"] * 2_000]))
    tracemalloc.start()
    (part,) = find_parts(str(folder), Options("s"))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert part.captions["a.png"] == "a cat"
    assert most < 10_000_000  # 2,000 lines of 5,000 columns would be 400 MB


def test_a_message_about_columns_stays_short(folder):
    (folder / "captions.csv").write_text(",".join(["file_name", *(f"c{n}" for n in range(5_000))]) + "\na.png,x\n")
    with pytest.raises(UserError, match="and 4981 more") as refused:
        read(folder)
    assert len(str(refused.value)) < 300


def test_a_name_that_a_shard_has_twice_is_listed(tmp_path, picture, real_clip):
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "a.tar", "w") as archive:
        for key, seed in (("x", 0), ("y", 1), ("x", 2)):
            for suffix, data in (("png", png(picture(seed))), ("txt", b"a cat")):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    report = ingest(str(tmp_path / "in"), tmp_path / "store", real_clip)
    assert (report.added, report.broken) == (2, {"in/a/x": "has the name of a picture before it"})
    assert Store.open(tmp_path / "store").pictures(["in/a/x"])[0].tobytes() == picture(0).tobytes()


def test_a_streamed_dataset_gives_its_pictures(tmp_path, picture):
    datasets = pytest.importorskip("datasets")
    rows = {"image": [picture(n) for n in range(3)], "text": [f"no {n}" for n in range(3)]}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "set" / "train.parquet"))
    from bat_ui.store.hub import hub_parts

    (part,) = hub_parts(str(tmp_path / "set"), Options("s"))
    found = list(part.records())
    assert [record.caption for record in found] == rows["text"]
    assert [record.data for record in found] == [png(image) for image in rows["image"]]
    assert hub_parts(str(tmp_path / "set"), Options("s")) == [part]
    features["text"] = datasets.Value("large_string")
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "set" / "train.parquet"))
    (changed,) = hub_parts(str(tmp_path / "set"), Options("s"))
    assert changed.key != part.key and changed.group == part.group


def test_pictures_that_are_files_of_their_own_in_a_dataset_are_read_and_no_others(tmp_path, picture, monkeypatch):
    datasets, hub = pytest.importorskip("datasets"), pytest.importorskip("huggingface_hub")
    files = {"datasets/someone/set@main/train/0.png": png(picture(0)), "datasets/other/set/0.png": png(picture(1))}

    def opened(self, path, *_, **__):
        if path not in files:
            raise FileNotFoundError(path)
        return io.BytesIO(files[path])

    (tmp_path / "own.png").write_bytes(png(picture(2)))
    addresses = [f"hf://{path}" for path in files] + ["hf://datasets/someone/set@main/gone.png", str(tmp_path / "own.png")]
    rows = [{"image": {"bytes": None, "path": address}, "text": "a cat"} for address in addresses]
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    stream = datasets.IterableDataset.from_generator(lambda: iter(rows), features=features)
    monkeypatch.setattr("bat_ui.store.hub._load", lambda *_: (stream, "1"))
    monkeypatch.setattr(hub.HfFileSystem, "_open", opened)
    from bat_ui.store.hub import hub_parts

    first, *others = [record for part in hub_parts("someone/set", Options("s")) for record in part.records()]
    assert (first.caption, first.data) == ("a cat", png(picture(0)))
    assert [record.problem for record in others] == ["has no picture file in it"] * 3


def test_without_connection_a_dataset_is_refused_in_one_sentence(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach it")

    monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
    with pytest.raises(UserError, match="go online"):
        find_parts("someone/pictures", Options("s"))

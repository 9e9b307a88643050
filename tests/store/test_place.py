"""The same calls work on a folder and on an object store, whose part a local S3 server plays."""

import io

import pytest
from pyarrow import fs

from bat_ui.errors import UserError
from bat_ui.store.ingest import ingest
from bat_ui.store.place import Place
from bat_ui.store.records import Options
from bat_ui.store.sources import find_parts
from bat_ui.store.table import Store


@pytest.fixture
def bucket(monkeypatch):
    """The address of an empty bucket."""
    server_module = pytest.importorskip("moto.server")
    import boto3

    server = server_module.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="bucket")
    yield "s3://bucket"
    server.stop()


def test_a_source_and_a_store_may_both_lie_in_an_object_store(bucket, photos, picture, real_clip):
    files, root = fs.FileSystem.from_uri(f"{bucket}/pictures")
    for path in photos(4).iterdir():
        with files.open_output_stream(f"{root}/{path.name}") as stream:
            stream.write(path.read_bytes())
    first = ingest(f"{bucket}/pictures", f"{bucket}/stores/one", real_clip)
    second = ingest(f"{bucket}/pictures", f"{bucket}/stores/one", real_clip)
    store = Store.open(f"{bucket}/stores/one")
    assert (first.added, second.added, second.known) == (4, 0, 4)
    assert store.captions == tuple(f"a photo of {n}" for n in range(4))
    assert [image.tobytes() for image in store.pictures(store.ids)] == [picture(n).tobytes() for n in range(4)]


def test_odd_names_in_an_object_store_are_read(bucket, picture, real_clip):
    files, root = fs.FileSystem.from_uri(f"{bucket}/odd")
    names = ["a b", "100%", "ä?#1"]
    for n, name in enumerate(names):
        buffer = io.BytesIO()
        picture(n).save(buffer, "PNG")
        for suffix, content in ((".png", buffer.getvalue()), (".txt", f"a photo of {n}".encode())):
            with files.open_output_stream(f"{root}/{name}{suffix}") as stream:
                stream.write(content)
    report = ingest(f"{bucket}/odd", f"{bucket}/stores/odd", real_clip, link=True)
    store = Store.open(f"{bucket}/stores/odd")
    assert report.broken == {} and report.added == 3
    ids = [f"odd/{name}.png" for name in names]
    assert store.captions_of(ids) == [f"a photo of {n}" for n in range(3)]
    assert [image.tobytes() for image in store.pictures(ids)] == [picture(n).tobytes() for n in range(3)]


def test_a_place_lists_its_files_without_hidden_ones(tmp_path):
    for path in ("b.txt", "sub/a.txt", "sub/.hidden", ".git/x"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("four")
    assert [(entry.path, entry.size) for entry in Place.of(tmp_path).entries()] == [("b.txt", 4), ("sub/a.txt", 4)]


def test_an_address_that_nothing_can_read_is_refused():
    with pytest.raises(UserError, match="ftp"):
        Place.of("ftp://host/folder")


def test_folders_are_read_through_links_but_only_once(tmp_path):
    (tmp_path / "in" / "z").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for file in ("in/z/a.png", "elsewhere/b.png"):
        (tmp_path / file).write_bytes(b"x")
    for link, target in (("in/z/loop", "in"), ("in/a", "in/z"), ("in/linked", "elsewhere")):
        (tmp_path / link).symlink_to(tmp_path / target)
    assert [entry.path for entry in Place.of(tmp_path / "in").entries()] == ["linked/b.png", "z/a.png"]


def test_a_file_name_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "caf\udce9.png").write_bytes(b"x")
    with pytest.raises(UserError, match="rename it"):
        Place.of(tmp_path).entries()


def test_a_place_that_cannot_be_reached_is_said(monkeypatch):
    keys = {"access_key": "a", "secret_key": "b", "retry_strategy": fs.AwsStandardS3RetryStrategy(1)}
    away = fs.S3FileSystem(endpoint_override="http://127.0.0.1:9", **keys)
    monkeypatch.setattr(Place, "_resolve", lambda self: (away, "bucket/pictures"))
    for ask in (Place.is_file, Place.entries, Place.entry, lambda place: find_parts(place.uri, Options("s"))):
        with pytest.raises(UserError, match="s3://bucket/pictures' cannot be reached"):
            ask(Place("s3://bucket/pictures"))


def test_a_folder_that_may_not_be_read_is_said(monkeypatch, tmp_path):
    def refuses(folder):
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr("os.scandir", refuses)
    with pytest.raises(UserError, match="cannot be reached.*Permission denied"):
        Place.of(tmp_path).entries()

"""What people bring in is checked: zips and folder names that lead elsewhere get one sentence and leave nothing behind."""

import os
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bat_ui.cli import main
from bat_ui.errors import UserError
from bat_ui.project import Project
from bat_ui.store import catalogue
from bat_ui.store.catalogue import (
    folder_under,
    ingest_root,
    keep_upload,
    list_stores,
    new_store_name,
    opened_source,
    store_place,
    unpacked,
)
from bat_ui.store.ingest import ingest
from bat_ui.store.table import Store


@pytest.fixture
def zipped(tmp_path):
    """zipped({name: bytes}): a zip file of them; a name may be a ZipInfo."""

    def make(files) -> str:
        with zipfile.ZipFile(tmp_path / "upload.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files:
                archive.writestr(name, data)
        return tmp_path / "upload.zip"

    return make


@pytest.fixture(autouse=True)
def own_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("BAT_UI_DATA", str(tmp_path / "data"))


def link(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


def test_a_zip_of_pictures_becomes_a_store(photos, zipped, real_clip):
    files = [(f"holiday/{path.name}", path.read_bytes()) for path in sorted(photos(3).iterdir())]
    archive = zipped([*files, ("__MACOSX/._x.png", b"x"), ("run.exe", b"MZ"), ("holiday/", b"")])
    with unpacked(archive) as folder:
        kept = sorted(path.name for path in folder.rglob("*") if path.is_file())
        ingest(str(folder), store_place("mine"), real_clip, name="upload")
    assert kept == sorted(name.removeprefix("holiday/") for name, _ in files)
    assert not folder.exists()
    assert Store.open(store_place("mine")).ids == tuple(f"upload/holiday/00{n}.png" for n in range(3))


def test_what_systems_put_into_a_zip_is_left_out_whatever_it_is_called(zipped):
    odd = ["p/Icon\r", "__MACOSX/p/Icon\r", "__MACOSX/p/a\x1b.png", "p/.DS_Store", "c:d"]
    with unpacked(zipped([("p/a.png", b"x"), *((name, b"") for name in odd)])) as folder:
        assert [path.name for path in folder.rglob("*") if path.is_file()] == ["a.png"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("../out.png", "leads elsewhere"),
        ("a/../../out.png", "leads elsewhere"),
        ("/tmp/out.png", "leads elsewhere"),
        ("C:\\out.png", "leads elsewhere"),
        ("a\x1b[31m.png", "leads elsewhere"),
        (link("a.png"), "link"),
    ],
)
def test_names_that_lead_elsewhere_are_refused_before_anything_is_written(zipped, name, says, tmp_path):
    archive = zipped([("good.png", b"x"), (name, b"/etc/passwd")])
    with pytest.raises(UserError, match=says), unpacked(archive):
        pytest.fail("it was unpacked")
    assert not list((tmp_path / "data" / "incoming").iterdir())


def test_bombs_are_stopped_by_what_comes_out_of_them(zipped, monkeypatch):
    monkeypatch.setattr(catalogue, "MAX_BYTES", 1000)
    with pytest.raises(UserError, match="too large"), unpacked(zipped([("a.png", bytes(1001))])):
        pass
    monkeypatch.setattr(catalogue, "MAX_UNPACKED", 1500)
    with pytest.raises(UserError, match="too large"), unpacked(zipped([(f"{n}.png", bytes(600)) for n in range(3)])):
        pass
    monkeypatch.setattr(catalogue, "MAX_FILES", 2)
    with pytest.raises(UserError, match="more than 2 files"), unpacked(zipped([(f"{n}.png", b"x") for n in range(3)])):
        pass


def test_a_lying_directory_does_not_help_a_bomb(zipped, monkeypatch):
    archive = zipped([("a.png", bytes(5000))])
    data = bytearray(archive.read_bytes())
    for signature, at in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):  # the uncompressed size in both headers
        where = data.index(signature) + at
        data[where : where + 4] = (10).to_bytes(4, "little")
    archive.write_bytes(data)
    monkeypatch.setattr(catalogue, "MAX_BYTES", 1000)
    with pytest.raises(UserError), unpacked(archive):
        pytest.fail("it was unpacked")


def test_two_files_of_one_name_and_what_is_no_zip_are_refused(zipped, tmp_path):
    with pytest.raises(UserError, match="same name"), unpacked(zipped([("a.png", b"x"), ("A.png", b"y")])):
        pass
    (tmp_path / "no.zip").write_bytes(b"PK nothing")
    with pytest.raises(UserError, match="no zip"), unpacked(tmp_path / "no.zip"):
        pass


def test_a_zip_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="There is no zip '.*nothere.zip'"), opened_source(str(tmp_path / "nothere.zip")):
        pass
    with pytest.raises(UserError, match="waited too long"), opened_source(str(tmp_path / "data" / "incoming" / "gone.zip")):
        pass


def test_an_encrypted_zip_is_refused(zipped):
    archive = zipped([("a.png", b"x")])
    data = bytearray(archive.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(data)
    with pytest.raises(UserError, match="password"), unpacked(archive):
        pass


def test_a_zip_with_spoiled_contents_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(range(256)) * 40)
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[35:60] = b"\xff" * 25  # behind the local header and the name
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(UserError, match="damaged"), unpacked(tmp_path / "a.zip"):
        pass


def test_only_folders_below_the_root_can_be_asked_for(tmp_path):
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "root-not").mkdir()
    assert folder_under(root, "sub") == root / "sub" and folder_under(root, str(root / "sub")) == root / "sub"
    for asked in ("..", "/", "../root-not", str(tmp_path), "sub/../.."):
        with pytest.raises(UserError, match="not among"):
            folder_under(root, asked)
    with pytest.raises(UserError, match="no such folder"):
        folder_under(root, "missing")
    (root / "out").symlink_to(tmp_path / "root-not")
    with pytest.raises(UserError, match="not among"):
        folder_under(root, "out")
    (root / "sub" / "file").symlink_to("/etc/passwd")
    with pytest.raises(UserError, match="file leads out"):
        folder_under(root, "sub")


def test_a_link_behind_a_link_must_not_lead_out_either_and_loops_end(tmp_path):
    root = tmp_path / "root"
    for folder in ("sub", "other"):
        (root / folder).mkdir(parents=True)
    (root / "sub" / "in").symlink_to(root / "other")
    (root / "other" / "loop").symlink_to(root / "sub")
    (root / "other" / "itself").symlink_to("itself")
    assert folder_under(root, "sub") == root / "sub"
    (root / "other" / "out").symlink_to(tmp_path)
    with pytest.raises(UserError, match="in/out leads out"):
        folder_under(root, "sub")


def test_stores_are_listed_with_what_they_say_and_samples(photos, picture, real_clip, tmp_path):
    ingest(str(photos(5)), store_place("mine"), real_clip, licence="CC0", title="Mine")
    (tmp_path / "data" / "stores" / "nothing").mkdir()
    (listed,) = list_stores(samples=2)
    assert (listed.info.title, listed.info.count, listed.info.source, listed.info.licence) == ("Mine", 5, "photos", "CC0")
    assert [sample.tobytes() for sample in listed.samples] == [picture(0).tobytes(), picture(2).tobytes()]
    assert list_stores()[0].place == store_place("mine")


def test_a_store_whose_pictures_are_gone_hides_no_other(photos, real_clip):
    folder = photos(3)
    ingest(str(folder), store_place("linked"), real_clip, link=True)
    for file in folder.glob("*.png"):
        file.unlink()
    (listed,) = list_stores()
    assert listed.info.count == 3 and listed.samples == ()


@pytest.mark.parametrize("harm", [shutil.rmtree, lambda table: [os.truncate(f, 200) for f in (table / "data").iterdir()]])
def test_a_damaged_store_hides_no_other_and_says_so_when_it_is_read(photos, real_clip, harm):
    for name in ("good", "spoiled"):
        ingest(str(photos(3)), store_place(name), real_clip, name="p")
    harm(Path(store_place("spoiled")) / "pictures.lance")
    assert [(listed.info.name, len(listed.samples)) for listed in list_stores()] == [("good", 3), ("spoiled", 0)]
    with pytest.raises(UserError, match="'spoiled' is damaged"):
        Store.open(store_place("spoiled")).pictures(["p/000.png"])


def test_a_caption_file_in_another_coding_is_said(photos, real_clip):
    folder = photos(1)
    (folder / "captions.csv").write_bytes("file_name,text\n000.png,Stra\u00dfe\n".encode("latin-1"))
    with pytest.raises(UserError, match="captions.csv is no UTF-8 text"):
        ingest(str(folder), store_place("mine"), real_clip)


def test_a_store_is_called_by_name_folder_or_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert store_place("./mine") == "./mine"
    assert store_place("mine") == str(tmp_path / "data" / "stores" / "mine")
    assert store_place("a/b") == "a/b" and store_place("s3://bucket/store") == "s3://bucket/store"


def test_a_zip_cannot_be_linked_to(photos, zipped, tiny_backbone_folder, tmp_path, capsys):
    archive = zipped([(path.name, path.read_bytes()) for path in sorted(photos(2).iterdir())])
    options = ["--store", str(tmp_path / "store"), "--backbone", str(tiny_backbone_folder), "--link"]
    assert main(["ingest", str(archive), *options]) == 2
    assert "unpack it yourself" in capsys.readouterr().err


def test_an_uploaded_zip_is_ingested_as_a_job_of_a_project_and_then_gone(photos, zipped, tiny_backbone_folder, tmp_path):
    upload = keep_upload(zipped([(path.name, path.read_bytes()) for path in sorted(photos(3).iterdir())]))
    project = Project(tmp_path / "project")
    options = ["--store", "mine", "--name", "holiday", "--proxy", "--backbone", str(tiny_backbone_folder)]
    assert main(["ingest", "--project", str(project.folder), *options, "--", str(upload)]) == 0
    status = project.status("ingest")
    assert (status["state"], status["message"]) == ("done", "mine: 3 new pictures, 3 in all.")
    opened = Store.open(store_place("mine"))
    assert opened.ids == tuple(f"holiday/00{n}.png" for n in range(3)) and opened.info.proxy
    assert not upload.exists() and not list(upload.parent.iterdir())


def test_a_corrected_upload_takes_the_place_of_the_first(photos, picture, zipped, tiny_backbone_folder, tmp_path, capsys):
    folder, project = photos(3), Project(tmp_path / "project")
    options = ["--store", "mine", "--name", "holiday", "--backbone", str(tiny_backbone_folder)]
    for seed in (1, 50):
        picture(seed).save(folder / "001.png")
        (folder / "002.txt").write_text(f"a photo of cat number {seed}", encoding="utf-8")
        upload = keep_upload(zipped([(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]))
        assert main(["ingest", "--project", str(project.folder), *options, str(upload)]) == 0
    changes = "1 took the place of another file of their name. Corrected captions: 1."
    assert project.status("ingest")["message"] == f"mine: 0 new pictures, 3 in all. {changes}"
    assert changes.split(". ")[1] in capsys.readouterr().out
    assert Store.open(store_place("mine")).pictures(["holiday/001.png"])[0].tobytes() == picture(50).tobytes()


def test_an_ingest_that_is_stopped_by_hand_says_how_it_goes_on(photos, tiny_backbone_folder, monkeypatch, capsys):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("bat_ui.store.ingest.ingest", stopped)
    assert main(["ingest", str(photos(1)), "--store", "mine", "--backbone", str(tiny_backbone_folder)]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_two_zips_of_one_name_are_not_taken_for_the_same(photos, zipped, tiny_backbone_folder, tmp_path, capsys):
    for folder, first in (("a", 0), ("b", 1)):  # 000.png of b is another picture
        (tmp_path / folder).mkdir()
        files = [(f"00{n - first}.png", (photos(3) / f"00{n}.png").read_bytes()) for n in range(first, first + 2)]
        zipped([*files, ("000.txt", b"a cat"), ("001.txt", b"a dog")]).rename(tmp_path / folder / "photos.zip")
    options = ["--store", str(tmp_path / "store"), "--backbone", str(tiny_backbone_folder)]
    assert main(["ingest", str(tmp_path / "a" / "photos.zip"), *options]) == 0
    assert main(["ingest", str(tmp_path / "b" / "photos.zip"), *options]) == 2
    assert "another picture from elsewhere" in capsys.readouterr().err
    assert main(["ingest", str(tmp_path / "b" / "photos.zip"), *options, "--name", "others"]) == 0
    (tmp_path / "b" / "photos.zip").replace(tmp_path / "a" / "photos.zip")
    assert main(["ingest", str(tmp_path / "a" / "photos.zip"), *options]) == 0
    assert "2 took the place" in capsys.readouterr().out and Store.open(tmp_path / "store").count == 4


def test_what_a_killed_ingest_unpacked_is_removed_by_the_next_one(zipped, tmp_path):
    command = "import sys; from pathlib import Path; from bat_ui.store.catalogue import unpacked\n"
    command += "with unpacked(Path(sys.argv[1])): print('there', flush=True); sys.stdin.read()"
    archive = zipped([("a.png", b"x")])
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    other = subprocess.Popen([sys.executable, "-c", command, str(archive)], **pipes)
    incoming = tmp_path / "data" / "incoming"
    try:
        assert other.stdout.readline() == "there\n"
        (theirs,) = incoming.iterdir()
        with unpacked(archive):
            assert theirs.exists() and len(list(incoming.iterdir())) == 2
    finally:
        other.kill()
        other.wait()
    assert theirs.exists()
    upload = keep_upload(archive)
    assert list(incoming.iterdir()) == [upload]


def test_a_zip_that_is_none_is_said_in_the_projects_status_and_is_gone_too(tiny_backbone_folder, tmp_path):
    (tmp_path / "no.zip").write_bytes(b"PK nothing")
    upload = keep_upload(tmp_path / "no.zip")
    project = Project(tmp_path / "project")
    options = ["--store", "mine", "--backbone", str(tiny_backbone_folder)]
    assert main(["ingest", "--project", str(project.folder), *options, "--", str(upload)]) == 2
    assert project.status("ingest")["state"] == "failed" and "no zip file" in project.status("ingest")["message"]
    assert not upload.exists() and (tmp_path / "no.zip").exists()


def test_what_is_no_zip_is_ingested_where_it_is_and_nobodys_own_zip_is_deleted(photos, zipped, tmp_path):
    folder = str(photos(1))
    with opened_source(folder) as source:
        assert source == folder
    archive = zipped([("a.png", b"x")])
    with opened_source(str(archive)) as source:
        assert source != str(archive)
    assert archive.exists()


@pytest.mark.parametrize(
    ("title", "name"), [("street cats", "street-cats"), ("../../etc", "etc"), ("a/b", "a-b"), ("猫", "猫"), ("犬", "犬")]
)
def test_a_new_stores_name_is_plain(title, name):
    assert new_store_name(title) == name


def test_a_new_store_never_gets_into_one_of_another_title(photos, real_clip):
    ingest(str(photos(1)), store_place(new_store_name("street cats")), real_clip, title="street cats")
    assert new_store_name(" street  cats") == "street-cats", "more pictures for the same store"
    with pytest.raises(UserError, match="too much like that of the store “street cats”"):
        new_store_name("street/cats")


def test_the_programs_own_store_is_not_ingested_into(photos, tiny_backbone_folder, capsys):
    assert main(["ingest", str(photos(1)), "--store", "Sticker", "--backbone", str(tiny_backbone_folder)]) == 2
    assert "give your store another name" in capsys.readouterr().err and not Path(store_place("Sticker")).exists()


@pytest.mark.parametrize("place", ["/dev/null/s", "/proc/none/s"])
def test_a_place_that_cannot_be_written_is_said(place, photos, real_clip):
    with pytest.raises(UserError, match="cannot be written"):
        ingest(str(photos(1)), place, real_clip)


@pytest.mark.parametrize("title", ["", "  ", "Sticker", "😀", ".."])
def test_a_store_without_a_name_or_by_the_programs_own_is_refused(title):
    with pytest.raises(UserError, match="name"):
        new_store_name(title)


def test_no_folder_may_be_ingested_unless_one_is_named(monkeypatch, tmp_path):
    assert ingest_root() is None
    monkeypatch.setenv(catalogue.ROOT, str(tmp_path))
    assert ingest_root() == tmp_path.resolve()

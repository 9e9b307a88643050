"""The command line on bad input: one sentence, exit code 2, nothing lost."""

import json
import signal
import struct
import zlib

import pytest
from PIL import Image

from bat_ui.cli import main
from bat_ui.project import Project
from bat_ui.reporter import Reporter


def huge_png() -> bytes:
    """A PNG whose header says 20,000 x 20,000 and that holds next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def animated(path) -> None:
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)


def truncated(path) -> None:
    Image.effect_noise((64, 64), 90).save(path)
    path.write_bytes(path.read_bytes()[:800])


def fifty_pictures(path) -> None:
    for i in range(49):
        Image.new("RGB", (64, 64), (5 * i, 0, 0)).save(path.with_name(f"extra{i}.png"))
    Image.new("RGB", (64, 64)).save(path)


BAD = {
    "no picture": (lambda path: path.with_name("note.txt").write_text("nothing"), "no picture"),
    "a text file named .png": (lambda path: path.write_text("not a picture"), "bad.png"),
    "a huge PNG": (lambda path: path.write_bytes(huge_png()), "50 million pixels"),
    "an animated file": (lambda path: animated(path), "bad.png"),
    "a truncated file": (lambda path: truncated(path), "bad.png"),
    "50 files": (fifty_pictures, "50 pictures"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_pictures_are_refused_in_one_sentence_and_an_older_project_stays(
    name, subject_folder, tiny_backbone_folder, tmp_path, capsys
):
    out = tmp_path / "out"
    arguments = ["--class-noun", "face", "--out", str(out), "--rule", "none", "--backbone", str(tiny_backbone_folder)]
    assert main(["select", str(subject_folder), *arguments]) == 0
    before = {p: p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
    bad = tmp_path / "bad"
    bad.mkdir()
    make, expected = BAD[name]
    make(bad / "bad.png")
    capsys.readouterr()

    assert main(["select", str(bad), *arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and "\n" not in said and "Traceback" not in said
    assert expected in said
    assert {p: p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()} == before


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["personalize", "SUBJECT", "--class-noun", " ", "--out", "OUT"], "class noun"),
        (["personalize", "MISSING", "--class-noun", "face", "--out", "OUT"], "no folder"),
        (["select", "SUBJECT"], "--class-noun"),
        (["train", "MISSING"], "no project"),
        (["select", "SUBJECT", "--class-noun", "face", "--out", "OUT", "--shortlist", "0"], "1 or more"),
        (["generate", "MISSING"], "no project"),
        (["select", "SUBJECT", "--class-noun", "face", "--out", "OUT", "--backbone", "nonsense"], "nonsense"),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(
    arguments, expected, subject_folder, tiny_backbone_folder, tmp_path, capsys
):
    places = {"SUBJECT": subject_folder, "MISSING": tmp_path / "missing", "OUT": tmp_path / "out"}
    arguments = [str(places.get(a, a)) for a in arguments]
    if "--backbone" not in arguments:
        arguments += ["--backbone", str(tiny_backbone_folder)]
    assert main(arguments) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and "\n" not in said and expected in said
    assert not (tmp_path / "out" / "subject").exists()


def test_training_before_selecting_says_what_to_do(subject_folder, tiny_backbone_folder, tmp_path, capsys):
    from bat_ui.line import prepare
    from bat_ui.subject import subject_files

    prepare(Project(tmp_path), subject_files(subject_folder), "face", template="a sticker of {identifier} {class_noun}")
    assert main(["train", str(tmp_path), "--backbone", str(tiny_backbone_folder)]) == 2
    assert "run the selection first" in capsys.readouterr().err
    assert main(["generate", str(tmp_path), "--backbone", str(tiny_backbone_folder)]) == 2
    assert "run the training first" in capsys.readouterr().err


def test_a_choice_is_pruned_added_to_and_undone_by_hand(subject_folder, tiny_backbone_folder, tmp_path, capsys):
    out, backbone = tmp_path / "out", ["--backbone", str(tiny_backbone_folder)]
    few = ["--rule", "nearest", "--num-backbone", "3", "--shortlist", "8"]
    assert main(["select", str(subject_folder), "--class-noun", "face", "--out", str(out), *backbone, *few]) == 0

    def choose(*words: str) -> list[str]:
        capsys.readouterr()
        assert main(["choose", str(out), *words, *backbone]) == 0
        return [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]

    taken = choose()
    assert len(taken) == 3
    found = next(id for id in choose("--find", "red flag") if id not in {c["id"] for c in candidates(out)})
    changed = choose("--drop", taken[0], "--add", found)
    assert set(changed) == {*taken[1:], found}
    assert {c["id"] for c in candidates(out) if c["chosen"]} == set(changed)
    assert choose("--undo") == taken
    assert len(choose("--number", "2")) == 2


def test_a_change_by_hand_that_cannot_be_made_changes_nothing(subject_folder, tiny_backbone_folder, tmp_path, capsys):
    out, backbone = tmp_path / "out", ["--backbone", str(tiny_backbone_folder)]
    few = ["--rule", "nearest", "--num-backbone", "3", "--shortlist", "8"]
    assert main(["select", str(subject_folder), "--class-noun", "face", "--out", str(out), *backbone, *few]) == 0
    before = (out / "selection.json").read_bytes()
    first = candidates(out)[0]["id"]
    for words, said in (
        (["--drop", first, "--keep", "nothing"], "nothing is not among the candidates"),
        (["--drop", "nothing"], "nothing is not among the candidates"),
        (["--drop", first, "--add", "nothing"], "no such picture"),
        (["--number", "few"], "--number M"),
        (["--undo"], "nothing to undo"),
        (["--own", str(subject_folder / "face1.png")], "Say what your own pictures show"),
    ):
        capsys.readouterr()
        assert main(["choose", str(out), *words, *backbone]) == 2
        assert said in capsys.readouterr().err
        assert (out / "selection.json").read_bytes() == before


def candidates(out) -> list[dict]:
    return json.loads((out / "selection.json").read_text(encoding="utf-8"))["candidates"]


def test_ctrl_c_asks_to_stop_once_and_insists_the_second_time(tmp_path):
    project = Project(tmp_path)
    with pytest.raises(KeyboardInterrupt), Reporter(project, "train") as report:
        signal.raise_signal(signal.SIGINT)
        assert report.stop_asked()
        signal.raise_signal(signal.SIGINT)
    assert project.status("train")["state"] == "stopped"

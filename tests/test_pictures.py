"""Reading single files: each bad input gives one sentence that names the file; good ones come out as plain RGB."""

import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFilter, PngImagePlugin

from bat_ui.errors import UserError
from bat_ui.pictures import is_blurred, look_the_same, read_picture, subject_files


def photo(width=96, height=64, seed=0):
    """A picture with texture at every scale, so that no two parts of it are alike."""
    rng = np.random.default_rng(seed)
    layers = [Image.fromarray(rng.integers(0, 256, (n, n, 3), np.uint8)).resize((width, height)) for n in (4, 16, 64)]
    return Image.fromarray(np.mean([np.asarray(layer) for layer in layers], axis=0).astype(np.uint8))


def png_header(width, height):
    """A PNG that claims a size and holds one row of nothing: cheap to make, costly to decode in good faith."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def text_named_png(path):
    path.write_text("this is not a picture")


def empty(path):
    path.write_bytes(b"")


def gif_named_png(path):
    photo().save(path, "GIF")


def tiff_named_png(path):
    photo().save(path, "TIFF")


def svg_named_png(path):
    path.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"/>')


def bomb(path):
    path.write_bytes(png_header(20_000, 20_000))


def over_our_limit_only(path):
    path.write_bytes(png_header(8_000, 8_000))


def animated_webp(path):
    photo().save(path, "WEBP", save_all=True, append_images=[photo(seed=1)])


def animated_png(path):
    photo().save(path, "PNG", save_all=True, append_images=[photo(seed=1)])


def truncated(kind):
    def write(path):
        photo().save(path, kind)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * 2 // 3])

    return write


def corrupt_png(path):
    photo().save(path, "PNG")
    data = bytearray(path.read_bytes())
    data[60:100] = bytes(40)
    path.write_bytes(bytes(data))


def tiny(path):
    photo(200, 8).save(path, "PNG")


def folder(path):
    path.mkdir()


def banner(path):
    Image.new("RGB", (4000, 30)).save(path, "PNG")


def missing(path):
    pass


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (text_named_png, "not a JPEG, PNG or WebP"),
        (empty, "not a JPEG, PNG or WebP"),
        (gif_named_png, "not a JPEG, PNG or WebP"),
        (tiff_named_png, "not a JPEG, PNG or WebP"),
        (svg_named_png, "not a JPEG, PNG or WebP"),
        (bomb, "more than 50 million pixels"),
        (over_our_limit_only, "more than 50 million pixels"),
        (animated_webp, "animated"),
        (animated_png, "animated"),
        (truncated("JPEG"), "cut short"),
        (truncated("PNG"), "cut short"),
        (truncated("WEBP"), "cut short|not a JPEG"),
        (corrupt_png, "damaged"),
        (tiny, "less than 16 pixels"),
        (banner, "more than 32 times as long"),
        (folder, "no file"),
        (missing, "no file"),
    ],
)
def test_a_bad_file_gives_one_sentence_that_names_it(tmp_path, make, says):
    path = tmp_path / "my dog.png"
    make(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(UserError, match=says) as caught:
            read_picture(path)
    sentence = str(caught.value)
    assert "my dog.png" in sentence and str(tmp_path) not in sentence
    assert sentence.count(".") - sentence.count("my dog.png") == 1 and sentence.endswith(".") and "\n" not in sentence


def test_a_file_over_the_byte_limit_is_refused_without_reading_it(tmp_path, monkeypatch):
    path = tmp_path / "large.png"
    photo().save(path)
    monkeypatch.setattr("bat_ui.pictures.MAX_BYTES", path.stat().st_size - 1)
    monkeypatch.setattr(type(path), "read_bytes", lambda self: pytest.fail("the file was read"))
    with pytest.raises(UserError, match="large.png is larger than"):
        read_picture(path)


def test_an_unprintable_file_name_cannot_break_the_sentence(tmp_path):
    path = tmp_path / "a\nb\x1b[31m.png"
    path.write_text("x")
    with pytest.raises(UserError, match=r"^a\?b\?\[31m\.png is not"):
        read_picture(path)


@pytest.mark.parametrize(
    ("orientation", "undo"),
    [
        (3, Image.Transpose.ROTATE_180),
        (6, Image.Transpose.ROTATE_90),
        (8, Image.Transpose.ROTATE_270),
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (5, Image.Transpose.TRANSPOSE),
    ],
)
def test_exif_orientation_is_applied(tmp_path, orientation, undo):
    upright = photo()
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright.transpose(undo).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_picture(tmp_path / "a.png"), upright)


def test_a_photo_is_turned_upright_whatever_else_its_exif_data_say(tmp_path):
    turned = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    odd = struct.pack("<HHI4s", 0x011A, 2, 4, b"abc")  # a resolution that is a text
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + turned + odd + bytes(4)
    photo().transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.jpg", quality=100, subsampling=0, exif=exif)
    assert np.abs(np.asarray(read_picture(tmp_path / "a.jpg")).astype(int) - np.asarray(photo())).mean() < 4


def test_metadata_is_dropped(tmp_path):
    exif, note = Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x010F] = "camera"
    note.add_text("comment", "home address")
    photo().save(tmp_path / "a.png", exif=exif, pnginfo=note, dpi=(300, 300))
    read = read_picture(tmp_path / "a.png")
    assert read.info == {} and not read.getexif()


def test_transparency_is_painted_on_white(tmp_path):
    rgba = np.zeros((32, 32, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[:16, :, 3], rgba[16:24, :, 3] = 255, 128
    Image.fromarray(rgba).save(tmp_path / "a.png")
    read = np.asarray(read_picture(tmp_path / "a.png")).astype(int)
    alpha = rgba[..., 3:] / 255
    assert np.abs(read - (rgba[..., :3] * alpha + 255 * (1 - alpha))).max() <= 1


@pytest.mark.parametrize("mode", ["LA", "P"])
def test_other_transparent_modes_are_painted_on_white(tmp_path, mode):
    if mode == "P":
        picture = Image.new("P", (32, 32), 1)
        picture.putpalette([0, 0, 0, 255, 0, 0])
        picture.paste(0, (0, 0, 32, 16))
        picture.save(tmp_path / "a.png", transparency=1)
    else:
        picture = Image.new("LA", (32, 32), (90, 0))
        picture.paste((0, 255), (0, 0, 32, 16))
        picture.save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == mode
    read = np.asarray(read_picture(tmp_path / "a.png"))
    assert (read[:16] == 0).all() and (read[16:] == 255).all()


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(32, 0)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    read = np.asarray(read_picture(tmp_path / "a.png")).astype(int)
    assert read.shape == (32, 64, 3) and np.abs(read[..., 1] - ramp / 257).max() <= 1


def test_sixteen_bit_grey_with_a_transparent_shade_is_scaled_and_painted_on_white(tmp_path):
    ramp = np.linspace(257, 65535, 64).astype(np.uint16)[None].repeat(32, 0)
    ramp[:, :8] = 5000
    Image.fromarray(ramp).save(tmp_path / "a.png", transparency=5000)
    read = np.asarray(read_picture(tmp_path / "a.png")).astype(int)
    assert (read[:, :8] == 255).all() and np.abs(read[:, 8:, 0] - ramp[:, 8:] / 257).max() <= 1


@pytest.mark.parametrize("mode", ["L", "1", "CMYK"])
def test_other_colour_modes_become_rgb(tmp_path, mode):
    grey = Image.new("L", (32, 32), 255)
    grey.paste(0, (0, 0, 32, 16))
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    (grey.convert("RGB").convert("CMYK") if mode == "CMYK" else grey.convert(mode)).save(path)
    read = np.asarray(read_picture(path)).astype(int)
    assert read.shape == (32, 32, 3) and read[4:12].max() < 20 and read[20:28].min() > 235


def test_a_phone_jpeg_with_a_second_picture_is_not_taken_for_an_animation(tmp_path):
    red, blue = Image.new("RGB", (64, 48), "red"), Image.new("RGB", (64, 48), "blue")
    red.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[blue])
    assert Image.open(tmp_path / "a.jpg").n_frames == 2
    assert np.abs(np.asarray(read_picture(tmp_path / "a.jpg")).astype(int) - (255, 0, 0)).max() < 5


def test_a_very_large_picture_is_reduced_in_proportion(tmp_path):
    Image.new("RGB", (4096, 1024), "red").save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png").size == (2048, 512)


def test_a_folder_lists_its_pictures_by_name(tmp_path):
    for name in ("b.PNG", "a.jpeg", "c.webp", "notes.txt", ".hidden.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "d.png").mkdir()
    assert [path.name for path in subject_files(tmp_path)] == ["a.jpeg", "b.PNG", "c.webp"]


def test_a_missing_or_empty_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="no folder nowhere"):
        subject_files(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no picture in"):
        subject_files(tmp_path)


def test_copies_look_the_same_and_other_pictures_do_not(tmp_path):
    one = photo(256, 256)
    one.save(tmp_path / "copy.jpg", quality=60)
    assert look_the_same(one, Image.open(tmp_path / "copy.jpg").resize((100, 100), Image.Resampling.LANCZOS))
    assert not look_the_same(one, photo(256, 256, seed=1))


def test_a_recoloured_drawing_does_not_look_the_same():
    yellow, pink = (Image.new("RGB", (64, 64), "white") for _ in range(2))
    yellow.paste((240, 220, 90), (16, 16, 48, 48))
    pink.paste((240, 205, 190), (16, 16, 48, 48))
    assert not look_the_same(yellow, pink)


@pytest.mark.parametrize("side", [256, 1024])
def test_blur_is_judged_at_the_same_scale_whatever_the_size(side):
    sharp = photo(256, 256).resize((side, side), Image.Resampling.BICUBIC)
    assert not is_blurred(sharp)
    assert is_blurred(sharp.filter(ImageFilter.GaussianBlur(3 * side / 256)))


def test_flat_drawings_are_not_blurred():
    flat = Image.new("RGB", (256, 256), "white")
    flat.paste("red", (60, 60, 200, 200))
    assert not is_blurred(flat) and not is_blurred(Image.new("RGB", (64, 64), "grey"))

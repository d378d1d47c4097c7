"""Strangers' pictures: 200 hostile files, the limits, what errors say, and what Pillow and Gradio may no longer do."""

import asyncio
import hashlib
import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from random import Random
from typing import Any

import hostile
import numpy as np
import pytest
from hostile import GROWTH, Case, corpus, exif, mutants, read_all, smooth, some
from PIL import Image, ImageOps, PngImagePlugin

import zoo
from app import containers, uploads
from app.uploads import MAX_BYTES, MAX_PIXELS, Refused, read_upload, shown_name
from zoo.upright import exif_orientation

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
PIXELS = smooth(Random(0), 48, 64)
PNG, JPEG = hostile.png(PIXELS), hostile.saved(PIXELS, "JPEG", quality=95)
BAD = {  # name: contents, code, what is said
    "zero.jpg": (b"", "empty", "the file is empty"),
    "text.jpg": (b"hello, I am text", "format", "not a picture in one of JPEG, PNG, WebP, GIF, BMP"),
    "script.jpg": (EPS, "format", "not a picture in one of"),  # its reader would start Ghostscript
    "cut.png": (PNG[:90], "damaged", "it ends too early"),
    "cut.jpg": (JPEG[:400], "damaged", "it ends too early"),
    "cut.gif": (b"GIF89a\1\0", "damaged", "it ends too early"),
    "scans.jpg": (hostile.scans_jpeg(5000, 5000, 50), "too_complex", "a JPEG of 14 scans or more"),
    "huge.png": (hostile.flat_png(60_000, 60_000, rows=1), "too_many_pixels", "60000 x 60000 pixels is more than the"),
    "large.png": (PNG + bytes(MAX_BYTES), "too_large_file", "more than the 10 MB allowed"),
    "<b>.jpg": (b"x", "format", "not a picture"),
}


@pytest.fixture(scope="module")
def two_hundred() -> list[Case]:
    return some(corpus(0, without=[hostile.largest]), 200)


def test_two_hundred_hostile_files(two_hundred: list[Case]) -> None:
    """The whole corpus is ``make hostile``."""
    found = read_all(two_hundred, warm_up=two_hundred, seconds=2.0)  # what the allocator keeps it has kept by then
    assert found.wrong == found.left == []
    assert found.files >= 200
    assert len(found.kinds) == 24
    assert {end for _, end in found.ends} == hostile.CODES - {"missing", "too_large_file"}  # these below
    assert found.grown < GROWTH


def test_three_hundred_mutants() -> None:
    found = read_all(mutants(0, 300), seconds=2.0)
    assert found.wrong == found.left == []
    ends = {end: count for (_, end), count in found.ends.items()}
    assert ends["answer"] > 20
    assert ends["damaged"] > 100


def test_the_corpus_is_large_and_a_function_of_its_seed() -> None:
    slow = [hostile.pictures, hostile.largest, hostile.sizes, hostile.bombs, hostile.time_bombs]
    first, second, other = (
        [(case.name, hashlib.sha256(case.data).digest()) for case in corpus(seed, without=slow)] for seed in (0, 0, 1)
    )
    assert first == second != other
    assert len(first) > 2000


def test_the_judge_sees_what_is_wrong() -> None:
    good = Case("", "a.png", PNG, frozenset(["answer"]), PIXELS)
    assert hostile.judged(good, "answer", PIXELS, "") == ""
    assert "other pixels" in hostile.judged(good, "answer", 255 - PIXELS, "")
    assert "shape" in hostile.judged(good, "answer", PIXELS[1:], "")
    assert "ended in damaged" in hostile.judged(good, "damaged", None, "a.png: damaged.")
    bad = Case("", "a.png", b"", frozenset(["empty"]))
    assert hostile.judged(bad, "empty", None, "a.png: empty.") == ""
    assert "said" in hostile.judged(bad, "empty", None, "/tmp/a.png: empty.")
    assert "said" in hostile.judged(bad, "empty", None, "a\n.png: empty.")
    raised = hostile.read_all([Case("", "a.png", b"x", frozenset(["answer"]))])
    assert len(raised.wrong) == 1


@pytest.mark.parametrize("name", BAD)
def test_bad_files_get_one_line_and_a_code(tmp_path: Path, name: str) -> None:
    content, code, said = BAD[name]
    path = tmp_path / name
    path.write_bytes(content)
    for source, given in ((path, ""), (content, name), (content, f"C:\\x\\{name}"), (str(path), "")):
        with pytest.raises(Refused) as caught:
            read_upload(source, name=given)
        assert caught.value.code == code
        assert str(caught.value).startswith(f"{name}: ")
        assert said in str(caught.value)
        assert str(caught.value).isprintable()
        assert isinstance(caught.value, ValueError)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")  # would wait for ever
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path, tmp_path / "absent.png", tmp_path / "pipe.png", tmp_path / "link.png", Path("/dev/zero"),
                 "nul\0byte.png", "n" * 5000 + ".png"):  # fmt: skip
        with pytest.raises(Refused, match=r"^[^/]+: no such file\.$") as caught:
            read_upload(path)
        assert caught.value.code == "missing"


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_pixels_are_those_that_training_sees(tmp_path: Path, options: dict[str, Any]) -> None:
    for orientation in range(1, 9):
        path = tmp_path / "a.jpg"
        path.write_bytes(
            hostile.with_segments(
                hostile.saved(PIXELS, "JPEG", **options), hostile.segment(0xE1, exif(orientation, order=">"))
            )
        )
        np.testing.assert_array_equal(read_upload(path), zoo.read_image(path))


def test_pixels_are_those_that_training_sees_in_every_mode(tmp_path: Path, two_hundred: list[Case]) -> None:
    kinds = ("PNG", "PNG interlaced", "JPEG", "JPEG CMYK", "WebP", "GIF", "animation", "MPO")
    chosen = [case for case in two_hundred if case.kind in kinds]
    assert {case.kind for case in chosen} == set(kinds)
    for case in chosen:
        path = tmp_path / "a"
        path.write_bytes(case.data)
        np.testing.assert_array_equal(read_upload(path), zoo.read_image(path), err_msg=f"{case.kind} {case.name}")


def test_the_largest_file() -> None:
    padded = PNG + bytes(MAX_BYTES - len(PNG))
    np.testing.assert_array_equal(read_upload(padded), PIXELS)
    with pytest.raises(Refused, match="10 MB"):
        read_upload(padded + b"\0")


def test_the_largest_picture() -> None:
    wide = MAX_PIXELS // 5
    assert read_upload(hostile.flat_png(wide, 5)).shape == (5, wide, 3)
    with pytest.raises(Refused, match="5000001 x 5 pixels is more than the 25,000,000 allowed"):
        read_upload(hostile.flat_png(wide + 1, 5))


def test_only_what_makes_the_pixels_reaches_a_decoder() -> None:
    secret = b"secret" * 50
    files = {
        "JPEG": hostile.with_segments(
            JPEG, *(hostile.segment(*one) for one in ((0xE1, exif(6)), (0xFE, secret), (0xE2, b"MPF\0" + secret)))
        ),
        "PNG": hostile.with_chunks(PNG, hostile.chunk(b"zTXt", b"k\0\0" + secret), hostile.chunk(b"eXIf", exif(6)[6:])),
        "WEBP": hostile.with_webp_exif(hostile.saved(PIXELS, "WEBP", lossless=True), exif(6) + secret, 64, 48),
    }  # fmt: skip
    for form, data in files.items():
        found = containers.plain(data + secret, max_pixels=MAX_PIXELS)
        assert found[:4] == (form, 64, 48, 6)
        assert b"secret" not in found.data
        with Image.open(io.BytesIO(found.data)) as opened:
            assert opened.format == form
            assert not {"exif", "icc_profile", "comment", "xmp"} & set(opened.info)


def test_only_exif_turns_a_picture(tmp_path: Path) -> None:
    """As browsers show it, and one and the same here and from the command line; Pillow obeys XMP too."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp.decode())
    saved: dict[str, dict[str, Any]] = {
        "a.jpg": {"xmp": xmp, "quality": 95}, "a.webp": {"xmp": xmp, "lossless": True}, "a.png": {"pnginfo": text},
    }  # fmt: skip
    for name, options in saved.items():
        Image.fromarray(PIXELS).save(tmp_path / name, **options)
        with Image.open(tmp_path / name) as opened:
            assert ImageOps.exif_transpose(opened).size == (48, 64)
        as_file = zoo.read_image(tmp_path / name)
        assert as_file.shape == PIXELS.shape
        np.testing.assert_array_equal(read_upload(tmp_path / name), as_file)
    Image.fromarray(PIXELS).save(tmp_path / "a.tif", tiffinfo={700: xmp})
    with Image.open(tmp_path / "a.tif") as opened:
        opened.load()
        assert opened.size == (48, 64)
    assert zoo.read_image(tmp_path / "a.tif").shape == PIXELS.shape
    twice = hostile.with_segments(JPEG, hostile.segment(0xE1, exif(1)), hostile.segment(0xE1, exif(6)))
    (tmp_path / "twice.jpg").write_bytes(twice)
    np.testing.assert_array_equal(read_upload(twice), zoo.read_image(tmp_path / "twice.jpg"))


def test_exif_orientation() -> None:
    for orientation in range(1, 9):
        for order in "<>":
            assert exif_orientation(exif(orientation, order=order)) == orientation
            assert exif_orientation(exif(orientation, order=order, kind=4)) == orientation
    for wrong in (exif(0), exif(9), b"", b"Exif\0\0", exif(6)[:-8], exif(6)[6:12], b"II*\0\xff\xff\xff\xff"):
        assert exif_orientation(wrong) == 1


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a.png", "a.png"),
        ("", "The picture"),
        ("///", "The picture"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\b.jpg", "b.jpg"),
        ("new\nline\x1b[31m\u202egnp.exe", "new\N{REPLACEMENT CHARACTER}line\N{REPLACEMENT CHARACTER}[31m"
         "\N{REPLACEMENT CHARACTER}gnp.exe"),
        ("n" * 300 + ".jpeg", "n" * 47 + "…" + "n" * 7 + ".jpeg"),
        ("Bild \N{GRINNING FACE} ä.png", "Bild \N{GRINNING FACE} ä.png"),
    ],
)  # fmt: skip
def test_names(name: str, shown: str) -> None:
    assert shown_name(name) == shown


def test_large_pictures_are_decoded_two_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now, most, seen = 0, [], threading.Lock()

    def slow(picture: containers.Plain) -> np.ndarray:
        nonlocal now
        with seen:
            now += 1
            most.append(now)
        time.sleep(0.02)
        with seen:
            now -= 1
        return np.zeros((1, 1, 3), np.uint8)

    monkeypatch.setattr(uploads, "_decoded", slow)
    for limit, at_once in ((64 * 48 - 1, 2), (64 * 48, 6)):
        monkeypatch.setattr(uploads, "LARGE_PIXELS", limit)
        most.clear()
        threads = [threading.Thread(target=read_upload, args=(PNG,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(most) == 6
        assert max(most) <= at_once
    assert max(most) > 2  # small ones do not wait


FLAT = """
import sys
from concurrent.futures import ThreadPoolExecutor
sys.path.insert(0, sys.argv[1])
import hostile
from app.uploads import read_upload, steady_memory
steady_memory()
files = [hostile.flat_png(side, side, depth=8, colour=2) for side in range(700, 2200, 150)]
with ThreadPoolExecutor(6) as pool:
    shapes = [pixels.shape for pixels in pool.map(read_upload, files)]
    before = hostile.memory()
    for _ in range(2):
        list(pool.map(lambda file: read_upload(file).shape, files))
    print(len(set(shapes)), int(hostile.memory() - before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_memory_stays_flat_in_threads() -> None:
    command = [sys.executable, "-c", FLAT, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    count, grown = map(int, done.stdout.split())
    assert count == 10
    assert grown < 20e6


RESTRICTED = """
import io, os, sys, warnings
import numpy as np
from pathlib import Path
from PIL import Image
from app import uploads
folder = Path(sys.argv[1])
uploads.restrict_pillow()
uploads.restrict_pillow()  # twice is once
import gradio as gr
from gradio.data_classes import ImageData
from gradio import image_utils
Image.preinit(); Image.init()
Image._initialized = 0
Image.preinit(); Image.init()
Image.register_open("EPS", lambda *_: 1 / 0, None)
for name in [name for name in sys.modules if name.startswith("PIL.") and name.endswith("ImagePlugin")]:
    if name != "PIL.MpoImagePlugin":
        import importlib
        importlib.reload(sys.modules[name])
assert set(Image.OPEN) == set(uploads.FORMATS), Image.OPEN
assert set(Image.ID) == set(uploads.FORMATS), Image.ID
picture = gr.Image(type="pil")
def refused(call):
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return "read"
for path in sorted(folder.glob("bad.*")):
    print(path.suffix, refused(lambda: Image.open(path).load()),
          refused(lambda: Image.open(io.BytesIO(path.read_bytes()))),
          refused(lambda: picture.preprocess(ImageData(path=str(path), orig_name=path.name))),
          refused(lambda: Image.open(path, formats=(path.suffix[1:],))),
          refused(lambda: gr.Gallery(type="pil").convert_to_type(str(path), "pil")))
for path in sorted(folder.glob("good.*")):
    assert Image.open(path).convert("RGB").size == (64, 48), path
    assert picture.preprocess(ImageData(path=str(path), orig_name=path.name)).size == (64, 48)
    assert uploads.read_upload(path).shape == (48, 64, 3)
with warnings.catch_warnings():
    warnings.simplefilter("error")
    uploads.restrict_pillow()
    assert Image.open(folder / "most.png").size == (5000, 5000)
print("more", refused(lambda: Image.open(folder / "more.png")))
from PIL import EpsImagePlugin
print("ghostscript", refused(lambda: EpsImagePlugin.EpsImageFile(str(folder / "bad.eps")).load()))
Image.new("RGB", (9, 9)).save(folder / "saved.tiff")  # writing is as before
"""


def test_pillow_has_no_other_decoder_any_more(tmp_path: Path) -> None:
    """In a process of its own, with a Ghostscript that would leave a trace."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (programs / "gs").chmod(0o755)
    image = Image.fromarray(PIXELS)
    kinds = ("tiff", "psd", "eps", "ico", "ppm", "jp2", "avif", "tga", "pcx", "dds", "icns", "sgi", "im", "dib")
    for kind in kinds:
        if kind == "psd":
            (tmp_path / "bad.psd").write_bytes(b"8BPS\0\1" + bytes(6) + b"\0\3\0\0\0\1\0\0\0\1\0\10\0\3" + bytes(40))
        else:
            image.save(tmp_path / f"bad.{kind}")
    for kind in ("jpg", "png", "webp", "gif", "bmp"):
        image.save(tmp_path / f"good.{kind}")
    image.save(tmp_path / "good.mpo", save_all=True, append_images=[image])  # as cameras write it
    (tmp_path / "most.png").write_bytes(hostile.flat_png(5000, 5000, rows=1))
    (tmp_path / "more.png").write_bytes(hostile.flat_png(5001, 5000, rows=1))
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "GRADIO_ANALYTICS_ENABLED": "0"}
    command = [sys.executable, "-c", RESTRICTED, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    unknown = "UnidentifiedImageError"
    assert done.stdout.splitlines() == [
        *(f".{kind} {unknown} {unknown} {unknown} KeyError {unknown}" for kind in sorted(kinds)),
        "more DecompressionBombError",
        "ghostscript OSError",
    ]
    assert not (tmp_path / "started").exists()
    assert (tmp_path / "saved.tiff").exists()


def test_ghostscript_would_have_been_started(tmp_path: Path) -> None:
    """What the test above is about: without the restriction Pillow starts whatever is called gs."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o755)
    (tmp_path / "a.jpg").write_bytes(EPS)
    code = "import sys; from PIL import Image\ntry: Image.open(sys.argv[1]).load()\nexcept Exception: pass"
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.jpg")], env=environment, check=True, timeout=60)
    assert (tmp_path / "started").exists()


@pytest.fixture
def component(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    import gradio as gr

    (tmp_path / "cache" / "ab12").mkdir(parents=True)
    (tmp_path / "cache" / "ab12" / "a.png").write_bytes(b"no picture: nothing opens it here")
    return lambda kind, **options: uploads.uploads_only(getattr(gr, kind)(**options))


def test_gradio_hands_over_uploads_unopened(component: Any, tmp_path: Path) -> None:
    from gradio.components.gallery import GalleryData, GalleryImage
    from gradio.data_classes import FileData, ImageData, ListFiles

    path = str(tmp_path / "cache" / "ab12" / "a.png")
    assert component("Image").preprocess(ImageData(path=path, orig_name="a.svg")) == path
    assert component("Image", type="pil").preprocess(None) is None
    assert component("Image").preprocess(ImageData()) is None
    assert component("File").preprocess(FileData(path=path)) == path
    assert component("UploadButton").preprocess(ListFiles(root=[FileData(path=path)] * 2)) == [path, path]
    gallery = GalleryData(root=[GalleryImage(image=ImageData(path=path), caption="x")])
    assert component("Gallery", type="numpy").preprocess(gallery) == [path]


def test_gradio_hands_over_nothing_else(component: Any, tmp_path: Path) -> None:
    import gradio as gr
    from gradio.components.gallery import GalleryData, GalleryImage
    from gradio.data_classes import FileData, ImageData

    (tmp_path / "own.png").write_bytes(PNG)
    (tmp_path / "cache" / "link.png").symlink_to(tmp_path / "own.png")
    cache = tmp_path / "cache"
    said = set()
    for path in (tmp_path / "own.png", "/etc/passwd", "/absent", cache / "link.png", cache / "absent.png", cache,
                 cache / ".." / "own.png", "own.png", "nul\0byte", "n" * 5000, "http://127.0.0.1/a.png"):  # fmt: skip
        gallery = GalleryData(root=[GalleryImage(image=ImageData(path=str(path)))])
        for kind, payload in (
            ("Image", ImageData(path=str(path))), ("File", FileData(path=str(path))), ("Gallery", gallery),
        ):  # fmt: skip
            with pytest.raises(gr.Error) as caught:
                component(kind).preprocess(payload)
            said.add(caught.value.message)
    with pytest.raises(gr.Error) as caught:
        component("Image").preprocess(ImageData(url="data:image/png;base64,AAAA"))
    said.add(caught.value.message)
    for address in ("http://127.0.0.1/a.png", "file:///etc/passwd", "HTTPS://example.org/a.png"):
        with pytest.raises(gr.Error) as caught:
            to_the_end(component("Image").async_move_resource_to_block_cache(address))
        said.add(caught.value.message)
    assert said == {"Only uploaded files are read."}  # whether it is there or not


def to_the_end(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """As asyncio.run does, which would drop the loop that Gradio keeps for this thread."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.close()

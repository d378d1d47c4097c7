"""Which images to label, against nested loops and all partitions; the list, the contact sheet, the commands."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.cli import main as simclr
from export import embeddings
from training import data
from training import embed as embedding
from training import pick as picking

CLUSTERS = 12


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        simclr([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def clustered(seed: int, *, spread: float = 0.25) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of 12 directions, 4 to 48 of each, shuffled, of any length; and which direction each is of."""
    random = np.random.default_rng(seed)
    names = random.permutation(np.repeat(np.arange(CLUSTERS), np.arange(1, CLUSTERS + 1) * 4))
    directions = np.linalg.qr(random.normal(size=(32, CLUSTERS)))[0].T
    vectors = directions[names] + spread * random.normal(size=(len(names), 32)) / np.sqrt(32)
    return (vectors * random.uniform(0.5, 5, (len(names), 1))).astype(np.float32), names


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


# ---- selection -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("block", "rows"), [(1024, 4096), (16, 7), (1, 1)])
def test_near_duplicates_against_loops(block: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "_BLOCK", block)
    monkeypatch.setattr(embeddings, "_ROWS", rows)
    vectors = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    vectors[10] = 2 * vectors[40]
    stands = embeddings.near_duplicates(vectors, threshold=0.9)
    kept: list[int] = []
    for row in range(60):
        near = [(cosine(vectors[row], vectors[other]), -other) for other in kept]
        best = max(near, default=(-2, 0))
        assert stands[row] == (-best[1] if best[0] >= 0.9 else row)
        if best[0] < 0.9:
            kept.append(row)
    assert stands[40] != 40
    assert 5 < len(kept) < 50
    assert len(embeddings.near_duplicates(vectors[:0])) == 0


def test_kmeans_finds_the_best_of_all_partitions() -> None:
    for seed in range(5):
        vectors = np.random.default_rng(seed).normal(size=(8, 2)).astype(np.float32)
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

        def total(labels: tuple[int, ...], unit: np.ndarray = unit) -> float:  # sum of cosines to the mean directions
            return sum(float(np.linalg.norm(unit[np.array(labels) == k].sum(0))) for k in range(3))

        best = max(total(labels) for labels in itertools.product(range(3), repeat=8))
        labels = embeddings.spherical_kmeans(vectors, 3, seed=0, restarts=20)
        assert total(tuple(labels)) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("rows", [4096, 7])
def test_medoids_against_loops(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "_ROWS", rows)
    vectors, _ = clustered(3)
    labels = embeddings.spherical_kmeans(vectors, 9, seed=0)
    assert set(labels) == set(range(9))
    for cluster, medoid in enumerate(embeddings.medoids(vectors, labels)):
        members = np.flatnonzero(labels == cluster)
        sums = [sum(cosine(vectors[a], vectors[b]) for b in members) for a in members]
        assert medoid == members[int(np.argmax(sums))]
    with pytest.raises(ValueError, match="1 of the 9 clusters are empty"):
        embeddings.medoids(vectors, np.where(labels == 4, 5, labels))


@pytest.mark.parametrize("known", [[], [5, 17]])
def test_farthest_first_against_loops(known: list[int]) -> None:
    vectors = np.random.default_rng(1).normal(size=(40, 6)).astype(np.float32)
    chosen = list(known)
    if not known:
        mean = sum(v / np.linalg.norm(v) for v in vectors)
        chosen = [max(range(40), key=lambda row: cosine(vectors[row], mean))]
    while len(chosen) < 12:
        others = [row for row in range(40) if row not in chosen]
        chosen.append(min(others, key=lambda row: max(cosine(vectors[row], vectors[c]) for c in chosen)))
    wanted = chosen[len(known) :]
    assert embeddings.farthest_first(vectors, len(wanted), known=known).tolist() == wanted
    assert len(embeddings.farthest_first(vectors, 0)) == 0
    with pytest.raises(ValueError, match="39 rows asked for, but there are 38"):
        embeddings.farthest_first(vectors, 39, known=[5, 17])


@pytest.mark.parametrize("method", ["kmeans", "kcenter"])
def test_picks_cover_all_clusters(method: str) -> None:
    for seed in range(5):
        vectors, names = clustered(seed)
        choice = embeddings.choose(vectors, CLUSTERS, method=method, seed=seed, duplicates=1)  # type: ignore[arg-type]
        assert set(names[choice.rows]) == set(range(CLUSTERS))
        chance = np.random.default_rng(seed).choice(len(names), CLUSTERS, replace=False)
        assert len(set(names[chance])) < CLUSTERS  # by chance they do not
        if method == "kmeans":  # the largest first
            assert names[choice.rows].tolist() == list(range(CLUSTERS))[::-1]
        again = embeddings.choose(vectors, CLUSTERS, method=method, seed=seed, duplicates=1)  # type: ignore[arg-type]
        assert again.rows.tolist() == choice.rows.tolist()


@pytest.mark.parametrize("method", ["kmeans", "kcenter"])
def test_new_picks_are_unlike_what_is_labelled(method: str) -> None:
    for seed in range(5):
        vectors, names = clustered(seed)
        known = [int(np.flatnonzero(names == name)[0]) for name in (0, 3, 8, 11)]
        choice = embeddings.choose(vectors, 8, method=method, known=known, duplicates=1)  # type: ignore[arg-type]
        assert set(names[choice.rows]) == {1, 2, 4, 5, 6, 7, 9, 10}


def test_near_duplicates_and_unusable_rows_are_left_out() -> None:
    vectors, names = clustered(0)
    vectors[0], vectors[1, 3] = 0, np.nan
    known = [int(np.flatnonzero(names == 11)[5])]
    vectors[-1] = 3 * vectors[known[0]]  # a copy of what is labelled
    choice = embeddings.choose(vectors, 200, known=known, duplicates=0.999, method="kcenter")
    assert not {0, 1, len(vectors) - 1, *known} & set(choice.rows.tolist())
    assert (choice.near_duplicates, choice.unusable) == (1, 2)
    copies = np.repeat(vectors[10:13], 20, axis=0)
    assert sorted(embeddings.choose(copies, 3).rows) == [0, 20, 40]
    assert len(embeddings.choose(copies, 4, duplicates=1).rows) == 4
    with pytest.raises(ValueError, match=r"budget of 4, but there are 3 images to choose from .* 57 near-duplicates"):
        embeddings.choose(copies, 4)
    assert np.bincount(embeddings.spherical_kmeans(copies, 7, seed=0), minlength=7).min() >= 1


@pytest.mark.parametrize(
    ("budget", "method", "said"),
    [(0, "kmeans", "at least 1"), (5, "kmedoids", "Choose from: kmeans, kcenter"), (400, "kmeans", "ask for fewer")],
)
def test_impossible_choices(budget: int, method: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        embeddings.choose(clustered(0)[0], budget, method=method)  # type: ignore[arg-type]


# ---- list and contact sheet ------------------------------------------------------------------------------------------


def test_contact_sheet_shows_the_pictures_in_order(tmp_path: Path) -> None:
    colours = [(20 * k, 255 - 20 * k, 90) for k in range(11)]
    files = [tmp_path / f"{k}.png" for k in range(11)]
    for file, colour in zip(files, colours, strict=True):
        Image.new("RGB", (300, 150), colour).save(file)
    names = ["a long name, longer than the picture is wide", "two\nlines, and no text: \udce9"]
    sheet = picking.contact_sheet(files, [*names, *names * 4, "short"])
    assert sheet.size == (4 * 190 + 10, 3 * 216 + 10)
    for place, colour in enumerate(colours):
        assert sheet.getpixel((place % 4 * 190 + 100, place // 4 * 216 + 70)) == colour
    caption = np.asarray(sheet)[10:36, 10:190]
    assert (caption < 100).any()  # there is a number
    assert (np.asarray(sheet)[:, 190:200] == 255).all()  # nothing reaches into the gap


def test_a_contact_sheet_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So large a picture that Pillow takes it for an attack could not be written over by the same command."""
    monkeypatch.setattr(picking, "MOST_SHOWN", 3)
    Image.new("RGB", (30, 30)).save(tmp_path / "a.png")
    assert (
        picking.contact_sheet([tmp_path / "a.png"] * 4, ["a"] * 4).size
        == picking.contact_sheet([tmp_path / "a.png"] * 3, ["a"] * 3).size
    )


def test_pick_a_list_to_fill_in(image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (image_folder / "stripes" / "99.png").write_bytes(b"no picture")
    (image_folder / "stripes" / "98.png").write_bytes((image_folder / "stripes" / "03.png").read_bytes())
    out, sheet = tmp_path / "labels.csv", tmp_path / "labels.png"
    arguments = ("pick", "--images", image_folder, "--duplicates", 0.9999)
    assert command(*arguments, "--budget", 6, "--out", out) == 0
    shown = capsys.readouterr()
    assert "Picked 6 of 37 images, 1 near-duplicates, 1 unusable." in shown.out
    assert "99.png: not an image" in shown.err
    first = out.read_text()
    rows = [line.split(",") for line in first.splitlines()]
    assert rows[0] == ["path", "label"]
    assert {Path(path).parent.name for path, _ in rows[1:]} == {"circle", "square", "stripes"}
    with Image.open(sheet) as picture:
        assert picture.size == (3 * 190 + 10, 2 * 216 + 10)
    assert command(*arguments, "--budget", 6, "--out", out) == 0  # not filled in: written anew, the same
    assert out.read_text() == first

    filled = "".join(f"{path},{Path(path).parent.name}\n" for path, _ in rows[1:])
    out.write_text("path,label\n" + filled)
    labelled = data.from_csv(out, root=image_folder)
    assert labelled.paths == tuple(image_folder / path for path, _ in rows[1:])
    capsys.readouterr()
    assert command(*arguments, "--budget", 6, "--out", out) == 2
    assert "has 6 labels filled in and is not overwritten" in capsys.readouterr().err
    assert out.read_text() == "path,label\n" + filled

    assert command(*arguments, "--budget", 5, "--out", tmp_path / "more.csv", "--labels", out) == 0
    more = {line.split(",")[0] for line in (tmp_path / "more.csv").read_text().splitlines()[1:]}
    assert len(more) == 5
    assert not more & {path for path, _ in rows}


def test_pick_from_embeddings_needs_no_model(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    student = picking_model()
    embedding.embed_to(student, embedding.find_files([image_folder]), tmp_path / "vectors")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # importing it fails
    arguments = ("pick", "--images", image_folder, "--duplicates", 1, "--out", tmp_path / "a.csv")
    assert command(*arguments, "--budget", 4, "--embeddings", tmp_path / "vectors") == 0
    monkeypatch.undo()
    features = embedding.embed_files(student, embedding.find_files([image_folder]))
    wanted = embeddings.choose(features.features, 4, duplicates=1).rows
    names = [line.split(",")[0] for line in (tmp_path / "a.csv").read_text().splitlines()[1:]]
    assert [image_folder / name for name in names] == [embedding.find_files([image_folder])[row] for row in wanted]
    (image_folder / "new.png").write_bytes((image_folder / names[0]).read_bytes())
    capsys.readouterr()
    assert command(*arguments, "--budget", 4, "--embeddings", tmp_path / "vectors") == 2
    assert "has no vectors of 1 of 37 images" in capsys.readouterr().err


def picking_model() -> embedding.Embedder:
    """Embeds by eight colours' shares: enough for pictures of plain patterns."""

    def features(batch: np.ndarray) -> np.ndarray:
        bins = (batch > 0.5).astype(int)
        codes = bins[:, 0] * 4 + bins[:, 1] * 2 + bins[:, 2]  # (B, S, S)
        return np.stack([(codes == code).mean((1, 2)) for code in range(8)], axis=1).astype(np.float32)

    return embedding.Embedder("eight colours", "none", 40, 8, features)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--budget", "0"], "A budget of 0 for 36 images: choose from 1 to 36."),
        (["--budget", "37"], "A budget of 37 for 36 images"),
        (["--images", "{}/absent", "--budget", "3"], "absent: no such folder"),
        (["--images", "{}/void", "--budget", "3"], "no images in it"),
        (["--budget", "3", "--labels", "{}/absent.csv"], "absent.csv: no such file"),
        (["--budget", "3", "--labels", "{}/strange.csv"], "first line does not name the columns"),
        (["--budget", "3", "--labels", "{}/unknown.csv"], "no such file: {}/images/nowhere.png"),
        (["--budget", "3", "--out", "{}/strange.csv"], "is no list of path,label"),
        (["--budget", "3", "--sheet", "{}/mine.png"], "no contact sheet"),
        (["--budget", "3", "--sheet", "{}/images/new.png"], "would become one of them; choose another --sheet."),
        (["--budget", "3", "--sheet", "{}/o.csv"], "cannot be one file"),
        (["--budget", "3", "--model", "a", "--embeddings", "b"], "exclude each other"),
        (["--budget", "3", "--embeddings", "{}/void"], "no finished embeddings"),
        (["--budget", "3", "--model", "{}/absent.onnx"], "absent.onnx: no such file"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], said: str, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "void").mkdir()
    (tmp_path / "mine.png").write_bytes((image_folder / "circle" / "00.png").read_bytes())
    (tmp_path / "strange.csv").write_text("name,class\na.png,1\n")
    (tmp_path / "unknown.csv").write_text("path,label\nnowhere.png,cat\n")
    given = [text.format(tmp_path) for text in arguments]
    assert command("pick", "--images", image_folder, "--out", tmp_path / "o.csv", *given) == 2
    shown = capsys.readouterr().err.strip()
    assert said.format(tmp_path) in shown
    assert len(shown.splitlines()) == 1
    assert not (tmp_path / "o.csv").exists()


# ---- a share of the labels -------------------------------------------------------------------------------------------


def test_subset_of_class_folders_and_of_a_list(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few, fewer = tmp_path / "few.csv", tmp_path / "lists" / "fewer.csv"
    assert command("subset", "--images", image_folder, "--share", 0.5, "--seed", 3, "--out", few) == 0
    assert "18 of 36 images, 3 classes" in capsys.readouterr().out
    whole = data.from_class_folders(image_folder)
    assert whole.labels is not None
    found = data.from_csv(few, root=image_folder)
    assert found.labels is not None
    assert found.paths == whole.subset(data.stratified_subset(whole.labels, fraction=0.5, seed=3)).paths
    assert [found.classes[label] for label in found.labels] == [path.parent.name for path in found.paths]
    arguments = ("subset", "--images", image_folder, "--labels", few, "--per-class", 2)
    assert command(*arguments, "--out", fewer) == 0
    assert set(fewer.read_text().splitlines()) < set(few.read_text().splitlines())
    assert len(fewer.read_text().splitlines()) == 1 + 3 * 2
    assert command(*arguments, "--out", fewer) == 0  # the same again is no loss
    capsys.readouterr()
    assert command(*arguments, "--seed", 1, "--out", fewer) == 2
    assert "has 6 labels filled in and is not overwritten" in capsys.readouterr().err
    few.rename(image_folder / "few.csv")
    assert command("subset", "--labels", image_folder / "few.csv", "--per-class", 2, "--out", tmp_path / "b.csv") == 0
    assert (tmp_path / "b.csv").read_text() == fewer.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--share", "0.1"], "Give --images with class folders, or --labels"),
        (["--images", "{}"], "Give either --share or --per-class."),
        (["--images", "{}", "--share", "0.1", "--per-class", "1"], "Give either"),
        (["--images", "{}", "--share", "10"], "must lie in (0, 1], not 10"),
        (["--images", "{}", "--per-class", "13"], "Class 'circle' has 12 images, fewer than --per-class 13."),
        (["--images", "{}", "--per-class", "0"], "at least 1"),
        (["--images", "{}/circle", "--share", "0.1"], "no folders in it"),
    ],
)
def test_mistakes_of_subset_are_one_line(
    arguments: list[str], said: str, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("subset", *(text.format(image_folder) for text in arguments), "--out", tmp_path / "o.csv") == 2
    shown = capsys.readouterr().err.strip()
    assert said in shown
    assert len(shown.splitlines()) == 1
    assert not (tmp_path / "o.csv").exists()

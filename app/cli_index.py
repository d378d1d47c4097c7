"""The commands of an index of pictures: fill it, search it, find what is there twice and what is odd."""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from zoo.console import plain
from zoo.files import json_text
from zoo.folders import not_read

if TYPE_CHECKING:
    from app.index import Index

PATH = click.Path(path_type=Path)
_MANY = 20_000  # pictures; comparing that many with each other takes seconds

INDEX = click.option(
    "--index", "uri", required=True, help="A file such as photos.sqlite, or http://host:port of Milvus."
)
JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
SHEET = click.option("--sheet", type=PATH, help="Write the pictures to look at: .html, .jpg or .png.")


# ---- simclr index ----------------------------------------------------------------------------------------------------


@click.command()
@click.argument("paths", type=PATH, nargs=-1, required=True)
@INDEX
@click.option("--model", type=PATH, help="An exported student; the bundled one unless given.")
@click.option("--labels", type=PATH, help="CSV with path,label: paths as from PATHS, or from the CSV's own folder.")
@click.option(
    "--label-from",
    type=click.Choice(["folder", "none"]),
    default="folder",
    show_default=True,
    help="The label of a picture that --labels does not name: its folder's name, or none.",
)
@click.option("--keep", is_flag=True, help="Keep pictures whose files are gone.")
@click.option("--emptied", is_flag=True, help="PATHS without any picture were emptied on purpose: forget theirs.")
@click.option(
    "--vectors",
    type=click.Choice(["fp16", "fp32"]),
    default="fp16",
    show_default=True,
    help="How a new index keeps them; an older one keeps its own way.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Of the model and of reading; all cores unless given.")
def index(
    paths: tuple[Path, ...],
    uri: str,
    model: Path | None,
    labels: Path | None,
    label_from: Literal["folder", "none"],
    keep: bool,
    emptied: bool,
    vectors: Literal["fp16", "fp32"],
    threads: int | None,
) -> int:
    """Embed picture files, and folders of them with all below, into an index; only what is new or changed.

    The same command goes on where it was stopped, and brings the index up to date later: changed files are embedded
    again, pictures whose files are gone are taken out. The label of a picture is the name of its folder, unless
    --labels says another; pictures directly in one of PATHS have none. Files that cannot be read are counted and
    skipped; the exit status is then 1.
    """
    from app.engine import bundled_student
    from app.gallery import embed_paths
    from app.index import open_index
    from export.runtime import OnnxModel

    label_of = _labels(labels, paths, label_from)
    student = OnnxModel(model or bundled_student(), threads=threads)
    opened = open_index(uri, model=student.fingerprint, dimension=student.feature_width, vectors=vectors)
    try:
        report = embed_paths(
            paths, student, opened, label_of=label_of, forget=not keep, emptied=emptied, readers=threads
        )
        count = opened.count()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Stopped. {uri} keeps what is in it; the same command goes on from there.") from None
    finally:
        opened.close()
    print(_summary(uri, count, report, keep=keep), file=sys.stderr)
    if others := not_read(path for path in paths if path.is_dir()):
        print(others, file=sys.stderr)
    return 1 if report.unreadable else 0


def _summary(uri: str, count: int, report: Any, *, keep: bool) -> str:
    parts = [f"{report.embedded:,} embedded now", f"{report.unchanged:,} unchanged"]
    if report.copies:
        parts.append(f"{_counted(report.copies, 'copy', 'copies')} of others or moved")
    if report.relabelled:
        parts.append(f"{report.relabelled:,} labelled anew")
    if report.gone:
        kept = ", their pictures kept" if keep else ""
        parts.append(f"{report.gone:,} vanished{kept} (such as {plain(report.vanished[0])})")
    if report.unreadable:
        file, reason = next(iter(report.unreadable.items()))
        parts.append(f"{len(report.unreadable):,} unreadable (such as {plain(file)}: {plain(reason)})")
    return f"{_counted(count, 'picture')} in {uri}: {', '.join(parts)}"


def _labels(
    csv: Path | None, paths: Sequence[Path], label_from: Literal["folder", "none"]
) -> Callable[[Path], str | None] | None:
    """The label of a file by its absolute path; None where its folder says."""
    otherwise = "" if label_from == "none" else None
    if csv is None:
        return None if label_from == "folder" else lambda path: otherwise
    table = _table(csv, [*[path for path in paths if path.is_dir()], csv.parent])
    return lambda path: table.get(path.as_posix(), otherwise)


def _table(csv: Path, folders: Sequence[Path]) -> dict[str, str]:
    """Label by absolute path of a CSV file with the columns ``path`` and ``label``; rows without a label are left out.

    A path is looked for in each of the folders. Raises ValueError for a file that is no such table, a path with two
    labels, or when none of its files is there.
    """
    import csv as csv_module
    import os

    table: dict[str, str] = {}
    missing = []
    try:
        with csv.open(encoding="utf-8-sig", newline="") as file:
            reader = csv_module.DictReader(file)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            if not {"path", "label"} <= set(reader.fieldnames):
                raise ValueError(f"{csv}: its first line does not name the columns 'path' and 'label'.")
            rows = [((row["path"] or "").strip(), (row["label"] or "").strip()) for row in reader]
    except FileNotFoundError:
        raise ValueError(f"{csv}: no such file.") from None
    except (UnicodeDecodeError, csv_module.Error) as error:
        raise ValueError(f"{csv}: cannot be read as CSV in UTF-8 ({error}).") from None
    for name, label in rows:
        if not name or not label:
            continue
        places = [Path(os.path.abspath(folder / name)) for folder in folders]  # noqa: PTH100 - follows no links
        place = next((place.as_posix() for place in places if place.is_file()), None)
        if place is None:
            missing.append(name)
        elif table.setdefault(place, label) != label:
            raise ValueError(f"{csv}: two labels for {name!r}, {table[place]!r} and {label!r}; keep one row.")
    if missing and not table:
        raise ValueError(
            f"{csv}: none of its {len(missing):,} labelled files is there, such as {missing[0]!r}; its paths must "
            f"start from {' or '.join(map(str, folders))}."
        )
    if missing:
        print(f"{csv}: {len(missing):,} of its files are not there, such as {missing[0]!r}.", file=sys.stderr)
    return table


# ---- simclr search ---------------------------------------------------------------------------------------------------


@click.command()
@click.argument("image", type=PATH)
@INDEX
@click.option("--model", type=PATH, help="The model of the index; the bundled student unless given.")
@click.option("--top", type=click.IntRange(min=1), default=10, show_default=True, help="How many pictures to find.")
@click.option(
    "--label", "labels", multiple=True, help="Only pictures with this label; several times: with any of them."
)
@click.option("--folder", type=PATH, help="Only pictures below this folder.")
@JSON
@SHEET
def search(
    image: Path,
    uri: str,
    model: Path | None,
    top: int,
    labels: tuple[str, ...],
    folder: Path | None,
    as_json: bool,
    sheet: Path | None,
) -> None:
    """The pictures of an index that are most like IMAGE, a file: cosine of their features, label and path.

    IMAGE itself does not become part of the index.
    """
    from app.engine import bundled_student
    from app.gallery import thumbnail
    from app.index import Filter, index_model, open_index
    from app.sheet import Shown, check_sheet, write_sheet
    from export.runtime import OnnxModel
    from zoo.registry import suggest
    from zoo.transforms import read_image

    if sheet is not None:
        check_sheet(sheet)
    index_model(uri)  # is there one at all?
    student = OnnxModel(model or bundled_student())
    opened = open_index(uri, model=student.fingerprint, dimension=student.feature_width, create=False)
    try:
        there = opened.labels() if labels else {}
        for label in labels:
            if label not in there:
                raise ValueError(
                    f"{uri}: no picture is labelled {label!r}.{suggest(label, [name for name in there if name])}"
                )
        where = Filter(labels, _folder(folder) if folder is not None else "")
        pixels = read_image(image)
        hits = opened.search(student.embed(pixels)[0], top, where=where, thumbnails=sheet is not None)
        if not hits:
            what = "below that folder" if folder is not None else "in it"
            raise ValueError(f"{uri}: no pictures {what}{' with that label' if labels else ''}.")
    finally:
        opened.close()
    if sheet is not None:
        shown = [Shown(hit.thumbnail, f"{hit.score:.3f} {hit.label}", hit.path) for hit in hits]
        query = Shown(thumbnail(pixels), "", Path(image).absolute().as_posix())
        count = write_sheet(sheet, [("Looked for", [query]), ("Found", shown)], title=f"Most like {image.name}")
        _tell_sheet(sheet, count - 1, len(shown))
    for hit in hits:
        told = {"path": hit.path, "label": hit.label, "score": round(hit.score, 6), "id": hit.id}
        print(json_text(told) if as_json else _line(f"{hit.score:.3f}", hit.label, hit.path))


def _folder(folder: Path) -> str:
    import os

    return Path(os.path.abspath(folder)).as_posix()  # noqa: PTH100 - as the index names files: follows no links


# ---- simclr duplicates -----------------------------------------------------------------------------------------------


@click.command()
@click.argument("places", nargs=-1, required=True, metavar="URI-OR-PATH...")
@click.option(
    "--model", type=PATH, help="For PATHS that are pictures: what embeds them; the bundled student unless given."
)
@click.option(
    "--threshold",
    type=click.FloatRange(-1, 1),
    default=0.98,
    show_default=True,
    help="The cosine from which two pictures count as one.",
)
@JSON
@SHEET
def duplicates(
    places: tuple[str, ...], model: Path | None, threshold: float, as_json: bool, sheet: Path | None
) -> None:
    """Groups of pictures that are nearly one, the largest first, and files that are byte by byte the same.

    Looks in an index, or in folders and files of pictures, which are embedded first (and only once). The first of a
    group stands for it; the cosine of each other one is with it. Nothing is deleted.
    """
    from app.sheet import check_sheet
    from export.embeddings import near_duplicates

    if sheet is not None:
        check_sheet(sheet)
    opened = _opened(places, model)
    try:
        ids, vectors = opened.vectors()
        if len(ids) > _MANY:
            print(f"Comparing {len(ids):,} pictures with each other...", file=sys.stderr, flush=True)
        stands = near_duplicates(vectors, threshold=threshold)
        groups = list(_groups(opened, ids, vectors, stands.tolist()))
        if sheet is not None:
            shown = [(_heading(group), [(f"{one['similarity']:.3f}", one) for one in group]) for group in groups]
            _write(sheet, opened, shown, title="Near-duplicates and copies")
        for number, group in enumerate(groups, start=1):
            if as_json:
                print(json_text({"group": number, "pictures": group}))
                continue
            print(f"{len(group)} pictures nearly the same" if len(group) > 1 else "the same file several times")
            for picture in group:
                print(_line(f"  {picture['similarity']:.3f}", picture["label"], picture["path"]))
                for copy in picture["copies"]:
                    print(_line("   copy", picture["label"], copy))
    finally:
        opened.close()
    surplus = sum(len(group) - 1 for group in groups)
    copies = sum(len(picture["copies"]) for group in groups for picture in group)
    print(
        f"{_counted(len(groups), 'group')} among {_counted(len(ids), 'picture')}: "
        f"{_counted(surplus, 'near-duplicate')} (cosine {threshold:g} or more), "
        f"{_counted(copies, 'exact copy', 'exact copies')}.",
        file=sys.stderr,
    )


def _opened(places: Sequence[str], model: Path | None) -> "Index":
    """The index that is named, or that of pictures. Raises ValueError for a mixture."""
    from app.engine import bundled_student
    from app.gallery import is_index, open_pictures
    from export.runtime import OnnxModel

    if any(map(is_index, places)):
        if len(places) > 1:
            raise ValueError(f"{len(places)} places, of which one is an index: give one index, or pictures.")
        if model is not None:
            raise ValueError(f"{places[0]} holds vectors already; --model is for pictures.")
        return _as_it_is(places[0])
    opened, report = open_pictures([Path(place) for place in places], OnnxModel(model or bundled_student()))
    for path, reason in report.unreadable.items():
        print(f"skipped: {plain(path)}: {plain(reason)}", file=sys.stderr)
    return opened


def _as_it_is(uri: str) -> "Index":
    """An index, whatever its model."""
    from app.index import index_model, open_index

    model, dimension = index_model(uri)
    return open_index(uri, model=model, dimension=dimension, create=False)


def _groups(opened: "Index", ids: Sequence[str], vectors: Any, stands: Sequence[int]) -> Iterator[list[dict[str, Any]]]:
    """Pictures that stand together, or have several files; the most first, of equals the first added."""
    members: dict[int, list[int]] = {}
    for row, leader in enumerate(stands):
        members.setdefault(leader, []).append(row)
    files: dict[str, list[str]] = {}
    for path, state in opened.files().items():
        if state.id and not state.problem:
            files.setdefault(state.id, []).append(path)
    found = []
    for leader, rows in members.items():
        if len(rows) > 1 or len(files.get(ids[leader], ())) > 1:
            size = sum(max(len(files.get(ids[row], ())), 1) for row in rows)
            found.append((size, leader, rows))
    for _, leader, rows in sorted(found, key=lambda group: (-group[0], group[1])):
        cosines = vectors[rows] @ vectors[leader]
        items = {item.id: item for item in opened.get([ids[row] for row in rows])}
        group = []
        for row, cosine in zip(rows, cosines.tolist(), strict=True):
            item = items.get(ids[row])
            if item is not None:  # another process may just have deleted it
                copies = sorted(path for path in files.get(item.id, ()) if path != item.path)
                told = {
                    "path": item.path,
                    "label": item.label,
                    "similarity": round(min(cosine, 1.0), 6),
                    "copies": copies,
                }
                group.append(told | {"id": item.id})
        if len(group) > 1 or (group and group[0]["copies"]):
            yield sorted(group, key=lambda picture: picture["id"] != ids[leader])


def _heading(group: Sequence[dict[str, Any]]) -> str:
    copies = sum(len(picture["copies"]) for picture in group)
    parts = [_counted(len(group), "picture")] if len(group) > 1 else []
    return " and ".join(parts + ([_counted(copies, "exact copy", "exact copies")] if copies else []))


# ---- simclr outliers -------------------------------------------------------------------------------------------------


@click.command()
@INDEX
@click.option("--top", type=click.IntRange(min=1), default=20, show_default=True, help="How many pictures to name.")
@JSON
@SHEET
def outliers(uri: str, top: int, as_json: bool, sheet: Path | None) -> None:
    """The pictures of an index that are least like their nearest others: what does not belong, or is spoilt.

    Score: 1 minus the mean cosine with the 10 nearest other pictures, so 0 for one among its likes.
    """
    import numpy as np

    from app import atlas
    from app.sheet import check_sheet

    if sheet is not None:
        check_sheet(sheet)
    opened = _as_it_is(uri)
    try:
        ids, vectors = opened.vectors()
        if len(ids) < 3:
            raise ValueError(f"{uri}: {len(ids)} pictures; what is odd shows among more.")
        scores = atlas.outliers(vectors, min(10, len(ids) - 1), progress=True)
        rows = np.argsort(-scores, kind="stable")[:top].tolist()
        items = {item.id: item for item in opened.get([ids[row] for row in rows])}
        found = [(float(scores[row]), items[ids[row]]) for row in rows if ids[row] in items]
        if sheet is not None:
            pictures = [(f"{score:.3f}", item._asdict()) for score, item in found]
            _write(sheet, opened, [("", pictures)], title=f"Least like the others, of {len(ids):,}")
        for score, item in found:
            told = {"path": item.path, "label": item.label, "score": round(score, 6), "id": item.id}
            print(json_text(told) if as_json else _line(f"{score:.3f}", item.label, item.path))
    finally:
        opened.close()


# ---- what is printed -------------------------------------------------------------------------------------------------


def _counted(count: int, one: str, several: str = "") -> str:
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def _line(number: str, label: str, path: str) -> str:
    """Columns: a number, the label and, last as it is the longest, the path."""
    from app.classify import LONGEST_LABEL, padded, shortened

    return f"{number}  {padded(shortened(plain(label) or '-', LONGEST_LABEL), 16)}  {plain(path)}"


def _write(
    sheet: Path, opened: "Index", groups: Sequence[tuple[str, Sequence[tuple[str, dict[str, Any]]]]], *, title: str
) -> None:
    """Groups of (number, picture) as a contact sheet, as many as one takes."""
    from app.sheet import MOST, Shown, write_sheet

    kept, room = [], MOST
    for heading, pictures in groups:
        some = [
            Shown(opened.thumbnail(one["id"]) or b"", f"{number} {one['label']}".strip(), one["path"])
            for number, one in pictures[:room]
        ]
        kept.append((heading, some))
        room -= len(some)
    count = write_sheet(sheet, kept, title=title)
    _tell_sheet(sheet, count, sum(len(pictures) for _, pictures in groups))


def _tell_sheet(sheet: Path, shown: int, count: int) -> None:
    some = f", the first {shown:,} of {count:,}" if shown < count else ""
    print(f"To look at: {plain(str(sheet))}{some}", file=sys.stderr)

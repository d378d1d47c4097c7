"""What programs can call on the page: a stable name for each function, plain values in, JSON out (docs/serving.md)."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path, PurePosixPath
from typing import Any

import gradio as gr
import numpy as np

from app import labelling
from app.access import Access
from app.batching import Busy
from app.engine import Engine
from app.gallery import embed_paths, folder_named
from app.index import UPLOADED, Filter, Hit, Item, Record
from app.lesson import MOST_EXAMPLES, answers, fitted
from app.tabs import about as about_tab
from app.tabs.common import BUSY, said
from app.tabs.gallery import ALIKE, duplicate_groups
from app.tabs.search import MOST_HITS, NONE
from app.uploads import uploads_only

OPEN = ("classify", "search", "similar", "embed", "teach", "about")
EDITING = ("map", "outliers", "duplicates", "gallery", "gallery_add", "gallery_add_folder", "gallery_delete",
           "label_next", "label")  # fmt: skip


def add(engine: Engine, access: Access, *, labels: Path) -> None:
    """Add the endpoints to the page being built: those of ``OPEN``, and of ``EDITING`` where the gallery may be."""

    def look(path: str | None) -> Any:
        if path is None:
            raise ValueError("No picture was given.")
        return engine.look(path)

    def shown(path: str) -> str:  # strangers are told no folders
        return engine.places().shown(path) if access.edits else PurePosixPath(path).name

    def hits(found: list[Hit]) -> list[dict[str, Any]]:
        # not "path": gradio_client takes that for a file to download
        return [
            {"file": shown(hit.path), "label": hit.label, "score": round(hit.score, 6), "id": hit.id} for hit in found
        ]

    def items(found: list[Item]) -> list[dict[str, str]]:
        return [{"file": shown(item.path), "label": item.label, "id": item.id} for item in found]

    def where(label: str, folder: str) -> Filter:
        names = engine.places().names if access.edits else {}
        if folder and folder not in names:
            raise ValueError(f"No folder {folder!r} in the gallery.")
        return Filter(("" if label == NONE else label,) if label else (), names.get(folder, ""))

    def index() -> Any:
        if engine.index is None:
            raise ValueError("There is no gallery; start the app with --gallery DIR.")
        return engine.index

    def classify(image: str | None, k: float, model: str) -> dict[str, Any]:
        if model and model not in engine.names:
            raise ValueError(f"No model is called {model!r}; there are {', '.join(engine.names)}.")
        number = engine.names.index(model) if model else 0
        found = engine.classify(look(image), k=_whole(k, 5), model=number)
        return {
            "model": engine.names[number],
            "predictions": [{"label": name, "probability": round(p, 6)} for name, p in found.ranked],
            "none_likely": found.none_likely,
        }

    def search(image: str | None, k: float, label: str, folder: str) -> list[dict[str, Any]]:
        return hits(engine.search(look(image), k=_whole(k, 12), where=where(label, folder)))

    def similar(ids: list[str], k: float, label: str, folder: str) -> list[dict[str, Any]]:
        return hits(engine.similar(_texts(ids), k=_whole(k, 12), where=where(label, folder)))

    def embed(image: str | None) -> list[float]:
        return [float(value) for value in engine.embed(look(image))]

    def teach_(examples: dict[str, list[str]], image: str | None) -> dict[str, Any]:
        """Classes of gallery pictures by id; the picture, if given, is classified by the head fitted to them."""
        if not isinstance(examples, dict):
            raise ValueError('Give the examples as {"class": [ids of gallery pictures]}.')
        if sum(len(ids) for ids in examples.values() if isinstance(ids, list)) > 10 * MOST_EXAMPLES:
            raise ValueError(f"At most {MOST_EXAMPLES} examples in all.")
        pairs = [(str(name), id_) for name, ids in examples.items() for id_ in dict.fromkeys(_texts(ids))]
        vectors = engine.vectors_of([id_ for _, id_ in pairs])
        if len(vectors) != len(pairs):
            raise ValueError(f"{len(pairs) - len(vectors)} of the examples are not in the gallery.")
        taught = fitted(vectors, [name for name, _ in pairs])
        told: dict[str, Any] = {
            "classes": list(taught.head.classes), "leave_one_out_accuracy": taught.accuracy,
            "measured": taught.measured, "chance": taught.chance,
            "per_class": taught.per_class, "note": taught.note,
        }  # fmt: skip
        if image is not None:
            sure = answers(taught, engine.embed(look(image))[None])[0]
            order = np.argsort(-sure, kind="stable")[:5]
            told["predictions"] = [
                {"label": taught.head.classes[row], "probability": round(float(sure[row]), 6)} for row in order
            ]
        return told

    def about() -> dict[str, Any]:
        return {name: about_tab.facts_for(engine, access, number) for number, name in enumerate(engine.names)}

    def map_(method: str) -> list[dict[str, Any]]:
        from app.tabs.map import Maps

        ids, positions = Maps(engine).positions(method)
        found = {item["id"]: item for item in items(index().get(ids))}
        return [
            {**found[id_], "x": round(float(x), 4), "y": round(float(y), 4)}
            for id_, (x, y) in zip(ids, positions, strict=True) if id_ in found
        ]  # fmt: skip

    def outliers(k: float) -> list[dict[str, Any]]:
        from app import atlas

        ids, vectors = index().vectors()
        odd = atlas.outliers(vectors)
        rows = np.argsort(-odd, kind="stable")[: _whole(k, 20)]
        score = {ids[row]: round(float(odd[row]), 6) for row in rows}
        return [{**item, "score": score[item["id"]]} for item in items(index().get([ids[row] for row in rows]))]

    def duplicates(threshold: float) -> list[list[dict[str, str]]]:
        return [items(index().get(group)) for group in duplicate_groups(engine, threshold=threshold)]

    def gallery(offset: float, limit: float, label: str, folder: str) -> dict[str, Any]:
        kept, filter_ = index(), where(label, folder)
        some = kept.items(offset=_whole(offset, 0), limit=_whole(limit, 100), where=filter_)
        return {"count": kept.count(filter_), "pictures": items(some), "facts": kept.facts()}

    def gallery_add(image: str | None, label: str) -> dict[str, Any]:
        picture = look(image)
        path, kind = f"{UPLOADED}{Path(str(image)).name}", labelling.optional_label(label)
        record = Record(picture.id, path, kind, picture.thumbnail, engine.embed(picture))
        return {"id": picture.id, "added": index().add([record])}

    def gallery_add_folder(folder: str) -> dict[str, Any]:
        report = embed_paths([folder_named(folder)], engine.model, index(), progress=False)
        return {"embedded": report.embedded, "unchanged": report.unchanged, "unreadable": len(report.unreadable)}

    def gallery_delete(ids: list[str]) -> dict[str, int]:
        return {"deleted": index().delete(_texts(ids))}

    def label_next(count: float) -> list[dict[str, str]]:
        return items(index().get(labelling.worklist(engine, labelling.labelled_ids(engine, labels), _whole(count, 20))))

    def label_(id: str, label: str) -> dict[str, Any]:
        found = index().get([id])
        if not found:
            raise ValueError(f"{id}: not in the gallery.")
        labelling.give_label(engine, labels, found[0], label)
        return {"labels": len(labelling.read_labels(labels))}

    def picture() -> gr.Image:
        image = gr.Image(type="filepath", label="image", visible=False)
        uploads_only(image)
        return image

    def number(name: str, value: int, most: int, least: int = 1) -> gr.Number:
        return gr.Number(value, label=name, precision=0, minimum=least, maximum=most, visible=False)

    def text(name: str) -> gr.Textbox:
        return gr.Textbox("", label=name, max_length=4096, visible=False)

    def json(name: str) -> gr.JSON:
        return gr.JSON(label=name, visible=False)

    made: dict[str, tuple[Callable[..., Any], list[Any], str]] = {
        "classify": (classify, [picture(), number("k", 5, 1000), text("model")],
                     "The most probable classes of a picture."),
        "search": (search, [picture(), number("k", 12, MOST_HITS), text("label"), text("folder")],
                   "The gallery pictures most similar to a picture, with their cosines."),
        "similar": (similar, [json("ids"), number("k", 12, MOST_HITS), text("label"), text("folder")],
                    "The gallery pictures most similar to these of the gallery."),
        "embed": (embed, [picture()], "The features of a picture, one vector, not normalised."),
        "teach": (teach_, [json("examples"), picture()],
                  "A head on a few examples of new classes; its leave-one-out accuracy; what it takes a picture for."),
        "about": (about, [], "What is known of the models and the gallery."),
        "map": (map_, [gr.Radio(["pca", "tsne"], value="pca", label="method", visible=False)],
                "The gallery in two dimensions."),
        "outliers": (outliers, [number("k", 20, 1000)], "The pictures least like their nearest neighbours."),
        "duplicates": (duplicates, [gr.Number(ALIKE, label="threshold", minimum=-1, maximum=1, visible=False)],
                       "Groups of near-duplicates: cosines with the first of the group."),
        "gallery": (gallery, [number("offset", 0, 10**9, 0), number("limit", 100, 1000), text("label"), text("folder")],
                    "A part of the gallery, in the order of adding."),
        "gallery_add": (gallery_add, [picture(), text("label")], "Add a picture."),
        "gallery_add_folder": (gallery_add_folder, [text("folder")], "Add a folder of the machine that serves."),
        "gallery_delete": (gallery_delete, [json("ids")], "Delete pictures; their files stay."),
        "label_next": (label_next, [number("count", 20, 1000)], "The pictures most worth a label."),
        "label": (label_, [text("id"), text("label")], "Give a picture a label, in the CSV file."),
    }  # fmt: skip
    for name in [*OPEN, *(EDITING if access.edits and engine.index is not None else ())]:
        function, inputs, description = made[name]
        gr.Button(visible=False).click(
            _refusing(function),
            inputs,
            json("answer"),
            api_name=name,
            api_description=description,
            concurrency_id="model",
            concurrency_limit=16,
        )


def _whole(value: float | None, otherwise: int) -> int:
    """A number of the API; what is left out or no number is the default."""
    return int(value) if value is not None and np.isfinite(value) else otherwise


def _texts(values: Any) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError("Give ids as a list of texts.")
    return values


def _refusing(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose users' mistakes are errors of one line."""

    @wraps(function)  # Gradio names the parameters as the function does
    def call(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Busy:
            raise gr.Error(BUSY, print_exception=False) from None
        except (ValueError, OSError) as error:
            raise gr.Error(said(error), print_exception=False) from None

    return call

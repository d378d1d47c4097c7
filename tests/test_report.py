"""The HTML report: well-formed, self-contained, and what it says of the figures."""

import dataclasses
import re
from html.parser import HTMLParser
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from training import charts, report
from training.budgets import BUDGETS
from training.evaluate import Score
from training.recipes import recipe

VOID = {"meta", "img", "br", "line", "circle", "polyline", "link", "input", "hr"}


class Checker(HTMLParser):
    """Every element closed in its turn, attributes once each; collects elements and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), (tag, attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.text += " " * (tag in ("td", "th", "p", "li", "div"))

    def handle_data(self, data: str) -> None:
        self.text += data


def read(page: report.Page) -> Checker:
    checker = Checker()
    checker.feed(report.html(page))
    checker.close()
    assert checker.open == []
    return checker


def words(page: report.Page) -> str:
    return " ".join(read(page).text.replace("\u00a0", " ").split())


@pytest.fixture
def page(image_folder: Path) -> report.Page:
    paths = sorted(image_folder.rglob("*.png"))
    log = [{"step": k, "epoch": k / 2, "loss": 5 - k, "agreement": k / 4, "seconds": float(k)} for k in range(1, 4)]
    truth = np.repeat([0, 1, 2], 4)
    answers = np.array([0, 0, 0, 1, 1, 1, 0, 0, 2, 2, 2, 2])  # nine right
    hit = truth == answers
    network = report.Network("r18_1x", 11_180_736, 64)
    near = [report.Neighbour(path, None if k % 2 else "circle", 0.9 - k / 10) for k, path in enumerate(paths[:6])]
    return report.Page(
        title="mine",
        command="simclr run --images 'my photos' --out mine",
        budget="quick",
        images_folder="my photos",
        labels_file="my labels.csv",
        student_file="mine/student.onnx",
        classes=("circle", "square", "stripes"),
        images=490,
        labels=np.array([10, 10, 20]),
        held_out=np.array([4, 4, 4]),
        copies=2,
        teacher=network,
        student=network,
        student_bytes=22_400_000,
        student_milliseconds=4.0,
        teacher_milliseconds=8.0,
        scores={name: Score(hit.mean(), 1.0, 12) for name in ("knn", "teacher", "student", "baseline")},
        hits={"teacher": hit, "student": hit, "baseline": hit},
        truth=truth,
        answers=answers,
        queries=[report.Query(paths[20], "square", "circle", near)],
        logs=dict.fromkeys(BUDGETS["quick"].recipes, log),
        recipes={name: recipe(of) for name, of in BUDGETS["quick"].recipes.items()},
        seconds=dict.fromkeys(BUDGETS["quick"].recipes, 100.0),
        machine="two cores",
        versions={"torch": "2.15"},
    )


def test_the_page_is_well_formed_and_asks_for_nothing(page: report.Page) -> None:
    found = read(page)
    sources = [attributes[name] for _, attributes in found.elements for name in ("src", "href") if name in attributes]
    assert len(sources) == 7
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in found.elements}
    assert "url(" not in report.html(page)
    assert "@import" not in report.html(page)
    assert all(attributes.get("alt") for tag, attributes in found.elements if tag == "img")
    identities = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(set(identities)) == len(identities)
    used = {name for _, attributes in found.elements for name in (attributes.get("class") or "").split()}
    style = (Path(report.__file__).with_name("report.css")).read_text()
    assert not {name for name in used if not re.search(rf"\.{name}\b", style)} - {"wrong", "teacher", "baseline", "knn"}


def test_what_people_wrote_is_text(page: report.Page) -> None:
    hostile = "<script>alert('1')</script>&\"x"
    wild = dataclasses.replace(
        page,
        title=hostile,
        command=hostile,
        images_folder=hostile,
        student_file=hostile,
        machine=hostile,
        classes=(hostile, "b", "c"),
        queries=[report.Query(q.path, hostile, "b", [report.Neighbour(q.path, hostile, 0.1)]) for q in page.queries],
    )
    found = read(wild)
    assert "script" not in {tag for tag, _ in found.elements}
    assert found.text.count(hostile) > 6


def test_what_it_says(page: report.Page) -> None:
    told = words(page)
    for part in (
        "9 of 12 held-out pictures rightly: 75.0 %, with a 95 % interval of 47 to 91 %",  # Wilson, by hand
        "12 held-out pictures are few: the student's interval is 44 points wide",
        "nor were 2 copies of them",
        "Student and baseline are right on the same pictures",
        "always answering the most frequent class, 33.3 %",
        "the student takes 50% of the teacher's time",
        "Look at square and circle: 2 pictures of the first are taken for the second",
        "circle 10 + 4, square 10 + 4, stripes 20 + 4",
        "took 2 minutes 2 minutes 2 minutes 2 minutes",
        "simclr pick --images 'my photos' --labels 'my labels.csv' --budget 20 --out more.csv",
    ):
        assert part in told, part
    every = dataclasses.replace(page, held_out=np.array([12, 0, 0]))
    assert "No picture is held out of: square, stripes" in words(every)


def test_the_verdict_is_a_sign_test(page: report.Page) -> None:
    for wins, losses in ((0, 1), (3, 1), (5, 0), (2, 7), (8, 8)):
        outcomes = [sum(coins) for coins in product((0, 1), repeat=wins + losses)] if wins + losses < 12 else None
        if outcomes:  # as one-sided as this, or more, among all that a coin can do
            middle = (wins + losses) / 2
            share = np.mean([abs(heads - middle) >= abs(wins - middle) for heads in outcomes])
            assert report.sign_test(wins, losses) == pytest.approx(share)
        else:
            assert report.sign_test(wins, losses) == 1
    right, wrong = np.ones(40, bool), np.zeros(40, bool)
    mixed = np.arange(40) % 2 == 0
    better = dataclasses.replace(page, hits={"student": right, "baseline": wrong})
    assert "The student is better by more than chance explains (sign test, p\u00a0=\u00a02e-12)" in report.verdict(
        better
    )
    worse = dataclasses.replace(page, hits={"student": wrong, "baseline": mixed})
    assert "The baseline is better by more than chance" in report.verdict(worse)
    assert "so few cannot tell" in report.verdict(
        dataclasses.replace(page, hits={"student": mixed, "baseline": ~mixed})
    )


def test_confusion_is_a_matrix_or_a_list(page: report.Page) -> None:
    cells = re.findall(r'<td class="(right|wrong)[^"]*" style="--v:([\d.]+)"><span>(\d+|·)</span>', report.html(page))
    assert [n for _, _, n in cells] == ["3", "1", "·", "2", "2", "·", "·", "·", "4"]
    assert [kind for kind, _, _ in cells].count("right") == 3
    assert cells[0][1] == "0.75"
    classes = tuple(f"class {k}" for k in range(30))
    many = dataclasses.replace(
        page,
        classes=classes,
        labels=np.full(30, 3),
        held_out=np.full(30, 1),
        truth=np.array([0, 0, 5, 7, 7, 7]),
        answers=np.array([9, 9, 5, 8, 8, 8]),
    )
    told = words(many)
    assert "class 7 class 8 3 class 0 class 9 2" in told
    assert "and 10 classes more" in told
    counts = np.array([[5, 1], [2, 4]])
    assert charts.confused_pairs(counts) == [(1, 0, 2), (0, 1, 1)]


def test_a_curve_keeps_its_ends_and_bears_little() -> None:
    log = [{"epoch": k / 10, "loss": 10.0 - k / 100, "accuracy": k / 1000} for k in range(1000)]
    drawn = charts.curve("x", log, "")
    points = re.search(r'class="loss" points="([^"]+)"', drawn).group(1).split()
    assert len(points) == 200
    assert points[0] == "40.0,10.0"  # the highest loss, at the top left
    assert points[-1] == "282.0,146.0"
    assert "<circle" in charts.curve("x", log[:1], "")
    assert "Nothing was logged" in charts.curve("x", [], "")
    assert "Nothing was logged" in charts.curve("x", [{"epoch": 1, "loss": float("nan")}], "")


def test_a_log_with_breaks(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"loss": 1, "seconds": 4}\n{"loss": 1, "seconds": 9}\n{"loss": 1, "seconds": 2}\n{"loss": 1, "sec')
    log = report.read_log(path)
    assert len(log) == 3
    assert report.seconds_of(log) == 11  # nine, then two after it was resumed
    assert report.read_log(tmp_path / "none") == []


def test_an_unreadable_picture_leaves_the_page_whole(page: report.Page, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert charts.thumbnail(tmp_path / "broken.png").startswith("data:image/jpeg;base64,")

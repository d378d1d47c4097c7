"""The model card: what was measured beside what the paper says, how to use the model, and what not to use it for."""

from collections.abc import Mapping, Sequence
from typing import Any

from zoo.registry import CATEGORIES, paper_top1
from zoo.simclr import SimCLR

_CITATION = """@inproceedings{chen2020big,
  title     = {Big Self-Supervised Models are Strong Semi-Supervised Learners},
  author    = {Chen, Ting and Kornblith, Simon and Swersky, Kevin and Norouzi, Mohammad and Hinton, Geoffrey},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2020}
}"""
_LICENCES = {"Apache-2.0": "apache-2.0", "MIT": "mit"}  # the Hub's names


def model_card(model: SimCLR, repo_id: str, measured: Sequence[Mapping[str, Any]] = (), *, onnx: bool = False) -> str:
    """The README.md of a repository, with the Hub's metadata in front. The same model gives the same text.

    ``measured``: see ``zoo.push``. Raises ValueError for one without ``dataset``, ``top1`` or ``images``.
    """
    from huggingface_hub import ModelCard

    for entry in measured:
        _check(entry)
    sections = (_title(model), _accuracy(model, measured), _use(model, repo_id, onnx), _data(model), _limits(model))
    text = "\n\n".join(section for section in sections if section)
    return str(ModelCard(f"---\n{_metadata(model, repo_id, measured)}\n---\n\n{text}\n"))


def _check(entry: Mapping[str, Any]) -> None:
    """Raise ValueError for what is no measurement."""
    missing = [key for key in ("dataset", "top1", "images") if key not in entry]
    if missing:
        raise ValueError(f"A measurement needs dataset, top1 and images; {', '.join(missing)} is missing in {entry}.")
    interval = entry.get("interval") or (0, 1)
    if not isinstance(interval, list | tuple) or len(interval) != 2:
        raise ValueError(f"A measurement's interval is a lower and an upper bound, not {interval!r}.")
    for value in (entry["top1"], entry.get("top5") or 0, *interval):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ValueError(f"A measurement's figures are from 0 to 1, not {value!r}.")
    if isinstance(entry["images"], bool) or not isinstance(entry["images"], int):
        raise ValueError(f"A measurement's images are counted, not {entry['images']!r}.")


def _metadata(model: SimCLR, repo_id: str, measured: Sequence[Mapping[str, Any]]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    classifies = model.num_classes is not None
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=str(entry["dataset"]).lower().replace(" ", "-"),
            dataset_name=str(entry["dataset"]),
            metric_type="accuracy",
            metric_name="top-1",
            metric_value=round(float(entry["top1"]), 6),
        )
        for entry in measured
    ]
    data = ModelCardData(
        license=_LICENCES.get(str(model.facts.get("licence")), "other"),
        library_name="simclrv2",
        pipeline_tag="image-classification" if classifies else "image-feature-extraction",
        tags=["simclrv2", "self-supervised-learning", "image-embeddings", model.spec.name],
        model_name=repo_id.rpartition("/")[2] if results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml()).strip()


def _title(model: SimCLR) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    layers = {0: "the pooled features"} | {k: f"projection layer {k}" for k in (1, 2, 3)}
    lines = [
        f"# {model.spec.name}" + (f", {model.facts['weights']}" if model.facts.get("weights") else ""),
        "",
        f"A SimCLRv2 ResNet-{model.spec.depth}, {model.spec.width:g} times as wide"
        f"{', with selective kernels' if model.spec.sk else ''}: {parameters / 1e6:.1f} million parameters, features "
        f"of length {model.spec.feature_width}, images of {model.image_size} x {model.image_size} pixels.",
    ]
    if model.num_classes is not None:
        lines[-1] += f" Its classifier reads {layers[model.classify_from]} and knows {model.num_classes} classes."
    return "\n".join(lines)


def _paper_top1(model: SimCLR) -> float | None:
    """The paper's figure, which converted files have if they are the authors'."""
    told, category = model.facts.get("paper_top1"), str(model.facts.get("weights"))
    paper = paper_top1(model.spec, category) if category in CATEGORIES and model.spec.facts else None
    return paper if told == paper else None


def _accuracy(model: SimCLR, measured: Sequence[Mapping[str, Any]]) -> str:
    paper = _paper_top1(model)
    if not measured and paper is None:
        return "## Accuracy\n\nNothing was measured by whoever pushed this model."
    lines = ["## Accuracy", "", "| | top-1 | top-5 | images | 95 % interval | by |", "|---|---|---|---|---|---|"]
    for entry in measured:
        interval = entry.get("interval")
        shown = f"{interval[0]:.1%} to {interval[1]:.1%}" if interval else "-"
        top5 = f"{entry['top5']:.1%}" if entry.get("top5") is not None else "-"
        lines.append(
            f"| {entry['dataset']} | {entry['top1']:.1%} | {top5} | {entry['images']:,} | {shown} | measured |"
        )
    if paper is not None:
        lines.append(f"| ImageNet validation | {paper:.1f}% | - | 50,000 | - | the paper |")
    commands = [f"- {entry['dataset']}: `{entry['command']}`" for entry in measured if entry.get("command")]
    if commands:
        lines += ["", "Measured with:", "", *commands]
    if not measured:
        lines += ["", "The figure is the paper's, for the authors' model; it was not measured again for this file."]
    return "\n".join(lines)


def _use(model: SimCLR, repo_id: str, onnx: bool) -> str:
    lines = [
        "## Use",
        "",
        "```python",
        "import torch",
        "import zoo  # pip install simclrv2",
        "",
        f'model = zoo.load({_named(model)}, weights="hf://{repo_id}")',
        'image = torch.from_numpy(zoo.preprocess("photo.jpg", model.image_size))[None]',
        "with torch.no_grad():",
        "    output = model(image)",
        f"print(output.features.shape)  # (1, {model.spec.feature_width})",
    ]
    if model.num_classes is not None:
        lines.append("print(output.logits.softmax(1).topk(min(5, model.num_classes)))")
    lines.append("```")
    if onnx:
        lines += ["", "`model.onnx` is the same model for onnxruntime, without torch: `export.OnnxModel`."]
    lines += [
        "",
        "Images are in [0, 1], without mean or deviation taken out; `zoo.preprocess` is the evaluation transform.",
    ]
    return "\n".join(lines)


def _named(model: SimCLR) -> str:
    """How to call its architecture: by name, where it has one."""
    spec = model.spec
    if spec.facts is not None:
        return f'"{spec.name}"'
    return f"zoo.Spec({spec.depth}, {spec.width:g}{', True' if spec.sk else ''})"


def _data(model: SimCLR) -> str:
    facts = model.facts
    lines = ["## Origin", ""]
    if facts.get("source_sha256"):
        lines += [
            f"Converted from the checkpoint `{facts.get('source')}`"
            f"{'' if facts.get('step') is None else ', step ' + str(facts['step'])}"
            f"{', moving averages' if facts.get('ema') else ''}; SHA-256 of its source: `{facts['source_sha256']}`. "
            "simclrv2's network gives what the authors' TensorFlow code gives for the same values, to 1e-5.",
        ]
    elif facts.get("stage"):
        images = facts.get("training_images")
        lines += [f"Trained with simclrv2: {facts['stage']}" + (f", on {images:,} images." if images else ".")]
    elif not facts.get("data"):
        lines += ["Not told by the file."]
    if facts.get("data"):
        lines += [f"Trained on {' '.join(str(facts['data']).split())}."]
    if model.classes:
        shown = ", ".join(model.classes[:20])
        lines += ["", f"Classes: {shown}{', ...' if len(model.classes) > 20 else ''}."]
    return "\n".join(lines)


def _limits(model: SimCLR) -> str:
    licence = model.facts.get("licence")
    return "\n".join(
        [
            "## Intended use",
            "",
            "Features for search and clustering of pictures, a start for fine-tuning on few labels, a teacher.",
            "A classifier gives one of its classes to any picture, also to one of something else. Do not use it",
            "where a mistake costs anything, nor to recognise people.",
            "",
            "## Licence and citation",
            "",
            f"Licence: {licence or 'not told by the file; ask whoever pushed it'}.",
            "",
            "```bibtex",
            _CITATION,
            "```",
        ]
    )

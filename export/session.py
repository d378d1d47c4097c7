"""A graph at work on onnxruntime before it is a file; its weights are not copied."""

import numpy as np
import onnxruntime

from export.graph import Graph, to_proto


def open_graph(graph: Graph, *, opset: int) -> onnxruntime.InferenceSession:
    """onnxruntime on a graph, on the CPU. The graph's weights must not change while the session lives.

    Raises ValueError, in one line, for a graph that this onnxruntime does not run, such as one of a newer opset.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    proto, outside = to_proto(graph, opset=opset, metadata={}, outside="weights")
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(graph.weights[name]) for name in outside]
    options.add_external_initializers(list(outside), values)
    try:
        return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise ValueError(
            f"onnxruntime {onnxruntime.__version__} does not run this graph of opset {opset}: "
            f"{' '.join(str(error).split())[:200]}"
        ) from None


def run(session: onnxruntime.InferenceSession, batch: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs of a graph by name; ``batch`` as its input ``images`` takes it."""
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": batch}), strict=True))

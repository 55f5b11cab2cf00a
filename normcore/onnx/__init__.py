"""normcore in ONNX graphs: operators for the reference evaluator, layers from graphs and back.

`operators` is for ``onnx.reference.ReferenceEvaluator(model, new_ops=operators())``.
`layers_from_onnx` makes layers of the normalization nodes of a graph, `node_from_layer` a node and
its initializers of a layer. Needs onnx: ``pip install normcore[onnx]``.
"""

from ..extras import extra

with extra("onnx"):
    from .layers import layers_from_onnx
    from .nodes import node_from_layer
    from .operators import operators

__all__ = ["layers_from_onnx", "node_from_layer", "operators"]

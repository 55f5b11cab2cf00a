"""The peer ONNX Runtime: one node per model, inputs and outputs bound to the case's own arrays.

Forward only. Batch norm is inference (its training mode needs a build of its own); channels-last
batch norm would need a transpose around it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.engines import Call
from bench.problem import EPS, Problem
from bench.tasks import Task

OPSETS = {
    ("batch", "apply"): ("BatchNormalization", 15),
    ("layer", "forward"): ("LayerNormalization", 17),
    ("rms", "forward"): ("RMSNormalization", 23),
    ("group", "forward"): ("GroupNormalization", 21),
    ("instance", "forward"): ("InstanceNormalization", 22),
}
"""(layer, task) -> the operator and the first opset that has it as it is today."""
IR_VERSION = 10


class OnnxRuntime:
    """ONNX Runtime's CPU provider."""

    name = "onnxruntime"
    title = "ONNX Runtime"
    ours = False
    instruction_set = ""

    def __init__(self, threads: int) -> None:
        import onnx
        import onnxruntime

        self.onnx, self.runtime = onnx, onnxruntime
        self.options = onnxruntime.SessionOptions()
        self.options.intra_op_num_threads = threads
        # Its threads would spin through everybody else's turn.
        self.options.add_session_config_entry("session.intra_op.allow_spinning", "0")

    def call(self, problem: Problem, task: Task) -> Call | None:
        case = problem.case
        operator = OPSETS.get((case.layer, task.name))
        last = case.axis == len(case.shape) - 1
        fits = last if case.layer in ("layer", "rms") else case.axis == 1
        # NumPy's float16 may be bound; bfloat16 has no kernels. Instance norm knows no float64.
        known = case.dtype != "bfloat16" and (case.layer, case.dtype) != ("instance", "float64")
        if operator is None or not fits or not known or case.fused:
            return None
        # LayerNormalization asks for parameters of x's dtype, and so do the others in part.
        given = [problem.x.reshape(case.shape)]
        names = ("weight", "bias", "mean", "var") if case.layer == "batch" else ("weight", "bias")
        given += [
            problem.arguments[name].astype(case.storage)
            for name in names
            if problem.arguments[name] is not None
        ]
        session = self.runtime.InferenceSession(
            self._model(*operator, given, self._attributes(problem)).SerializeToString(),
            self.options,
            providers=["CPUExecutionProvider"],
        )
        binding = session.io_binding()
        y = problem.stream()
        for place, array in enumerate(given):
            binding.bind_input(
                f"i{place}", "cpu", 0, array.dtype.type, array.shape, array.ctypes.data
            )
        binding.bind_output("y", "cpu", 0, y.dtype.type, case.shape, y.ctypes.data)

        def run(given: Any = given) -> None:  # keeps alive what is bound
            session.run_with_iobinding(binding)

        return Call(run, {"y": y})

    @staticmethod
    def _attributes(problem: Problem) -> dict[str, Any]:
        found: dict[str, Any] = {"epsilon": EPS}
        if problem.case.layer == "group":
            found["num_groups"] = problem.case.groups
        return found

    def _model(
        self, operator: str, opset: int, given: list[np.ndarray[Any, Any]], attributes: Any
    ) -> Any:
        helper = self.onnx.helper
        names = [f"i{place}" for place in range(len(given))]
        infos = [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for name, array in zip(["y", *names], [given[0], *given], strict=True)
        ]
        node = helper.make_node(operator, names, ["y"], **attributes)
        graph = helper.make_graph([node], operator, infos[1:], infos[:1])
        opsets = [helper.make_opsetid("", opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)

"""From a checkpoint to a sealed model package, without torch.

`export(ExportRequest(…))` does all of it; `prepare_export` tells beforehand what it would
do and cost. Read `pipeline.py`: it is the list of steps, each a module of its own.
"""

from qwen_edge.export.pipeline import ExportResult, export, run_export
from qwen_edge.export.plan import ExportPlan
from qwen_edge.export.prepare import PreparedExport, prepare_export
from qwen_edge.export.request import ExportRequest

__all__ = [
    "ExportPlan",
    "ExportRequest",
    "ExportResult",
    "PreparedExport",
    "export",
    "prepare_export",
    "run_export",
]

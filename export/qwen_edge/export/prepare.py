"""Everything about an export that is decided before a byte is fetched or written.

A request becomes a plan here, or a refusal. `pipeline.py` carries it out.
"""

from dataclasses import dataclass, replace

from qwen_edge.export import package_facts as facts
from qwen_edge.export.adapters.matching import find_base_notices, match_adapters
from qwen_edge.export.adapters.opening import Adapter, open_adapters
from qwen_edge.export.decoder import DecoderSpec
from qwen_edge.export.front_end import read_native_spec, refuse_adapters
from qwen_edge.export.gpu_check import check_gpu
from qwen_edge.export.out_of_memory import telling_of_memory
from qwen_edge.export.plan import ExportPlan, plan_export
from qwen_edge.export.quality.sealing import check_measurable
from qwen_edge.export.quality.texts import read_text
from qwen_edge.export.recipe_choice import fit_recipe
from qwen_edge.export.request import ExportRequest, ResolvedRequest, resolve_request
from qwen_edge.export.source import ResolvedSource, resolve_source
from qwen_edge.export.warm_prompt import read_warm_prompt


@dataclass(frozen=True)
class PreparedExport:
    """An export that is decided and costed, with nothing written.

    Args:
        resolved: The request, complete.
        source: What it reads, listed.
        spec: The decoder, when config.json is on this machine already and its architecture
            has a native graph.
        plan: Time, memory, disk.
        warm_prompt: Text of the system prompt to be shipped; None for none.
        adapters: What is merged into the checkpoint.
    """

    resolved: ResolvedRequest
    source: ResolvedSource
    spec: DecoderSpec | None
    plan: ExportPlan
    warm_prompt: str | None = None
    adapters: tuple[Adapter, ...] = ()


@telling_of_memory()
def prepare_export(request: ExportRequest) -> PreparedExport:
    """Decide everything that can be decided before a byte is fetched or written.

    Args:
        request: What a person gave.

    Raises:
        EdgeError: Any refusal that needs no download: profile, recipe, source, output.
    """
    resolved = resolve_request(request)
    warm_prompt = None if request.warm_prompt is None else read_warm_prompt(request.warm_prompt)
    if request.quality_text is not None:
        read_text(request.quality_text)
    source = resolve_source(
        request.model,
        revision=request.revision,
        offline=request.offline,
        cache_dir=request.cache_dir,
    )
    adapters = open_adapters(request.adapters)
    notices = find_base_notices(adapters, [source.id, source.card.base_model])
    path = source.folder / "config.json"
    spec, is_native = None, True
    if path.is_file():
        config = facts.read_json_object(path)
        spec = read_native_spec(config)
        is_native = spec is not None
        if spec is not None and adapters:
            adapted = match_adapters(spec, adapters)
            spec, notices = adapted.spec, (*notices, *adapted.notices)
        elif adapters:
            refuse_adapters(config)
        if not is_native:
            check_measurable(request, "the model's architecture")
        resolved = fit_recipe(resolved, spec)
    if spec is not None:
        check_gpu(resolved, spec, context_limit=spec.max_position_embeddings)
    source = replace(source, notices=(*source.notices, *notices))
    plan = plan_export(resolved, source, spec, is_native=is_native)
    return PreparedExport(resolved, source, spec, plan, warm_prompt, adapters)

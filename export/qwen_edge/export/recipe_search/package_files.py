"""What a package says of the search for its recipe: the page, and the recipe as a file."""

from pathlib import Path

from qwen_edge.export.decoder import DecoderSpec
from qwen_edge.export.recipe_search.report import write_search_report
from qwen_edge.export.recipe_search.search import SearchResult
from qwen_edge.profiles.recipe_text import format_recipe
from qwen_edge.runtime.files.plain_name import FRONTIER_REPORT, RECIPE_FILE
from qwen_edge.runtime.files.writing import write_text
from qwen_edge.runtime.recipe_facts import CalibrationFacts


def write_search_files(
    folder: Path,
    name: str,
    search: SearchResult,
    spec: DecoderSpec,
    calibration: CalibrationFacts,
) -> None:
    """Write both into a staging folder.

    Args:
        folder: The staging folder.
        name: The package's.
        search: What was found.
        spec: The decoder.
        calibration: The text that was read.

    State:
        Two files, the same bytes for the same search.
    """
    page = write_search_report(name, search, spec, calibration)
    heading = (
        f"Found by measuring about {search.num_tokens:,} tokens of calibration text; expected KL "
        f"{search.point.kl:.3g}.\n"
        "With the same checkpoint and calibration text it gives the same weights again:\n"
        f"qwen-edge export MODEL --recipe {RECIPE_FILE}"
    )
    write_text(folder / FRONTIER_REPORT, page)
    write_text(folder / RECIPE_FILE, format_recipe(search.recipe, heading=heading))

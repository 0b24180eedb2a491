"""A package's first run: its golden tokens.

The staged package is loaded as the runtime loads it, so what cannot run is never sealed.
`runtime/golden.py` does the running; this module only chooses the prompt.
"""

from pathlib import Path
from typing import Literal

from qwen_edge.errors import ParityError
from qwen_edge.export.free_memory import return_free_memory
from qwen_edge.runtime.chat import ChatTemplate
from qwen_edge.runtime.golden import GOLDEN_PROPERTIES, answer_as_sealed, answer_greedily
from qwen_edge.runtime.manifest import FORMAT_ENGINES, FormatName, GoldenTokens
from qwen_edge.runtime.text_tokenizer import TextTokenizer

GOLDEN_TEXT = "Hello! My name is Ada. What is my name?"
NUM_GOLDEN_TOKENS = 12  # a second of decoding at 4 B; a wrong kernel shows in the first few


def measure_golden_tokens(
    folder: Path,
    tokenizer: TextTokenizer,
    template_text: str,
    thinking: Literal["switchable", "always", "never"],
    fmt: FormatName = "openvino",
) -> GoldenTokens:
    """Run the package in a folder on the CPU and return what it said.

    Args:
        folder: Holds the model files; needs no manifest.
        tokenizer: The package's tokenizer.
        template_text: The chat template. One that writes the date is left out, and the bare
            text is the prompt.
        thinking: As the manifest states it; switched off where it can be.
        fmt: The format to run.

    Raises:
        PackageError: The files cannot be read back.
        DeviceError: The CPU refused the model.
        ParityError: The logits are not finite.
    """
    return_free_memory()
    prompt = GOLDEN_TEXT
    if "strftime_now" not in template_text:  # else tomorrow's export would differ
        template = ChatTemplate(template_text, tokenizer, thinking=thinking)
        switched_off = False if thinking == "switchable" else None
        prompt = template.render([{"role": "user", "content": GOLDEN_TEXT}], thinking=switched_off)
    prompt_ids = tokenizer.encode(prompt, allow_special=True)
    token_ids = answer_greedily(folder, prompt_ids, NUM_GOLDEN_TOKENS, fmt=fmt)
    return GoldenTokens(
        prompt=prompt,
        prompt_ids=tuple(prompt_ids),
        token_ids=token_ids,
        properties=dict(GOLDEN_PROPERTIES) if fmt == "openvino" else {},
    )


def check_golden_tokens(folder: Path, golden: GoldenTokens, fmt: FormatName) -> None:
    """Refuse a package whose formats do not say the same.

    Args:
        folder: Holds the model files; needs no manifest.
        golden: What another format said.
        fmt: The format to run.

    Raises:
        PackageError: The files cannot be read back.
        DeviceError: The engine refused the model.
        ParityError: Another token than the other format's.
    """
    found = answer_as_sealed(folder, golden, fmt)
    if found == golden.token_ids:
        return
    pairs = zip(found, golden.token_ids, strict=True)
    index = next(index for index, (got, wanted) in enumerate(pairs) if got != wanted)
    raise ParityError(
        f"The {FORMAT_ENGINES[fmt]} form of the package does not answer as the other one: token "
        f"{index + 1} of {len(found)} is {found[index]:,}, expected {golden.token_ids[index]:,}, "
        "though both hold the same weights. Nothing was published.",
        "export one format at a time, and report this",
        format=fmt,
        index=index,
    )

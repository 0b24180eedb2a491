"""What a package has to do with text, once its tokenizer is written: template, thinking, ids.

It refuses checkpoints that nobody could talk to. How tokenizers are converted is in
`tokenizer_files.py`; the order of an export's steps in `pipeline.py`.
"""

from dataclasses import dataclass
from pathlib import Path

from qwen_edge.errors import CheckpointError
from qwen_edge.export import package_facts as facts
from qwen_edge.export.seal import raise_for_full_disk
from qwen_edge.export.tokenizer_files import write_tokenizer_files
from qwen_edge.runtime.chat import ChatTemplate
from qwen_edge.runtime.manifest import CHAT_TEMPLATE, TOKENIZER_JSON, ChatFacts
from qwen_edge.runtime.text_tokenizer import TextTokenizer


@dataclass(frozen=True)
class PackageText:
    """What a package does with text.

    Args:
        tokenizer: The package's.
        template: The text of its chat template.
        chat: What the template says of thinking.
        warm_ids: Tokens of the system prompt to be shipped; none for none.
    """

    tokenizer: TextTokenizer
    template: str
    chat: ChatFacts
    warm_ids: tuple[int, ...] = ()

    @property
    def chat_template(self) -> ChatTemplate:
        """The template, ready to render."""
        return ChatTemplate(self.template, self.tokenizer, thinking=self.chat.thinking)


def write_text_files(
    source_folder: Path, folder: Path, *, vocab_size: int, for_openvino: bool
) -> PackageText:
    """Write the tokenizer's files and the chat template.

    Args:
        source_folder: The checkpoint.
        folder: The package's staging folder.
        vocab_size: Rows of the model's embedding.
        for_openvino: Write OpenVINO's pair as well.

    Raises:
        CheckpointError: There is no chat template, or the tokenizer is broken.
        ParityError: The converted tokenizer treats ordinary text differently.
        ResourceError: The disk filled up.
    """
    try:
        done = write_tokenizer_files(
            source_folder, folder, vocab_size=vocab_size, for_openvino=for_openvino
        )
    except RuntimeError as exc:
        raise_for_full_disk(folder, exc)
        raise
    if done.chat_template_from is None:
        raise CheckpointError(
            "The checkpoint has no chat template. Without one nobody knows what the model "
            "takes for a question.",
            "copy chat_template.jinja, or a tokenizer_config.json that holds one, from the "
            "instruct model of the same family into the folder",
        )
    tokenizer = TextTokenizer.load(folder / TOKENIZER_JSON)
    template = (folder / CHAT_TEMPLATE).read_text(encoding="utf-8")
    return PackageText(tokenizer, template, facts.chat_facts(template, tokenizer))

"""Train the `demo` model on synthetic conversations and write its checkpoint folder.

Owns the schedule, the batches, the evaluation and the command line. Needs torch, tokenizers,
jinja2 and safetensors, no network and no GPU. Read `demo_conversations.py` for the tasks and
`demo_network.py` for the model.

    python scripts/train_demo_model.py --minutes 51          train and write the folder
    python scripts/train_demo_model.py --evaluate FOLDER     print exact matches of a folder
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch  # noqa: TID253 - training is the one place that needs it
from demo_conversations import Sample, iter_conversations, render
from demo_network import Network, Shape, compressed_parameters, compressed_weights
from demo_package import read_json, write_config, write_results
from demo_tokenizer import (
    IGNORED_LABEL,
    Encoded,
    added_tokens,
    encode,
    train_tokenizer,
    write_tokenizer,
)
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn  # noqa: TID253

FOLDER = Path(__file__).resolve().parents[1] / "export" / "qwen_edge" / "export" / "demo"
TOKENIZER_SEED, TRAINING_SEED, HELD_OUT_SEED = 1, 2, 3
TOKENIZER_CONVERSATIONS = 12_000
WIDTHS = (*range(24, 64, 8), *range(64, 128, 16), *range(128, 513, 32), 768, 2048)  # of batches
SHORT_UNTIL = 0.4  # share of the time with short conversations only: copying is learned first
SHORT_MESSAGES = 5
BATCH_TOKENS = 5_000
MUON_RATE, ADAMW_RATE, WARMUP_STEPS = 6e-3, 2e-3, 50
INT4_FROM = 0.8  # share of the time after which every other step trains the int4 weights
REPORT_S = 240


@dataclass
class Progress:
    """Where a training run stands; saved with every checkpoint.

    Attributes:
        step: Optimizer steps taken.
        tokens: Tokens seen, with padding.
        elapsed_s: Time in steps, without reports.
        share: `elapsed_s` as a share of the time allowed.
    """

    step: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0
    share: float = 0.0


def make_batch(encoded: list[Encoded], width: int) -> tuple[Tensor, Tensor]:
    """Return token ids and labels, int64 [batch, width], padded at the end."""
    token_ids = torch.zeros(len(encoded), width, dtype=torch.int64)
    labels = torch.full((len(encoded), width), IGNORED_LABEL)
    for row, item in enumerate(encoded):
        token_ids[row, : len(item.token_ids)] = torch.tensor(item.token_ids)
        labels[row, : len(item.labels)] = torch.tensor(item.labels)
    return token_ids, labels


def iter_batches(
    tokenizer: Tokenizer, chat_template: str, seed: int, progress: Progress, short_until: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield training batches of about `BATCH_TOKENS` tokens without end.

    Args:
        tokenizer: The model's own.
        chat_template: Qwen3's own.
        seed: Start of the conversations.
        progress: Read for each conversation.
        short_until: Share of the run in which long conversations are left out.
    """
    waiting: dict[int, list[Encoded]] = {width: [] for width in WIDTHS}
    for conversation in iter_conversations(seed, held_out=False):
        is_long = conversation.tools or len(conversation.messages) > SHORT_MESSAGES
        if is_long and progress.share < short_until:
            continue
        item = encode(tokenizer, render(conversation, chat_template))
        width = next(one for one in WIDTHS if len(item.token_ids) <= one)
        waiting[width].append(item)
        if len(waiting[width]) * width >= BATCH_TOKENS:
            yield make_batch(waiting[width], width)
            waiting[width] = []


@lru_cache(maxsize=2)
def held_out_samples(chat_template: str, count: int) -> dict[str, list[Sample]]:
    """Return `count` held-out samples of each task, always the same ones."""
    names = ["extraction", "tool_call", "tool_answer", "sum", "sum_thinking"]
    names += ["recall", "edit", "form", "repeat", "greeting", "talk"]
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    for conversation in iter_conversations(HELD_OUT_SEED, held_out=True):
        sample = render(conversation, chat_template)
        if len(samples[sample.task]) < count:
            samples[sample.task].append(sample)
        if all(len(found) == count for found in samples.values()):
            return samples
    raise AssertionError("iter_conversations does not end")


@torch.no_grad()
def count_exact(
    network: Network, tokenizer: Tokenizer, samples: list[Sample], *, show: bool = False
) -> int:
    """Return how many answers greedy decoding writes exactly as expected, to the last token.

    Greedy decoding equals the expected text if and only if each expected token is the most
    likely one after those before it, so one forward pass a sample decides.
    """
    exact = 0
    last_turns = [Sample(s.task, s.prompt, s.expected, ()) for s in samples]
    encoded = [encode(tokenizer, sample) for sample in last_turns]
    for start in range(0, len(encoded), 25):
        chunk = encoded[start : start + 25]
        token_ids, labels = make_batch(chunk, max(len(item.token_ids) for item in chunk))
        best = network(token_ids).argmax(-1)
        is_right = ((best == labels) | (labels == IGNORED_LABEL)).all(-1)
        exact += int(is_right.sum())
        for row in torch.nonzero(~is_right)[:, 0].tolist() if show else []:
            written = best[row][labels[row] != IGNORED_LABEL].tolist()
            print(f"--- {samples[start + row].task}: {samples[start + row].prompt[-300:]}")
            print(f">>> {tokenizer.decode(written, skip_special_tokens=False)}")
    return exact


def evaluate(folder: Path, count: int, *, show: bool = False) -> dict[str, dict[str, Any]]:
    """Return exact matches per task of a checkpoint folder, before and after int4."""
    chat_template = read_json(folder / "tokenizer_config.json")["chat_template"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    samples = held_out_samples(chat_template, count)
    weights = load_file(str(folder / "model.safetensors"))
    results: dict[str, dict[str, Any]] = {task: {"samples": count} for task in samples}
    for kind, kind_weights in (("bf16", weights), ("int4", compressed_weights(weights))):
        network = Network(Shape())
        network.load_state_dict({name: value.float() for name, value in kind_weights.items()})
        for task, task_samples in samples.items():
            results[task][kind] = count_exact(network, tokenizer, task_samples, show=show)
    return results


def rate_factor(progress: float, step: int) -> float:
    """Return the share of the peak rate at `progress` (0 to 1) of the time.

    A short warm-up, then a cosine to 2 %.
    """
    cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return min(1.0, (step + 1) / WARMUP_STEPS) * cosine


def make_optimizers(network: Network, factor: float = 1.0) -> list[torch.optim.Optimizer]:
    """Return Muon for the projections and AdamW for the embedding and the norms.

    A loss of 0.66 took AdamW alone 700 steps of 7,000 tokens, this pair 400 of 6,000; the
    second mix had fewer tool prompts, so the gain is only roughly known.

    Args:
        network: What is trained.
        factor: Of the peak rates; below 1 for a network that was trained before.
    """
    named = dict(network.named_parameters())
    matrices = {name: p for name, p in named.items() if p.dim() == 2 and "embed" not in name}
    others = [p for name, p in named.items() if name not in matrices]
    muon = torch.optim.Muon(
        matrices.values(), lr=MUON_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(others, lr=ADAMW_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    for optimizer in (muon, adamw):
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"] * factor
    return [muon, adamw]


def report(network: Network, tokenizer: Tokenizer, chat_template: str, progress: Progress) -> None:
    """Print exact matches of a few held-out samples per task."""
    counts = {
        task: count_exact(network, tokenizer, samples)
        for task, samples in held_out_samples(chat_template, 30).items()
    }
    print(f"step {progress.step}: of 30 held out {counts}", flush=True)


def save(folder: Path, network: Network) -> None:
    """Write the weights of `network` to `folder` in bf16."""
    weights = {
        name: value.detach().to(torch.bfloat16).contiguous()
        for name, value in network.state_dict().items()
    }
    target = folder / "model.safetensors"
    save_file(weights, str(target), metadata={"format": "pt"})
    target.chmod(0o644)


def train(arguments: argparse.Namespace) -> Progress:
    """Train until `arguments.minutes` have passed, in this and in resumed runs together."""
    tokenizer = Tokenizer.from_file(str(arguments.folder / "tokenizer.json"))
    chat_template = read_json(arguments.folder / "tokenizer_config.json")["chat_template"]
    torch.manual_seed(TRAINING_SEED)
    network, progress = Network(Shape()), Progress()
    optimizers = make_optimizers(network, arguments.rate)
    if arguments.start_from is not None:
        weights = load_file(str(arguments.start_from / "model.safetensors"))
        network.load_state_dict({name: value.float() for name, value in weights.items()})
    if arguments.resume:
        state = torch.load(arguments.checkpoint)
        network.load_state_dict(state["network"])
        for optimizer, optimizer_state in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)
        progress = Progress(**state["progress"])
    decoder = torch.compile(network.model, dynamic=True) if arguments.compile else network.model
    short_until = SHORT_UNTIL if arguments.start_from is None else 0.0  # copying is learned
    seed = arguments.seed + progress.step
    batches = iter_batches(tokenizer, chat_template, seed, progress, short_until)
    reported_s, losses = progress.elapsed_s, []
    while progress.elapsed_s < arguments.minutes * 60:
        started = time.perf_counter()
        progress.share = progress.elapsed_s / (arguments.minutes * 60)
        is_int4 = progress.share > INT4_FROM and progress.step % 2 == 0
        for group in chain.from_iterable(one.param_groups for one in optimizers):
            group["lr"] = group["initial_lr"] * rate_factor(progress.share, progress.step)
        token_ids, labels = next(batches)
        with compressed_parameters(network) if is_int4 else nullcontext():
            loss = network_loss(network, decoder, token_ids, labels)
            network.zero_grad()
            loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
        progress.step += 1
        progress.tokens += token_ids.numel()
        progress.elapsed_s += time.perf_counter() - started
        if progress.step % 50 == 0:
            rate = progress.tokens / progress.elapsed_s
            mean = sum(losses[-50:]) / 50
            print(f"step {progress.step} loss {mean:.4f} {rate:.0f} tokens/s", flush=True)
        if progress.elapsed_s - reported_s > REPORT_S:
            reported_s = progress.elapsed_s
            report(network, tokenizer, chat_template, progress)
            save_checkpoint(arguments.checkpoint, network, optimizers, progress)
    save_checkpoint(arguments.checkpoint, network, optimizers, progress)
    save(arguments.folder, network)
    return progress


def network_loss(network: Network, decoder: nn.Module, token_ids: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of a batch; `decoder` is `network.model`, compiled or not."""
    with torch.autocast("cpu", torch.bfloat16):
        return network.loss(decoder(token_ids), labels)


def save_checkpoint(
    path: Path,
    network: Network,
    optimizers: list[torch.optim.Optimizer],
    progress: Progress,
) -> None:
    """Write what `--resume` needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    states = [optimizer.state_dict() for optimizer in optimizers]
    state = {"network": network.state_dict(), "optimizers": states, "progress": vars(progress)}
    torch.save(state, path)


def make_tokenizer_files(folder: Path) -> None:
    """Train the tokenizer on conversations and write it with the configuration."""
    tokenizer_config = read_json(folder / "tokenizer_config.json")
    chat_template = tokenizer_config["chat_template"]
    conversations = iter_conversations(TOKENIZER_SEED, held_out=False)
    samples = (render(one, chat_template) for one in conversations)
    texts = (s.prompt + s.expected for s in islice(samples, TOKENIZER_CONVERSATIONS))
    tokenizer = train_tokenizer(texts, Shape().vocab_size, added_tokens(tokenizer_config))
    write_tokenizer(folder, tokenizer, tokenizer_config)
    write_config(folder, Shape(), tokenizer)


def parse_arguments(words: list[str]) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description="Train or evaluate the demo model.")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="checkpoint folder to write")
    parser.add_argument("--minutes", type=float, default=51, help="training time, 0 for none")
    parser.add_argument("--resume", action="store_true", help="go on from --checkpoint")
    parser.add_argument("--start-from", type=Path, metavar="FOLDER", help="train FOLDER further")
    parser.add_argument("--rate", type=float, default=1.0, help="factor of the peak rates")
    parser.add_argument(
        "--seed", type=int, default=TRAINING_SEED, help="another one for each --start-from"
    )
    parser.add_argument("--checkpoint", type=Path, default=Path("build/demo-checkpoint.pt"))
    parser.add_argument("--samples", type=int, default=200, help="held-out samples per task")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--evaluate", type=Path, metavar="FOLDER", help="only evaluate FOLDER")
    parser.add_argument("--show", action="store_true", help="print the answers that are wrong")
    return parser.parse_args(words)


def main(words: list[str]) -> None:
    """Train and evaluate, or only evaluate; the last line printed is JSON."""
    arguments = parse_arguments(words)
    torch.set_num_threads(arguments.threads)
    if arguments.evaluate is None:
        if not arguments.resume and arguments.start_from is None:
            make_tokenizer_files(arguments.folder)
            save(arguments.folder, Network(Shape()))
        progress = train(arguments)
        print(progress)
    folder = arguments.evaluate or arguments.folder
    results = evaluate(folder, arguments.samples, show=arguments.show)
    if arguments.evaluate is None and (folder / "README.md").is_file():
        note = (
            f"Trained for {progress.elapsed_s / 60:.0f} minutes on 2 cores: {progress.step:,} "
            f"steps, {progress.tokens / 1e6:.1f} million tokens."
        )
        write_results(folder / "README.md", results, note)
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1:])

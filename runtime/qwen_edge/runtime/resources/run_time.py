"""How long a package takes to load and to answer on this machine's CPU, from measured speeds.

Formulas only; docs/resources.md explains them. `machine/speed.py` and `engine_speed.py` measure,
`benchmark/work.py` counts what a token needs. Factors are what a whole model takes of the speed
that a few matrices reach, measured with models of three sizes.
"""

import os
from dataclasses import dataclass

from qwen_edge.runtime.benchmark.work import ModelWork
from qwen_edge.runtime.machine.engine_speed import EngineSpeed
from qwen_edge.runtime.machine.speed import MachineSpeed

# Turns per second of an empty loop on the machine where the seconds below were measured.
REFERENCE_LOOPS_PER_S = 68e6
START_S = 0.8  # the interpreter, imports, small files
TOKENIZER_S_PER_BYTE = 65e-9  # 0.75 s for Qwen3's 11.4 MB
# Reading the graph and compiling it: by layers, and by weights whose scales are widened.
COMPILE_S_PER_LAYER = 0.04
COMPILE_S_PER_WEIGHT = 0.4e-9
OWN_COMPILE_S_PER_LAYER = 0.01  # of ours: 0.25 to 0.35 s for 28 to 36
# Norms, rotations, activations and rounding to int8, for each number of the hidden state, token
# of a prompt and layer, on one core: 1.0 of 2.4 s of 512 tokens on two (Qwen3-0.6B).
ELEMENT_S = 1.4e-7
OWN_ELEMENT_S = 2e-8  # in layers of ours
# Shares of the measured speeds that a whole model reaches.
PREFILL_SHARE = 1.0
ATTENTION_SHARE = 1.0
DECODE_SHARE = 0.9
OWN_DECODE_SHARE = 0.87  # of our kernels
OWN_LAYERS_DECODE_SHARE = 0.92  # in layers of ours
# Of the hidden state; see export/resource_plan.py.
NARROW_BELOW = 2_048
STEP_S_PER_LAYER = 60e-6  # starting some 20 small operations
OWN_STEP_S_PER_LAYER = 20e-6  # of ours: what is not products, and waiting for each other
_WARM_UP_STEPS = 3  # calls while warming up, as far as somebody waits, counted in steps of one
_TYPICAL_TOKENS = 512


@dataclass(frozen=True)
class RunTime:
    """Seconds of a start and of an answer.

    Args:
        load_s: From the start of the program to a model that is warm, its files in memory.
        hash_s: On top of it at the first load on a machine.
        read_s: On top of it while the files are not in memory yet; None where not known.
        prompt_s_per_token: Reading a token of a prompt, without what came before it.
        prompt_s_per_pair: For each token that came before it.
        step_s: A new token, without what came before it.
        step_s_per_token: For each token that came before it.
    """

    load_s: float
    hash_s: float
    read_s: float | None
    prompt_s_per_token: float
    prompt_s_per_pair: float
    step_s: float
    step_s_per_token: float

    def prompt_s(self, prompt_tokens: int) -> float:
        """Return the seconds until a prompt is read."""
        pairs = prompt_tokens * (prompt_tokens + 1) / 2
        return prompt_tokens * self.prompt_s_per_token + pairs * self.prompt_s_per_pair

    def answer_s(self, prompt_tokens: int, new_tokens: int) -> float:
        """Return the seconds of prompt and answer together, the model being warm."""
        context = prompt_tokens + new_tokens / 2
        steps_s = new_tokens * (self.step_s + context * self.step_s_per_token)
        return self.prompt_s(prompt_tokens) + steps_s

    @property
    def prompt_tokens_per_s(self) -> float:
        """Speed of reading a prompt of 512 tokens."""
        return _TYPICAL_TOKENS / self.prompt_s(_TYPICAL_TOKENS)

    @property
    def answer_tokens_per_s(self) -> float:
        """Speed of writing after 512 tokens."""
        return 1 / (self.step_s + _TYPICAL_TOKENS * self.step_s_per_token)


def estimate_run_time(
    work: ModelWork,
    machine: MachineSpeed,
    engine: EngineSpeed,
    *,
    num_layers: int,
    hidden_size: int,
    package_bytes: int,
    tokenizer_bytes: int,
    unread_bytes: float = 0.0,
    disk_bytes_per_s: float | None = None,
) -> RunTime:
    """Estimate the seconds of a package on the CPU with OpenVINO.

    Args:
        work: What a token needs.
        machine: Measured now.
        engine: Measured now, with the package's settings.
        num_layers: Decoder layers.
        hidden_size: Width of the residual stream.
        package_bytes: Size of all files, which are hashed at the first load.
        tokenizer_bytes: Size of tokenizer.json.
        unread_bytes: How much of the files is not in memory.
        disk_bytes_per_s: Reading the disk they are on; None where not known.
    """
    slower = slowness(machine)
    step_s = estimate_step_s(
        work.weights_bytes,
        work.weight_macs,
        machine,
        engine,
        num_layers=num_layers,
    )
    cores = max(os.cpu_count() or 1, 1)
    multiply_s = work.weight_macs / (PREFILL_SHARE * engine.multiplied_weights_per_s)
    element_s = OWN_ELEMENT_S if engine.has_own_layers else ELEMENT_S
    multiply_s += num_layers * hidden_size * element_s * slower / cores
    pair_s = work.attention_macs_per_token / (ATTENTION_SHARE * engine.attention_macs_per_s)
    load_s = (
        (START_S + TOKENIZER_S_PER_BYTE * tokenizer_bytes) * slower
        + compile_s(work.weight_macs, machine, num_layers, has_own_layers=engine.has_own_layers)
        + work.weight_macs / engine.prepared_weights_per_s
        + _WARM_UP_STEPS * step_s
    )
    return RunTime(
        load_s=load_s,
        hash_s=package_bytes / machine.hash_bytes_per_s,
        read_s=unread_bytes / disk_bytes_per_s if disk_bytes_per_s else None,
        prompt_s_per_token=multiply_s,
        prompt_s_per_pair=pair_s,
        step_s=step_s,
        step_s_per_token=work.cache_bytes_per_token / (DECODE_SHARE * machine.memory_bytes_per_s),
    )


def estimate_step_s(
    weights_bytes: int,
    num_weights: int,
    machine: MachineSpeed,
    engine: EngineSpeed,
    *,
    num_layers: int,
) -> float:
    """Return the seconds of a single token without context: memory's and the kernel's together.

    Weights are unpacked before they are used: Qwen3-4B takes 135 ms a token where reading them
    takes 87 and computing with those of a cache 57. Our kernels ask for weights ahead of time, so
    that the slower of the two counts.
    """
    reading_s = weights_bytes / (DECODE_SHARE * machine.memory_bytes_per_s)
    computing_s = num_weights / engine.stepped_weights_per_s
    beside_s = num_layers * STEP_S_PER_LAYER * slowness(machine)
    if engine.has_own_layers:
        reading_s = weights_bytes / (OWN_LAYERS_DECODE_SHARE * machine.memory_bytes_per_s)
        beside_s = num_layers * OWN_STEP_S_PER_LAYER * slowness(machine)
        return max(reading_s, computing_s) + beside_s
    if engine.has_own_kernels:
        reading_s = weights_bytes / (OWN_DECODE_SHARE * machine.memory_bytes_per_s)
        return max(reading_s, computing_s) + beside_s
    return reading_s + computing_s + beside_s


def compile_s(
    num_weights: int, machine: MachineSpeed, num_layers: int, *, has_own_layers: bool = False
) -> float:
    """Return the seconds of reading a graph and compiling it."""
    seconds = num_layers * COMPILE_S_PER_LAYER + num_weights * COMPILE_S_PER_WEIGHT
    if has_own_layers:
        seconds = num_layers * OWN_COMPILE_S_PER_LAYER
    return seconds * slowness(machine)


def slowness(machine: MachineSpeed) -> float:
    """Return by how much one core is slower than the one the seconds above were measured on."""
    return REFERENCE_LOOPS_PER_S / machine.loops_per_s

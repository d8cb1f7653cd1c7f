"""Memory in bytes: what training needs, estimated from a model's sizes, and what it used, from the allocator.

The estimates follow what PyTorch's autograd keeps for each operation of a Llama-like layer. All in bytes; no model is
loaded. Taught in notebooks/04_qlora.ipynb; predicted against measured: `python -m benchmarks.memory`.
"""

import gc
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftlab.errors import fail

if TYPE_CHECKING:
    from torch import nn

# Average bytes per weight with bitsandbytes' quantizers.
NF4_BYTES = 4 / 8 + 4 / 64  # four bits, and one float32 scale for 64 weights
NF4_DOUBLE_BYTES = 4 / 8 + 1 / 64 + 4 / (64 * 256)  # the scale in one byte, and a float32 for 256 of those
INT8_BYTES = 1.0
# Rows of a tile of logits in TRL's loss (trl/kernels/chunked_logprob.py), and of a loss without tiles.
TOKENS_IN_A_TILE, ALL_ROWS = 4096, 2**40
# Rows of whole logits held at once where the output layer is frozen (ftlab/cpu/output_layer.py), and bytes of each.
FROZEN_ROWS, FROZEN_BYTES = 128, 12
# Bytes held of each logit in it: by CUDA's kernel, in place; by the same in torch, seven and a half float32 copies.
FUSED_TILE_BYTES, TORCH_TILE_BYTES = 2, 31
# The same without a gradient, in torch: the product in two bytes, its logits, what is subtracted, the power.
TORCH_SCORED_BYTES = 2 + 4 + 4 + 4
# Moments of AdamW per trained weight, in numbers of the weight's own format.
ADAM_MOMENTS = 2
# Families whose MLP has two matrices, and whose norms are torch's; Llama's and its heirs' have three (gate, up, down),
# and norms that turn their input into float32.
TWO_MATRIX_MLP = ("gpt_neox", "bloom", "gpt2", "opt", "phi", "falcon", "gptj")
# Families whose attention is Llama's: the scores are only scaled and masked.
PLAIN_ATTENTION = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo2", "phi3")
# Families with four norms in a block, and with scores and logits that go through a tanh, whose result is kept.
CAPPED, CAP_BYTES = ("gemma2",), 4
# Names of linear layers in other families -> their names here, several for a fused matrix.
ALSO_CALLED = {
    "query_key_value": ("q_proj", "k_proj", "v_proj"), "W_pack": ("q_proj", "k_proj", "v_proj"),
    "qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj"),
    "dense": ("o_proj",), "dense_h_to_4h": ("up_proj",), "dense_4h_to_h": ("down_proj",),
}  # fmt: skip
ATTENTION, EXPERTS = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_up_proj", "down_proj")
NAMES = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head"),
    "vocabulary": ("vocab_size",),
}


@dataclass(frozen=True)
class Decoder:
    """The sizes of a decoder, as its config.json gives them.

    Attributes:
        layers: blocks. hidden: width. heads, kv_heads, head_dim: attention. intermediate: width of the MLP.
        vocabulary: tokens. tied: whether the output layer is the embedding.
        mlp_matrices: 3 with a gate (Llama), 2 without. experts: MLPs per block, 1 unless a mixture.
        experts_per_token: how many of them a token goes through. family: `model_type` in the config.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool
    mlp_matrices: int = 3
    experts: int = 1
    experts_per_token: int = 1
    family: str = "llama"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Decoder":
        """Read the sizes from a config.json.

        Raises:
            LabError: a size is missing, so it is not a text decoder.
        """
        sizes = {}
        for ours, theirs in NAMES.items():
            values = [config[name] for name in theirs if isinstance(config.get(name), int)]
            if not values:
                raise fail("memory_config", where=theirs[0])
            sizes[ours] = values[0]
        hidden, heads = sizes["hidden"], sizes["heads"]
        family = str(config.get("model_type", ""))
        experts = config.get("num_local_experts") or config.get("num_experts") or 1
        wide = config.get("moe_intermediate_size") if experts > 1 else None
        return cls(
            **sizes,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or hidden // heads,
            intermediate=wide or config.get("intermediate_size") or config.get("n_inner") or 4 * hidden,
            tied=bool(config.get("tie_word_embeddings", True)),
            mlp_matrices=2 if family in TWO_MATRIX_MLP else 3,
            experts=experts,
            experts_per_token=config.get("num_experts_per_tok", 1) if experts > 1 else 1,
            family=family,
        )

    @property
    def mlp_tensors(self) -> int:
        """Tensors as wide as the MLP in one pass: activation and its input, with a gate the other half and product."""
        return 4 if self.mlp_matrices == 3 else 2

    @property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Name -> (inputs, outputs) of a block's linear layers, one expert's where there are several."""
        query, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes = {
            "q_proj": (self.hidden, query), "k_proj": (self.hidden, keys),
            "v_proj": (self.hidden, keys), "o_proj": (query, self.hidden),
            "gate_proj": (self.hidden, self.intermediate), "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }  # fmt: skip
        return shapes if self.mlp_matrices == 3 else {k: v for k, v in shapes.items() if k != "gate_proj"}

    @property
    def linear_parameters(self) -> int:
        """Weights of one block's linear layers."""
        return sum(
            inputs * outputs * (self.experts if name.endswith(("gate_proj", "up_proj", "down_proj")) else 1)
            for name, (inputs, outputs) in self.linear_shapes.items()
        )

    @property
    def expert_parameters(self) -> int:
        """Weights of one block's experts, 0 unless a mixture: plain tensors, which bitsandbytes does not quantize."""
        return self.experts * self.mlp_matrices * self.hidden * self.intermediate if self.experts > 1 else 0

    @property
    def block_parameters(self) -> int:
        """Weights of one block: its linear layers, two norms, and a mixture's router."""
        router = self.experts * self.hidden if self.experts > 1 else 0
        return self.linear_parameters + 2 * self.hidden + router

    @property
    def embedding_parameters(self) -> int:
        """Weights of the embedding, of the output layer where it is not the same, and of the last norm."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + self.hidden

    @property
    def parameters(self) -> int:
        """All weights; biases, below one in a thousand, are left out."""
        return self.layers * self.block_parameters + self.embedding_parameters

    @property
    def active_parameters(self) -> int:
        """Weights that one token uses: all, but of a mixture's experts only as many as it goes through.

        >>> mixtral = Decoder(32, 4096, 32, 8, 128, 14336, 32000, False, experts=8, experts_per_token=2)
        >>> round(mixtral.parameters / 1e9, 1), round(mixtral.active_parameters / 1e9, 1)
        (46.7, 12.9)
        """
        unused = 1 - self.experts_per_token / self.experts
        return self.parameters - round(self.layers * unused * self.expert_parameters)

    @property
    def mixture_shapes(self) -> dict[str, list[tuple[int, int]]]:
        """Name -> (inputs, outputs) of what LoRA adapts in a mixture's block, once per expert for the experts."""
        shapes = {name: [shape] for name, shape in self.linear_shapes.items() if name in ATTENTION}
        shapes["gate"] = [(self.hidden, self.experts)]
        shapes["gate_up_proj"] = [(self.hidden, 2 * self.intermediate)] * self.experts
        shapes["down_proj"] = [(self.intermediate, self.hidden)] * self.experts
        return shapes

    def adapted(self, targets: tuple[str, ...] = ()) -> list[tuple[int, int]]:
        """(inputs, outputs) of a block's linear layers that are named, of all of them when none is."""
        if self.experts > 1:
            mixed = self.mixture_shapes
            names = [part for name in targets for part in (EXPERTS if name == "experts" else (name,))]
            return [shape for name in names or mixed for shape in mixed.get(name, [])]
        shapes = self.linear_shapes
        parts = [[part for part in ALSO_CALLED.get(name, (name,)) if part in shapes] for name in targets or shapes]
        return [(shapes[part[0]][0], sum(shapes[one][1] for one in part)) for part in parts if part]

    def lora_parameters(self, r: int, targets: tuple[str, ...] = ()) -> int:
        """Weights of LoRA matrices of rank `r` on the named linear layers, on all of them when none is named.

        Each (inputs, outputs) layer gets r * inputs + outputs * r. Source: Hu et al. 2021, arXiv:2106.09685.
        """
        return self.layers * sum(r * (inputs + outputs) for inputs, outputs in self.adapted(targets))


@dataclass(frozen=True)
class Training:
    """What is trained, and the sizes of a batch.

    Attributes:
        sequences: rows that go through the model together; a preference pair is two.
        length: tokens of each.
        trained: weights that are trained: all (full), some blocks (freeze), or the adapter's.
        trained_layers: blocks whose activations the backward pass needs; 0 means all of them.
        adapter_rank: rank of LoRA, 0 without.
        linear_bytes: of one weight in the blocks' linear layers. other_bytes: of one weight elsewhere.
        trained_bytes: of one trained weight, its gradient and each of its two moments.
        autocast: float32 weights are multiplied in two bytes, so that a copy of them is held.
        eager: attention holds its (heads, length, length) table.
        grouped: keys and values are not repeated for the heads that share them.
        checkpointing: only each block's input is held; the block is recomputed in the backward pass.
        loss_tile: vocabulary entries whose logits are held at once, for `tile_rows` tokens. tile_bytes: what is held of
            each logit in it.
        embedding_trained: the embedding gets a gradient too.
        reference_copy: a frozen copy of the adapter, or of the whole model without one, is held (DPO, KTO, GRPO,
            RLOO).
        reference_model: weights of another whole model that the loss reads instead; 0: none.
        reference_tile: vocabulary entries whose logits a pass without gradients holds at once, for `TOKENS_IN_A_TILE`
            tokens, while the activations are there; 0 without such a pass (DPO, KTO).
        new_tokens: how many of `length` the model generates; only these are scored. 0: all are (PPO, GRPO,
            RLOO).
        rollout_rows: rows that it generates together.
        repeated: tokens shared with another row, which are computed once (GRPO's and RLOO's prompts
            on a CPU).
        hidden_kept: the input of every block is kept for the loss (PPO).
        experts_adapted: LoRA reaches the experts of a mixture.
        gpus: number of GPUs of the run. shard: ZeRO stage (1, 2, 3): what is sharded over the GPUs. offload: each
            shard is in the machine's own memory, not on the GPU.
        state_bytes: of optimizer state per trained weight; 0: AdamW's two moments in the weight's own format.
    """

    sequences: int
    length: int
    trained: int
    trained_layers: int = 0
    adapter_rank: int = 0
    linear_bytes: float = 2
    other_bytes: float = 2
    trained_bytes: float = 2
    autocast: bool = False
    eager: bool = False
    grouped: bool = False
    checkpointing: bool = False
    loss_tile: int = 32768
    tile_rows: int = TOKENS_IN_A_TILE
    tile_bytes: int = FUSED_TILE_BYTES
    embedding_trained: bool = False
    reference_copy: bool = False
    reference_model: int = 0
    reference_tile: int = 0
    new_tokens: int = 0
    rollout_rows: int = 0
    repeated: int = 0
    hidden_kept: bool = False
    experts_adapted: bool = False
    gpus: int = 1
    shard: int = 0
    offload: bool = False
    state_bytes: float = 0

    @property
    def tokens(self) -> int:
        """Tokens that are computed."""
        return self.sequences * self.length - self.repeated

    @property
    def number_bytes(self) -> int:
        """Bytes of one activation."""
        return 4 if self.other_bytes == 4 and not self.autocast else 2


@dataclass(frozen=True)
class Needs:
    """Bytes on one GPU, part by part; `peak` is less than their sum, because not all are there at once.

    `decoder` and `training` are the inputs of the estimate.
    """

    weights: int
    optimizer: int
    gradients: int
    activations: int
    logits: int
    peak: int
    decoder: Decoder
    training: Training


def estimate(decoder: Decoder, training: Training) -> Needs:
    """Estimate the memory of training from sizes alone.

    The peak is what stays (weights, Adam's moments) and the largest stage of a step: the rollout; the end of the
    forward pass (all activations, logits); a reference's pass at that point; the backward pass through
    the last block, and its end (all gradients, one block).

    Returns:
        Bytes on one GPU, without the libraries' workspaces and CUDA's own memory (about 0.5 GB).
    """
    t, d = training, decoder
    tokens = t.tokens
    layers = t.trained_layers or d.layers
    gradients = t.trained * t.trained_bytes
    optimizer = t.trained * (t.state_bytes or ADAM_MOMENTS * t.trained_bytes)
    block, block_input = block_bytes(d, t), tokens * d.hidden * (4 if t.autocast else t.number_bytes)
    casts = d.linear_parameters * 2 if t.autocast else 0
    # PEFT adds the adapter's product to whole copies of the experts, and autograd keeps them.
    casts += d.expert_parameters * t.number_bytes if t.experts_adapted else 0
    if t.checkpointing:
        held: float = d.layers * block_input
    else:
        # Norms that turn their input into float32 keep that copy, not the input itself.
        beside = d.layers * block_input if t.hidden_kept and t.number_bytes == 2 else 0
        held = layers * (block + casts) + beside
    logits = logit_bytes(d, t)
    # In the backward pass: one block's activations and gradients, or its attention tables, and a dequantized matrix.
    table = table_entries(d, t)
    dequantized = d.hidden * d.intermediate * t.number_bytes if t.linear_bytes < 2 else 0
    mlp = 2 * t.number_bytes * tokens * d.intermediate
    # With float32 weights: a float32 table and autocast's rounded copy; without autocast too much, not too little.
    entry = 6 if t.number_bytes == 4 else entry_bytes(t)
    back = max(block + mlp, 2 * entry * table + 12 * tokens * d.hidden) + casts + dequantized
    dense = d.vocabulary * d.hidden * t.trained_bytes if t.embedding_trained else 0
    last_block = back + block_input * (d.layers - layers + 1 if t.checkpointing else 0)
    stages = (
        rollout_bytes(d, t),
        held + logits + dense,
        held + reference_bytes(d, t),
        held + (back if t.checkpointing else max(0, entry * table - 2 * mlp)),
        gradients / share(t, 2) + max(dense, last_block),
    )
    weights, state = weight_bytes(d, t) / share(t, 3), optimizer / share(t, 1)
    peak = weights + state + gathered_bytes(d, t) + max(stages)
    return Needs(
        weights=int(weights),
        optimizer=int(state),
        gradients=int(gradients / share(t, 2)),
        activations=int(max(held, last_block)),
        logits=int(logits),
        peak=int(peak),
        decoder=d,
        training=t,
    )


def share(training: Training, stage: int) -> float:
    """Return over how many GPUs a part is divided that ZeRO shards from `stage` on (1 moments, 2 gradients, 3 weights).

    Nothing of an offloaded part stays on a GPU. Source: Rajbhandari et al. 2020, arXiv:1910.02054, figure 1.
    """
    if training.shard < stage:
        return 1
    return math.inf if training.offload else training.gpus


def weight_bytes(decoder: Decoder, training: Training) -> float:
    """Return the bytes of the base model, of the adapter, and of the reference's copy of the trained weights."""
    linear = decoder.layers * (decoder.linear_parameters - decoder.expert_parameters)
    base = linear * training.linear_bytes + (decoder.parameters - linear) * training.other_bytes
    if training.reference_model:
        adapter = training.trained * training.trained_bytes if training.adapter_rank else 0
        return base + adapter + training.reference_model * training.other_bytes
    copies = 2 if training.reference_copy else 1
    if training.adapter_rank:
        return base + copies * training.trained * training.trained_bytes
    return copies * base


def gathered_bytes(decoder: Decoder, training: Training) -> float:
    """Return the sharded weights that are gathered while in use: a block's, or the embedding's."""
    if share(training, 3) == 1:
        return 0
    return max(block_weight_bytes(decoder, training), decoder.vocabulary * decoder.hidden * training.other_bytes)


def block_weight_bytes(decoder: Decoder, training: Training) -> float:
    """Return the bytes of the weights of one block's linear layers and experts."""
    linear = decoder.linear_parameters - decoder.expert_parameters
    return linear * training.linear_bytes + decoder.expert_parameters * training.other_bytes


def block_bytes(decoder: Decoder, training: Training) -> float:
    """Return what autograd keeps of one block.

    Of each norm its input in float32 and its result, of one that is trained also what its weight multiplies; of
    attention the queries, the keys and values (repeated for every head unless grouped), the result, and the table where
    it is made; of the MLP the gate, its activation, the other half and their product. Under autocast each linear layer
    keeps a two-byte copy of its input, trained norms theirs.
    """
    d, t = decoder, training
    tokens, number = t.tokens, t.number_bytes
    wide = d.heads * d.head_dim
    narrow = d.kv_heads * d.head_dim if t.grouped else wide
    capped = d.family in CAPPED
    count = 4 if capped else 2
    # Bytes per unit of width: the norms' inputs, two results, and what trained weights multiply.
    norms = count * (number if d.family in TWO_MATRIX_MLP else 4) + 2 * number
    norms += count * number if t.trained and not t.adapter_rank else 0
    if t.autocast:
        norms = count * (4 + 4 + 5)
    middle = d.intermediate * d.experts_per_token * d.mlp_tensors
    adapters = len(d.linear_shapes) * t.adapter_rank
    activations = norms * d.hidden + number * (2 * (wide + narrow) + middle + adapters)
    # The tanh of capped scores is kept as well.
    entry = entry_bytes(t) + (number if capped else 0)
    return tokens * activations + entry * table_entries(d, t)


def table_entries(decoder: Decoder, training: Training) -> int:
    """Return the entries of one block's attention table; 0 where a fused kernel makes none."""
    return training.tokens * decoder.heads * training.length if training.eager else 0


def entry_bytes(training: Training) -> int:
    """Return what is kept of one entry of a table: in float32, and rounded for its product with the values.

    ftlab's own attention (`grouped`) keeps the rounded one alone; autocast takes every softmax in float32.
    """
    number = training.number_bytes
    return number if number == 4 or (training.grouped and not training.autocast) else 4 + number


def even_part(tokens: int, limit: int) -> int:
    """Return how many tokens one part holds when they are split evenly into as few parts as `limit` allows.

    >>> even_part(190, 128), even_part(100, 128), even_part(0, 128)
    (95, 100, 1)
    """
    return math.ceil(tokens / math.ceil(max(tokens, 1) / limit)) or 1


def logit_bytes(decoder: Decoder, training: Training) -> float:
    """Return what the loss holds of logits, and of the last hidden states.

    trl's goes through the vocabulary in tiles. Written in torch, a tile is held about eight times over while its
    gradient is computed; CUDA's own kernel computes it in place. Of every token the last norm's input and result are
    held, of one that is scored also its hidden state, and their gradient.
    """
    # Shared tokens are computed once and expanded to every position of the batch.
    spread = 2 * training.sequences * training.length if training.repeated else 0
    scored = training.sequences * (training.new_tokens or training.length)
    even = training.tile_rows == FROZEN_ROWS
    rows = even_part(scored, FROZEN_ROWS) if even else min(scored, training.tile_rows)
    tile = rows * min(training.loss_tile, decoder.vocabulary)
    return tile * training.tile_bytes + (training.tokens * 8 + spread + scored * 6) * decoder.hidden


def pass_bytes(decoder: Decoder, training: Training, sequences: int, length: int) -> float:
    """Return what one block holds during a pass without gradients.

    Of the MLP the gate, its activation, the other half and their product; or of attention the masked scores, the same
    in float32 where their softmax is, and that.
    """
    number = training.number_bytes
    middle = sequences * length * decoder.intermediate * decoder.experts_per_token * decoder.mlp_tensors * number
    entry = 2 * number if entry_bytes(training) == number else number + 4 + 4
    return max(middle, entry * sequences * decoder.heads * length**2 if training.eager else 0)


def reference_bytes(decoder: Decoder, training: Training) -> float:
    """Return what a pass without gradients holds in addition to the activations: one block's, then a tile of logits."""
    t = training
    if not t.reference_tile:
        return 0
    tile = min(t.sequences * t.length, TOKENS_IN_A_TILE) * min(t.reference_tile, decoder.vocabulary)
    return max(pass_bytes(decoder, t, t.sequences, t.length), tile * TORCH_SCORED_BYTES)


def rollout_bytes(decoder: Decoder, training: Training) -> float:
    """Return what generating the completions holds: keys and values, and the prefill or the next tokens' logits."""
    t = training
    if not t.rollout_rows:
        return 0
    prompts = pass_bytes(decoder, t, t.rollout_rows, t.length - t.new_tokens)
    logits = t.rollout_rows * decoder.vocabulary * TORCH_SCORED_BYTES
    return kv_cache_bytes(decoder, t.rollout_rows, t.length, t.other_bytes) + max(prompts, logits)


def kv_cache_bytes(decoder: Decoder, sequences: int, length: int, number_bytes: float = 2) -> int:
    """Return the bytes of the key-value cache of `sequences` texts of `length` tokens."""
    return int(2 * decoder.layers * decoder.kv_heads * decoder.head_dim * sequences * length * number_bytes)


@dataclass
class Peak:
    """The peak of allocated bytes; filled in when the measurement ends."""

    bytes: int = 0


@contextmanager
def measure_peak_bytes(*models: "nn.Module") -> Iterator[Peak]:
    """Measure the peak of PyTorch's allocator while the body runs.

    On CUDA the allocator counts by itself. On a CPU PyTorch's profiler logs every allocation; what `models` hold
    already is added. Workspaces that other libraries allocate (oneDNN, Arrow) are not seen.
    """
    import torch

    peak = Peak()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated()
        return
    # Above the level at which torch's profiler logs its start and stop to stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    from torch._C._profiler import _EventType
    from torch.profiler import ProfilerActivity, profile

    # Memory of an earlier trainer would be freed during the measurement and lower the peak.
    gc.collect()
    before = sum(held_bytes(model) for model in models)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield peak
    # The profiler's own tables leave out what is freed within an operation; its raw events do not.
    events, changes = list(profiler.profiler.kineto_results.experimental_event_tree()), []
    while events:
        event = events.pop()
        events.extend(event.children)
        if event.tag == _EventType.Allocation:
            changes.append((event.start_time_ns, event.extra_fields.alloc_size))
    held = peak.bytes = before
    for _, change in sorted(changes, key=lambda moment: moment[0]):
        held += change
        peak.bytes = max(peak.bytes, held)


def held_bytes(model: "nn.Module") -> int:
    """Return the bytes of a model's weights and buffers, quantization scales included; each storage counts once."""
    import torch

    storages = {}
    for tensor in (*model.parameters(), *model.buffers()):
        state = getattr(tensor, "quant_state", None)
        scales = [] if state is None else [state.absmax, state.code]
        if state is not None and state.nested:
            scales += [state.offset, state.state2.absmax, state.state2.code]
        for part in (tensor, *scales):
            if isinstance(part, torch.Tensor):
                storage = part.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())

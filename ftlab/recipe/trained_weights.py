"""Count the weights that a recipe trains from the model's sizes: no weights are read, no model is built."""

from collections import Counter
from typing import Any

from ftlab.memory import ATTENTION, TWO_MATRIX_MLP, Decoder
from ftlab.recipe import library_args
from ftlab.recipe.keys import PROMPT_METHODS, Recipe

# Families with biases -> the layers that have them; in families with two matrices per MLP all have.
BIASED = {"qwen2": ("q_proj", "k_proj", "v_proj")}


def trained_weights(recipe: Recipe, decoder: Decoder) -> int:
    """Return how many weights a recipe trains.

    LoRA adds A (r, inputs) and B (outputs, r) to a linear layer, DoRA one magnitude per output beside them, and
    `additional_target` trains a copy of a whole layer. The head of a reward model, one weight per hidden unit, is
    always trained. Biases are not counted. Source of DoRA: Liu et al. 2024, arXiv:2402.09353.
    """
    head = decoder.hidden if recipe.stage == "rm" else 0
    if recipe.finetuning_type == "full":
        return decoder.layers * decoder.block_parameters + sum(outside(recipe, decoder).values()) + head
    if recipe.finetuning_type == "freeze":
        return unfrozen(recipe, decoder) + head
    if recipe.finetuning_type == "bitfit":
        return biases(decoder) + head
    if recipe.finetuning_type != "lora":
        return adapter(recipe, decoder) + head + copied(recipe, decoder)
    r, dora = recipe.lora_rank, int(recipe.use_dora)
    added = sum(r * (inputs + outputs) + dora * outputs for inputs, outputs in adapted(recipe, decoder))
    return added + head + copied(recipe, decoder)


def matrices(recipe: Recipe, decoder: Decoder) -> int:
    """Return how many of a recipe's trained weights Muon trains: matrices of the blocks, but not experts."""
    if recipe.finetuning_type == "bitfit":
        return 0
    if recipe.finetuning_type == "lora":
        return sum(recipe.lora_rank * (inputs + outputs) for inputs, outputs in adapted(recipe, decoder))
    if recipe.adapts:
        return adapter(recipe, decoder)
    modules = recipe.freeze_trainable_modules if recipe.finetuning_type == "freeze" else "all"
    names = None if modules == "all" else set(library_args.names(modules))
    layers = decoder.layers
    if recipe.finetuning_type == "freeze":
        layers = min(abs(recipe.freeze_trainable_layers), layers)
    flat = [
        (path, count)
        for path, count in parts(decoder)
        if path[1] in decoder.linear_shapes and not (path[0] == "mlp" and decoder.experts > 1)
    ]
    return layers * sum(count for path, count in flat if names is None or names & set(path))


def adapted(recipe: Recipe, decoder: Decoder, every: tuple[str, ...] = ()) -> list[tuple[int, int]]:
    """Return (inputs, outputs) of each layer that `lora_target` names, in all blocks.

    A path with a number (`model.layers.0.self_attn.q_proj`, as PEFT saves it) is one layer, any other name one in
    every block.

    Args:
        every: the layers of `all`, if not every linear layer.
    """
    if recipe.lora_target == "all":
        return decoder.layers * decoder.adapted(every)
    shapes = []
    for name in library_args.names(recipe.lora_target):
        path = name.split(".")
        blocks = 1 if any(part.isdigit() for part in path) else decoder.layers
        shapes += blocks * decoder.adapted((path[-1],))
    return shapes


def copied(recipe: Recipe, decoder: Decoder) -> int:
    """Return the weights of the layers that `additional_target` and `add_tokens` copy."""
    known = outside(recipe, decoder) | {"lm_head": decoder.vocabulary * decoder.hidden}
    grown = ("embed_tokens", "lm_head") if recipe.add_tokens else ()
    return sum(known.get(name, 0) for name in {*grown, *library_args.names(recipe.additional_target or "")})


def biases(decoder: Decoder) -> int:
    """Return the number of biases in a family's linear layers and norms."""
    layers = tuple(decoder.linear_shapes) if decoder.family in TWO_MATRIX_MLP else BIASED.get(decoder.family, ())
    norms = 2 * decoder.hidden if decoder.family in TWO_MATRIX_MLP else 0
    last = decoder.hidden if norms else 0
    return decoder.layers * (sum(decoder.linear_shapes[name][1] for name in layers) + norms) + last


def adapter(recipe: Recipe, decoder: Decoder) -> int:
    """Return the weights of an adapter other than LoRA's.

    Sources: prompt tuning, arXiv:2104.08691; prefix tuning, arXiv:2101.00190; P-tuning, arXiv:2103.10385; IA3,
    arXiv:2205.05638; VeRA, arXiv:2310.11454.
    """
    fields = library_args.peft_settings(recipe)
    kind, hidden = recipe.finetuning_type, decoder.hidden
    if kind in PROMPT_METHODS:
        tokens = fields["num_virtual_tokens"]
        if kind == "prefix_tuning":
            return tokens * decoder.layers * 2 * decoder.kv_heads * decoder.head_dim
        wide = fields.get("encoder_hidden_size") or hidden
        encoder = (hidden + 1) * wide + (wide + 1) * wide + (wide + 1) * hidden
        return tokens * hidden + (encoder if kind == "p_tuning" else 0)
    if kind == "ln_tuning":
        return (2 * decoder.layers + 1) * hidden
    if kind == "ia3" and recipe.lora_target == "all":
        return decoder.layers * (2 * decoder.kv_heads * decoder.head_dim + decoder.intermediate)
    # In a mixture these methods apply to the attention only.
    shapes = Counter(adapted(recipe, decoder, ATTENTION if decoder.experts > 1 else ()))
    if kind == "vera":
        return sum(number * (fields.get("r", 256) + outputs) for (_, outputs), number in shapes.items())
    return sum(number * counted_by_peft(kind, shape, fields) for shape, number in shapes.items())


def counted_by_peft(kind: str, shape: tuple[int, int], fields: dict[str, Any]) -> int:
    """Return the weights that a method of PEFT adds to a layer of (inputs, outputs), counted without values."""
    # Imported here: it takes seconds, and the other methods do not need it.
    import peft
    import torch

    with torch.device("meta"):
        layer = torch.nn.ModuleDict({"linear": torch.nn.Linear(*shape, bias=False)})
        ours = {"target_modules": ["linear"], "modules_to_save": None, "task_type": None}
        ours |= {"feedforward_modules": []} if kind == "ia3" else {}
        config = getattr(peft, library_args.PEFT_CONFIGS[kind])(**fields | ours)
        peft.inject_adapter_in_model(config, layer, low_cpu_mem_usage=True)
    return sum(weight.numel() for weight in layer.parameters() if weight.requires_grad)


def outside(recipe: Recipe, decoder: Decoder) -> dict[str, int]:
    """Return name -> weights outside the blocks; a tied head is the embedding, a reward model has none."""
    embedding = decoder.vocabulary * decoder.hidden
    weights = {"embed_tokens": embedding, "norm": decoder.hidden}
    return weights if decoder.tied or recipe.stage == "rm" else weights | {"lm_head": embedding}


def unfrozen(recipe: Recipe, decoder: Decoder) -> int:
    """Return the weights that `finetuning_type: freeze` leaves trainable: some blocks, or parts of them, and extras."""
    layers = min(abs(recipe.freeze_trainable_layers), decoder.layers)
    modules = recipe.freeze_trainable_modules
    names = None if modules == "all" else set(library_args.names(modules))
    block = sum(count for path, count in parts(decoder) if names is None or names & set(path))
    extra = library_args.names(recipe.freeze_extra_modules or "")
    return layers * block + sum(count for name, count in outside(recipe, decoder).items() if name in extra)


def parts(decoder: Decoder) -> list[tuple[tuple[str, str], int]]:
    """Return the weights of one block: (part, layer) by Llama's names, and their number."""
    layers = []
    for name, (inputs, outputs) in decoder.linear_shapes.items():
        part = "self_attn" if name in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
        layers.append(((part, name), inputs * outputs * (decoder.experts if part == "mlp" else 1)))
    norms = ("input_layernorm", "post_attention_layernorm")
    return layers + [((name, name), decoder.hidden) for name in norms]

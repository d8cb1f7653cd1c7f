"""How many weights a recipe trains, counted from the model's sizes: no weights are read, no model is built."""

from ftlab.memory import Decoder
from ftlab.recipe import library_args
from ftlab.recipe.keys import Recipe


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
    targets = () if recipe.lora_target == "all" else tuple(library_args.names(recipe.lora_target))
    added = decoder.lora_parameters(recipe.lora_rank, targets)
    if recipe.use_dora:
        added += decoder.layers * sum(outputs for _, outputs in decoder.adapted(targets))
    copied = outside(recipe, decoder) | {"lm_head": decoder.vocabulary * decoder.hidden}
    return added + head + sum(copied.get(name, 0) for name in library_args.names(recipe.additional_target or ""))


def outside(recipe: Recipe, decoder: Decoder) -> dict[str, int]:
    """Return name -> weights outside the blocks; a tied head is the embedding, a reward model has none."""
    embedding = decoder.vocabulary * decoder.hidden
    found = {"embed_tokens": embedding, "norm": decoder.hidden}
    return found if decoder.tied or recipe.stage == "rm" else found | {"lm_head": embedding}


def unfrozen(recipe: Recipe, decoder: Decoder) -> int:
    """Return the weights that `finetuning_type: freeze` leaves trainable: some blocks, or parts of them, and extras."""
    layers = min(abs(recipe.freeze_trainable_layers), decoder.layers)
    modules = recipe.freeze_trainable_modules
    wanted = None if modules == "all" else set(library_args.names(modules))
    block = sum(count for path, count in parts(decoder) if wanted is None or wanted & set(path))
    extra = library_args.names(recipe.freeze_extra_modules or "")
    return layers * block + sum(count for name, count in outside(recipe, decoder).items() if name in extra)


def parts(decoder: Decoder) -> list[tuple[tuple[str, str], int]]:
    """Return the weights of one block: (part, layer) as Llama and its heirs call them, and how many."""
    found = []
    for name, (inputs, outputs) in decoder.linear_shapes.items():
        part = "self_attn" if name in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
        found.append(((part, name), inputs * outputs * (decoder.experts if part == "mlp" else 1)))
    norms = ("input_layernorm", "post_attention_layernorm")
    return found + [((name, name), decoder.hidden) for name in norms]

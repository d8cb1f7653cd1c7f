"""Chat with a model: single, batched or streamed answers, or base and tuned model side by side."""

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from threading import Event, Thread
from typing import Any, TypeGuard

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TextIteratorStreamer,
)

from ftlab import cpu, device, evaluate, models, packages, saved_weights, tokens
from ftlab.errors import fail, reason_of, say
from ftlab.evaluate import pad_left
from ftlab.recipe import library_args, templates
from ftlab.recipe.keys import Recipe
from ftlab.runs import folder, pick_engine, rope
from ftlab.runs.adapters import merge_adapter
from ftlab.runs.engines import Loop

Message = dict[str, Any]
# Generation settings that greedy decoding, or decoding without beams, ignores.
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
BEAMS = ("early_stopping", "length_penalty")


class Until:
    """Streamed text that ends before the first stop string.

    >>> until = Until(["END"])
    >>> [until.push(piece) for piece in ("one E", "N", "x two EN", "D three")], until.found
    (['one ', '', 'ENx two ', ''], True)
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self.stops, self.held, self.found = list(stops), "", False

    def push(self, piece: str) -> str:
        """Return the text that is certainly before a stop string; a possible beginning of one is held back."""
        if self.found:
            return ""
        text = self.held + piece
        places = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        if places:
            self.found, self.held = True, ""
            return text[: min(places)]
        keep = max((overlap(text, stop) for stop in self.stops), default=0)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """Return the text held back, at the end of the stream."""
        held, self.held = self.held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` begin `stop`.

    >>> overlap("one EN", "END"), overlap("one", "END")
    (2, 0)
    """
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)


def load(
    model_name_or_path: str,
    adapter: str | Path | None = None,
    backend: str = "huggingface",
    template: str | None = None,
    replace_template: bool = False,
    thinking: bool | None = None,
    shortcuts: bool = True,
    rope_scaling: tuple[str, int] | None = None,
    revision: str = "main",
    cache_dir: str | None = None,
    **options: Any,
) -> tuple[PreTrainedModel | Loop, PreTrainedTokenizerBase]:
    """Return a model, with trained weights if `adapter` is given, and its tokenizer.

    Args:
        adapter: an adapter folder or a run folder; a run of a full fine-tune means its model.
        backend: an engine of runs/engines.py, or "auto"; all but "huggingface" merge the adapter.
        template: the recipe key, for a base model without a chat template of its own.
        replace_template: the recipe key `allow_other_template`.
        thinking: the recipe key `enable_thinking`.
        shortcuts: the recipe key; False disables the fast paths.
        rope_scaling: the recipe keys `rope_scaling` and `cutoff_len`; without it those of the adapter's run.
        revision, cache_dir: of a hub's model, the recipe keys `model_revision` and `cache_dir`.
        options: go to `from_pretrained`.
    Raises:
        LabError: no such model; weights of another base; a tokenizer that does not fit; no memory for the embedding.
    """
    if adapter:
        # Checked before the base, which may have to be downloaded.
        adapter_weights = saved_weights.weights_of(adapter)
        saved_weights.require_language_model(adapter_weights)
        if backend != "huggingface":
            saved_weights.refuse_virtual_tokens(adapter_weights, f"infer_backend: {backend}")
    machine = device.describe()
    trusted = bool(options.get("trust_remote_code"))
    base = Path(models.fetch(model_name_or_path, trusted, revision, cache_dir))
    weights = folder.weights_for(adapter, base, model_name_or_path) if adapter else None
    options = {"dtype": machine.dtype, "device_map": machine.accelerator} | options
    cpu.install(cpu.answering(machine, shortcuts))
    tokenizer = tokenizer_of(weights, base, trusted)
    if note := templates.apply(template, tokenizer, replace_template, thinking):
        print(note)
    whole = weights.folder if weights and not weights.is_adapter else base
    if whole == base:
        scaling = rope_scaling or (rope.scaling_of(folder.trained_with(adapter)) if adapter else None)
        options |= rope.options(scaling, base, trusted)
    model = models.load_weights(AutoModelForCausalLM, whole, **options)
    if model.device.type == "meta":
        raise fail("chat_offloaded", where="max_memory")
    if weights and weights.is_adapter:
        model = merge_before(model, folder.chain(adapter or "")[:-1], base, model_name_or_path)
        model = with_adapter(model, weights, tokenizer)
    models.require_rows(tokenizer, model.get_input_embeddings().weight.shape[0], str(whole))
    end_answers(model, tokenizer)
    return pick_engine.pick(model.eval(), tokenizer, backend), tokenizer


def tokenizer_of(
    weights: saved_weights.Weights | None, base: Path, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Return the tokenizer saved with trained weights, including its chat template; otherwise the base's."""
    saved = weights is not None and (weights.folder / "tokenizer_config.json").is_file()
    tokenizer = models.load_tokenizer(weights.folder if weights and saved else base, trust_remote_code)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def with_adapter(
    model: PreTrainedModel, weights: saved_weights.Weights, tokenizer: PreTrainedTokenizerBase, **options: Any
) -> PeftModel:
    """Return a model with an adapter, its embedding resized for the tokens that the adapter has weights for.

    Raises:
        LabError: the adapter does not fit; its own base is named.
    """
    fit_vocabulary(model, weights.folder, tokenizer)
    try:
        return PeftModel.from_pretrained(model, str(weights.folder), **options)
    # PEFT may raise anything for the settings of an adapter.
    except Exception as error:
        reason = next(
            (line.strip() for line in str(error).splitlines()[1:] if "size mismatch" in line), reason_of(error)
        )
        trained_on = folder.origin(weights)[0] or "?"
        raise fail("export_misfit", where=str(weights.folder), reason=reason[:160], trained_on=trained_on) from None


def merge_before(model: PreTrainedModel, adapters: Sequence[str], base: Path, name: str) -> PreTrainedModel:
    """Return a base with adapters merged into it, one after another.

    Args:
        base: the folder of the model called `name`.
    Raises:
        LabError: weights that cannot be merged into this base: another base's, a reward model, a whole model, virtual
            tokens, added tokens, a base in 4 or 8 bit.
    """
    for one in adapters:
        weights = folder.weights_for(one, base, name)
        saved_weights.require_language_model(weights)
        saved_weights.refuse_virtual_tokens(weights, "adapter_name_or_path")
        if not weights.is_adapter or getattr(model, "quantization_method", None):
            raise fail("chat_not_merged", adapter=one)
        own = model.config.dtype
        rows = model.get_input_embeddings().weight.shape[0]
        tokenizer = tokenizer_of(weights, base)
        model = merge_adapter(with_adapter(model, weights, tokenizer))
        if model.get_input_embeddings().weight.shape[0] != rows:
            raise fail("chat_merged_tokens", adapter=one)
        model.config.dtype = own
        # Disabling a later adapter no longer gives the original base (`switchable`).
        model.merged_adapters = True
    return model


def fit_vocabulary(model: PreTrainedModel, adapter: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Resize the base's embedding for tokens that were added for the adapter, which has their weights.

    Raises:
        LabError: the tokenizer has tokens whose weights were not saved, or the weights cannot be read.
    """
    try:
        with safe_open(adapter / saved_weights.ADAPTER_WEIGHTS, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise fail("export_adapter_damaged", where=str(adapter), reason=reason_of(error)) from None
    rows = [
        shape[0]
        for name, shape in shapes.items()
        if name.endswith("weight") and len(shape) == 2 and "lora_" not in name and is_embedding(name)
    ]
    have = model.get_input_embeddings().weight.shape[0]
    if rows and max(rows) != have:
        model.resize_token_embeddings(max(rows), mean_resizing=False)
    elif models.unreachable(tokenizer, have):
        raise fail("export_tokens", where=str(adapter), tokens=len(tokenizer), rows=have)


def grow(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add rows for the tokens that `add_tokens` added to the tokenizer, initialized around the mean row."""
    weight = model.get_input_embeddings().weight
    # ZeRO-3 replaces a weight by an empty tensor, with its shape as an attribute.
    if models.unreachable(tokenizer, getattr(weight, "ds_shape", weight.shape)[0]):
        model.resize_token_embeddings(len(tokenizer))


def is_embedding(name: str) -> bool:
    """Return True if a weight's name is that of an input or output embedding in any family."""
    return any(part in name for part in ("embed_tokens", "lm_head", "embed_in", "embed_out", "word_embeddings"))


def end_answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make every token that ends an answer end the generation: the model's own, and those used in training."""
    model.generation_config.eos_token_id = evaluate.end_ids(model, tokenizer)


def settle_generation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Complete the generation settings of a model before saving, and make them valid for transformers.

    Many a generation_config.json sets a temperature but no sampling. transformers reads it, but refuses to write
    one after a change, so settings that greedy decoding ignores are removed.

    Raises:
        LabError: settings that contradict each other otherwise.
    """
    end_answers(model, tokenizer)
    settings = model.generation_config
    unread = () if settings.do_sample else SAMPLING
    for name in (*unread, *(() if (settings.num_beams or 1) > 1 else BEAMS)):
        if hasattr(settings, name):
            setattr(settings, name, getattr(GenerationConfig(), name, None))
    try:
        settings.validate(strict=True)
    except ValueError as error:
        raise fail("model_generation", where="generation_config.json", reason=reason_of(error)) from None


def from_recipe(recipe: Recipe) -> tuple[PreTrainedModel | Loop, PreTrainedTokenizerBase]:
    """Return the model of a recipe, with its run's weights or the adapter that it names, and the tokenizer.

    A note is printed if the run has no weights yet.
    """
    weights = weights_folder(recipe)
    say_untrained(recipe, weights)
    return load(recipe.model_name_or_path, weights, engine_of(recipe), **options_of(recipe))


def weights_folder(recipe: Recipe) -> Path | None:
    """Return the folder of a recipe's trained weights, else of the adapter that it names, None if there is neither."""
    run = Path(recipe.output_dir).expanduser() if recipe.output_dir else None
    if run and saved_weights.holds_weights(run):
        return run
    return Path(recipe.adapter_name_or_path) if recipe.adapter_name_or_path else None


def say_untrained(recipe: Recipe, weights: Path | None) -> None:
    """Print a note if `weights`, from `weights_folder`, are not those of the recipe's run, which has none yet."""
    if recipe.output_dir and weights != Path(recipe.output_dir).expanduser():
        print(say("chat_untrained", where=recipe.output_dir, instead=weights or recipe.model_name_or_path))


def engine_of(recipe: Recipe) -> str:
    """Return the engine of a recipe."""
    return "huggingface" if recipe.infer_backend == "hf" else recipe.infer_backend


def options_of(recipe: Recipe) -> dict[str, Any]:
    """Return the options of `load` and `from_pretrained` from a recipe."""
    options: dict[str, Any] = {
        "template": recipe.template,
        "shortcuts": recipe.shortcuts,
    } | recipe.source
    if recipe.allow_other_template and recipe.template:
        options["replace_template"] = True
    if stretched := rope.scaling_of(recipe.model_dump()):
        options["rope_scaling"] = stretched
    if recipe.enable_thinking is not None:
        options["thinking"] = recipe.enable_thinking
    if recipe.quantization_bit:
        packages.require("bitsandbytes", "quantization_bit")
    if recipe.infer_dtype != "auto":
        options["dtype"] = recipe.infer_dtype
    if recipe.quantization_bit:
        settings = library_args.quantization_settings(recipe, device.describe())
        options["quantization_config"] = BitsAndBytesConfig(**settings)
    return options | library_args.placement(recipe)


def generation_of(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe's sampling keys as GenerationConfig fields."""
    names = ("do_sample", "max_new_tokens", "repetition_penalty", "num_beams")
    sampling = ("temperature", "top_p", "top_k") if recipe.do_sample else ()
    return {name: getattr(recipe, name) for name in (*names, *sampling)}


def system_turn(default_system: str | None, adapter: str | Path | None = None) -> list[Message]:
    """Return the system turn for a conversation without one.

    Args:
        default_system: the recipe key; the default is that of the adapter's run.
    """
    system = default_system or (folder.trained_with(adapter).get("default_system") if adapter else None)
    return [{"role": "system", "content": system}] if system else []


def switchable(model: PreTrainedModel | PeftModel | Loop) -> TypeGuard[PeftModel]:
    """Return True if disabling the adapter gives the original base.

    Some initializations are subtracted from the base, and other adapters may be merged into it.
    """
    if not isinstance(model, PeftModel) or getattr(model.get_base_model(), "merged_adapters", False):
        return False
    starts = [str(getattr(config, "init_lora_weights", "")) for config in model.peft_config.values()]
    return not any(start.startswith(("pissa", "olora")) for start in starts)


def adapters(model: PreTrainedModel | PeftModel, on: bool) -> AbstractContextManager[None]:
    """Return a context in which the model's adapter is enabled or disabled; without effect on a model without one."""
    return nullcontext() if on or not isinstance(model, PeftModel) else model.disable_adapter()


def reply(
    model: PreTrainedModel | Loop, tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], **generation: Any
) -> str:
    """Return the answer to a conversation; takes what `stream` takes."""
    return "".join(stream(model, tokenizer, messages, **generation)).strip()


def replies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    *,
    tools: list | None = None,
    adapter: bool = True,
    batch_size: int = 32,
    **generation: Any,
) -> list[str]:
    """Return one answer per conversation, in order: `batch_size` at a time, padded on the left."""
    prompts = [tokens.prompt(tokenizer, messages, tools) for messages in conversations]
    answers = []
    for start in range(0, len(prompts), batch_size):
        inputs = padded(model, tokenizer, prompts[start : start + batch_size])
        with adapters(model, adapter), torch.inference_mode():
            output = model.generate(**inputs, **generation_settings(tokenizer, generation))
        for text in tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True):
            until = Until(generation.get("stop_strings") or ())
            answers.append((until.push(text) + until.flush()).strip())
    return answers


def stream(
    model: PreTrainedModel | Loop,
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    tools: list | None = None,
    adapter: bool = True,
    **generation: Any,
) -> Generator[str, None, None]:
    """Yield the answer to a conversation piece by piece; closing the iterator stops the generation.

    With beam search the answer comes as one piece, because beams may change until the end.

    Args:
        tools: JSON schemas of functions, for a chat template that writes them into the prompt.
        adapter: False disables the adapter.
        generation: GenerationConfig fields; greedy and 256 new tokens unless they say otherwise. The answer ends
            before the first of `stop_strings`.
    """
    if not isinstance(model, Loop) and beams(model, generation) > 1:
        yield from replies(model, tokenizer, [messages], tools=tools, adapter=adapter, **generation)
        return
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    left = Event()
    broken: list[Exception] = []
    inputs: dict[str, Any] = padded(model, tokenizer, [tokens.prompt(tokenizer, messages, tools)])
    options = generation_settings(tokenizer, generation) | {
        "streamer": streamer,
        "stopping_criteria": [lambda ids, scores, **_: torch.full(ids.shape[:1], left.is_set(), device=ids.device)],
    }

    def work() -> None:
        try:
            with adapters(model, adapter):
                model.generate(**inputs, **options)
        except Exception as error:
            broken.append(error)
            streamer.on_finalized_text("", stream_end=True)

    thread = Thread(target=work, daemon=True)
    thread.start()
    until = Until(generation.get("stop_strings") or ())
    try:
        for piece in streamer:
            yield until.push(piece)
            if until.found:
                break
        yield until.flush()
    finally:
        left.set()
        thread.join()
    if broken:
        raise broken[0]


def beams(model: PreTrainedModel, generation: dict[str, Any]) -> int:
    """Return the number of beams of a generation: as given, else from the model's own settings."""
    return generation.get("num_beams") or model.generation_config.num_beams or 1


def padded(
    model: PreTrainedModel | Loop, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]]
) -> dict[str, torch.Tensor]:
    """Return `input_ids` and `attention_mask` of shape (len(prompts), longest), padded on the left."""
    masks = [[1] * len(prompt) for prompt in prompts]
    return {
        "input_ids": pad_left(prompts, tokenizer.pad_token_id).to(model.device),
        "attention_mask": pad_left(masks, 0).to(model.device),
    }


def generation_settings(tokenizer: PreTrainedTokenizerBase, generation: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `generate` besides the prompt; stop strings need the tokenizer."""
    usual = {"max_new_tokens": 256, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
    checking = {"logits_processor": LogitsProcessorList([evaluate.RefuseNaN()])}
    watching = {"tokenizer": tokenizer} if generation.get("stop_strings") else {}
    return usual | checking | watching | generation

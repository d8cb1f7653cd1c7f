"""Merge an adapter into its base and save the model: check, write to a temporary folder, reload, compare, rename."""

import contextlib
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ftlab import catalogue, cpu, device, manifests, models, packages, saved_weights
from ftlab.errors import LabError, fail, reason_of, say
from ftlab.recipe import read as recipes
from ftlab.recipe import templates
from ftlab.recipe.keys import Recipe
from ftlab.runs import callbacks, chat, gguf, gguf_families, gptq, modelfile, rope, train
from ftlab.runs import folder as folders
from ftlab.runs.adapters import merge_adapter
from ftlab.runs.target import claimed, refuse_place
from ftlab.runs.watch import STOPPED, Stopped, Watch
from ftlab.system_errors import require_space

# Largest logit difference relative to the largest logit (at least 1): a merge changes float32's order of summation.
TOLERANCE = 1e-4
GREEDY_TOKENS = 16
# Bytes of tokenizer, config and model card.
SMALL_FILES = 50_000_000


@dataclass(frozen=True)
class Export:
    """A finished export and how it compares with the live model in float32.

    Attributes:
        merge_difference: largest logit difference between the model with its adapter and the merged one.
        reload_difference: the same between the saved model, before saving, and reloaded.
        total_difference: the same between the model with its adapter and the reloaded one, including rounding to the
            export's dtype.
        greedy_equal_share: share of greedy tokens that agree between the live and the reloaded model, 0 to 1.
        gguf: the GGUF file, None if none was requested.
        gguf_difference: total_difference of the GGUF file, None if none was requested, or if transformers has no
            reader for the family.
        gguf_divergence: KL divergence of the GGUF file from the live model on the probe, nats per token; None as above.
        gptq_divergence: the same of the weights quantized by GPTQ, None if none were requested; the differences
            above are those of the weights before.
    """

    folder: Path
    merge_difference: float
    reload_difference: float
    total_difference: float
    greedy_equal_share: float
    gguf: Path | None = None
    gguf_difference: float | None = None
    gguf_divergence: float | None = None
    gptq_divergence: float | None = None


class Answers(NamedTuple):
    """A model's outputs on the probe: logits (batch, seq_len, vocabulary), greedy tokens (batch, new tokens)."""

    logits: torch.Tensor
    greedy: torch.Tensor

    def difference(self, other: "Answers") -> float:
        """Return the largest logit difference."""
        return (self.logits - other.logits).abs().max().item()

    def divergence(self, other: "Answers") -> float:
        """Return the mean KL divergence of the other's next tokens from these, in nats per token."""
        ours, theirs = (one.logits.log_softmax(-1) for one in (self, other))
        return (ours.exp() * (ours - theirs)).sum(-1).mean().item()

    def allowed(self) -> float:
        """Return the logit difference that float32 rounding explains."""
        return TOLERANCE * max(1.0, self.logits.abs().max().item())


def export(recipe: Recipe, watch: Watch | None = None) -> Export:
    """Merge a recipe's adapter into its full-precision base and save the model in `export_dir`.

    The merge is computed in float32. Nothing appears in `export_dir` until the saved model has been reloaded and gives
    the live model's answers. Without `output_dir` and `adapter_name_or_path` the base itself is saved.

    Args:
        watch: can stop the export, which then leaves nothing; None: only Ctrl-C can.
    Raises:
        LabError: no trained weights in `output_dir`, a base in 4 or 8 bit, another base's adapter, an adapter without
            effect, a full disk, an export folder in use, a model that GGUF does not support, a saved model that answers
            differently, or the export was stopped.
    """
    target = empty_target(recipe)
    try:
        with watch.stopping_anywhere() if watch else contextlib.nullcontext():
            return exported(recipe, target)
    except Stopped:
        raise fail("export_stopped", where=str(target), exit_code=STOPPED) from None


def exported(recipe: Recipe, target: Path) -> Export:
    """Merge, check and save into `target`."""
    if recipe.export_gguf and gguf.needs_llama_cpp(recipe.export_gguf):
        packages.require("xllamacpp", "export_gguf")
    if recipe.quantization_bit:
        raise fail("export_quantized", where="quantization_bit", value=f"{recipe.quantization_bit} bit")
    texts = gptq.texts_for(recipe)
    machine = device.describe()
    base = Path(models.fetch(recipe.model_name_or_path, **recipe.source))
    source = chat.weights_folder(recipe)
    if recipe.output_dir and not source:
        raise fail("export_untrained", where=recipe.output_dir)
    weights = folders.weights_for(source, base, recipe.model_name_or_path) if source else None
    if weights:
        saved_weights.require_language_model(weights)
        saved_weights.refuse_virtual_tokens(weights, "export")
    whole = weights.folder if weights and not weights.is_adapter else base
    if models.read_config(whole).get("quantization_config"):
        raise fail("export_quantized", where=str(whole), value=say("export_by_config"))
    adapter = weights.folder if weights and weights.is_adapter else None
    if adapter:
        require_effect(adapter)
    saved = weights and (weights.folder / "tokenizer_config.json").is_file()
    tokenizer = train.load_tokenizer(recipe, str(weights.folder if weights and saved else base))
    templates.apply(recipe.template, tokenizer, recipe.allow_other_template, recipe.enable_thinking)
    stretched = rope.scaling_of(
        recipe.model_dump() if recipe.rope_scaling else folders.trained_with(source) if source else {}
    )
    model = load_base(recipe, whole, machine, stretched if whole == base else None)
    if adapter:
        model = chat.merge_before(model, folders.chain(source or "")[:-1], base, recipe.model_name_or_path)
        chat.fit_vocabulary(model, adapter, tokenizer)
    rows = model.get_input_embeddings().weight.shape[0]
    models.require_rows(tokenizer, rows, str(whole))
    probe = probe_ids(min(len(tokenizer), rows))
    model, live, merged = merge(model, adapter, tokenizer, probe)
    dtype = model.config.dtype if recipe.export_dtype == "auto" else getattr(torch, recipe.export_dtype)
    count = sum(weight.numel() for weight in model.parameters())
    require_space(target, disk_bytes(count, dtype, recipe), "export_space")
    chat.settle_generation(model, tokenizer)
    with temporary_folder(target) as folder:
        parts = Parts(model, tokenizer, source, weights, target, folder, dtype, texts)
        return finish(recipe, parts, probe, live, merged)


class Parts(NamedTuple):
    """What is saved, and where: in `folder` until it is verified, then in `target`; texts to calibrate GPTQ on.

    `source` is the folder that the recipe takes trained weights from, and `weights` are what it holds.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: Path | None
    weights: saved_weights.Weights | None
    target: Path
    folder: Path
    dtype: torch.dtype
    texts: list[str]


def empty_target(recipe: Recipe) -> Path:
    """Return the export folder, which must not exist or be empty."""
    if not recipe.export_dir:
        raise fail("recipe_missing_key", key="export_dir")
    target = Path(recipe.export_dir).expanduser()
    refuse_place(target, "export_dir")
    if target.is_dir() and any(target.iterdir()):
        raise fail("export_used", where=str(target))
    return target


def require_effect(adapter: Path) -> None:
    """Refuse an adapter whose weights have no effect, or are not finite.

    Raises:
        LabError: with the reason.
    """
    try:
        weights = load_file(adapter / saved_weights.ADAPTER_WEIGHTS)
    except SafetensorError as error:
        raise fail("export_adapter_damaged", where=str(adapter), reason=reason_of(error)) from None
    broken = next((name for name, weight in weights.items() if not torch.isfinite(weight).all()), None)
    if broken:
        raise fail("export_adapter_damaged", where=str(adapter), reason=say("export_not_finite", name=broken))
    # LoRA's update is B A, which is zero if every B is. Other kinds of weights count by themselves.
    lasting = [weight for name, weight in weights.items() if ".lora_A." not in name and "lora_embedding_A" not in name]
    if not any(weight.any() for weight in lasting):
        raise fail("export_no_effect", where=str(adapter))


def load_base(
    recipe: Recipe, base: Path, machine: device.Machine, stretched: tuple[str, int] | None = None
) -> PreTrainedModel:
    """Return the base in float32, with its RoPE scaling; its own dtype stays in `config.dtype`."""
    trusted = {"trust_remote_code": recipe.trust_remote_code}
    with models.loading(base):
        own = AutoConfig.from_pretrained(base, **trusted).dtype or torch.float32
    # The probe is one batch, for which torch would otherwise copy the output layer once per row.
    cpu.install(cpu.answering(machine, recipe.shortcuts))
    where = machine.accelerator if recipe.export_device == "auto" else "cpu"
    options = trusted | rope.options(stretched, base, recipe.trust_remote_code)
    model = models.load_weights(AutoModelForCausalLM, base, dtype=torch.float32, device_map=where, **options)
    model.config.dtype = own
    return model.eval()


def probe_ids(vocabulary: int) -> torch.Tensor:
    """Return token ids (4, 32) to compare models on: random ones, and the last eight, which may be added tokens."""
    drawn = torch.randint(vocabulary, (4, 32), generator=torch.Generator().manual_seed(0))
    drawn[0, :8] = torch.arange(vocabulary - 8, vocabulary).clamp(min=0)
    return drawn


@torch.inference_mode()
def answers(model: PreTrainedModel, probe: torch.Tensor) -> Answers:
    """Return a float32 model's outputs on the probe."""
    ids = probe.to(model.device)
    # No end token: every row gives the same number of tokens to compare.
    plain = GenerationConfig(max_new_tokens=GREEDY_TOKENS, do_sample=False, pad_token_id=0)
    greedy = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=plain)
    logits = logits_of(model, probe)
    if not logits.isfinite().all():
        raise fail("model_not_finite", exit_code=1)
    return Answers(logits, greedy[:, ids.shape[1] :].cpu())


@torch.inference_mode()
def logits_of(model: PreTrainedModel, probe: torch.Tensor) -> torch.Tensor:
    """Return a model's logits (batch, seq_len, vocabulary) on the probe."""
    ids = probe.to(model.device)
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float().cpu()


def merge(
    model: PreTrainedModel, adapter: Path | None, tokenizer: PreTrainedTokenizerBase, probe: torch.Tensor
) -> tuple[PreTrainedModel, Answers, Answers]:
    """Return the merged model, and its outputs with the adapter and merged.

    Raises:
        LabError: the adapter does not fit the base, or the merge changed the answers.
    """
    if adapter is None:
        unmerged = answers(model, probe)
        return model, unmerged, unmerged
    own = model.config.dtype
    adapted = chat.with_adapter(
        model, saved_weights.Weights(adapter, True), tokenizer, autocast_adapter_dtype=False
    ).eval()
    live = answers(adapted, probe)
    with adapted.disable_adapter():
        unchanged = torch.equal(logits_of(adapted, probe), live.logits)
    if unchanged:
        raise fail("export_no_effect", where=str(adapter))
    try:
        merged = merge_adapter(adapted)
    except (AttributeError, NotImplementedError, ValueError) as error:
        raise fail("export_not_mergeable", where=str(adapter), reason=reason_of(error)) from None
    merged.config.dtype = own
    after = answers(merged, probe)
    require_equal("merged", live, after, adapter)
    return merged, live, after


def require_equal(what: str, live: Answers, other: Answers, where: Path) -> None:
    """Refuse a model that answers differently from the live one.

    Raises:
        LabError: with both figures.
    """
    equal = torch.equal(live.greedy, other.greedy)
    if not (live.difference(other) <= live.allowed() and equal):
        values = {"what": what, "difference": f"{live.difference(other):.1e}", "allowed": f"{live.allowed():.1e}"}
        raise fail("export_changed", where=str(where), exit_code=1, **values)


def disk_bytes(weights: int, dtype: torch.dtype, recipe: Recipe) -> int:
    """Return the bytes that an export writes: the weights in their format, a GGUF file if any, and small files."""
    per_weight = gguf.KINDS[recipe.export_gguf].bytes_per_weight if recipe.export_gguf else 0.0
    return int(weights * (dtype.itemsize + per_weight)) + SMALL_FILES


def memory_bytes(weights: int, dtype: torch.dtype, recipe: Recipe) -> int:
    """Return the peak memory of an export in bytes, without Python and its libraries.

    The merged model in float32, while the saved one is loaded in float32 with its file mapped; a GGUF file is
    dequantized to float32 before the model is built.
    """
    read = torch.float32 if recipe.export_gguf else dtype
    return weights * (2 * torch.float32.itemsize + read.itemsize)


@contextlib.contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder next to the target, which is removed afterwards unless it was renamed to the target.

    Raises:
        LabError: a write failed.
    """
    with claimed(target.parent):
        try:
            folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{manifests.PARTIAL}{target.name}-"))
        except OSError as error:
            raise fail(
                "export_write", where=str(target), exit_code=1, reason=error.strerror or reason_of(error)
            ) from None
        with writing(folder, target):
            yield folder


@contextlib.contextmanager
def writing(folder: Path, target: Path) -> Iterator[None]:
    """Turn a failed write into one line; the folder is removed afterwards, unless it was renamed.

    Raises:
        LabError: naming the target.
    """
    try:
        yield
    except LabError:
        raise
    except Exception as error:
        # safetensors has its own exception for a failed write.
        if not callbacks.is_write_error(error):
            raise
        raise fail("export_write", where=str(target), exit_code=1, reason=reason_of(error)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def finish(recipe: Recipe, parts: Parts, probe: torch.Tensor, live: Answers, merged: Answers) -> Export:
    """Save, reload and compare, write the model card, and only then rename the folder."""
    model, folder = parts.model, parts.folder
    cast(model, parts.dtype)
    model.config.dtype = parts.dtype
    model.save_pretrained(folder, max_shard_size=f"{recipe.export_size}GB")
    parts.tokenizer.save_pretrained(folder)
    saved = answers(cast(model, torch.float32), probe)
    trusted = recipe.trust_remote_code
    again = models.load_weights(AutoModelForCausalLM, folder, dtype=torch.float32, trust_remote_code=trusted)
    reloaded = answers(again.eval(), probe)
    require_equal("reloaded", saved, reloaded, parts.target)
    done = Export(
        folder=parts.target,
        merge_difference=live.difference(merged),
        reload_difference=saved.difference(reloaded),
        total_difference=live.difference(reloaded),
        greedy_equal_share=live.greedy.eq(reloaded.greedy).float().mean().item(),
        **(write_gguf(recipe, parts, probe, live) if recipe.export_gguf else {}),
    )
    if parts.texts:
        quantized = answers(gptq.quantize(recipe, folder, parts.tokenizer, parts.texts), probe)
        done = dataclasses.replace(done, gptq_divergence=live.divergence(quantized))
    (folder / folders.MODEL_CARD).write_text(model_card(recipe, parts, done), encoding="utf-8")
    folder.chmod(0o755)
    if parts.target.exists():
        parts.target.rmdir()
    folder.rename(parts.target)
    return done


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Cast the parameters; `model.to` would round the position tables too, irreversibly."""
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    return model


def write_gguf(recipe: Recipe, parts: Parts, probe: torch.Tensor, live: Answers) -> dict[str, Any]:
    """Write the GGUF file and its Modelfile, and return its path and its differences when read back.

    Raises:
        LabError: a float16 file whose answers differ by more than rounding.
    """
    kind = str(recipe.export_gguf)
    name = f"{parts.target.name}-{kind}.gguf"
    gguf.write(parts.folder, parts.folder / name, kind)
    system = chat.system_turn(recipe.default_system, parts.source)
    text = modelfile.text(name, parts.tokenizer, "".join(turn["content"] for turn in system))
    (parts.folder / "Modelfile").write_text(text, encoding="utf-8")
    read = read_back(parts.folder, name)
    if read is None:
        return {"gguf": parts.target / name}
    read_answers = answers(read, probe)
    difference = live.difference(read_answers)
    # float16 and bfloat16 round by up to 2^-9 of a weight; a wrong row order changes logits by their own size.
    if kind == "f16" and difference > 0.1 * max(1.0, live.logits.abs().max().item()):
        values = {"what": name, "difference": f"{difference:.1e}", "allowed": "rounding"}
        raise fail("export_changed", where=str(parts.target), exit_code=1, **values)
    return {
        "gguf": parts.target / name,
        "gguf_difference": difference,
        "gguf_divergence": live.divergence(read_answers),
    }


def read_back(folder: Path, name: str) -> PreTrainedModel | None:
    """Return the model in a GGUF file, read by transformers; None if it does not support the family."""
    config = AutoConfig.from_pretrained(folder)
    architecture = config.architectures[0]
    if architecture not in gguf_families.READ_BACK:
        return None
    # Without the config it would guess what is not in the header, such as RoPE scaling.
    known = {} if architecture == "MistralForCausalLM" else {"config": config}
    return AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32, **known).eval()


def model_card(recipe: Recipe, parts: Parts, done: Export) -> str:
    """Return the model card: base, data, recipe and scores from the run folder, and the results of the checks."""
    known = next((model for model in catalogue.MODELS if model.name == recipe.model_name_or_path), None)
    base = known.hub_id if known else recipe.model_name_or_path
    head = ["library_name: transformers", "pipeline_tag: text-generation"]
    head += [f"base_model: {base}", f"license: {known.licence.lower()}"] if known else []
    lines = ["---", *head, "---", f"# {parts.target.name}", ""]
    run = parts.weights.folder.parent if parts.weights else None
    if run and (run / folders.RECIPE).is_file():
        trained, _ = recipes.read(run / folders.RECIPE)
        lines += [f"`{base}`, tuned by {trained.finetuning_type} {trained.objective} on `{trained.dataset}`.", ""]
        lines += markdown_table("recipe", recipes.plain(trained))
    elif parts.weights and parts.weights.is_adapter:
        settings = json.loads((parts.weights.folder / saved_weights.ADAPTER_CONFIG).read_text(encoding="utf-8"))
        lines += [f"`{base}` with the {settings.get('peft_type')} adapter `{parts.weights.folder.name}`.", ""]
        lines += markdown_table("adapter", {name: settings[name] for name in ("r", "lora_alpha") if name in settings})
    else:
        lines += [f"`{base}`, saved in {parts.dtype}.", ""]
    with contextlib.suppress(OSError, ValueError, AttributeError):
        lines += markdown_table(
            "measured", json.loads((run / folders.METRICS).read_text(encoding="utf-8")) if run else {}
        )
    checks = {
        "merged against adapter, float32, largest logit difference": f"{done.merge_difference:.1e}",
        "reloaded against saved": f"{done.reload_difference:.1e}",
        f"reloaded ({parts.dtype}) against adapter": f"{done.total_difference:.1e}",
        "greedy tokens equal": f"{done.greedy_equal_share:.1%}",
    }
    if done.gguf:
        read = "not read back" if done.gguf_difference is None else f"{done.gguf_difference:.1e}"
        checks[f"{done.gguf.name} against adapter"] = read
    if done.gguf_divergence is not None:
        checks["its KL divergence, nats per token"] = f"{done.gguf_divergence:.4f}"
    if done.gptq_divergence is not None:
        what = f"KL divergence of the weights in {recipe.export_quantization_bit} bits, nats per token"
        checks[what] = f"{done.gptq_divergence:.4f}"
    lines += markdown_table("checked", checks)
    return "\n".join([*lines, f"Exported with ftlab, torch {torch.__version__}.", ""])


def markdown_table(title: str, values: dict[str, Any]) -> list[str]:
    """Return the lines of a two-column table, [] if it is empty."""
    if not values:
        return []
    shown = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in values.items()}
    return [f"| {title} | |", "|---|---|", *(f"| {name} | {value} |" for name, value in shown.items()), ""]

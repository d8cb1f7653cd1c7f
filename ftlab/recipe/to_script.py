"""Convert a recipe to a Python script: its transformers, PEFT and TRL calls, with its own values."""

from pathlib import Path
from typing import Any

from ftlab import device, embedded, models
from ftlab.catalogue import hub_id
from ftlab.errors import fail
from ftlab.recipe import library_args
from ftlab.recipe.keys import GROUPED, Recipe
from ftlab.saved_weights import PISSA_START, result_name, weights_of

# The keys that the rows depend on.
DATA = (
    "dataset", "eval_dataset", "dataset_dir", "dataset_substitutions", "max_samples", "on_bad_rows", "mix_strategy",
    "interleave_probs", "val_size", "cutoff_len", "packing", "train_on_prompt", "mask_history", "stage", "pref_loss",
    "reward_funcs", "reward_model", "teacher_model", "default_system",
)  # fmt: skip
# Methods whose layers depend on the loaded model; AdaLoRA also acts at every step.
NO_SCRIPT = ("freeze", "bitfit", "ln_tuning", "adalora")
# Keys that only ftlab's own training supports.
NO_SCRIPT_KEYS = (
    "rope_scaling", "moe_aux_loss_per_layer", "use_muon", "ref_model", "add_tokens", "use_asft_loss", "use_eaft_loss",
)  # fmt: skip
# Imports from ftlab that a script may need in addition to the rows.
PARTS = {**dict.fromkeys(GROUPED, ", rewards"), "gkd": ", distillation"}
# Objectives that need `tokenized.py`: TRL's trainers of the others accept token ids.
TOKENIZED_HERE = ("dpo", "kto", "orpo", "simpo", *GROUPED)


def script(recipe: Recipe) -> str:
    """Return a script that trains what the recipe trains on this machine, and saves it in the run folder.

    Only the rows come from ftlab: the same code renders for training, chat and server.

    Raises:
        LabError: no data set or run folder, a `finetuning_type` whose layers depend on the loaded model or that does
            something at every step, `stage: ppo`, which TRL lacks, or keys that only ftlab's training supports.
    """
    for name, value in (("dataset", recipe.dataset), ("output_dir", recipe.output_dir)):
        if not value:
            raise fail("recipe_missing_key", key=name)
    if recipe.merges:
        raise fail("recipe_not_there", where="adapter_name_or_path", key=recipe.merges, framework="trl")
    for name, values in (("finetuning_type", NO_SCRIPT), ("stage", ("ppo",))):
        if (value := getattr(recipe, name)) in values:
            raise fail("recipe_not_there", where=name, key=f"{name}: {value}", framework="trl")
    for name in NO_SCRIPT_KEYS:
        if getattr(recipe, name):
            raise fail("recipe_not_there", where=name, key=name, framework="trl")
    machine = device.describe()
    folder = Path(recipe.output_dir or "").expanduser()
    settings, _ = library_args.training_settings(recipe, folder, machine)
    trainers, *classes = library_args.TRAINERS[recipe.objective]
    blocks = [imports(recipe, machine, trainers, classes), rows(recipe), model(recipe, machine, folder)]
    return "\n".join([*blocks, training(recipe, machine, classes, settings, folder)])


def location(name: str) -> str:
    """Return the argument of `from_pretrained`: the folder of the embedded model, a local folder, or a hub id."""
    return models.fetch(name) if name in embedded.NAMES else hub_id(name)


def imports(recipe: Recipe, machine: device.Machine, trainers: str, classes: list[str]) -> str:
    """Return the imports."""
    kind = "AutoModelForSequenceClassification" if recipe.stage == "rm" else "AutoModelForCausalLM"
    transformers = [kind, "AutoTokenizer", "set_seed"] + (["BitsAndBytesConfig"] if recipe.quantization_bit else [])
    transformers += ["Trainer"] if recipe.loraplus_lr_ratio else []
    transformers += ["EarlyStoppingCallback"] if recipe.early_stopping_steps else []
    lines = []
    if recipe.adapts:
        kind = library_args.PEFT_CONFIGS[recipe.finetuning_type]
        names = "PeftModel" if recipe.continues else f"{kind}, get_peft_model"
        lines.append(f"from peft import {names}")
    if recipe.loraplus_lr_ratio:
        lines.append("from peft.optimizers import create_loraplus_optimizer")
    lines.append(f"from transformers import {', '.join(sorted(transformers))}")
    lines += [f"from {trainers} import {', '.join(classes)}", ""]
    lines += [line for line in [from_ftlab(recipe, machine)] if line]
    lines += [f"from ftlab.recipe import read{', templates' if recipe.template else ''}"]
    first = "adapters, " if recipe.changes_base else ""
    lines += [f"from ftlab.runs import {first}dataset{PARTS.get(recipe.stage, '')}"]
    lines += ["from ftlab.runs.tokenized import takes_ids"] if recipe.objective in TOKENIZED_HERE else []
    if recipe.shortcuts:
        lines += ["", "cpu.use_fast_paths()  # CPU fast paths: delete this line and get the same result, slower"]
    lines.append("")
    return "\n".join(lines)


def rows_written(recipe: Recipe, writer: str) -> str:
    """Return Python code that reads the rows of a recipe, followed by `writer`, which writes them."""
    imports = ["from transformers import AutoTokenizer", "", "from ftlab.recipe import read, templates"]
    return "\n".join([*imports, "from ftlab.runs import dataset", "", ""]) + rows(recipe) + "\n" + writer


def template_line(recipe: Recipe) -> str:
    """Return the line that sets the chat template, "" if the model's own is used unchanged."""
    if recipe.template is None and recipe.enable_thinking is None:
        return ""
    thinking = "" if recipe.enable_thinking is None else f", thinking={recipe.enable_thinking}"
    return f"templates.apply({recipe.template!r}, tokenizer{', replace=True' * recipe.allow_other_template}{thinking})"


def rows(recipe: Recipe) -> str:
    """Return the part that reads the data: it needs the recipe's data keys only."""
    values = recipe.model_dump(exclude_defaults=True)
    settings = {"model_name_or_path": recipe.model_name_or_path} | {
        name: values[name] for name in DATA if name in values
    }
    settings |= {"seed": recipe.training["seed"]} if "seed" in recipe.training else {}
    options = [repr(location(recipe.model_name_or_path)), *source(recipe)]
    options += ["trust_remote_code=True"] if recipe.trust_remote_code else []
    lines = [
        f"tokenizer = AutoTokenizer.from_pretrained({', '.join(options)})",
        "tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token",
        template_line(recipe),
        "data = read.load({" + "".join(f"\n    {name!r}: {value!r}," for name, value in settings.items()) + "\n})",
        "train_dataset, eval_dataset = dataset.splits(data, tokenizer)",
        "",
    ]
    return "\n".join(line for line in lines if line) + "\n"


def source(recipe: Recipe, name: str | None = None) -> list[str]:
    """Return the arguments for a hub model's revision and cache folder.

    Args:
        name: a model other than the trained one; a local one has no revisions.
    """
    here = name is not None and not models.has_revisions(name)
    items = {"revision": "main" if here else recipe.model_revision, "cache_dir": recipe.cache_dir}
    return [f"{name}={value!r}" for name, value in items.items() if value not in ("main", None)]


def model(recipe: Recipe, machine: device.Machine, folder: Path) -> str:
    """Return the part that loads the model and puts what is trained on it."""
    kind = "AutoModelForSequenceClassification" if recipe.stage == "rm" else "AutoModelForCausalLM"
    options = [f"{name}={value!r}" for name, value in library_args.model_settings(recipe, machine).items()]
    options += source(recipe)
    lines = []
    if recipe.quantization_bit:
        quantized = library_args.quantization_settings(recipe, machine)
        lines.append(call("quantization_config = BitsAndBytesConfig", arguments(quantized)))
        options.append("quantization_config=quantization_config")
    path = location(recipe.model_name_or_path)
    lines.append(f"set_seed({recipe.training.get('seed', 42)})")
    lines.append(call(f"model = {kind}.from_pretrained", [repr(path), *options]))
    lines += ["cpu.keep_gradients(model)"] if recipe.quantization_bit == 4 else []
    lines.append("model.config.use_cache = False")
    own_dtype = f"autocast_adapter_dtype={library_args.plan(recipe, machine).float32_adapters}"
    if recipe.adapts and recipe.continues and recipe.adapter_name_or_path:
        start = str(weights_of(recipe.adapter_name_or_path).folder)
        lines.append(call("model = PeftModel.from_pretrained", ["model", repr(start), "is_trainable=True", own_dtype]))
    elif recipe.adapts:
        kind = library_args.PEFT_CONFIGS[recipe.finetuning_type]
        lines.append(call(f"peft_config = {kind}", arguments(library_args.peft_settings(recipe))))
        lines.append(f"model = get_peft_model(model, peft_config, {own_dtype})")
    if recipe.changes_base:
        lines.append(f"model.save_pretrained({str(folder / PISSA_START)!r})  # what PEFT subtracted from the base")
    return "\n".join(lines) + "\n"


def from_ftlab(recipe: Recipe, machine: device.Machine) -> str:
    """Return the imports from ftlab that a script needs, "" if there are none."""
    repairs = recipe.quantization_bit == 4 or lifts(recipe, machine)
    names = ["cpu"] * (recipe.shortcuts or repairs) + ["device"] * lifts(recipe, machine)
    return f"from ftlab import {', '.join(names)}" if names else ""


def lifts(recipe: Recipe, machine: device.Machine) -> bool:
    """Return True if the adapters, which TRL casts to bfloat16, must be cast back to float32."""
    return bool(recipe.quantization_bit) and machine.dtype != "bfloat16"


def training(
    recipe: Recipe, machine: device.Machine, classes: list[str], settings: dict[str, Any], folder: Path
) -> str:
    """Return the part that trains and saves."""
    config, trainer = classes
    lines = [call(f"args = {config}", arguments(settings))]
    options = ["model=model", "args=args", "train_dataset=train_dataset", "eval_dataset=eval_dataset"]
    options.append("processing_class=tokenizer")
    if recipe.stage in GROUPED:
        options.append("reward_funcs=rewards.functions(data, model.config._name_or_path, model.dtype)")
    if recipe.teacher_model and recipe.stage == "gkd":
        items = [f"{name}={value!r}" for name, value in library_args.model_settings(recipe, machine).items()]
        items += source(recipe, recipe.teacher_model)
        lines.append(
            call("teacher = AutoModelForCausalLM.from_pretrained", [repr(location(recipe.teacher_model)), *items])
        )
        options += ["teacher_model=teacher", "data_collator=distillation.Collator(tokenizer)"]
    if recipe.loraplus_lr_ratio:
        lines.append("optimizer_class, optimizer_args = Trainer.get_optimizer_cls_and_kwargs(args, model)")
        ratio = f"loraplus_lr_ratio={recipe.loraplus_lr_ratio}"
        lines.append(
            call("optimizer = create_loraplus_optimizer", ["model", "optimizer_class", ratio, "**optimizer_args"])
        )
        options.append("optimizers=(optimizer, None)")
    if recipe.early_stopping_steps:
        options.append(f"callbacks=[EarlyStoppingCallback(early_stopping_patience={recipe.early_stopping_steps})]")
    if recipe.objective in TOKENIZED_HERE:
        trainer = f"takes_ids({trainer})"
    lines.append(call(f"trainer = {trainer}", options))
    if lifts(recipe, machine):
        lines.append("cpu.lift_adapters(model, device.describe())  # trl has turned them into bfloat16")
    target, start = folder / result_name(recipe.finetuning_type), folder / PISSA_START
    lines.append("trainer.train()")
    if recipe.changes_base:
        lines.append(f"adapters.save_plain(trainer.model, {str(start)!r}, {str(target)!r})")
        lines.append(f"tokenizer.save_pretrained({str(target)!r})")
    else:
        lines.append(f"trainer.save_model({str(target)!r})")
    return "\n".join(lines) + "\n"


def arguments(values: dict[str, Any]) -> list[str]:
    """Return keyword arguments as code."""
    return [f"{name}={written(value)}" for name, value in values.items()]


def written(value: Any) -> str:
    """Return a plain value as code; an enumeration as its value."""
    return repr(getattr(value, "value", value))


def call(function: str, items: list[str]) -> str:
    """Return a call as code, on one line where it fits."""
    line = f"{function}({', '.join(items)})"
    return line if len(line) <= 100 else f"{function}(\n" + "".join(f"    {one},\n" for one in items) + ")"

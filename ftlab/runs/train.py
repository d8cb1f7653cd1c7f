"""Train a recipe into a run folder; an interrupted run resumes from its last valid checkpoint."""

import contextlib
import shlex
import shutil
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_callback import EarlyStoppingCallback, PrinterCallback, ProgressCallback

from ftlab import cpu, device, manifests, models, packages, saved_weights
from ftlab.errors import LabError, fail, say
from ftlab.recipe import library_args, templates
from ftlab.recipe import read as recipes
from ftlab.recipe.keys import REWARDED, SAVED_IN_PART, Recipe
from ftlab.runs import (
    adapters,
    balance,
    build,
    chat,
    checkpoint,
    dataset,
    encoded_rows,
    launch,
    own_logits,
    planned_steps,
    reference,
    rewards,
    rope,
    target,
    targets,
    world,
)
from ftlab.runs import callbacks as watch
from ftlab.runs import folder as folders
from ftlab.runs.progress import Progress
from ftlab.saved_weights import RESULTS


@dataclass(frozen=True)
class Run:
    """A run: its folder, its metrics, whether it was reused, and the step at which it was stopped, if it was."""

    folder: Path
    metrics: dict[str, float]
    reused: bool
    stopped_at: int | None = None

    @property
    def weights(self) -> Path:
        """The adapter's folder, or the whole model's."""
        return next(self.folder / name for name in RESULTS if (self.folder / name).is_dir())


class Job(NamedTuple):
    """A loaded recipe, ready to start: model folder, tokenizer, examples, settings."""

    recipe: Recipe
    folder: Path
    model_path: str
    machine: device.Machine
    args: Any
    tokenizer: PreTrainedTokenizerBase
    datasets: tuple[Dataset, Dataset | None]
    # What must be equal for a run to be reused or resumed.
    about: dict[str, Any]
    # When the run was requested, in seconds since the epoch.
    since: float


class Start(NamedTuple):
    """The start of a run: its id, and the checkpoint it resumes from."""

    run_id: str
    resume: Path | None


def train(
    recipe: Recipe, *, callbacks: Sequence[TrainerCallback] = (), fresh: bool = False, quiet: bool = False
) -> Run:
    """Train a recipe with TRL's trainer for its stage, into its run folder.

    The same recipe on the same data is not trained twice: a finished run is returned, an interrupted one resumes
    from its newest checkpoint that verifies; both are printed. Ctrl-C, SIGTERM and a file STOP in the run folder save
    and stop.

    Args:
        callbacks: added to the trainer.
        fresh: train from the start in any case, and replace an earlier run in the folder.
        quiet: no progress bar and no printed rows, because the caller shows the log.
    Raises:
        LabError: bad data, a folder that contains another run or is in use, a NaN or infinite loss, a full disk.
    """
    require_training(recipe)
    folder = Path(recipe.output_dir or "").expanduser()
    # Only the first of several processes writes.
    with checkpoint.lock(folder) if launch.is_main() else contextlib.nullcontext():
        if recipe.training.get("deepspeed"):
            world.own_extensions(folder / folders.EXTENSIONS)
        job = prepare(recipe, folder)
        if not fresh and (metrics := reusable(job)) is not None:
            print(say("run_reused", folder=folder))
            return Run(folder, metrics, reused=True)
        with cpu.fast_paths(library_args.plan(job.recipe, job.machine)):
            return run(job, begin(job, fresh), callbacks, quiet)


def next_step(recipe: Recipe, run: Run) -> str:
    """Return how to use a run's weights: the recipe key for a reward model, the chat command for any other."""
    if recipe.stage == "rm":
        return say("train_next_reward", folder=run.folder)
    whole = run.weights.name == saved_weights.MODEL
    words = [str(run.weights)] if whole else [recipe.model_name_or_path, "--adapter", str(run.weights)]
    words += ["--trust-remote-code"] if recipe.trust_remote_code else []
    options = {} if whole else {"model_revision": recipe.model_revision, "cache_dir": recipe.cache_dir}
    words += [f"{name}={value}" for name, value in options.items() if value not in ("main", None)]
    return say("train_next_chat", command=shlex.join(["ftlab", "chat", *words]))


def require_training(recipe: Recipe) -> None:
    """Refuse a recipe that is not for training, or that cannot be trained here.

    Raises:
        LabError: no data set or run folder, `do_train: false`, a forbidden output folder, or a missing package.
    """
    launch.refuse_lost()
    if not recipe.do_train:
        raise fail("train_not_asked", where="do_train")
    if recipe.predict_with_generate and not recipe.dataset:
        raise fail("train_predicts", where="predict_with_generate")
    for name, value in (("dataset", recipe.dataset), ("output_dir", recipe.output_dir)):
        if not value:
            raise fail("recipe_missing_key", key=name)
    folder = Path(recipe.output_dir or "").expanduser()
    target.refuse_place(folder, "output_dir")
    folders.refuse_foreign(folder)
    packages.require_for(recipe)


def check(recipe: Recipe) -> None:
    """Refuse a recipe that `train` would refuse, without loading weights or writing anything.

    A model that is not on this machine yet is not checked, which is printed; so is a recipe without a data set or
    a run folder, which is for chat or export.

    Raises:
        LabError: as `train` before it loads the weights.
    """
    if not (recipe.dataset and recipe.output_dir):
        print(say("check_no_training"))
        return
    require_training(recipe)
    if not models.is_here(recipe.model_name_or_path, recipe.model_revision, recipe.cache_dir):
        print(say("check_no_model", name=recipe.model_name_or_path))
        return
    folder = Path(recipe.output_dir).expanduser()
    job = prepare(recipe, folder)
    if reusable(job) is None:
        decide(job, fresh=False)
        if recipe.training.get("dataloader_drop_last") and recipe.objective not in REWARDED:
            require_batch(build.packed(job.datasets[0], job.args), job.args, launch.to_start(recipe) or 1)


def encode(recipe: Recipe) -> str:
    """Encode the examples of a recipe into `tokenized_path` without training, and return the next step as text.

    Raises:
        LabError: as `train` before it loads the weights.
    """
    require_training(recipe)
    job = prepare(recipe, Path(recipe.output_dir or "").expanduser())
    if launch.is_main():
        encoded_rows.write(recipe, job.tokenizer, job.datasets)
    return say("tokenized_written", where=recipe.tokenized_path, rows=len(job.datasets[0]))


def prepare(recipe: Recipe, folder: Path) -> Job:
    """Load a recipe's model folder, tokenizer, examples and settings."""
    since = time.time()
    # This refuses a wrong FTLAB_DTYPE before a model is fetched.
    machine = device.describe()
    model_path = models.fetch(recipe.model_name_or_path, **recipe.source)
    for adapter in folders.chain(recipe.adapter_name_or_path) if recipe.adapter_name_or_path else ():
        folders.weights_for(adapter, Path(model_path), recipe.model_name_or_path)
    build.rehearse(recipe, model_path)
    if recipe.second_model:
        reference.folder_of(recipe, model_path)
    if recipe.reward_model and recipe.objective in REWARDED:
        rewards.require_model(recipe.reward_model)
    if recipe.training.get("push_to_hub") and launch.is_main():
        models.require_push(recipe.training.get("hub_token"))
    args, notes = build.training_args(recipe, folder, machine)
    tokenizer = load_tokenizer(recipe, model_path)
    notes.append(templates.apply(recipe.template, tokenizer, recipe.allow_other_template, recipe.enable_thinking))
    notes.append(rope.note(recipe, model_path))
    notes.append(targets.left_out(recipe, str(models.read_config(Path(model_path)).get("model_type"))))
    if recipe.add_tokens:
        notes += added(recipe, tokenizer, models.load_tokenizer(model_path, recipe.trust_remote_code))
    else:
        models.require_rows(tokenizer, models.embedding_rows(model_path), model_path)
    if launch.is_main():
        for note in filter(None, notes):
            print(note)
    with args.main_process_first():
        stored = recipe.tokenized_path is not None and not recipe.encodes
        datasets = encoded_rows.read(recipe, tokenizer) if stored else dataset.splits(recipe, tokenizer)
    if args.eval_strategy != "no" and datasets[1] is None:
        raise fail("train_no_validation", where="eval_strategy")
    if launch.is_main() and (note := dataset.label_note(recipe, datasets[0])):
        print(note)
    about = folders.fingerprints(recipe, Path(model_path), dataset.digests(datasets))
    job = Job(recipe, folder, model_path, machine, args, tokenizer, datasets, about, since)
    if launch.is_main():
        for note in planned_steps.never_reached(recipe, args, datasets[0]):
            print(note)
    return job


def load_tokenizer(recipe: Recipe, path: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model folder with a recipe's added tokens and a padding token.

    Raises:
        LabError: it cannot be loaded, or has no eos token.
    """
    tokenizer = models.load_tokenizer(path, recipe.trust_remote_code)
    if tokenizer.eos_token is None:
        raise fail("train_no_eos", where=path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.add_tokens(library_args.names(recipe.add_tokens or ""))
    return tokenizer


def added(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, before: PreTrainedTokenizerBase) -> list[str]:
    """Return notes on the tokens of `add_tokens`: the new ones, and those that were in the vocabulary `before`."""
    vocabulary, new_tokens = before.get_vocab(), library_args.names(recipe.add_tokens or "")
    new = ", ".join(token for token in new_tokens if token not in vocabulary)
    known = ", ".join(token for token in new_tokens if token in vocabulary)
    notes = [say("train_added", tokens=new, count=len(tokenizer))] if new else []
    return notes + ([say("train_not_added", tokens=known)] if known else [])


def reusable(job: Job) -> dict[str, float] | None:
    """Return the metrics of a finished run of this recipe, None if there is none.

    Raises:
        LabError: `resume_from_checkpoint` names a checkpoint that this run never had; older ones may have been rotated.
    """
    metrics = folders.finished(job.recipe, job.about)
    asked = Path(job.recipe.training.get("resume_from_checkpoint") or job.folder)
    if metrics is None or asked == job.folder:
        return metrics
    inside, last = asked.resolve().parent == job.folder.resolve(), folders.last_step(folders.read_log(job.folder))
    rotated = inside and 0 < saved_weights.step_of(asked) < last
    if not inside:
        raise fail("checkpoint_not_ours", where=str(asked), reason=say("checkpoint_outside"))
    if not (asked.exists() or rotated):
        reason = say("checkpoint_rotated", step=last)
        raise fail("checkpoint_not_ours", where=str(asked), reason=reason)
    return metrics


def decide(job: Job, fresh: bool) -> Start:
    """Decide how a run begins; nothing is written.

    Raises:
        LabError: the folder holds files that are not a run's, or another recipe's run that may not be replaced; or
            `resume_from_checkpoint` names no checkpoint of this run.
    """
    manifest = folders.own_manifest(job.folder)
    resume = job.recipe.training.get("resume_from_checkpoint")
    changed = folders.changes(manifest, job.recipe, job.about) if manifest else ""
    lost = job.recipe.finetuning_type in SAVED_IN_PART
    if resume and (fresh or not manifest or lost):
        reason = say("checkpoint_fresh" if fresh else "checkpoint_no_run")
        reason = say("checkpoint_in_part", method=job.recipe.finetuning_type) if lost else reason
        raise fail("checkpoint_not_ours", where=str(resume), reason=reason)
    if manifest and not fresh and (resume or not changed):
        require_processes(job, manifest)
    if resume and manifest:
        return Start(str(manifest.get("run_id")), named_checkpoint(job, manifest, Path(resume), changed))
    if manifest and not fresh and not changed:
        return go_on(job, str(manifest.get("run_id")))
    if manifest and changed and not fresh and not job.recipe.overwrite_output_dir:
        raise fail("train_folder_other", where=str(job.folder), changed=changed)
    return Start(uuid.uuid4().hex, None)


def begin(job: Job, fresh: bool) -> Start:
    """Decide how a run begins in every process.

    Raises:
        LabError: as `decide`.
    """
    start = decide(job, fresh)
    # From here on the first process may write into the folder: every process has read it.
    world.require_same(saved_weights.step_of(start.resume) if start.resume else 0, job.args)
    return start


def require_processes(job: Job, manifest: dict[str, Any]) -> None:
    """Refuse to resume with another number of processes, which would change batches and their order.

    Raises:
        LabError: with both numbers.
    """
    # Runs from before this was recorded had one.
    then = manifest.get("processes", 1)
    if then != job.args.world_size:
        raise fail("world_changed", where=str(job.folder), then=then, now=job.args.world_size)


def open_folder(job: Job, start: Start, model: PreTrainedModel | PeftModel) -> None:
    """Write the first files of a run, and remove those of an earlier run if this one starts over.

    Raises:
        LabError: a write failed.
    """
    if not launch.is_main():
        return
    with watch.writing(job.folder, job.folder):
        if start.resume is None:
            folders.clear(job.folder, folders.own_manifest(job.folder))
        # The manifest first: it identifies the owner of the other files.
        write_record(job, start.run_id, finished=False)
        recipes.write(job.recipe, job.folder / folders.RECIPE)
        folders.forget_stop(job.folder, job.since)
        if job.recipe.changes_base and not (job.folder / saved_weights.PISSA_START).exists():
            # The initialization is subtracted from the base weights; converting to a plain adapter needs it.
            model.save_pretrained(job.folder / saved_weights.PISSA_START)


def go_on(job: Job, run_id: str) -> Start:
    """Return the newest checkpoint of this run that verifies, and print those that were skipped."""
    if (method := job.recipe.finetuning_type) in SAVED_IN_PART:
        if launch.is_main():
            print(say("train_again", where=job.folder, method=method))
        return Start(run_id, None)
    newest, skipped = checkpoint.find_resume(job.folder, {"run_id": run_id} | job.about)
    if launch.is_main():
        for path, reason in skipped:
            print(say("run_skipped", path=path, reason=reason))
        if newest:
            print(say("run_goes_on", folder=job.folder, step=saved_weights.step_of(newest)))
        else:
            print(say("run_starts_over", folder=job.folder))
    return Start(run_id, newest)


def named_checkpoint(job: Job, manifest: dict[str, Any], path: Path, changed: str) -> Path:
    """Return the checkpoint that `resume_from_checkpoint` names; naming it allows a changed recipe.

    Raises:
        LabError: it is not a complete checkpoint of this run.
    """
    reason = say("checkpoint_outside") if path.resolve().parent != job.folder.resolve() else ""
    reason = reason or checkpoint.resume_problem(path, {"run_id": manifest.get("run_id")})
    most = job.args.max_steps
    if not reason and 0 < most < saved_weights.step_of(path):
        reason = say("checkpoint_past", steps=most)
    end = planned_steps.count(job.recipe, job.args, job.datasets[0])
    step = saved_weights.step_of(path)
    # Trainer would train a step too many, or none, and the run would count as one of the changed recipe.
    if not reason and (0 < end < step or (changed and end == step)):
        reason = say("checkpoint_no_step", step=end)
    if reason:
        raise fail("checkpoint_not_ours", where=str(path), reason=reason)
    how = say("run_resumes_changed", path=path, step=step, changed=changed) if changed else ""
    print(how or say("run_resumes", path=path, step=step))
    return path


def trainable_model(job: Job) -> PreTrainedModel | PeftModel:
    """Return the model to train: with its adapter, and with embeddings and an eos token that fit the tokenizer."""
    base = build.load_model(job.recipe, job.model_path, job.machine)
    chat.grow(base, job.tokenizer)
    model = build.prepare_model(job.recipe, base, job.machine)
    if job.recipe.stage != "rm":
        # A base model's eos may differ from the token with which its new chat template ends answers.
        chat.settle_generation(model, job.tokenizer)
    return model


def run(job: Job, start: Start, extra: Sequence[TrainerCallback], quiet: bool = False) -> Run:
    """Build the trainer, train, and write the results; a stopped run prints how to resume it."""
    # Before the model is built: a new head and the low-rank matrices are initialized from this seed.
    set_seed(job.args.seed)
    model = trainable_model(job)
    stop = watch.Stop(job.folder)
    about = {"run_id": start.run_id, "versions": device.versions()} | job.about
    keeper = watch.Keeper(job.folder, about, job.recipe.training.get("save_total_limit"))
    begin, check = watch.Begin(partial(open_folder, job, start)), world.Check()
    allocate = [adapters.Allocate()] if job.recipe.finetuning_type == "adalora" else []
    # AdaLoRA first: if it refuses its settings, no folder must be left.
    first = [*allocate, check, begin, watch.Log(job.folder / folders.LOG), watch.Best(), watch.Guard(), stop]
    # A notebook has a progress display of its own.
    in_terminal = DEFAULT_PROGRESS_CALLBACK is ProgressCallback
    shown = [Progress()] if in_terminal and not quiet else []
    watchers = [*first, *early_stop(job), *extra, *shown, keeper]
    trainer = build.build_trainer(job.recipe, model, job.args, job.tokenizer, job.datasets, watchers)
    check.trainer = trainer
    if job.recipe.quantization_bit:
        cpu.lift_adapters(trainer.model, job.machine)
    if quiet or in_terminal:
        for theirs in (DEFAULT_PROGRESS_CALLBACK, ProgressCallback, PrinterCallback):
            trainer.remove_callback(theirs)
    refuse_untrained(trainer, job.recipe)
    own_logits.require(trainer, job.recipe)
    started = time.monotonic()
    metrics: dict[str, float] = {}
    per_layer = balance.per_layer(model, job.recipe.moe_aux_loss_per_layer)
    with stop.listening(), keeper.telling(), begin.refusing(), per_layer:
        if start.resume and complete(start.resume, start, job):
            open_folder(job, start, model)
            load_finished(trainer, start.resume)
        else:
            metrics = trainer.train(resume_from_checkpoint=str(start.resume) if start.resume else None).metrics
    history = watch.rows_of(trainer.state.log_history)
    metrics |= {"train_loss": mean_loss(history), "train_seconds": time.monotonic() - started}
    metrics |= {"resumed_from_step": saved_weights.step_of(start.resume)} if start.resume else {}
    if stop.stopped_at is not None:
        print(say("run_stopped", folder=job.folder, step=stop.stopped_at))
        # torchrun terminates the other processes as soon as one exits with an error code.
        world.wait(job.args)
        return Run(job.folder, metrics, reused=False, stopped_at=stop.stopped_at)
    finish(job, trainer, metrics, start.run_id)
    return Run(job.folder, metrics, reused=False)


def early_stop(job: Job) -> list[TrainerCallback]:
    """Return the early stopping callback, if the recipe has `early_stopping_steps`."""
    patience = job.recipe.early_stopping_steps
    return [EarlyStoppingCallback(patience)] if patience else []


def refuse_untrained(trainer: Trainer, recipe: Recipe) -> None:
    """Refuse several processes that would each train alone instead of together.

    Raises:
        LabError: with the requested number of processes, and the number that would train.
    """
    expected, got = launch.number("WORLD_SIZE", 1), trainer.args.world_size
    if got == expected and recipe.nproc_per_node:
        expected, got = recipe.nproc_per_node, launch.number("LOCAL_WORLD_SIZE", 1)
    if got != expected:
        raise fail("train_world", exit_code=1, asked=expected, got=got)
    if recipe.training.get("dataloader_drop_last") and not len(trainer.get_train_dataloader()):
        raise no_batch(len(trainer.train_dataset), trainer.args.train_batch_size * trainer.args.world_size)


def require_batch(examples: Dataset, args: TrainingArguments, processes: int) -> None:
    """Refuse `dataloader_drop_last` if it leaves no batch, without the trainer's loader.

    Raises:
        LabError: with the number of examples, and of those in a batch of all processes.
    """
    batch = args.train_batch_size * max(args.world_size, processes)
    if len(examples) < batch:
        raise no_batch(len(examples), batch)


def no_batch(rows: int, batch: int) -> LabError:
    """Build the error of a run whose examples do not fill a batch."""
    return fail("train_no_batch", where="dataloader_drop_last", rows=rows, batch=batch)


def complete(path: Path, start: Start, job: Job) -> bool:
    """Return True if a checkpoint is the run's last: Trainer would take one step too many from it."""
    state = TrainerState.load_from_json(str(path / "trainer_state.json"))
    manifest = manifests.read_manifest(path) or {}
    return state.global_step >= state.max_steps and manifest.get("recipe") == job.about["recipe"]


def load_finished(trainer: Trainer, path: Path) -> None:
    """Load the weights and the history of the run's last checkpoint into a trainer that has no steps left."""
    trainer.state = TrainerState.load_from_json(str(path / "trainer_state.json"))
    best = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    # Trainer has no public method for it; its train() would run one more step first.
    trainer._load_from_checkpoint(best or str(path))


def mean_loss(history: list[dict[str, float]]) -> float:
    """Return the mean training loss over all steps of a run, including those before a resume."""
    total, before = 0.0, 0.0
    for row in (row for row in history if "loss" in row):
        total += row["loss"] * (row["step"] - before)
        before = row["step"]
    return total / before if before else float("nan")


def finish(job: Job, trainer: Trainer, metrics: dict[str, float], run_id: str) -> None:
    """Write the results of a finished run; the manifest comes last, so that it means complete.

    Every process takes part until the weights are saved: each may hold only its share of them.

    Raises:
        LabError: a trained weight is NaN or infinite, or a file could not be written.
    """
    if not watch.all_finite(watch.trainable_weights(trainer.model)):
        raise fail("train_broken", where=str(job.folder), exit_code=1, name=say("trained_weight"))
    weights = job.folder / saved_weights.result_name(job.recipe.finetuning_type)
    partial = job.folder / f"{manifests.PARTIAL}{weights.name}"
    with watch.writing(weights, job.folder):
        save_weights(job, trainer, partial)
        if not launch.is_main():
            return
        manifests.write_manifest(partial, {"run_id": run_id})
        if weights.exists():
            shutil.rmtree(weights)
        partial.rename(weights)
        if job.recipe.plot_loss:
            # Imported here: matplotlib takes half a second.
            from ftlab import plots

            plots.save_loss(watch.rows_of(trainer.state.log_history), job.folder / folders.PICTURE)
        (job.folder / folders.MODEL_CARD).write_text(model_card(job, trainer, metrics), encoding="utf-8")
        manifests.write_json(job.folder / folders.METRICS, metrics)
        write_record(job, run_id, finished=True)


def save_weights(job: Job, trainer: Trainer, folder: Path) -> None:
    """Save the adapter or the model with its tokenizer, as safetensors."""
    if launch.is_main() and folder.exists():
        shutil.rmtree(folder)
    model = trainer.model
    if not (job.recipe.changes_base and isinstance(model, PeftModel)):
        world.save_model(trainer, folder)
    elif launch.is_main():
        adapters.save_plain(model, job.folder / saved_weights.PISSA_START, folder)
        job.tokenizer.save_pretrained(folder)
    # TRL writes its own model card and pickled arguments next to the weights; the run folder has its own.
    for leftover in (folders.MODEL_CARD, "training_args.bin") if launch.is_main() else ():
        (folder / leftover).unlink(missing_ok=True)


def write_record(job: Job, run_id: str, finished: bool) -> None:
    """Write the manifest of a run, which marks the files in its folder as the run's."""
    about = folders.record(job.recipe, run_id, job.machine.name, job.about) | {"processes": job.args.world_size}
    manifests.write_json(job.folder / manifests.MANIFEST, about | {"finished": finished})


def model_card(job: Job, trainer: Trainer, metrics: dict[str, float]) -> str:
    """Return the model card: base, data, settings, trained weights, measurements."""
    settings = "\n".join(f"| `{name}` | {value} |" for name, value in recipes.plain(job.recipe).items())
    measured = "\n".join(f"| {name} | {value:.4g} |" for name, value in metrics.items())
    sizes = [(world.size(weight), weight.requires_grad) for weight in trainer.model.parameters()]
    trained, weights = sum(size for size, grows in sizes if grows), sum(size for size, _ in sizes)
    return (
        f"# {job.folder.name}\n\n"
        f"{job.recipe.finetuning_type} {job.recipe.objective} of `{job.recipe.model_name_or_path}` on "
        f"`{job.recipe.dataset}` ({len(job.datasets[0])} rows), made with ftlab. "
        f"{trained:,} of {weights:,} weights were trained.\n\n"
        f"| setting | value |\n|---|---|\n{settings}\n\n| measured | value |\n|---|---|\n{measured}\n\n"
        f"Data {job.about['data']}, base {job.about['model']}, seed {job.args.seed}, torch {torch.__version__}.\n"
    )

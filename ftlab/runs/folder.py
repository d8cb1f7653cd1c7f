"""A run folder: its file names, its state, its weights, and the base that they belong to.

All code that reads or writes run folders uses this file. It does not import torch, so reading a log is fast.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ftlab import device, manifests, models, saved_weights
from ftlab.errors import LabError, fail, say
from ftlab.recipe import read as recipes
from ftlab.recipe import strict_yaml
from ftlab.recipe.keys import Recipe
from ftlab.system_errors import explained

RECIPE, LOG, METRICS, PICTURE, MODEL_CARD = "recipe.yaml", "train_log.jsonl", "metrics.json", "loss.png", "README.md"
SCORES = "eval_results.json"
# LLaMA-Factory's names.
PREDICTIONS, PREDICT_RESULTS = "generated_predictions.jsonl", "predict_results.json"
STOP = "STOP"
# Held while a run writes: the lock, and the process id of its holder.
LOCK, OWNER = "run.lock", "run.pid"
# Files of a process that a panel starts: the recipe as typed, its output, its process id.
PANEL_RECIPE, PANEL_OUTPUT, PANEL_JOB = "run.yaml", "run.out", "run.job"
# Extensions that DeepSpeed compiles for a run.
EXTENSIONS = "run.extensions"
# Prefixes of a checkpoint's name that hide it from Trainer and ftlab.
ASIDE, DELETING = "set-aside-", "deleting-"
OWN_FILES = (
    RECIPE, LOG, METRICS, SCORES, PREDICTIONS, PREDICT_RESULTS, manifests.MANIFEST, PICTURE, MODEL_CARD,
    *saved_weights.RESULTS, saved_weights.PISSA_START, STOP,
)  # fmt: skip
OWN_PREFIXES = (saved_weights.PREFIX, ASIDE, DELETING, manifests.PARTIAL, "run.", "runs")

Row = dict[str, float]


class State(NamedTuple):
    """The state of a recipe's run folder.

    Attributes:
        name: "other" is a run of another recipe, data set or model; "foreign" are files that belong to no run.
        detail: the newest checkpoint's step of an unfinished run; what differs; the foreign files.
    """

    name: Literal["new", "unfinished", "finished", "other", "foreign"]
    detail: str = ""


def state(recipe: Recipe, fingerprints: Callable[[], dict[str, str]]) -> State:
    """Return the state of a recipe's run folder.

    Args:
        fingerprints: returns those of the recipe's `data` and `model`; called only if the settings are the run's.
    """
    folder = Path(recipe.output_dir or "").expanduser()
    manifest = own_manifest(folder) if folder.is_dir() else None
    if manifest is None:
        return foreign(folder)
    if changed := changes(manifest, recipe, {}) or changes(manifest, recipe, fingerprints()):
        return State("other", changed)
    if manifest.get("finished") is True and not damage(folder, manifest):
        return State("finished")
    last = next(iter(saved_weights.checkpoints(folder)), None)
    return State("unfinished", str(saved_weights.step_of(last) if last else 0))


def foreign(folder: Path) -> State:
    """Return the state of a folder without a manifest."""
    try:
        if folder.is_dir():
            refuse_foreign(folder)
    except LabError as error:
        return State("foreign", f"{error.what}; {error.fix}")
    return State("new")


def changes(manifest: dict[str, Any], recipe: Recipe, fingerprints: dict[str, str]) -> str:
    """Return how a recipe differs from a run, "" if it is the same run.

    Args:
        fingerprints: of the recipe's `data` and `model`, as in the manifest; missing ones are not compared.
    """
    then, now = manifest.get("settings", {}), printable(recipes.decisive(recipe))
    if not isinstance(then, dict):
        return "recipe"
    # A run of an earlier version lacks newer keys: it ran with their defaults.
    then = printable(recipes.defaults([name for name in now if name not in then])) | then
    differences = [
        f"{name}: {then.get(name)} -> {now.get(name)}" for name in {**then, **now} if then.get(name) != now.get(name)
    ]
    for name, value in fingerprints.items():
        # If a setting differs, the settings' digest adds nothing.
        differences += [name] if manifest.get(name) != value and not (differences and name == "recipe") else []
    return ", ".join(differences[:4])


def damage(folder: Path, manifest: dict[str, Any]) -> str:
    """Return why the result of a finished run cannot be trusted, "" if it matches its manifest."""
    result = next((folder / name for name in saved_weights.RESULTS if (folder / name).is_dir()), None)
    reason = manifests.problem(result, {"run_id": manifest.get("run_id")}) if result else say("result_missing")
    return reason or ("" if read_metrics(folder) is not None else say("result_unreadable", name=METRICS))


def read_metrics(folder: Path) -> dict[str, float] | None:
    """Return the metrics of a finished run, None if they cannot be read."""
    try:
        return json.loads((folder / METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def finished(recipe: Recipe, fingerprints: dict[str, str]) -> dict[str, float] | None:
    """Return the metrics of a finished run of this recipe, None if there is none or a file does not verify.

    Args:
        fingerprints: of the recipe's `data` and `model`.
    """
    folder = Path(recipe.output_dir or "").expanduser()
    if state(recipe, lambda: fingerprints).name == "finished":
        return read_metrics(folder)
    manifest = own_manifest(folder) or {}
    if manifest.get("finished") is True and not changes(manifest, recipe, fingerprints):
        reason = damage(folder, manifest)
        print(say("run_untrusted", folder=folder, reason=reason))
    return None


def own_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest that a run wrote into its folder, None if it is missing or another tool's."""
    manifest = manifests.read_manifest(folder)
    return manifest if manifest and "run_id" in manifest and "settings" in manifest else None


def refuse_foreign(folder: Path) -> None:
    """Refuse a folder that holds files which do not belong to a run; they are left alone.

    Without a run's manifest even a README.md or a folder `model` does not belong to a run.

    Raises:
        LabError: naming some of them, or that the folder cannot be read.
    """
    own = OWN_FILES if own_manifest(folder) else (STOP,)
    try:
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise explained(error, str(folder)) or error from None
    foreign_names = [name for name in names if name not in own and not name.startswith(OWN_PREFIXES)]
    if foreign_names:
        raise fail("train_folder_used", where=str(folder), files=", ".join(foreign_names[:3]))


def record(recipe: Recipe, run_id: str, machine: str, fingerprints: dict[str, str]) -> dict[str, Any]:
    """Return the entries of a run's manifest, except for `finished` and the files.

    Args:
        machine: the name of the accelerator or processor.
    """
    about = {"machine": machine, "versions": device.versions()}
    return {"run_id": run_id, "settings": printable(recipes.decisive(recipe))} | about | fingerprints


def forget_stop(folder: Path, since: float) -> None:
    """Remove a STOP that was meant for an earlier run; one created while this run was loading counts.

    Args:
        since: when this run was requested, in seconds since the epoch.
    """
    with contextlib.suppress(FileNotFoundError):
        if (folder / STOP).stat().st_mtime < since:
            (folder / STOP).unlink()


def clear(folder: Path, manifest: dict[str, Any] | None) -> None:
    """Remove an earlier run's files from the folder, and the checkpoints with its id."""
    run_id = (manifest or {}).get("run_id")
    for path in saved_weights.checkpoints(folder):
        if run_id and (manifests.read_manifest(path) or {}).get("run_id") == run_id:
            shutil.rmtree(path)
    # The manifest stays until the next one replaces it, so that the files can be attributed to a run.
    for name in (name for name in OWN_FILES if manifest and name not in (manifests.MANIFEST, STOP)):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


class Summary(NamedTuple):
    """A run folder: whether its run is finished, and its last logged step and loss."""

    folder: Path
    finished: bool
    step: int
    loss: float | None


def list_runs(root: Path, most: int = 50) -> list[Summary]:
    """Return the runs in the folders under `root`, the newest first."""
    return [summarize(path.parent) for path in [*newest_first(root.glob(f"*/{RECIPE}"))][:most]]


def newest_first(paths: Iterable[Path]) -> dict[Path, float]:
    """Return files and folders with their modification times, without those deleted in the meantime."""
    changed = {}
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            changed[path] = path.stat().st_mtime
    return dict(sorted(changed.items(), key=lambda item: item[1], reverse=True))


def summarize(folder: Path) -> Summary:
    """Return the summary of a run folder."""
    rows = read_log(folder)
    losses = [row["loss"] for row in rows if "loss" in row]
    manifest = manifests.read_manifest(folder) or {}
    return Summary(folder, bool(manifest.get("finished")), last_step(rows), losses[-1] if losses else None)


def last_step(rows: Sequence[Row]) -> int:
    """Return the last step in a log, 0 for an empty one."""
    return int(rows[-1]["step"]) if rows else 0


def read_recipe(folder: Path, name: str = RECIPE) -> dict[str, Any]:
    """Return the keys of a run's recipe.

    Raises:
        LabError: there is none, or it cannot be read.
    """
    return strict_yaml.read(folder / name)[0]


def read_log(folder: Path) -> list[Row]:
    """Return the rows of a run's log, without a line that is still being written."""
    try:
        text = (folder / LOG).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    rows = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int | float):
            rows.append(row)
    return rows


def next_name(folder: Path) -> Path:
    """Return NAME-2 for NAME, NAME-3 for NAME-2, and so on.

    >>> next_name(Path("runs/first")), next_name(Path("runs/first-9"))
    (PosixPath('runs/first-2'), PosixPath('runs/first-10'))
    """
    stem, _, number = folder.name.rpartition("-")
    stem, count = (stem, int(number)) if stem and number.isdecimal() else (folder.name, 1)
    return folder.with_name(f"{stem}-{count + 1}")


def free_name(folder: Path) -> Path:
    """Return the first of NAME-2, NAME-3 ... that does not exist."""
    while (folder := next_name(folder)).exists():
        pass
    return folder


def weights_for(name: str | Path, base: Path, model_name_or_path: str) -> saved_weights.Weights:
    """Return the trained weights in a folder (the last of several) for a base; a note is printed for a checkpoint.

    Args:
        base: the folder of the model called `model_name_or_path`.
    Raises:
        LabError: there are none, they belong to another base, or a whole model is named together with adapters.
    """
    weights = saved_weights.weights_of(name)
    require_own_base(weights, base, model_name_or_path)
    names = saved_weights.several(name)
    if len(names) > 1 and not weights.is_adapter:
        raise fail("chat_not_merged", adapter=names[-1])
    path = Path(names[-1]).expanduser()
    if weights.folder.name.startswith(saved_weights.PREFIX) and weights.folder != path:
        print(say("folder_checkpoint", where=str(path), name=weights.folder.name))
    return weights


def require_own_base(weights: saved_weights.Weights, base: Path, name: str) -> None:
    """Refuse weights that were trained on another model than the one named.

    An adapter of another base with the same shapes would load, but give nonsense. The manifest of a run has its base's
    fingerprint. Otherwise the base that the adapter names is fingerprinted if it is a local folder; if not, only names
    can be compared.

    Args:
        base: the folder of the model called `name`.
    Raises:
        LabError: naming the base of the weights.
    """
    trained_on, recorded = origin(weights)
    if recorded is None and not trained_on:
        return
    if recorded is None and Path(trained_on).is_dir():
        recorded = model_fingerprint(Path(trained_on))
    same_name = Path(trained_on).name.casefold() in (Path(name).name.casefold(), base.name.casefold(), "")
    if recorded != model_fingerprint(base) if recorded else not (same_name or Path(name).is_dir()):
        raise fail("export_other_base", where=str(weights.folder), trained_on=trained_on or "?", base=name)
    if not recorded and not same_name:
        print(say("folder_base_unknown", where=str(weights.folder), trained_on=trained_on, name=name))


def origin(weights: saved_weights.Weights) -> tuple[str, str | None]:
    """Return the name of the base that weights were trained on, and its fingerprint where a run recorded it."""
    sealed = [manifests.read_manifest(folder) or {} for folder in (weights.folder, weights.folder.parent)]
    about = next((one for one in sealed if "run_id" in one and "model" in one), {})
    settings: dict[str, Any] = next((one["settings"] for one in sealed if isinstance(one.get("settings"), dict)), {})
    own = {}
    if weights.is_adapter:
        own = models.read_json(weights.folder / saved_weights.ADAPTER_CONFIG)
    base = settings.get("model_name_or_path") if about else None
    return str(base or own.get("base_model_name_or_path") or ""), about.get("model")


def trained_with(name: str | Path) -> dict[str, Any]:
    """Return the recipe keys of the run that trained some weights, {} if they are from no run."""
    place = Path(saved_weights.several(name)[-1]).expanduser()
    recorded = next((path for path in (place / RECIPE, place.parent / RECIPE) if path.is_file()), None)
    return strict_yaml.read(recorded)[0] if recorded else {}


def chain(name: str | Path, seen: tuple[str, ...] = ()) -> list[str]:
    """Return the adapters to apply to a base in order: the named ones, or one and those that its run started from.

    A run that continued the second of two adapters, or trained a new one after both, had the others merged into its
    base. Example: run c has `adapter_name_or_path: a,b`; c is used as a, c, or with `create_new_adapter` as a, b, c.

    Args:
        seen: adapters already visited: a run may have continued its own adapter.
    """
    names = saved_weights.several(name)
    place = Path(names[-1]).expanduser()
    then = (own_manifest(place) or own_manifest(place.parent) or {}).get("settings") or {}
    start = then.get("adapter_name_or_path")
    if len(names) > 1 or not start or start in seen:
        return names
    before = chain(start, (*seen, start))
    return [*(before if then.get("create_new_adapter") else before[:-1]), *names]


def spelled_out(recipe: Recipe) -> Recipe:
    """Return a recipe that names all adapters for its base, for code that does not look them up itself."""
    adapters = chain(recipe.adapter_name_or_path) if recipe.adapter_name_or_path else []
    return recipe.model_copy(update={"adapter_name_or_path": ",".join(adapters)}) if len(adapters) > 1 else recipe


def printable(values: dict[str, Any]) -> dict[str, Any]:
    """Return values after a round trip through JSON, so that saved and current ones compare."""
    return json.loads(json.dumps(values, default=str))


def fingerprint(values: dict[str, Any]) -> str:
    """Return a digest of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def fingerprints(recipe: Recipe, model_folder: Path, data: str) -> dict[str, str]:
    """Return the digests that must be equal for a run to be reused or resumed.

    Args:
        data: that of the encoded rows (`dataset.digests`).
    """
    names = {"packing", *recipes.plain(recipe)}  # only these: a later version's new keys leave the digest as it was
    return {
        "recipe": fingerprint({name: value for name, value in recipes.decisive(recipe).items() if name in names}),
        "data": data,
        "model": model_fingerprint(model_folder),
    }


def model_fingerprint(folder: Path) -> str:
    """Return a digest of a model folder: of its small files, and of size and both ends of its weights."""
    sha256 = hashlib.sha256()
    small = [folder / name for name in ("config.json", "tokenizer.json", "tokenizer.model", "chat_template.jinja")]
    for path in [path for path in small if path.is_file()] + sorted(folder.glob("*.safetensors")):
        sha256.update(f"{path.name}:{path.stat().st_size}:".encode())
        with path.open("rb") as file:
            sha256.update(file.read(2**20))
            file.seek(max(0, path.stat().st_size - 2**20))
            sha256.update(file.read())
    return sha256.hexdigest()[:16]

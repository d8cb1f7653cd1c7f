"""What is wrong with the values of the fields, key by key, before anything runs."""

import contextlib
import errno
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ftlab import embedded, models, saved_weights
from ftlab.apps.board import estimates
from ftlab.apps.board.controls import FIELDS, Field
from ftlab.apps.board.words import Words
from ftlab.catalogue import MODELS
from ftlab.data import dataset_info, registry
from ftlab.errors import LabError, fail
from ftlab.recipe import read as recipes
from ftlab.recipe import templates
from ftlab.recipe.keys import REWARDED, REWARDS, Recipe
from ftlab.runs import folder as folders
from ftlab.runs.folder import State

# People copy a run folder's name into commands, so it must not contain what a shell interprets.
SHELL = set(";|&$`<>\\\"'*?!(){}[]#\n\r\t")
# Keys that name files or folders, several of them separated by commas.
PATHS = (
    "model_name_or_path", "adapter_name_or_path", "dataset", "eval_dataset", "dataset_dir", "output_dir", "export_dir",
)  # fmt: skip
# The longest file name of the usual file systems, in bytes.
LONGEST_NAME = 255
# Keys that name a folder which is written to.
WRITTEN = ("output_dir", "export_dir")
HUB_ID = r"(modelscope:)?\w[\w.-]*/\w[\w.-]*"
LINES, ALL = "lines", "all"


class Checked(NamedTuple):
    """The recipe (None if invalid), a message per key, `lines` or `all`, and the notes of the translation."""

    recipe: Recipe | None
    messages: dict[str, str]
    notes: list[str]


def check_fields(
    values: dict[str, Any], words: Words, roots: Sequence[Path], table: Mapping[str, Field] = FIELDS
) -> Checked:
    """Check the keys of a panel one by one, then together.

    Args:
        values: key -> value, as typed; a LabError stands for a text that could not be read.
        roots: the folders that runs may be written to.
        table: the keys that have a field.
    """
    messages: dict[str, str] = {}
    for key in table:
        if table[key].required and key not in values:
            messages[key] = words("bad_empty")
    for key, value in values.items():
        if problem := one(key, value, words, roots, {**FIELDS, **table}):
            messages[key] = problem
    if messages:
        return Checked(None, messages, [])
    try:
        translated, notes = recipes.translate(recipes.SourceKeys(dict(values), {key: key for key in values}, ALL))
        recipe = recipes.build(translated)
    except LabError as error:
        return Checked(None, {error.where or ALL: short(error)}, [])
    messages = together(recipe)
    return Checked(None if messages else recipe, messages, notes + recipes.remarks(recipe))


def one(key: str, value: Any, words: Words, roots: Sequence[Path], table: Mapping[str, Field]) -> str:
    """Return what is wrong with one key's value, "" if nothing is."""
    if isinstance(value, LabError):
        return short(value)
    most = table[key].most if key in table else None
    if most is not None and isinstance(value, int | float) and value > most:
        return words("bad_most", most=f"{most:,g}")
    if key in PATHS and isinstance(value, str) and not all(map(may_exist, value.split(","))):
        return words("bad_path")
    if key in WRITTEN and isinstance(value, str) and (problem := folder(value, words, roots)):
        return problem
    # The recipe's own check for this key alone, with the other values that it needs.
    alone = {"model_name_or_path": embedded.NAME, key: value}
    if key == "stage" and value in REWARDED:
        alone["reward_funcs"] = REWARDS[0]
    if key == "stage" and value == "gkd":
        alone["teacher_model"] = embedded.NAME
    try:
        translated, _ = recipes.translate(recipes.SourceKeys(alone, {}, ""))
        recipes.build(translated)
    except LabError as error:
        return short(error)
    return ""


def may_exist(name: str) -> bool:
    """Return True if a file of this name can exist; any other call on a name that cannot exist raises OSError.

    >>> may_exist("runs/new"), may_exist("a" * 300), may_exist("a\\0b")
    (True, False, False)
    """
    try:
        os.stat(Path(name).expanduser())
    # RuntimeError: the home folder of an unknown user.
    except (ValueError, RuntimeError):
        return False
    except OSError as error:
        # Below a folder that does not exist, the system does not check a name.
        longest = max((len(os.fsencode(part)) for part in Path(name).parts), default=0)
        return error.errno != errno.ENAMETOOLONG and longest <= LONGEST_NAME
    return True


def folder(name: str, words: Words, roots: Sequence[Path]) -> str:
    """Return why a run may not be written to a folder, "" if it may."""
    if special := sorted(SHELL & set(name)):
        return words("bad_characters", characters=" ".join(repr(one)[1:-1] for one in special))
    path = Path(name).expanduser().resolve()
    if not any(path.is_relative_to(root.resolve()) and path != root.resolve() for root in roots):
        return words("bad_outside", roots=", ".join(map(str, roots)))
    return ""


def together(recipe: Recipe) -> dict[str, str]:
    """Return messages for what a recipe names and what does not exist: its model, template and data sets."""
    messages: dict[str, str] = {}
    looks: dict[str, Callable[..., object]] = {
        "model_name_or_path": model,
        "adapter_name_or_path": saved_weights.weights_of,
        # Whether a template is the model's own shows once the model is loaded.
        "template": templates.family_of_name,
    }
    for key, look in looks.items():
        if name := getattr(recipe, key):
            messages[key] = refusal(look, name)
    base = estimates.folder_of(recipe)
    if recipe.adapter_name_or_path and base and not any(messages.values()):
        names = (recipe.adapter_name_or_path, Path(base), recipe.model_name_or_path)
        with contextlib.redirect_stdout(io.StringIO()):
            messages["adapter_name_or_path"] = refusal(folders.weights_for, *names)
    for key in ("dataset", "eval_dataset"):
        for name in filter(None, (part.strip() for part in (getattr(recipe, key) or "").split(","))):
            messages[key] = refusal(registry.find, name, Path(recipe.dataset_dir)) or messages.get(key, "")
    return {key: message for key, message in messages.items() if message}


def refusal(look: Callable[..., object], *arguments: object) -> str:
    """Return why a look-up refuses its arguments, "" if it does not."""
    try:
        look(*arguments)
    except LabError as error:
        return short(error)
    return ""


def model(name: str) -> None:
    """Look a model up without fetching it.

    Raises:
        LabError: no such folder, or no such name in the catalogue.
    """
    if Path(name).is_dir():
        models.check_folder(Path(name))
    elif re.fullmatch(HUB_ID, name):
        return
    elif models.looks_like_path(name):
        raise fail("model_no_folder", where=name)
    elif name not in {*embedded.NAMES, *(known.name for known in MODELS)}:
        raise models.unknown(name)


# Cached states of run folders: none is computed twice while no file changes.
KNOWN: dict[tuple[str, tuple], State] = {}


def state(recipe: Recipe) -> State:
    """Return the state of a recipe's run folder, as training will see it."""
    if not recipe.output_dir:
        return State("new")
    key = json.dumps(recipe.model_dump(), sort_keys=True, default=str), files_of(recipe)
    if key not in KNOWN:
        KNOWN.clear()
        try:
            KNOWN[key] = folders.state(recipe, lambda: fingerprints(recipe))
        except LabError as error:
            # Training would not begin either.
            KNOWN[key] = State("other", short(error))
    return KNOWN[key]


def files_of(recipe: Recipe) -> tuple:
    """Return path, size and time of every file that the state of a run depends on."""
    model = estimates.folder_of(recipe)
    places = [Path(recipe.output_dir or "").expanduser(), *([Path(model)] if model else [])]
    paths = [path for place in places for path in place.rglob("*")]
    for name in filter(
        None, (part.strip() for part in f"{recipe.dataset or ''},{recipe.eval_dataset or ''}".split(","))
    ):
        with contextlib.suppress(LabError):
            place = registry.find(name, Path(recipe.dataset_dir))[1]
            paths += [Path(recipe.dataset_dir) / "dataset_info.json", *(dataset_info.files(place) if place else [])]
    stats = [(str(path), path.stat()) for path in paths if path.is_file()]
    return tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats)


def fingerprints(recipe: Recipe) -> dict[str, str]:
    """Return the fingerprints of a recipe's data and model, {} if the model is not on this machine yet.

    Raises:
        LabError: the data cannot be trained on.
    """
    # Imported here: encoding the rows needs torch, checking a folder does not.
    from ftlab.runs import dataset, train

    path = estimates.folder_of(recipe)
    if path is None:
        return {}
    with contextlib.redirect_stdout(io.StringIO()), without_bars():
        tokenizer = train.load_tokenizer(recipe, path)
        templates.apply(recipe.template, tokenizer, recipe.allow_other_template, recipe.enable_thinking)
        return folders.fingerprints(recipe, Path(path), dataset.digests(dataset.splits(recipe, tokenizer)))


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Keep the progress bars of datasets out of the page."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


def short(error: LabError) -> str:
    """Return an error without its place: it is shown next to it."""
    return f"{error.what}; {error.fix}" if error.fix else error.what

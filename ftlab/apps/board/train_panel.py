"""The training panel: tune the hyperparameters, see their cost and meaning, train, stop, resume, compare."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from IPython.display import Image, display

from ftlab import errors, saved_weights
from ftlab.apps import course
from ftlab.apps.board import controls, curves, estimates, train_view, training_job, validation
from ftlab.apps.board.background import Work
from ftlab.apps.board.form import Form
from ftlab.apps.board.named_widgets import styled
from ftlab.apps.board.words import Words
from ftlab.errors import LabError
from ftlab.recipe import strict_yaml, to_script
from ftlab.recipe.keys import Recipe
from ftlab.runs import folder as folders

if TYPE_CHECKING:
    from ftlab.apps.board.thread_job import InThread

# Keys of a first run: a continued adapter is not initialized again, and tokens are not added twice.
FIRST_RUN = ("pissa_init", "init_lora_weights", "add_tokens", "resume_from_checkpoint")
# Seconds between two reads of the log, and so between two plots.
REDRAW_SECONDS = 0.4


class TrainPanel:
    """A recipe as a panel.

    Args:
        source: the keys of a recipe, or the path of its YAML; a LLaMA-Factory YAML works too.
        visible: the keys shown, at most 12; None shows the default ones.
        lang: "en" or "zh"; None takes FTLAB_LANG.
        mode: "thread" trains beside the notebook's cells; "process" trains in a process of its own, which outlives the
            page and the kernel, and which a panel on the same run folder finds again.
    Attributes:
        form: the fields.
        job: the running training, None while there is none.
        rows: the log rows that the plot shows.
        box: all of it, to be displayed.
        after: called when a training has ended.
    Raises:
        LabError: an unknown key, too many `visible` ones, another language.
    """

    def __init__(
        self,
        source: dict[str, Any] | str | Path,
        *,
        visible: Sequence[str] = (),
        lang: str | None = None,
        mode: Literal["thread", "process"] = "thread",
    ) -> None:
        self.words, self.mode = Words(lang), mode
        with errors.speaking(self.words.lang):
            values = source if isinstance(source, dict) else strict_yaml.read(Path(source))[0]
            # A run may go below the working folder, and beside the run that the recipe's author named.
            self.root = Path(values.get("output_dir") or "runs/new").expanduser().parent
            self.form = Form(values, self.words, visible, (Path.cwd(), self.root))
        self.job: training_job.Job | None = None
        self.rows: list[folders.Row] = []
        self.compared: dict[str, list[folders.Row]] = {}
        self.began: tuple[float, int] | None = None
        self.followed: Recipe | None = None
        self.after: list[Callable[[], None]] = []
        self.idle = threading.Event()
        self.idle.set()
        self.estimating, self.outdated = threading.Lock(), threading.Event()
        self.view = train_view.View(self.words, self.form)
        self.box = self.view.box
        self.connect()
        for key in ("dataset", "eval_dataset"):
            self.form.controls[key].options = estimates.registered(Path(values.get("dataset_dir") or "data"))
        self.form.watchers.append(self.changed)
        self.list_runs()
        self.update()
        if mode == "process":
            # Its imports take seconds, for which the fields do not wait.
            self.in_background(self.estimate)
        else:
            self.estimate()
        self.rows = folders.read_log(self.folder())
        self.draw()

    def connect(self) -> None:
        """Connect buttons and lists to their actions."""
        view = self.view
        view.start.on_click(lambda _: self.start())
        view.stop.on_click(lambda _: self.stop())
        view.open.on_click(lambda _: self.open(view.earlier.value))
        view.extend.on_click(lambda _: self.extend(view.earlier.value))
        view.new_folder.on_click(lambda _: self.take_free_folder())
        view.write_code.on_click(lambda _: self.show_code())
        view.fresh.observe(lambda _: self.changed(), names="value")
        view.compare.observe(lambda change: self.compare_with(change["new"]), names="value")

    def folder(self) -> Path:
        """Return the run folder in the field."""
        # Not Path.expanduser, which raises for an unknown user.
        return Path(os.path.expanduser(str(self.form.controls["output_dir"].value or "")))

    def changed(self) -> None:
        """Update everything from the fields."""
        self.update()
        self.estimate()

    def update(self) -> None:
        """Update command, YAML and buttons from the fields."""
        with errors.speaking(self.words.lang):
            recipe = self.form.recipe()
            if recipe:
                self.view.show_command(self.form.written(), self.view.fresh.value)
            if self.job is None:
                job = training_job.living(self.folder()) if recipe else None
                self.follow(job) if job else self.offer(recipe)

    def in_background(self, action: Callable[..., None], *given: Any) -> None:
        """Run a method in a thread; an error is shown."""
        Work(self.words.lang, lambda reason: self.view.say("failed", reason=reason)).begin(action, *given)

    def estimate(self) -> None:
        """Show estimates from the fields; where another thread is making them, it makes them again."""
        self.outdated.set()
        # Looked at again once the lock is released: a change meanwhile found it taken.
        while self.outdated.is_set() and self.estimating.acquire(blocking=False):
            try:
                self.outdated.clear()
                with errors.speaking(self.words.lang):
                    if recipe := self.form.recipe():
                        self.view.show_readouts(estimates.readouts(recipe))
            finally:
                self.estimating.release()

    def offer(self, recipe: Recipe | None) -> None:
        """Show what Start would do, and enable it if it is possible."""
        state, detail = validation.state(recipe) if recipe else ("wrong", self.form.named(self.form.checked.messages))
        replaced = recipe is not None and (self.view.fresh.value or recipe.overwrite_output_dir)
        blocked = state == "foreign" or (state == "other" and not replaced)
        free = folders.free_name(self.folder()) if recipe else self.folder()
        self.view.offer(state, detail, recipe is not None and not blocked, free)

    def start(self) -> None:
        """Start or resume the training of the fields."""
        recipe = self.form.recipe()
        if recipe is None or self.job or self.view.start.disabled:
            return
        fresh = self.view.fresh.value
        with errors.speaking(self.words.lang):
            try:
                if self.mode == "thread":
                    self.follow(in_thread(recipe, fresh, self.words.lang))
                else:
                    self.follow(training_job.InProcess.start(recipe, self.form.written(), fresh, self.words.lang))
            except OSError as error:
                self.view.say("failed", reason=str(error))

    def stop(self) -> None:
        """Ask the training to save and stop after its step."""
        if self.job:
            training_job.ask_to_stop(self.job)
            self.say_stopping()

    def say_stopping(self) -> None:
        """Show that the training was asked to stop, and disable the button."""
        self.view.stop.disabled = True
        self.view.say("stopping")

    def follow(self, job: training_job.Job) -> None:
        """Watch a training from a thread, until it ends."""
        self.job, self.began, self.followed = job, None, self.form.recipe()
        self.idle.clear()
        self.view.under_way(True)
        if job.asked:
            self.say_stopping()
        else:
            self.view.say("attached", pid=job.pid) if job.pid != os.getpid() else self.view.say("loading")
        self.in_background(self.watch, job)

    def watch(self, job: training_job.Job) -> None:
        """Read the log every 0.4 s and redraw if it has grown."""
        try:
            seen = None
            while job.alive():
                if self.job is not job:
                    return
                rows = folders.read_log(job.folder)
                if rows != seen:
                    seen = self.rows = rows
                    self.tell(job)
                    self.draw(job.folder.name)
                if job.asked:
                    training_job.ask_to_stop(job)
                time.sleep(REDRAW_SECONDS)
            self.ended(job)
        finally:
            if self.job is job:
                self.job = None
                self.view.under_way(False)
            self.idle.set()

    def leave(self) -> None:
        """Stop watching; the training goes on."""
        self.job = None

    def tell(self, job: training_job.Job) -> None:
        """Show progress, speed and remaining time of a training."""
        step = folders.last_step(self.rows)
        if not step or job.asked:
            return
        now = time.monotonic()
        self.began = self.began or (now, step)
        seconds, steps = now - self.began[0], step - self.began[1]
        # From the run's own recipe, not from what has been typed since.
        guess = estimates.readouts(self.followed) if self.followed else None
        total = job.steps or (guess.steps if guess else None) or step
        each = seconds / steps if steps else None
        rate = guess.tokens_per_step / each if each and guess and guess.tokens_per_step else None
        losses = [row["loss"] for row in self.rows if "loss" in row]
        self.view.progress(step, total, losses[-1] if losses else None, each, rate, job.memory_bytes())

    def ended(self, job: training_job.Job) -> None:
        """Show how a training ended, and offer what can be done next."""
        # A stop request that came too late would stop the next run.
        (job.folder / folders.STOP).unlink(missing_ok=True)
        self.rows = folders.read_log(job.folder)
        self.draw(job.folder.name)
        self.job = None
        self.view.under_way(False)
        left = folders.summarize(job.folder)
        self.view.fresh.value = False
        self.list_runs()
        self.changed()
        for action in self.after:
            action()
        if reason := job.problem():
            self.view.say("failed", reason=reason)
        elif not isinstance(job, training_job.InProcess) and job.run and job.run.reused:
            self.view.say("reused")
        elif left.finished:
            self.view.say("done", step=left.step, loss="-" if left.loss is None else f"{left.loss:.3f}")
        elif job.asked or not isinstance(job, training_job.InProcess):
            self.view.say("stopped", step=left.step)
        else:
            self.view.say("ended", reason=curves.last_words(job.folder / folders.PANEL_OUTPUT))

    def draw(self, name: str = "") -> None:
        """Draw the current run and the one it is compared with."""
        drawn = {name or self.folder().name: self.rows, **self.compared}
        self.view.draw(*(curves.picture_and_legend(drawn, self.words) if any(drawn.values()) else (b"", "")))

    def list_runs(self) -> None:
        """Fill the lists of earlier runs."""
        with errors.speaking(self.words.lang):
            self.view.list_runs(folders.list_runs(self.root))

    def open(self, folder: Path | None) -> None:
        """Load an earlier run's settings into the fields and its curve into the plot."""
        if folder is None or self.job:
            return
        try:
            with errors.speaking(self.words.lang):
                self.form.load(folders.read_recipe(folder))
        except LabError as error:
            self.view.say("failed", reason=str(error))
            return
        self.rows = folders.read_log(folder)
        self.draw()

    def extend(self, folder: Path | None) -> None:
        """Set the fields to continue an earlier run's weights with its settings, in a new folder."""
        if folder is None or self.job:
            return
        try:
            with errors.speaking(self.words.lang):
                self.form.load(continuation(folder))
        except LabError as error:
            self.view.say("failed", reason=str(error))

    def compare_with(self, folder: Path | None) -> None:
        """Draw another run's curve as well; None removes it."""
        self.compared = {folder.name + " ": folders.read_log(folder)} if folder else {}
        self.draw()

    def take_free_folder(self) -> None:
        """Set the output folder to one that does not exist yet."""
        if self.form.recipe():
            self.form.controls["output_dir"].value = str(folders.free_name(self.folder()))

    def show_code(self) -> None:
        """Write the script for exactly these settings."""
        recipe = self.form.recipe()
        if recipe:
            try:
                with errors.speaking(self.words.lang):
                    self.view.show_code(to_script.script(folders.spelled_out(recipe)))
            except LabError as error:
                self.view.show_code(f"# {error}")

    def show(self) -> None:
        """Show the panel; headless (FTLAB_HEADLESS=1), train with the initial values and display the plot.

        Headless there is nobody to ask: if the folder holds another recipe's run, the next free name is used.

        Raises:
            LabError: headless, and the fields are wrong or the training failed.
        """
        if not course.headless():
            display(styled(self.box))
            return
        while (recipe := self.form.recipe()) and validation.state(recipe)[0] == "other":
            self.form.controls["output_dir"].value = str(folders.next_name(self.folder()))
        if recipe is None:
            key, message = next(iter(self.form.checked.messages.items()))
            raise LabError(message, key)
        with errors.speaking(self.words.lang):
            job = in_thread(recipe, False, self.words.lang)
            self.follow(job)
            self.wait()
        if job.error:
            raise job.error
        print(train_view.command(self.form.written()))
        if self.rows:
            display(Image(curves.picture({self.folder().name: self.rows})))

    def wait(self) -> None:
        """Wait until the training has ended; an interrupt of the kernel saves and stops the run."""
        # An Event: on Python 3.11 an interrupt inside Thread.join marks a running thread as dead.
        while not self.idle.is_set():
            try:
                self.idle.wait(0.2)
            except KeyboardInterrupt:
                self.stop()


def in_thread(recipe: Recipe, fresh: bool, lang: str) -> "InThread":
    """Start a training in a thread of this process; the slow imports happen here."""
    from ftlab.apps.board.thread_job import InThread

    return InThread(recipe, fresh, lang)


def continuation(folder: Path) -> dict[str, Any]:
    """Return the keys that continue an earlier run's weights with its settings, in a new folder.

    Raises:
        LabError: no recipe or no weights in the folder.
    """
    values = folders.read_recipe(folder) | {"output_dir": str(folders.free_name(folder))}
    weights = saved_weights.weights_of(folder)
    unfit: tuple[str, ...] = FIRST_RUN
    if not weights.is_adapter:
        values["model_name_or_path"] = str(weights.folder)
    else:
        values["adapter_name_or_path"] = str(folder)
        if values.get("finetuning_type", "lora") == "lora":
            # An explicit "all" is kept; otherwise every layer of the adapter would be listed by name.
            values.setdefault("lora_target", controls.default("lora_target"))
        else:
            # Other methods have their config in the adapter folder; as a recipe key it would be refused.
            unfit += ("peft_config", "lora_target", "additional_target")
    return {key: value for key, value in values.items() if key not in unfit}

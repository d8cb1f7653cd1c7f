"""A form with a button that starts long work on its recipe, with the command, the progress and the result."""

import html
import threading
import time
from collections.abc import Callable

import ipywidgets as widgets

from ftlab import errors
from ftlab.apps.board import train_view, validation
from ftlab.apps.board.background import Work, said
from ftlab.apps.board.form import Form
from ftlab.apps.board.named_widgets import actions, bad, button, empty, pre
from ftlab.apps.board.words import Words
from ftlab.errors import LabError
from ftlab.recipe.keys import Recipe
from ftlab.runs.watch import Watch

# Seconds between two updates of the elapsed time.
TICK_SECONDS = 0.5
# Steps of the progress bar.
BAR = 1000
# A watch's name for work without rows to count -> its name in words.toml.
PHASES = {"": "working", "loading": "working_loading", "preparing": "working_preparing"}


class Task:
    """Long work on a recipe.

    Args:
        form: the fields of the recipe that is worked on.
        verb: the command line's verb for the same work.
        name: the button's label in words.toml, and the class of the button and of the result.
        look: recipe -> what to show before the work starts (HTML); a LabError disables the button.
        blamed: the key beside which such an error is shown.
        act: recipe -> result (HTML), in a thread.
        hint: name in words.toml of the text that is shown before the first result.
        watching: recipe -> the Watch that follows the work and can stop it.
        extra: widgets between the form and the button.
        more: keys of the command beside those of the form.
        below: widgets below the result.
        settled: recipe -> why nothing is left to do, shown beside the field of `blamed`; "" where something is.
    Attributes:
        idle: set while no work is running.
        watch: the Watch of the current or last work, None before the first.
        outcome: the word, and what it takes, that say what the last work came to, None where it came to nothing; `act`
            may set another than "worked".
    """

    def __init__(
        self,
        words: Words,
        form: Form,
        verb: str,
        name: str,
        look: Callable[[Recipe], str],
        blamed: str,
        act: Callable[[Recipe], str],
        hint: str,
        watching: Callable[[Recipe], Watch],
        extra: tuple[widgets.Widget, ...] = (),
        more: Callable[[], dict[str, str]] = dict,
        below: tuple[widgets.Widget, ...] = (),
        settled: Callable[[Recipe], str] = lambda _: "",
    ) -> None:
        self.more, self.watching, self.settled = more, watching, settled
        self.watch: Watch | None = None
        self.outcome: tuple[str, dict[str, object]] | None = None
        self.words, self.form, self.verb, self.look, self.blamed, self.act = words, form, verb, look, blamed, act
        self.work = Work(words.lang, self.failed, self.ended)
        self.idle = self.work.idle
        self.start = button(words, name, "success", "play")
        self.status = widgets.HTML(html.escape(words("ready"))).add_class(f"ft-{name}-status")
        self.before = widgets.HTML().add_class(f"ft-{name}-before")
        self.command = widgets.HTML()
        self.result = widgets.HTML(empty(words(hint))).add_class(f"ft-{name}-result")
        self.start.on_click(lambda _: self.begin())
        self.stop = button(words, "stop_task", "danger", "stop")
        self.stop.on_click(lambda _: self.halt())
        self.stop.disabled = True
        command = widgets.Accordion([self.command])
        command.titles = (words("group_command"),)
        self.bar = widgets.IntProgress(max=BAR, layout={"display": "none"}).add_class(f"ft-{name}-bar")
        buttons = actions(self.start, self.stop, self.bar, self.status)
        settings, came = widgets.VBox([form.box, *extra]), widgets.VBox([self.before, self.result, *below, command])
        self.box = widgets.VBox([widgets.Box([settings, came]).add_class("ft-columns"), buttons])
        form.watchers.append(self.changed)
        self.changed()

    def changed(self) -> None:
        """Update command, figures, button and status from the fields."""
        busy = not self.idle.is_set()
        self.offer(busy)
        if not busy:
            recipe = self.form.recipe()
            if recipe and self.settled(recipe):
                self.say_outcome()
                return
            keys = [*self.form.checked.messages] or ([self.blamed] if self.start.disabled else [])
            self.say("wrong", keys=self.form.named(keys)) if keys else self.say("ready")

    def offer(self, busy: bool) -> None:
        """Show what Start would do, and enable it if it is possible and nothing else is running."""
        recipe, wrong = self.form.recipe(), ""
        self.before.value = ""
        if recipe:
            self.command.value = pre(train_view.command(self.form.written() | self.more(), verb=self.verb))
            if text := self.settled(recipe):
                self.form.note(self.blamed, text)
                self.start.disabled = self.stop.disabled = True
                return
            with errors.speaking(self.words.lang):
                try:
                    self.before.value = self.look(recipe)
                except LabError as error:
                    wrong = validation.short(error)
                except OSError as error:  # such as a folder that is deleted while it is looked at
                    wrong = said(error)
            self.form.tell(self.blamed, wrong)
        self.start.disabled = busy or recipe is None or bool(wrong)
        self.stop.disabled = not busy or self.stop.disabled

    def begin(self) -> None:
        """Start work on the recipe of the fields."""
        recipe = self.form.recipe()
        if recipe is None or self.start.disabled or not self.idle.is_set():
            return
        self.watch = self.watching(recipe)
        self.bar.value, self.bar.layout.display = 0, ""
        self.start.disabled, self.stop.disabled, self.result.value = True, False, ""
        self.outcome = ("worked", {})
        self.work.begin(self.run, recipe)

    def halt(self) -> None:
        """Ask the running work to stop."""
        if self.watch:
            self.watch.stop()
            self.stop.disabled = True

    def failed(self, reason: str) -> None:
        """Show why there is no result: an error, or the work was stopped."""
        self.outcome = None
        self.say("task_stopped" if self.watch and self.watch.requested() else "failed", reason=reason)

    def ended(self) -> None:
        """Enable the button again."""
        self.bar.layout.display = "none"
        self.offer(False)

    def run(self, recipe: Recipe) -> None:
        """Do the work, and show that it is running."""
        began, ended = time.monotonic(), threading.Event()
        clock = threading.Thread(target=self.tick, args=(began, ended), name="ftlab clock", daemon=True)
        clock.start()
        try:
            result = self.act(recipe)
        finally:
            ended.set()
            clock.join()
        self.result.value = result
        gone = train_view.clock(time.monotonic() - began)
        name, values = self.outcome or ("worked", {})
        self.outcome = (name, values | {"time": gone})
        self.say_outcome()

    def say_outcome(self) -> None:
        """Show the result of the last work, if there is one."""
        if self.outcome:
            self.say(self.outcome[0], **self.outcome[1])

    def take_over(self, before: "Task") -> None:
        """Take over another task's settings and the result of its last work."""
        self.form.take_over(before.form)
        self.outcome = before.outcome
        self.say_outcome()

    def tick(self, began: float, ended: threading.Event) -> None:
        """Show twice a second that the work is running."""
        while True:
            self.say_far(train_view.clock(time.monotonic() - began))
            if ended.wait(TICK_SECONDS):
                return

    def say_far(self, gone: str) -> None:
        """Show for how long the work has been running, and the progress of its current pass if known."""
        at = self.watch
        share = at.share if at else 0.0
        self.bar.value = round(BAR * share)
        if at and share:
            left = (time.monotonic() - at.began) * (1 - share) / share
            self.say("working_on", time=gone, share=f"{share:.0%}", left=train_view.clock(left))
        else:
            self.say(PHASES[at.phase if at else ""], time=gone)

    def say(self, name: str, /, **values: object) -> None:
        """Show a text of the table next to the button."""
        text = self.words(name, **values)
        content = bad(text) if name in ("failed", "wrong") else html.escape(text)
        self.status.value = f'<span role="status" data-state="{name}">{content}</span>'

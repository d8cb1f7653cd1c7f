"""A form with a button that starts long work on what stands in it: the command, how far it is, what came of it."""

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

# Seconds between two looks at the clock.
TICK_SECONDS = 0.5
# Steps of the progress bar.
BAR = 1000
# What a watch calls what has no rows to count -> the word for it.
PHASES = {"": "working", "loading": "working_loading", "preparing": "working_preparing"}


class Task:
    """Long work on a recipe.

    Args:
        form: the fields; its recipe is what is worked on.
        verb: the command line's verb for the same work.
        name: the button's word, and the class of the button and of what came of it.
        look: recipe -> what to say of it before it is started (HTML); a LabError of it blocks the button.
        blamed: the key beside which such an error is said.
        act: recipe -> what came of it (HTML), in a thread.
        hint: the word that stands where nothing has come of it yet.
        watching: recipe -> what watches the work and can stop it.
        extra: widgets between the form and the button.
        more: keys of the command beside those of the form.
        below: widgets below what came of it.
    Attributes:
        idle: set while nothing is under way.
        watch: what watches the present or last work, None before the first.
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
    ) -> None:
        self.more, self.watching = more, watching
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
        """Bring command, figures, button and what is said beside it in line with the fields."""
        busy = not self.idle.is_set()
        self.offer(busy)
        if not busy:
            keys = [*self.form.checked.messages] or ([self.blamed] if self.start.disabled else [])
            self.say("wrong", keys=self.form.named(keys)) if keys else self.say("ready")

    def offer(self, busy: bool) -> None:
        """Show what Start would do, and enable it if it is possible and nothing else is running."""
        recipe, wrong = self.form.recipe(), ""
        self.before.value = ""
        if recipe:
            self.command.value = pre(train_view.command(self.form.written() | self.more(), verb=self.verb))
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
        """Start the work that stands in the fields."""
        recipe = self.form.recipe()
        if recipe is None or self.start.disabled or not self.idle.is_set():
            return
        self.watch = self.watching(recipe)
        self.bar.value, self.bar.layout.display = 0, ""
        self.start.disabled, self.stop.disabled, self.result.value = True, False, ""
        self.outcome = ("worked", {})
        self.work.begin(self.run, recipe)

    def halt(self) -> None:
        """Ask the work under way to stop."""
        if self.watch:
            self.watch.stop()
            self.stop.disabled = True

    def failed(self, reason: str) -> None:
        """Show why the work has no result: an error, or a stop."""
        self.outcome = None
        self.say("task_stopped" if self.watch and self.watch.requested() else "failed", reason=reason)

    def ended(self) -> None:
        """Let the next work be started."""
        self.bar.layout.display = "none"
        self.offer(False)

    def run(self, recipe: Recipe) -> None:
        """Do the work, and show that it goes on."""
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
        """Show what the last work came to, where it came to anything."""
        if self.outcome:
            self.say(self.outcome[0], **self.outcome[1])

    def take_over(self, before: "Task") -> None:
        """Show another task's settings, and what its last work came to: of the next one nothing was asked yet."""
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
        """Show for how long the work is running, and how far its present pass is where that is known."""
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

"""Chat in the terminal: banner, commands, history, and answers that Ctrl-C stops."""

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ftlab import embedded, tokens
from ftlab.errors import LabError, fail, say
from ftlab.recipe import read as recipes
from ftlab.runs import chat
from ftlab.runs.engines import Loop, context_length

HISTORY = 1000
GREEDY = re.compile(r"temperature=0(\.0*)?")


@dataclass
class Conversation:
    """The conversation so far, and its model.

    Attributes:
        name: what the banner calls the model.
        generation: GenerationConfig fields of every answer.
        system: the system turn, or nothing.
        turns: user and assistant turns, in order.
    """

    name: str
    model: PreTrainedModel | Loop
    tokenizer: PreTrainedTokenizerBase
    generation: dict[str, Any] = field(default_factory=dict)
    system: list[chat.Message] = field(default_factory=list)
    turns: list[chat.Message] = field(default_factory=list)

    @property
    def context(self) -> int:
        """Tokens that the conversation and its next answer may take together."""
        return self.model.context if isinstance(self.model, Loop) else context_length(self.model.config)

    def fit(self) -> tuple[int, int]:
        """Drop the oldest turns until a quarter of the context, or the longest answer, is left for the next one.

        Returns:
            Tokens left, and turns dropped.
        Raises:
            LabError: the last question alone takes the context.
        """
        limit = min(self.generation.get("max_new_tokens", 256), self.context // 4)
        # A question goes with its answer.
        for dropped in range(0, len(self.turns), 2):
            room = self.context - len(tokens.prompt(self.tokenizer, [*self.system, *self.turns[dropped:]]))
            if room >= limit:
                break
        if room < 1:
            raise fail("terminal_context", tokens=self.context - room, context=self.context)
        self.turns = self.turns[dropped:]
        return room, dropped


def opened(
    model: str, adapter: str | None, backend: str | None, overrides: Sequence[str], trust_remote_code: bool
) -> Conversation:
    """Return a conversation with the model of a recipe, or with a model by its name.

    Args:
        overrides: `key=value`; `temperature=0` means greedy decoding.
    Raises:
        LabError: what `chat.load` raises; options that a recipe has keys for.
    """
    values = ["do_sample=false" if GREEDY.fullmatch(one) else one for one in overrides]
    values += ["trust_remote_code=true"] * trust_remote_code
    if model.endswith((".yaml", ".yml")):
        if adapter or backend:
            raise fail("flags_with_recipe", model=model)
        return of_recipe(model, recipes.load(model, values))
    if overrides:
        options = {"model_name_or_path": model, "adapter_name_or_path": adapter, "infer_backend": backend}
        conversation = of_recipe(model, recipes.load(options, values))
        # A model without a recipe answers greedily; a sampling key, too, is one that was asked for.
        keys = {value.partition("=")[0] for value in values}
        fields = {name: value for name, value in conversation.generation.items() if name in keys}
        sampled = not keys.isdisjoint({"temperature", "top_p", "top_k"}) and "do_sample=false" not in values
        conversation.generation = fields | ({"do_sample": True} if sampled else {})
        return conversation
    loaded = chat.load(model, adapter, backend or "huggingface", trust_remote_code=trust_remote_code)
    return Conversation(model, *loaded, system=chat.system_turn(None, adapter))


def of_recipe(name: str, recipe: Any) -> Conversation:
    """Return a conversation with a recipe's model."""
    model, tokenizer = chat.from_recipe(recipe)
    system = chat.system_turn(recipe.default_system, chat.weights_folder(recipe))
    return Conversation(name, model, tokenizer, chat.generation_of(recipe), system)


def talk(conversation: Conversation) -> None:
    """Answer line after line until /exit or the end of the input.

    Raises:
        LabError: the model has no chat template.
    """
    if conversation.tokenizer.chat_template is None:
        raise fail("tokens_no_template", where=conversation.name)
    print(say("terminal_banner", model=conversation.name, context=conversation.context))
    with history(embedded.cache_dir() / "chat_history"):
        for line in typed():
            if line.startswith("/"):
                if not command(conversation, line):
                    return
            else:
                answer(conversation, line)


def typed() -> Iterator[str]:
    """Yield what is typed, until the end of the input."""
    # None if the shell closed it (`<&-`).
    while sys.stdin is not None:
        try:
            line = input(say("terminal_prompt")).strip()
        except EOFError:
            return
        if line:
            yield line


@contextlib.contextmanager
def history(path: Path) -> Iterator[None]:
    """Keep an input history for the arrow keys across chats, if the input is a terminal."""
    if not (sys.stdin and sys.stdin.isatty()):
        yield
        return
    import readline

    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(HISTORY)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            readline.write_history_file(path)


def command(conversation: Conversation, line: str) -> bool:
    """Run a command; return False if the chat is over."""
    name, _, rest = line.partition(" ")
    if name == "/exit":
        return False
    if name not in COMMANDS:
        print(say("terminal_commands"))
        return True
    COMMANDS[name](conversation, rest.strip())
    return True


def clear(conversation: Conversation, rest: str) -> None:
    """Clear the conversation, except for the system turn."""
    conversation.turns = []
    print(say("terminal_cleared"))


def system(conversation: Conversation, rest: str) -> None:
    """Set the system turn, or show it if nothing is given; a new one begins a new conversation."""
    if rest:
        conversation.system, conversation.turns = [{"role": "system", "content": rest}], []
    print(say("terminal_system", text=conversation.system[0]["content"] if conversation.system else "-"))


def save(conversation: Conversation, rest: str) -> None:
    """Append the conversation to a file, as a line that a data set of `messages` can hold."""
    if not rest or not conversation.turns:
        print(say("terminal_save"))
        return
    row = {"messages": [*conversation.system, *conversation.turns]}
    try:
        with Path(rest).expanduser().open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    except OSError as error:
        print(say("terminal_not_saved", file=rest, reason=error.strerror or error))
        return
    print(say("terminal_saved", file=rest, turns=len(conversation.turns)))


COMMANDS: dict[str, Callable[[Conversation, str], None]] = {"/clear": clear, "/system": system, "/save": save}


def answer(conversation: Conversation, question: str) -> None:
    """Print the answer to a question as it is generated; Ctrl-C stops it and keeps the part so far."""
    conversation.turns.append({"role": "user", "content": question})
    try:
        room, dropped = conversation.fit()
    except LabError as error:
        print(error)
        conversation.turns.pop()
        return
    if dropped:
        print(say("terminal_dropped", turns=dropped, context=conversation.context))
    limit = min(conversation.generation.get("max_new_tokens", 256), room)
    fields = conversation.generation | {"max_new_tokens": limit}
    messages, text = [*conversation.system, *conversation.turns], ""
    try:
        for piece in chat.stream(conversation.model, conversation.tokenizer, messages, **fields):
            print(piece, end="", flush=True)
            text += piece
    except KeyboardInterrupt:
        print(say("terminal_stopped"), end="")
    print()
    if text.strip():
        conversation.turns.append({"role": "assistant", "content": text.strip()})
    else:
        # Templates refuse an empty answer.
        conversation.turns.pop()

"""Ollama's Modelfile for a GGUF file: its path, chat template, system prompt and stop strings."""

from transformers import PreTrainedTokenizerBase

from ftlab import answers
from ftlab.errors import LabError
from ftlab.rendering import render
from ftlab.tokens import adds_bos

QUOTES = '"' * 3
# Placeholders for texts, to find what the template writes around them.
SYSTEM, USER, ANSWER, AGAIN, LAST = "\ue0f1", "\ue0f2", "\ue0f3", "\ue0f4", "\ue0f5"


def text(name: str, tokenizer: PreTrainedTokenizerBase, default_system: str = "") -> str:
    """Return the Modelfile for a GGUF file in the same folder.

    Ollama has its own template language. If a chat template is more than a sequence of turns, no
    template is written: Ollama then uses the one in the file, if it recognizes it.

    Args:
        default_system: the system prompt that the model was trained with; "" for the chat template's own.
    """
    lines = [f"FROM ./{name}"]
    if tokenizer.chat_template is None:
        return "\n".join([*lines, ""])
    template, own_system = turns(tokenizer)
    if template:
        lines.append(f'TEMPLATE """{template}"""')
    if system := default_system or own_system:
        lines.append(system_line(system))
    end = answers.end_of_turn(tokenizer).strip()
    return "\n".join([*lines, *([f'PARAMETER stop "{end}"'] if end else []), ""])


def system_line(system: str) -> str:
    """Return Ollama's instruction for a system prompt, or a comment if its syntax cannot express it.

    Quotes cannot be escaped: a text in triple quotes ends at the first line that ends with three.
    """
    if any(line.rstrip().endswith(QUOTES) for line in system.splitlines()[:-1]):
        return "# The system prompt has a line that ends with three quotes, which no Modelfile holds: set it in Ollama"
    return f"SYSTEM {QUOTES}{system}{QUOTES}"


def turns(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Return a chat template in Ollama's language, and its default system prompt.

    Both are "" if the template is not a plain sequence of turns.
    """
    roles = ("system", "user", "assistant", "user", "assistant")
    texts = (SYSTEM, USER, ANSWER, AGAIN, LAST)
    try:
        whole = render(tokenizer, [{"role": role, "content": one} for role, one in zip(roles, texts, strict=True)])
        unasked = render(tokenizer, [{"role": "user", "content": USER}]).partition(USER)[0]
    except LabError:
        return "", ""
    parts = []
    for one in texts:
        before, _, whole = whole.partition(one)
        parts.append(before)
    opening, after_system, to_answer, after_answer, again = parts
    if tokenizer.bos_token and adds_bos(tokenizer):
        # llama.cpp adds the bos token itself.
        opening, unasked = (part.removeprefix(tokenizer.bos_token) for part in (opening, unasked))
    begin_user = after_answer.removeprefix(whole)
    end_system = after_system.removesuffix(begin_user)
    before_user = unasked.removesuffix(begin_user)
    own_system = before_user.removeprefix(opening).removesuffix(end_system)
    plain = (
        after_answer.startswith(whole)
        and again == to_answer
        and after_system.endswith(begin_user)
        and unasked == before_user + begin_user
        and before_user == (opening + own_system + end_system if own_system else "")
    )
    written = "".join((*parts, own_system))
    if not plain or '"""' in written or "{{" in written:
        return "", ""
    return (
        f"{{{{ if .System }}}}{opening}{{{{ .System }}}}{end_system}{{{{ end }}}}"
        f"{{{{ if .Prompt }}}}{begin_user}{{{{ .Prompt }}}}{to_answer}{{{{ end }}}}{{{{ .Response }}}}{whole}"
    ), own_system

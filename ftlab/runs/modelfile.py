"""The Modelfile of Ollama beside a GGUF file: the file, the chat template as Ollama writes one, where answers end."""

from transformers import PreTrainedTokenizerBase

from ftlab import answers
from ftlab.errors import LabError
from ftlab.rendering import render

# Stand for what is said, to find what the template writes around it.
SYSTEM, USER, ANSWER, AGAIN, LAST = "\ue0f1", "\ue0f2", "\ue0f3", "\ue0f4", "\ue0f5"


def text(name: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the Modelfile for a GGUF file in the same folder.

    Ollama has a template language of its own. Where a chat template is more than turns one after the other, nothing
    is said: Ollama then takes the template in the file, as far as it knows it.
    """
    lines = [f"FROM ./{name}"]
    if tokenizer.chat_template is None:
        return "\n".join([*lines, ""])
    if template := turns(tokenizer):
        lines.append(f'TEMPLATE """{template}"""')
    end = answers.end_of_turn(tokenizer).strip()
    return "\n".join([*lines, *([f'PARAMETER stop "{end}"'] if end else []), ""])


def turns(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a chat template in Ollama's language, "" where it is not a plain sequence of turns."""
    roles = ("system", "user", "assistant", "user", "assistant")
    said = (SYSTEM, USER, ANSWER, AGAIN, LAST)
    try:
        whole = render(tokenizer, [{"role": role, "content": one} for role, one in zip(roles, said, strict=True)])
    except LabError:
        return ""
    parts = []
    for one in said:
        before, _, whole = whole.partition(one)
        parts.append(before)
    opening, after_system, to_answer, after_answer, again = parts
    begin_user = after_answer.removeprefix(whole)
    plain = after_answer.startswith(whole) and again == to_answer and after_system.endswith(begin_user)
    if not plain or '"""' in "".join(parts):
        return ""
    end_system = after_system.removesuffix(begin_user)
    # llama.cpp adds the token that begins a text.
    opening = opening.removeprefix(tokenizer.bos_token or "")
    return (
        f"{{{{ if .System }}}}{opening}{{{{ .System }}}}{end_system}{{{{ end }}}}"
        f"{{{{ if .Prompt }}}}{begin_user}{{{{ .Prompt }}}}{to_answer}{{{{ end }}}}{{{{ .Response }}}}{whole}"
    )

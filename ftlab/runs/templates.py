"""`template:` names a family of chat templates; the model's own is what counts, so the two are compared."""

import difflib
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from ftlab.errors import fail


class Family(NamedTuple):
    """Chat templates that look alike: LLaMA-Factory's names for them, and the strings all of them contain."""

    names: tuple[str, ...]
    marks: tuple[str, ...]


FAMILIES = (
    Family(
        ("chatml", "qwen", "qwen3", "qwen3_nothink", "smollm", "smollm2", "yi", "internlm2", "hermes", "hunyuan"),
        ("<|im_start|>", "<|im_end|>"),
    ),
    Family(("llama3",), ("<|start_header_id|>", "<|eot_id|>")),
    Family(("llama2", "llama2_zh"), ("[INST]", "<<SYS>>")),
    Family(("mistral", "mistral_small", "ministral"), ("[INST]",)),
    Family(("gemma", "gemma2", "gemma3"), ("<start_of_turn>",)),
    Family(("glm4", "glm4_moe", "glmz1"), ("[gMASK]", "<|user|>")),
    Family(("deepseek3", "deepseekr1"), ("<｜User｜>", "<｜Assistant｜>")),
    Family(("baichuan2",), ("<reserved_106>",)),
    Family(("phi4",), ("<|im_sep|>",)),
    Family(("phi", "phi_small"), ("<|user|>", "<|end|>")),
    Family(("olmo",), ("<|user|>", "<|assistant|>")),
    Family(("zephyr",), ("<|user|>", "<|assistant|>")),
    Family(("vicuna",), ("USER:", "ASSISTANT:")),
    Family(("alpaca",), ("### Instruction:", "### Response:")),
    Family(("default",), ("Human: ", "Assistant:")),
)
# For a model that has no template of its own: the three that base models are usually tuned with.
FOR_BASE_MODELS = {
    "chatml": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "alpaca": (
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ '### Instruction:\n' + message['content'] + '\n\n' }}{% elif message['role'] == 'assistant' %}"
        "{{ '### Response:\n' + message['content'] + eos_token + '\n\n' }}{% else %}"
        "{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
    ),
    "default": (
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ 'Human: ' + message['content'] + '\n' }}{% elif message['role'] == 'assistant' %}"
        "{{ 'Assistant: ' + message['content'] + eos_token + '\n' }}{% else %}"
        "{{ 'System: ' + message['content'] + '\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
    ),
}


def apply(name: str | None, tokenizer: PreTrainedTokenizerBase) -> str:
    """Compare `template: name` with the model's own chat template; give one to a base model that has none.

    Returns:
        A note for the user, "" when there is nothing to say.
    Raises:
        LabError: the family is another one (the right value is named), or nobody knows the name.
    """
    if name in (None, "empty"):
        return ""
    family = family_of_name(name)
    own = tokenizer.chat_template
    if own is None:
        if name not in FOR_BASE_MODELS:
            raise fail("recipe_template_none", where="template", name=name, known=", ".join(FOR_BASE_MODELS))
        tokenizer.chat_template = FOR_BASE_MODELS[name]
        return f"template: {name}: the model has no chat template of its own, this one is saved with it"
    texts = own if isinstance(own, str) else " ".join(own.values())
    if all(mark in texts for mark in family.marks):
        return ""
    right = right_name(texts, tokenizer.name_or_path)
    raise fail("recipe_template", where="template", name=name, family=right, right=right or "-")


def family_of_name(name: str) -> Family:
    """Return the family a name belongs to."""
    family = next((family for family in FAMILIES if name in family.names), None)
    if family is None:
        names = [name for family in FAMILIES for name in family.names]
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or ["chatml", "llama3", "mistral"]
        raise fail("recipe_template_unknown", where="template", name=name, nearest=", ".join(near))
    return family


def right_name(template: str, model: str) -> str:
    """Return the name to write for a chat template: the family's name that the model's own contains, or its first."""
    family = next((family for family in FAMILIES if all(mark in template for mark in family.marks)), None)
    if family is None:
        return ""
    spoken = Path(model).name.lower()
    return next((name for name in family.names if name in spoken), family.names[0])

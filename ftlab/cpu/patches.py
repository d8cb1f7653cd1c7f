"""Every name of a library that ftlab replaces, in one table; each replacement is remembered and can be undone.

The libraries have no settings for these, and most of the names are private: a new version may remove one silently.
Replacing a name that no longer exists would have no effect and no error, so `replace` refuses it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from ftlab.errors import fail

# Replaced in the whole process, only if no object of a single model holds the name: functions that are looked up in a
# module, and classes whose objects are created later.
IN_THE_PROCESS = {
    "trl.trainer.utils": ("_CHUNKED_LOGPROB_CHUNK_SIZE", "_use_triton", "_ChunkedLogProbFunction"),
    "torch.nn.modules.linear.Linear": ("forward",),
    "transformers.trainer.Trainer": ("train",),
}
# Replaced in the objects of one model: PEFT's LoRA layers and a decoder's body (forward), a language model (generate),
# bitsandbytes' 4-bit layers (their flag).
IN_A_MODEL = ("forward", "generate", "support_avx512bf16_for_cpu")

ABSENT = object()
# Owner -> name -> how to restore it. Owners are held weakly: a patched model is freed like any other.
_undo: WeakKeyDictionary[Any, dict[str, Callable[[Any], None]]] = WeakKeyDictionary()


def replace(owner: Any, name: str, value: Any) -> None:
    """Replace an attribute of a module, a class or one object of a model, until `undo`.

    Raises:
        LabError: the library has no such name (any more).
    """
    allowed = IN_THE_PROCESS[full_name(owner)] if is_shared(owner) else IN_A_MODEL
    if name not in allowed:
        raise KeyError(f"{full_name(owner)}.{name} is missing in {__name__}")
    current(owner, name)
    # The first recorded value is the library's; a second replacement must not overwrite it.
    remember(owner, name, partial(put_back, name=name, value=vars(owner).get(name, ABSENT)))
    setattr(owner, name, value)


def current(owner: Any, name: str) -> Any:
    """Return an attribute of a module, a class or one object of a model.

    Raises:
        LabError: the library has no such name (any more).
    """
    # A class must have the name itself: every class of modules inherits some `forward`.
    if not (name in vars(owner) if is_shared(owner) else hasattr(owner, name)):
        raise fail("cpu_name_gone", name=f"{full_name(owner)}.{name}")
    return getattr(owner, name)


def remember(owner: Any, name: str, restore: Callable[[Any], None]) -> None:
    """Call `restore(owner)` on `undo`; it must not reference the owner, which would never be freed."""
    _undo.setdefault(owner, {}).setdefault(name, restore)


def put_back(owner: Any, name: str, value: Any) -> None:
    """Restore an attribute's old value; one that the owner only inherited is deleted."""
    delattr(owner, name) if value is ABSENT else setattr(owner, name, value)


def undo() -> None:
    """Restore everything that was replaced, in models and in the process."""
    for owner in list(_undo):
        restore(owner)


def restore(owner: Any) -> None:
    """Restore everything that was replaced in one owner."""
    for put in _undo.pop(owner, {}).values():
        put(owner)


def is_shared(owner: Any) -> bool:
    """Return True for an owner that the whole process shares: a module or a class."""
    return isinstance(owner, type | ModuleType)


def full_name(owner: Any) -> str:
    """Return the import path of a module, a class, or an object's class."""
    if isinstance(owner, ModuleType):
        return owner.__name__
    kind = owner if isinstance(owner, type) else type(owner)
    return f"{kind.__module__}.{kind.__qualname__}"


def shared() -> list[tuple[Any, str, Any]]:
    """Return (owner, name, current value) of everything replaced in the whole process."""
    owners = [owner for owner in list(_undo) if is_shared(owner)]
    return [(owner, name, vars(owner)[name]) for owner in owners for name in _undo[owner]]


@contextmanager
def own_process() -> Iterator[None]:
    """Start with nothing replaced in the process, and restore the earlier replacements afterwards."""
    before = shared()
    for owner in {owner for owner, _, _ in before}:
        restore(owner)
    try:
        yield
    finally:
        for owner in {owner for owner, _, _ in shared()}:
            restore(owner)
        for owner, name, value in before:
            replace(owner, name, value)

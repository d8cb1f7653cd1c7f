"""Faster imports of torch, transformers and PEFT."""

import contextlib
import gc
import os
import sys
import threading
from collections.abc import Iterator

NO_COMPILER, NO_BARS = "TORCHDYNAMO_DISABLE", "TQDM_DISABLE"
# Two threads that import transformers at once may each get modules that the other has half imported.
ONE_AT_A_TIME = threading.RLock()


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Import libraries without garbage collection, and without torch's compiler; once torch is imported, do nothing.

    They create half a million permanent objects; traversing them repeatedly would add a second to the startup, so
    they are also excluded from later collections. PEFT imports bitsandbytes, whose `torch.compile` decorators load
    torch._inductor: 0.7 s for functions that its kernels for a CPU and for CUDA hardly ever call. torch reads the
    variable when a function is decorated, so that `torch.compile` works as ever after the imports. tqdm, too, reads its
    variable when it is imported: in a log file, a progress bar's hundred states are noise.
    """
    values = {NO_COMPILER: "1"} | ({} if sys.stderr.isatty() else {NO_BARS: os.environ.get(NO_BARS, "1")})
    with ONE_AT_A_TIME:
        if "torch" in sys.modules:
            yield
            return
        own = {name: os.environ.pop(name) for name in values if name in os.environ}
        os.environ |= values
        gc.disable()
        try:
            yield
        finally:
            gc.freeze()
            gc.enable()
            for name in values:
                del os.environ[name]
            os.environ |= own

"""ftlab: the instruments of a course on fine-tuning language models."""

import logging
import warnings

# On a CPU it warns at every import that it has no kernels for other kinds of processors.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
# trl and peft still read and call what transformers 5.23 has renamed; users can do nothing about it.
warnings.filterwarnings("ignore", r"`(is_)?gradient_checkpointing(_enable)?` is deprecated", FutureWarning)

__version__ = "0.1.0"

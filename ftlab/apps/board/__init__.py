"""The panels, in notebooks and as a page."""

import logging

# On a CPU it says at every import that it has no kernels for another kind of processor.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

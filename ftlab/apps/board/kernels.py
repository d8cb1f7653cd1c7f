"""The kernels of the page's server: what a visit leaves in the server is freed when its kernel ends."""

import gc
from typing import Any

from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager


class Kernels(AsyncMappingKernelManager):
    """Jupyter's own, for `VoilaConfiguration.multi_kernel_manager_class`."""

    async def shutdown_kernel(self, *arguments: Any, **named: Any) -> None:  # type: ignore[override]  # Jupyter awaits it
        """End a kernel, then free what refers to itself.

        Python looks at old objects only when a quarter as many new ones have come: beside the 200,000 of the server,
        the thousand of a visit, with the page and the messages that they hold, would wait for fifty visits.
        """
        await super().shutdown_kernel(*arguments, **named)
        gc.collect()

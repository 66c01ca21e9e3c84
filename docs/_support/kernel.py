"""One kernel for all pages: to start one for each took most of the time of a build.

There is no public way to say so: the client below is myst-nb's own, whose versions pyproject.toml bounds for this.
"""

from __future__ import annotations

from myst_nb.core.execute import inline
from nbclient.util import run_sync


class OneKernel(inline.ModifiedNotebookClient):
    """Executes a page in the kernel that the first one started."""

    manager = None

    def create_kernel_manager(self):
        if OneKernel.manager is None:
            OneKernel.manager = super().create_kernel_manager()
            self.start_new_kernel()
        self.km = OneKernel.manager
        self.start_new_kernel_client()
        folder = self.resources["metadata"]["path"]
        request = f"import fresh; fresh.begin({folder!r})"
        reply = self.wait_for_reply(self.kc.execute(request, silent=True))
        assert reply["content"]["status"] == "ok", reply["content"]
        return self.km

    async def _leave(self):
        self.kc.stop_channels()
        self.kc = self.km = None

    _cleanup_kernel = run_sync(_leave)


def end(*_) -> None:
    """The kernel ends with the build."""
    if OneKernel.manager is not None:
        run_sync(OneKernel.manager.shutdown_kernel)(now=True)
        OneKernel.manager = None


def share() -> None:
    """Pages are executed in one kernel from here on."""
    inline.ModifiedNotebookClient = OneKernel

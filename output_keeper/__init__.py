"""output-keeper: a notebook keeps its outputs while nobody looks.

The package's folders are the layers of docs/design.md; an import only points down:
``cli`` → ``server`` | ``keeper`` → ``record`` → ``protocol`` → ``errors``.

This module stays light, because the kernel provisioner is imported wherever a kernelspec is listed.
"""

from output_keeper._version import __version__ as __version__


def _jupyter_server_extension_points() -> list[dict[str, object]]:
    """Tell Jupyter Server where the extension lives (called once, at its start)."""
    from output_keeper.server.extension import OutputKeeper

    return [{"module": "output_keeper.server.extension", "app": OutputKeeper}]

"""The Flower ServerApp: it hands Flower's grid to the coordinator, which does the rest."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from causaldao.errors import ConfigurationError

Runner = Callable[[Grid, Context], None]
_LOG = logging.getLogger(__name__)


def server_app(runner: Runner) -> ServerApp:
    """A ServerApp that does what ``runner`` makes of a grid and Flower's context."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        runner(grid, context)

    return app


def _deployed(grid: Grid, context: Context) -> None:
    """A study of the coordinator whose folder the process was started for."""
    from causaldao.server.conduct import conduct
    from causaldao.server.home import HOME_VARIABLE, Home

    folder = os.environ.get(HOME_VARIABLE)
    if not folder:
        raise ConfigurationError(f"The variable {HOME_VARIABLE} is not set: causaldao coordinator start sets it.")
    conduct(Home.open(Path(folder)), grid, str(context.run_config["study"]))


app = server_app(_deployed)

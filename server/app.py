"""The Flower ServerApp: it hands Flower's grid to the coordinator, which does the rest."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from causaldao.server.coordinator import Coordinator

Opener = Callable[[Grid, Context], Coordinator]


def server_app(opener: Opener) -> ServerApp:
    """A ServerApp that runs the coordinator that ``opener`` makes of a grid and Flower's context."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        opener(grid, context).run()

    return app

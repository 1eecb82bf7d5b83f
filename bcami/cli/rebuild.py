"""rebuild NODE: a damaged ledger is fetched again from the peers."""

from typing import Annotated

import typer

from bcami.cli.options import HOME_DEFAULT, Home, Json, home_paths
from bcami.cli.screen import SCREEN


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(rebuild)


def rebuild(
    name: Annotated[str, typer.Argument(metavar="NODE", help="The node whose ledger is damaged.")],
    home: Home = HOME_DEFAULT,
    json: Json = False,
) -> None:
    """Rebuild a node's ledger from its peers. Its promises are kept, the old ledger is put aside.

    Example: bcami rebuild node3
    """
    from bcami.processes.home import open_home
    from bcami.processes.rebuild import rebuild_node

    paths = home_paths(home)
    network, _ = open_home(paths)
    with SCREEN.progress(f"rebuilding {name}") as progress:
        rebuilt = rebuild_node(paths, network, name, lambda item: progress(f"{item.name} is ready"), progress)
    SCREEN.line(f"{name} is back at height {rebuilt.height}")
    if rebuilt.put_aside is not None:
        SCREEN.line(f"the former ledger is in {rebuilt.put_aside}; delete it when nobody wants to look at it")
    SCREEN.result(
        "bcami/rebuild/1",
        {
            "name": name,
            "height": rebuilt.height,
            "put_aside": str(rebuilt.put_aside) if rebuilt.put_aside is not None else None,
        },
    )

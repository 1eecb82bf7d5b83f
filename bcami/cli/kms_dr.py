"""kms dr: demand-response projects and who takes part."""

from typing import Annotated

import typer

from bcami.cli.options import HOME_DEFAULT, Home, Json, home_paths
from bcami.cli.screen import SCREEN

dr = typer.Typer(no_args_is_help=True, help="Demand-response projects and who takes part.")

Project = Annotated[int, typer.Argument(min=1, metavar="NUMBER", help="The project.")]
Meter = Annotated[str, typer.Argument(metavar="METER", help="Meter id or HID.")]


@dr.command("list")
def list_projects(home: Home = HOME_DEFAULT, json: Json = False) -> None:
    """Show all projects.

    Example: bcami kms dr list
    """
    from bcami.cli.ask import mdms_get

    told = mdms_get(home_paths(home), "/v1/kms/projects")
    SCREEN.table(
        ("project", "name", "members", "excludes"),
        [
            (row["project"], row["name"], row["members"], ", ".join(map(str, row["excludes"])))
            for row in told["projects"]
        ],
    )
    SCREEN.result("bcami/kms_projects/1", told)


@dr.command()
def publish(
    project: Project,
    name: Annotated[str, typer.Argument(help="What meters' owners see.")],
    excludes: Annotated[
        list[int] | None, typer.Option("--excludes", metavar="NUMBER", help="Cannot be joined beside this; repeat.")
    ] = None,
    home: Home = HOME_DEFAULT,
    json: Json = False,
) -> None:
    """Open a project and tell all meters.

    Example: bcami kms dr publish 1 "evening peak"
    """
    from bcami.cli.ask import mdms_post

    body = {"project": project, "name": name, "excludes": excludes or []}
    told = mdms_post(home_paths(home), "/v1/kms/projects", body)
    SCREEN.line(f"project {project} is published")
    SCREEN.result("bcami/kms_publish/1", told)


@dr.command()
def join(project: Project, meter: Meter, home: Home = HOME_DEFAULT, json: Json = False) -> None:
    """Let a meter take part.

    Example: bcami kms dr join 1 MAC000002
    """
    _change(home, project, meter, "join")


@dr.command()
def leave(project: Project, meter: Meter, home: Home = HOME_DEFAULT, json: Json = False) -> None:
    """Take a meter out: those who stay get keys that it cannot have.

    Example: bcami kms dr leave 1 MAC000002
    """
    _change(home, project, meter, "leave")


def _change(home: str, project: int, meter: str, what: str) -> None:
    from bcami.cli.ask import mdms_post

    told = mdms_post(home_paths(home), f"/v1/kms/projects/{project}/{what}", {"meter": meter})
    SCREEN.line(f"{meter}: {what} of project {project} within about a second")
    SCREEN.result(f"bcami/kms_{what}/1", told)

"""`steersman projects`: projects and their members, as the operator makes and ends them."""

import json
import sys
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from server.columns import columns
from server.logins import Logins
from server.projects import Projects
from server.roles import Role
from server.store import DEFAULT_ACCOUNT, DEFAULT_EMAIL, Store
from server.store_command import add_place, run_on_store

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_parser(subparsers: "_SubParsersAction[ArgumentParser]") -> ArgumentParser:
    """Add `projects` to the command line; its namespace goes to `run`."""
    parser = subparsers.add_parser(
        "projects", help="projects, whose things are kept apart, and their members"
    )
    add_place(parser)
    commands = parser.add_subparsers(dest="projects_command", required=True)
    add = commands.add_parser(
        "add", help="make a project; `steersman keys create --project KEY` makes its keys"
    )
    add.add_argument("key", metavar="KEY", help='as in `model: "KEY/model"`')
    add.add_argument("--name", help="for people")
    add.add_argument("--owner", metavar="EMAIL", default=DEFAULT_EMAIL, help="an account (the operator's)")
    listing = commands.add_parser("list", help="all projects with their members")
    listing.add_argument("--json", action="store_true", help="as a JSON list")
    member = commands.add_parser("member", help="add an account to a project, or change its role")
    member.add_argument("key", metavar="KEY")
    member.add_argument("email", metavar="EMAIL")
    member.add_argument("role", choices=[*Role, "none"], help="none: no member any more")
    delete = commands.add_parser("delete", help="delete a project with its keys and all that belongs to it")
    delete.add_argument("key", metavar="KEY")
    return parser


def run(args: Namespace) -> int:
    """Exit status: 0 done, 1 not possible and standard error says why."""
    return run_on_store("projects", args, _act)


async def _act(store: Store, args: Namespace) -> None:
    projects = Projects(store.database)
    match args.projects_command:
        case "add":
            owner = await _account(store, args.owner)
            made = await projects.create(owner, key=args.key, name=args.name or args.key)
            # The id alone on standard output, so that `ID=$(steersman projects add KEY)` works.
            sys.stdout.write(f"{made.id}\n")
        case "list":
            sys.stdout.write(await _listed(projects, as_json=args.json))
        case "member":
            await _set_member(store, projects, args)
        case "delete":
            await projects.delete((await projects.named(args.key)).id)
            sys.stdout.write(f"Deleted {args.key}, with its keys and all that belonged to it.\n")


async def _account(store: Store, email: str) -> str:
    if email == DEFAULT_EMAIL:
        return DEFAULT_ACCOUNT
    login = await Logins(store.database).find(email)
    if login is None:
        raise ValueError(f"There is no account of {email!r}: `steersman accounts add {email}` makes one.")
    return login.account.id


async def _set_member(store: Store, projects: Projects, args: Namespace) -> None:
    project = await projects.named(args.key)
    if args.role == "none":
        await projects.remove_member(project.id, await _account(store, args.email))
        sys.stdout.write(f"{args.email} is no member of {project.key} any more.\n")
        return
    member = await projects.set_member(project.id, args.email, Role(args.role))
    sys.stdout.write(
        f"{member.email} is {member.role} of {project.key}. Running servers notice in seconds.\n"
    )


async def _listed(projects: Projects, *, as_json: bool) -> str:
    found = [(project, await projects.members(project.id)) for project in await projects.all()]
    if as_json:
        items = [
            {
                "id": project.id,
                "key": project.key,
                "name": project.name,
                "default_model": project.default_model,
                "created_at": project.created_at.isoformat(),
                "members": [{"email": member.email, "role": member.role} for member in members],
            }
            for project, members in found
        ]
        return json.dumps(items, indent=2, ensure_ascii=False) + "\n"
    if not found:
        return "No projects yet: `steersman projects add KEY` makes one.\n"
    rows = [("KEY", "NAME", "MODEL", "CREATED", "MEMBERS")]
    rows += [
        (
            project.key,
            project.name,
            project.default_model or "default",
            f"{project.created_at:%Y-%m-%d %H:%M}Z",
            ", ".join(f"{member.email} ({member.role})" for member in members),
        )
        for project, members in found
    ]
    return columns(rows)

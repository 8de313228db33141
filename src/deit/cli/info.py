"""``deit info``."""

from __future__ import annotations

from typing import Annotated

import typer

from deit.cli.common import JsonOption, print_json, print_table


def info(
    bundle: Annotated[
        str | None, typer.Argument(metavar="BUNDLE", help="Exported model whose runtime to show.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show hardware, installed runtimes, and which runtime is used and why."""
    from deit.inference.runtime_selection import describe_machine

    content = describe_machine(bundle)
    if as_json:
        print_json(content)
        return
    typer.echo(f"deit {content['deit']}, Python {content['python']}")
    typer.echo(f"{content['processor']}, {content['cores']} cores; bf16 in hardware: {'yes' if content['bf16'] else 'no'}")
    typer.echo()
    rows = [[row["name"], row["version"] or f"not installed: {row['remedy']}", row["runs"]] for row in content["runtimes"]]
    print_table(["runtime", "version", "runs"], rows)
    typer.echo()
    rows = [[row["what"], row["runtime"] or "none", row["reason"]] for row in content["choices"]]
    print_table(["model", "runtime", "reason"], rows)

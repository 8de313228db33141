"""``deit info``."""

from __future__ import annotations

from typing import Annotated

import typer

from deit.cli.output import Output, print_json, with_output


@with_output
def info(
    bundle: Annotated[
        str | None, typer.Argument(metavar="BUNDLE", help="Exported model whose runtime to show.", show_default=False)
    ] = None,
    *,
    output: Output,
) -> None:
    """Show hardware, installed runtimes, and which runtime is used and why."""
    from deit.inference.runtime_selection import describe_machine

    content = describe_machine(bundle)
    if output.as_json:
        print_json(content)
        return
    runtimes = [[row["name"], row["version"] or f"not installed: {row['remedy']}", row["runs"]] for row in content["runtimes"]]
    choices = [[row["what"], row["runtime"] or "none", row["reason"]] for row in content["choices"]]
    if not output.for_people:  # one table
        rows = [*(["runtime", *row] for row in runtimes), *(["model", *row] for row in choices)]
        output.table(["kind", "name", "value", "detail"], rows)
        return
    output.line(f"deit {content['deit']}, Python {content['python']}")
    output.line(f"{content['processor']}, {content['cores']} cores; bf16 in hardware: {'yes' if content['bf16'] else 'no'}")
    output.line()
    output.table(["runtime", "version", "runs"], runtimes)
    output.line()
    output.table(["model", "runtime", "reason"], choices)

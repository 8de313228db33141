"""``deit model``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from deit.cli.common import RevisionOption
from deit.cli.output import Column, Output, print_json, with_output

app = typer.Typer(help="List, show and publish models.", no_args_is_help=True)


@app.callback()
def model() -> None:
    """List, show and publish models."""


@app.command("list")
@with_output
def list_models(*, output: Output) -> None:
    """List the published models with their size and ImageNet accuracy."""
    from deit.variants import VARIANTS

    if output.as_json:
        print_json([asdict(row) for row in VARIANTS.values()])
        return
    columns = ("model", Column("parameters", lambda count: f"{count / 1e6:.1f} M"), Column("GMACs", name="gmacs"))
    rows = [[row.name, row.parameters, row.gmacs, row.top1] for row in VARIANTS.values()]
    output.table([*columns, Column("top-1", name="top1")], rows)


@app.command("show")
@with_output
def show_model(
    name: Annotated[str, typer.Argument(help="Name from `deit model list`, or a saved model of any format.")],
    revision: RevisionOption = None,
    *,
    output: Output,
) -> None:
    """Show the configuration of a model and, for a saved one, its format."""
    from deit.config import variant_config
    from deit.variants import VARIANTS

    if name in VARIANTS:
        content, source = variant_config(name).to_dict(), {}
    else:
        from deit.checkpoints.reading import open_checkpoint
        from deit.hub import fetch

        checkpoint = open_checkpoint(fetch(name, revision=revision))
        content = checkpoint.config.to_dict()
        source = {"format": checkpoint.layout, "class": checkpoint.architecture, "path": str(checkpoint.path)}
        if checkpoint.notes:
            source["notes"] = "; ".join(checkpoint.notes)
    if output.as_json:
        print_json({**content, **source})
        return
    classes = content.pop("id2label")
    content.pop("label2id")
    rows = [[key, str(value)] for key, value in {**source, **content, "classes": len(classes)}.items()]
    output.table(["setting", "value"], rows)


@app.command("push")
@with_output
def push_model(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model or run directory.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME on the Hugging Face hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to. Default: main.")] = None,
    message: Annotated[str, typer.Option(help="Commit message.")] = "Upload model",
    license: Annotated[str | None, typer.Option(help="License in the model card, such as apache-2.0.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be uploaded, and upload nothing.")] = False,
    *,
    output: Output,
) -> None:
    """Upload a model with a model card to the Hugging Face hub. Log in first with `hf auth login`."""
    from deit.checkpoints.publishing import plan_push, push_to_hub

    plan = plan_push(model, repo, license)
    content = {"repo": repo, "files": plan.sizes, "card": plan.card}
    if not dry_run:
        content["url"] = push_to_hub(
            model, repo, private=private or None, revision=revision, commit_message=message, license=license
        )
    if output.as_json:
        print_json(content)
    elif dry_run or not output.for_people:
        rows = list(plan.sizes.items())
        output.table(["file", Column("bytes", "{:,}")], rows, f"Dry run for {repo}: nothing is uploaded.")
        output.line(f"\n{plan.card}".removesuffix("\n"))
    else:
        output.line(f"Uploaded {len(plan.files)} files: {content['url']}")

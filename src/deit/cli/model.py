"""``deit model``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from deit.cli.common import JsonOption, RevisionOption, print_json, print_table

app = typer.Typer(help="List, show and publish models.", no_args_is_help=True)


@app.callback()
def model() -> None:
    """List, show and publish models."""


@app.command("list")
def list_models(as_json: JsonOption = False) -> None:
    """List the published models with their size and ImageNet accuracy."""
    from deit.variants import VARIANTS

    if as_json:
        print_json([asdict(row) for row in VARIANTS.values()])
        return
    rows = [[row.name, f"{row.parameters / 1e6:.1f} M", f"{row.gmacs}", f"{row.top1}"] for row in VARIANTS.values()]
    print_table(["model", "parameters", "GMACs", "top-1"], rows)


@app.command("show")
def show_model(
    name: Annotated[str, typer.Argument(help="Name from `deit model list`, or a saved model of any format.")],
    revision: RevisionOption = None,
    as_json: JsonOption = False,
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
    if as_json:
        print_json({**content, **source})
        return
    classes = content.pop("id2label")
    content.pop("label2id")
    rows = [[key, str(value)] for key, value in {**source, **content}.items()]
    print_table(["setting", "value"], [*rows, ["classes", str(len(classes))]])


@app.command("push")
def push_model(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model or run directory.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME on the Hugging Face hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to. Default: main.")] = None,
    message: Annotated[str, typer.Option(help="Commit message.")] = "Upload model",
    license: Annotated[str | None, typer.Option(help="License in the model card, such as apache-2.0.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be uploaded, and upload nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Upload a model with a model card to the Hugging Face hub. Log in first with `hf auth login`."""
    from deit.checkpoints.publishing import plan_push, push_to_hub

    plan = plan_push(model, repo, license)
    content = {"repo": repo, "files": plan.sizes, "card": plan.card}
    if not dry_run:
        content["url"] = push_to_hub(
            model, repo, private=private or None, revision=revision, commit_message=message, license=license
        )
    if as_json:
        print_json(content)
    elif dry_run:
        rows = [[name, f"{size:,}"] for name, size in plan.sizes.items()]
        print_table(["file", "bytes"], rows, f"Dry run for {repo}: nothing is uploaded.")
        typer.echo(f"\n{plan.card}", nl=False)
    else:
        typer.echo(f"Uploaded {len(plan.files)} files: {content['url']}")

"""edgelm init"""

from __future__ import annotations

from pathlib import Path

import click

from edgelm.compiler.docs import starter_recipe
from edgelm.runtime.errors import UsageError
from edgelm.runtime.files import write_atomic


@click.command(name="init")
@click.argument("file", default="recipe.yaml", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Write over an existing file.")
def command(file: Path, force: bool) -> None:
    """Write a commented starter recipe to FILE (recipe.yaml)."""
    if file.exists() and not force:
        raise UsageError(f"{file}: exists already", hint="use --force to write over it")
    write_atomic(file, starter_recipe())
    click.echo(f"{file}: edit it, then run: edgelm compile {file}")

"""`spark-rl data convert`."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spark_rl.cli.rows import Output, counted, say
from spark_rl.jsonl import MAX_ROW_BYTES
from spark_rl.progress import Shown

if TYPE_CHECKING:
    from spark_rl.cli.image_folder import ImageFolder
    from spark_rl.data.convert import Unusable
    from spark_rl.data.tables import Table

data = typer.Typer(help="Prepare data.", no_args_is_help=True)


@data.command()
def convert(
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="JSON, JSONL, CSV or Parquet file, or a pattern for several.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUTPUT", help="JSONL file for the rows.")],
    format: Annotated[str | None, typer.Option(help="One of those above; by its columns when left out.")] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="For images that stand in the data; OUTPUT's name and _images if left out."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Convert rows with images that others published to rows that train here.

    Formats: spark (internlm/Spark-Data), virl39k (TIGER-Lab/ViRL39K), easyr1
    (hiyouga/geometry3k and others of EasyR1), verl (what its preprocessing
    writes).

    A row comes out as {"id", "prompt", "answer", "images", "source"}, with one
    <image> in the prompt where each image goes, and with the "verifier" where it
    is not math. Paths of images are looked for from INPUT's folder, and each image
    is decoded once. Rows that cannot be converted are left out, counted, and named
    by an example.

    Examples:

        spark-rl data convert infer_data_ViRL_19k.json spark.jsonl

        spark-rl data convert 'data/train-*.parquet' geometry.jsonl --images pictures
    """
    from spark_rl.cli.image_folder import ImageFolder
    from spark_rl.data.convert import FORMATS, Unusable
    from spark_rl.data.sources import own_name
    from spark_rl.data.tables import open_tables

    if format is not None and format not in FORMATS:
        raise ValueError(f"--format {format}: is none; known are {', '.join(FORMATS)}")
    if out.suffix != ".jsonl":
        raise ValueError(f"{out}: rows are written as JSON lines; name a file that ends with .jsonl")
    if out.exists():
        raise ValueError(f"{out}: is there already; name another file")
    tables = open_tables(source, split="train", subset=None)
    format = format or _detected(tables)
    names: set[str] = set()
    left_out = LeftOut()
    num_rows = 0
    total = sum(map(len, tables))
    with (
        ImageFolder(images or out.with_name(f"{out.stem}_images"), out.parent) as folder,
        Output(out, None, option="") as output,
        Shown() as shown,
    ):
        tell, seen = shown.stage("convert", total, "rows"), itertools.count(1)
        for table in tables:
            name = own_name(table.name, names)  # training refuses ids that two files of one name would share
            for index in range(len(table)):
                try:
                    output.write(_converted(table, index, name, format, folder))
                    num_rows += 1
                except Unusable as problem:
                    left_out.add(problem, table.where(index))
                tell(next(seen), total)
        if not num_rows:
            raise ValueError(f"{source}: no row could be converted as {format}: {left_out}")
        folder.publish()
    if as_json:
        report = {
            "format": format,
            "rows": num_rows,
            "images_written": folder.num_images,
            "left_out": left_out.columns(),
        }
        print(json.dumps(report, ensure_ascii=False))
    else:
        written = f", {counted(folder.num_images, 'image')} written to {folder.path}" if folder.num_images else ""
        missing = f"; {left_out.total:,} left out: {left_out}" if left_out.total else ""
        say(f"{counted(num_rows, 'row')} of {total:,} ({format}){written}{missing}")


class LeftOut:
    """Rows that could not be converted, by the reason, with the first of each."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, problem: Unusable, where: str) -> None:
        self._counts[problem.kind] += 1
        self._first.setdefault(problem.kind, where + f": {problem.detail}" * bool(problem.detail))

    @property
    def total(self) -> int:
        return self._counts.total()

    def columns(self) -> list[dict[str, Any]]:
        """As JSON, the most frequent reason first."""
        counts = self._counts.most_common()
        return [{"reason": kind, "rows": count, "first": self._first[kind]} for kind, count in counts]

    def __str__(self) -> str:
        return ", ".join(f"{each['rows']:,} with {each['reason']} (first {each['first']})" for each in self.columns())


def _detected(tables: Sequence[Table]) -> str:
    """The format of the first row."""
    from spark_rl.data.convert import FORMATS, detect

    table = tables[0]
    try:
        row = table[0]
    except ValueError as error:
        raise ValueError(f"{table.where(0)}: {error}") from None
    columns = list(row) if isinstance(row, dict) else []
    if name := detect(columns):
        return name
    found = f"the columns {', '.join(map(str, columns[:12]))}" if columns else "rows that are no objects"
    raise ValueError(
        f"{table.place}: cannot tell its format from {found}; name it with --format ({', '.join(FORMATS)})"
    )


def _converted(table: Table, index: int, name: str, format: str, folder: ImageFolder) -> dict[str, Any]:
    """A row of ours, from the table that goes by this name.

    Raises:
        Unusable: the row cannot be converted.
    """
    from spark_rl.data.convert import FORMATS, Unusable

    try:
        row = table[index]
    except ValueError as error:
        raise Unusable("text that is no row", error) from None
    if not isinstance(row, dict):
        raise Unusable("text that is no row", "not an object")
    question = FORMATS[format].question(row)
    beside = Path(table.place).parent
    paths = [folder.path_of(image, beside) for image in question.images]
    made = question.row(f"{name}-{index + 1}", name, paths)
    if len(json.dumps(made, ensure_ascii=False).encode()) >= MAX_ROW_BYTES:
        raise Unusable("a row that is too long")
    return made

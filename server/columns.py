"""Rows of text, aligned for people."""

from collections.abc import Sequence


def columns(rows: Sequence[Sequence[str]]) -> str:
    """One line a row, its cells padded to the widest of their column."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{line.rstrip()}\n" for line in lines)

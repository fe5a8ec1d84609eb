"""Pages whose tables are made by a script: between `<!-- name -->` and `<!-- /name -->` stands what was made last."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from opdkit.run.disk import write_atomic
from opdkit.types import UserError


def write_blocks(page: Path, blocks: Mapping[str, Iterable[str]], *, new: str) -> None:
    """The page with its blocks made anew, of `new` where it is not there; what people wrote between them stays."""
    text = page.read_text(encoding="utf-8") if page.is_file() else new
    write_atomic(page, data=with_blocks(text, {name: list(lines) for name, lines in blocks.items()}).encode())


def skeleton(title: str, names: Iterable[str]) -> str:
    """A page of empty blocks.

    >>> print(skeleton("Why?", ["t"]), end="")
    # Why?
    <BLANKLINE>
    <!-- t -->
    <!-- /t -->
    """
    places = "\n\n".join(f"<!-- {name} -->\n<!-- /{name} -->" for name in names)
    return f"# {title}\n\n{places}\n"


def with_blocks(text: str, blocks: Mapping[str, Sequence[str]]) -> str:
    """The page with each named block made anew from its lines. UserError where it is not there once.

    >>> with_blocks("a <!-- t -->old<!-- /t --> b", {"t": ["new"]})
    'a <!-- t -->\\nnew\\n<!-- /t --> b'
    """
    for name, lines in blocks.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if not text.count(begin) == text.count(end) == 1:
            raise UserError(
                f"the page has no place for `{name}`, or several",
                hint=f"where it belongs: {begin}{end}; or delete the page, it is written anew",
            )
        before, rest = text.split(begin)
        text = before + "\n".join([begin, *lines, end]) + rest.split(end)[1]
    return text

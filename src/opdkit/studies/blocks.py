"""Pages whose tables are made by a script: between `<!-- name -->` and `<!-- /name -->` stands what was made last."""

from collections.abc import Mapping, Sequence

from opdkit.types import UserError


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

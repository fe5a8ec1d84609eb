"""Pages whose tables are made by a script: between `<!-- name -->` and `<!-- /name -->` stands what was made last."""

import re
from collections.abc import Mapping, Sequence


def with_blocks(text: str, blocks: Mapping[str, Sequence[str]]) -> str:
    """The page with each named block made anew from its lines.

    >>> with_blocks("a <!-- t -->old<!-- /t --> b", {"t": ["new"]})
    'a <!-- t -->\\nnew\\n<!-- /t --> b'
    """
    for name, lines in blocks.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        block = "\n".join([begin, *lines, end])
        text, found = re.subn(f"{begin}.*?{end}", lambda _, block=block: block, text, flags=re.DOTALL)
        assert found == 1, name
    return text

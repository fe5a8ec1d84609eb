"""One key-value cache for rows of any length, admitted at any time.

All rows write the same column. A row admitted at column c has its prompt in the columns before c; what lies
left of a row's own start is masked:

    column     0 1 2 3 4 5 6
    row 0      p p p p y y ·        start 0, first response token at column 4
    row 1      - - p p y y ·        start 2
    row 2      - - - - - p ·        start 5, admitted when column 6 was next

Letters: R rows in the cache, P prompts of one prefill, L prompt tokens, C columns, H key-value heads, d their
width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_ROOM = 256  # columns allocated ahead of need, at most


class Prefilled:
    """Collects what a body hands to its cache during one prefill: per layer keys and values [P, H, L, d]."""

    is_compileable = False

    def __init__(self) -> None:
        self.states: list[tuple[Tensor, Tensor]] = []

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        assert layer == len(self.states), "a layer shares or skips its cache"
        self.states.append((key, value))
        return key, value

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return query_length, 0


class Prefixed:
    """Hands out a prompt's keys and values before those of its responses; nothing is kept. Gradient flows through both."""

    is_compileable = False

    def __init__(self, states: Sequence[tuple[Tensor, Tensor]], of: Tensor):
        """`states` per layer [P, H, L, d]; `of` [B]: which prompt each row continues."""
        self.states, self.of = states, of

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        before = [state.index_select(0, self.of) for state in self.states[layer]]
        return torch.cat([before[0], key], 2), torch.cat([before[1], value], 2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.states[0][0].shape[2]

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.get_seq_length()

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0


class KVCache:
    """Keys and values of all layers, [slots, H, C, d] each; the rows in use are the first `rows` ones.

    Duck-types what a transformers body asks of `past_key_values` while it decodes one token per row.
    """

    is_compileable = False

    def __init__(self, slots: int, *, room: int = _ROOM, dtype: torch.dtype | None = None):
        """`room`: how many tokens a row will get, if that is known to be few."""
        self.slots = slots
        self.room = min(room, _ROOM)
        self.dtype = dtype  # of keys and values; None keeps what the body hands over
        self.column = 0  # next to be written
        self.low = 0  # first column any row uses
        self.starts: list[int] = []  # first column of each row
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._live: list[tuple[Tensor, Tensor]] = []
        self._live_rows = -1

    @property
    def rows(self) -> int:
        return len(self.starts)

    @property
    def padded(self) -> bool:
        return max(self.starts) > self.low

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """What a body calls: `write` with keys and values [R, H, 1, d]."""
        return self.write(layer, key[:, :, 0], value[:, :, 0])

    def write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write one column, [R, H, d]; views of all columns in use, [R, H, C, d], come back."""
        if self._live_rows != self.rows:
            self._look_at_rows()
        count, (keys, values) = self.column + 1 - self.low, self._live[layer]
        keys.select(2, self.column).copy_(key)
        values.select(2, self.column).copy_(value)
        return keys.narrow(2, self.low, count), values.narrow(2, self.low, count)

    def _look_at_rows(self) -> None:
        """Views of the rows in use, made once for as long as these are the same: a step makes few others."""
        rows = self._live_rows = self.rows
        self._live = [(key[:rows], value[:rows]) for key, value in zip(self.keys, self.values, strict=True)]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.column - self.low

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.column - self.low

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.column - self.low + query_length, 0

    def admit(
        self, states: Sequence[tuple[Tensor, Tensor]], *, lengths: Sequence[int], source: Sequence[int]
    ) -> None:
        """Append one row per entry of `source`: which prompt of a right-padded prefill it continues.

        While rows are in the cache, a prompt must fit left of the current column: admit the longest prompts
        first.
        """
        widest = max(lengths)
        if not self.starts:
            self.column = self.low = widest
            if self.keys and widest >= self.keys[0].shape[2]:
                self.keys, self.values = [], []
        assert widest <= self.column, "prompts are admitted longest first"
        self._make_room(states)
        place = _placement(lengths, source, device=states[0][0].device)
        rows, columns = slice(self.rows, self.rows + len(source)), slice(self.column - widest, self.column)
        for layer, (key, value) in enumerate(states):
            self.keys[layer][rows, :, columns] = _placed(key, place)
            self.values[layer][rows, :, columns] = _placed(value, place)
        self.starts += [self.column - lengths[p] for p in source]
        self.low = min(self.starts)

    def advance(self) -> None:
        """The current column has been written by every layer."""
        self.column += 1
        self._make_room(())

    def drop(self, gone: Sequence[int]) -> list[int]:
        """Remove rows; the last ones move into the holes. Returns which old row each remaining row was.

        Costs a copy of the moved rows only, so a row can go the moment it is done.
        """
        keep = [row for row in range(self.rows) if row not in set(gone)]
        holes = [row for row in gone if row < len(keep)]
        movers = [row for row in keep if row >= len(keep)]
        order = list(range(len(keep)))
        for hole, mover in zip(holes, movers, strict=True):
            order[hole] = mover
        if holes:
            self._move(movers, holes)
        self.starts = [self.starts[row] for row in order]
        self.low = min(self.starts, default=0)
        return order

    def _move(self, movers: list[int], holes: list[int]) -> None:
        used = slice(self.low, self.column)
        to = torch.tensor(holes, device=self.keys[0].device)
        of = torch.tensor(movers, device=self.keys[0].device)
        for buffer in (*self.keys, *self.values):
            buffer[to, :, used] = buffer[of, :, used]

    def _make_room(self, states: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Allocate before the first row; when the columns run out, keep those in use and half as many again.

        Zeros, not garbage: a masked column still enters the attention's sum, with weight 0, and 0 × nan is
        nan.
        """
        if not self.keys:
            self._live_rows = -1
            for key, value in states:
                self.keys.append(self._zeros(key, self.column + self.room))
                self.values.append(self._zeros(value, self.column + self.room))
            return
        if self.column < self.keys[0].shape[2]:
            return
        used, self._live_rows = self.column - self.low, -1
        for buffers in (self.keys, self.values):
            for layer, old in enumerate(buffers):
                new = self._zeros(old, used + max(self.room, used // 2))
                new[: self.rows, :, :used] = old[: self.rows, :, self.low : self.column]
                buffers[layer] = new
        self.starts = [start - self.low for start in self.starts]
        self.low, self.column = 0, used

    def _zeros(self, like: Tensor, columns: int) -> Tensor:
        _, heads, _, width = like.shape
        return like.new_zeros((self.slots, heads, columns, width), dtype=self.dtype or like.dtype)


def _placement(
    lengths: Sequence[int], source: Sequence[int], *, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """(prompt of each row, which prompt position each of the last L columns takes: None at equal lengths).

    Columns left of a row's start take position 0: any finite value will do there.
    """
    of = torch.tensor(source, device=device)
    widest = max(lengths)
    if min(lengths) == widest:
        return of, None
    shift = torch.tensor([widest - lengths[p] for p in source], device=device)
    position = (torch.arange(widest, device=device) - shift[:, None]).clamp_(min=0)
    return of, position[:, None, :, None]


def _placed(state: Tensor, place: tuple[Tensor, Tensor | None]) -> Tensor:
    of, position = place
    rows = state[of]
    return rows if position is None else rows.take_along_dim(position, dim=2)

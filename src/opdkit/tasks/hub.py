"""Data sets from the Hub through `datasets`: from its cache where it is offline, else only after the Hub has answered."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from typing import Any

from opdkit.tasks.math_data import DataSet, Row
from opdkit.types import UserError

WAIT_SECONDS = 10.0  # for the Hub's first word; `datasets` itself retries for half a minute and more


def hub_rows(data_set: DataSet, *, columns: Collection[str], stream: bool) -> Iterator[tuple[int, Row]]:
    """(number from 1, row), `columns` only. `stream` reads as far as it is asked and downloads no more.

    Raises UserError where `datasets` is missing, the Hub does not answer, or it does not have the data set.
    """
    loaded = _loaded(data_set, stream)
    if there := getattr(loaded, "column_names", None):
        loaded = loaded.select_columns([name for name in there if name in columns])
    yield from enumerate(loaded, start=1)


def _loaded(data_set: DataSet, stream: bool) -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise UserError(
            "data sets from the Hub need the extra `data`", hint="pip install 'opdkit[data]'"
        ) from error
    _must_answer(data_set, offline=bool(datasets.config.HF_HUB_OFFLINE))
    try:
        return datasets.load_dataset(data_set.hub, split=data_set.split, streaming=stream)
    except (OSError, ValueError) as error:  # not there, not in the cache, no such split
        raise _unavailable(data_set, str(error).partition("\n")[0]) from error


def _must_answer(data_set: DataSet, *, offline: bool) -> None:
    """UserError at once where nobody answers; any answer will do, proxies are those of the environment."""
    if offline:
        return
    import urllib.error
    import urllib.request

    try:
        urllib.request.urlopen(
            os.environ.get("HF_ENDPOINT", "https://huggingface.co"), timeout=WAIT_SECONDS
        ).close()
    except urllib.error.HTTPError:
        return
    except (OSError, ValueError) as error:
        said = _unavailable(data_set, f"the Hub does not answer: {error}")
        said.hint += "; or HF_HUB_OFFLINE=1 before the command, for what was downloaded once"
        raise said from error


def _unavailable(data_set: DataSet, why: str) -> UserError:
    return UserError(
        f"cannot load {data_set.name} ({data_set.hub}): {why}",
        hint=f"task.data=FOLDER with {data_set.name}.parquet, {data_set.name}.jsonl or the Hub's files in "
        f"{data_set.name}/",
    )

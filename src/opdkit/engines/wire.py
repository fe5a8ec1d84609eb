"""One frame on the wire: magic, header length, a JSON header, then arrays of fixed layout one after another.

    b"OPD1" · u32 header bytes · header · array · array … · u32 CRC-32 of all before it

The header's `arrays` names them: [name, dtype, shape]. Little endian. Nothing is executed, sizes are checked against
what has arrived before a byte of an array is looked at. No pickle, no compression. The checksum is there because a
flipped bit in a log-prob leaves a log-prob: TCP's 16 bits, and proxies that copy bodies, let some through.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

MAGIC = b"OPD1"
CONTENT_TYPE = "application/x-opd-frame"
MAX_HEADER_BYTES = 1 << 16
DTYPES: dict[str, np.dtype[Any]] = {
    "int32": np.dtype("<i4"),
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
}
_PREFIX = struct.Struct("<4sI")
_SUM = struct.Struct("<I")


class FrameError(ValueError):
    """Bytes that are no frame, in words."""


def pack(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """The frame. Arrays are int32, float32 or float16.

    >>> header, arrays = unpack(pack({"id": 7}, {"x": np.arange(3, dtype=np.int32)}))
    >>> header, arrays["x"].tolist()
    ({'id': 7}, [0, 1, 2])
    """
    listed = [[name, _name_of(a.dtype), list(a.shape)] for name, a in arrays.items()]
    head = json.dumps({**header, "arrays": listed}).encode()
    bodies = [
        np.ascontiguousarray(a).astype(DTYPES[_name_of(a.dtype)], copy=False).tobytes()
        for a in arrays.values()
    ]
    frame = b"".join([_PREFIX.pack(MAGIC, len(head)), head, *bodies])
    return frame + _SUM.pack(zlib.crc32(frame))


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(header without `arrays`, arrays, read-only views). Raises FrameError for anything that is not exactly a frame."""
    if len(data) < _PREFIX.size:
        raise FrameError(f"{len(data)} bytes are no frame")
    magic, size = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise FrameError(f"it begins with {magic!r}, not {MAGIC!r}")
    if size > MAX_HEADER_BYTES or _PREFIX.size + size > len(data):
        raise FrameError(f"a header of {size} bytes in {len(data)}")
    header = _header(data[_PREFIX.size : _PREFIX.size + size])
    arrays = _arrays(header.pop("arrays", None), data, _PREFIX.size + size)
    if _SUM.unpack_from(data, len(data) - _SUM.size)[0] != zlib.crc32(memoryview(data)[: -_SUM.size]):
        raise FrameError("its checksum is another: damaged on the way")
    return header, arrays


def _header(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise FrameError("its header is no JSON") from None
    if not isinstance(header, dict):
        raise FrameError("its header is no object")
    return header


def _arrays(listed: Any, data: bytes, start: int) -> dict[str, np.ndarray]:
    if not isinstance(listed, list):
        raise FrameError("its header lists no arrays")
    arrays: dict[str, np.ndarray] = {}
    end = len(data) - _SUM.size
    for entry in listed:
        name, dtype, shape = _entry(entry)
        size = math.prod(shape) * dtype.itemsize
        if name in arrays or start + size > end:
            raise FrameError(
                f"array {name} is there twice" if name in arrays else f"array {name} is cut short"
            )
        arrays[name] = np.frombuffer(data, dtype, math.prod(shape), start).reshape(shape)
        start += size
    if start != end:
        raise FrameError(f"{end - start} bytes belong to no array")
    return arrays


def _entry(entry: Any) -> tuple[str, np.dtype[Any], tuple[int, ...]]:
    if not (isinstance(entry, list) and len(entry) == 3 and isinstance(entry[0], str) and entry[1] in DTYPES):
        raise FrameError(f"an array is described by {str(entry)[:80]}")
    shape = entry[2]
    if (
        not isinstance(shape, list)
        or len(shape) > 3
        or not all(type(n) is int and 0 <= n < 1 << 31 for n in shape)
    ):
        raise FrameError(f"array {entry[0]} has the shape {str(shape)[:80]}")
    return entry[0], DTYPES[entry[1]], tuple(shape)


def _name_of(dtype: np.dtype[Any]) -> str:
    name = np.dtype(dtype).name
    assert name in DTYPES, f"{name} does not travel"
    return name

"""Reading a pickle that may hold arrays of bytes, text and plain containers, and nothing else.

A pickle is a program, and the usual reader runs it. This one hands it two stand-ins for NumPy's array and
data type and refuses every other name, so that a file can at worst be wrong: neither foreign code nor NumPy's
own unpickling sees anything of it.
"""

from __future__ import annotations

import io
import pickle
from typing import Any, final

import numpy as np

from demilune.data.split import Bytes
from demilune.errors import DemiluneError


@final
class _Kind:
    """Stands in for ``numpy.dtype``; bytes are the only kind there is."""

    def __init__(self, code: str | bytes, align: object = None, copy: object = None) -> None:
        if code not in ("u1", b"u1"):
            raise ValueError(f"an array of {code!r} instead of bytes")

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment mean nothing for bytes."""


@final
class _Array:
    """Stands in for ``numpy.ndarray``: remembers what it is told, and becomes an array when it is asked."""

    def __init__(self, *ignored: object) -> None:
        self.state: Any = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def array(self) -> Bytes:
        _, shape, _, fortran, data = self.state
        if fortran or not isinstance(data, bytes):
            raise ValueError("an array that is not stored as bytes row by row")
        return np.frombuffer(data, np.uint8).reshape(shape)


def _encode(text: str, encoding: str) -> bytes:
    """Stands in for ``_codecs.encode``, by which Python 3 writes bytes into old pickles."""
    if encoding != "latin1":
        raise ValueError(f"bytes written as {encoding!r}")
    return text.encode("latin1")


_ADMITTED = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Kind,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("_codecs", "encode"): _encode,
}


@final
class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise DemiluneError(f"it asks for {module}.{name}, and only arrays, text, lists and dicts are admitted")
        return _ADMITTED[module, name]


def unpickle(data: bytes) -> dict[str, Any]:
    """Return the dict that a pickle of Python 2 or 3 holds, its keys as text, its arrays as uint8.

    Raise :class:`DemiluneError`, saying what is wrong, for anything else; no code of the pickle runs.
    """
    try:
        # Python 2 did not say which of its strings are text: all arrive as bytes.
        made = _Reader(io.BytesIO(data), encoding="bytes").load()
        if not isinstance(made, dict):
            raise ValueError(f"a {type(made).__name__} instead of a dict")
        return {
            key.decode() if isinstance(key, bytes) else str(key): (
                value.array() if isinstance(value, _Array) else value
            )
            for key, value in made.items()
        }
    except DemiluneError:
        raise
    except Exception as error:  # a broken pickle can fail in any way: that is its nature, not ours
        raise DemiluneError(f"it is damaged or no such pickle ({error})") from error

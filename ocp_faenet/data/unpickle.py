"""Unpickling that makes arrays, tensors, PyG data and plain containers, and nothing else.

A pickle can call any function; files from elsewhere are therefore read by this, which knows the
few that OC20's own files and ours need.
"""

from __future__ import annotations

import collections
import io
import pickle
import re
from typing import Any

import torch

_ALLOWED = {
    "builtins": {"set", "frozenset", "list", "dict", "tuple", "slice", "complex", "bytearray"},
    "collections": {"OrderedDict", "defaultdict", "deque"},
    "_codecs": {"encode"},
    "numpy": {"ndarray", "dtype"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy.core.numeric": {"_frombuffer"},
    "numpy._core.numeric": {"_frombuffer"},
    "torch": {"Size", "device"},
    "torch._utils": {"_rebuild_tensor", "_rebuild_tensor_v2"},
    "torch.utils.data._utils.collate": {"default_convert"},
    "torch_geometric.data.data": {"Data", "DataEdgeAttr", "DataTensorAttr"},
    "torch_geometric.data.storage": {"BaseStorage", "NodeStorage", "EdgeStorage", "GlobalStorage"},
}
_STORAGE = re.compile(r"(Float|Double|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)(Storage|Tensor)")


class UnsafePickleError(ValueError):
    """A pickle asks for something that data has no need of."""


def _load_storage(content: bytes) -> Any:
    """`torch.storage._load_from_bytes`, whose own would unpickle anything."""
    return torch.load(io.BytesIO(content), weights_only=True)


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _load_storage
        if (module, name) == ("collections", "defaultdict"):
            return collections.defaultdict
        storage = module == "torch" and _STORAGE.fullmatch(name) is not None
        if storage or name in _ALLOWED.get(module, ()):
            return super().find_class(module, name)
        raise UnsafePickleError(f"the pickle asks for {module}.{name}, which is no data")


def restricted_loads(content: bytes) -> Any:
    """`pickle.loads` for data alone.

    Raises:
        UnsafePickleError: when anything but arrays, tensors, PyG data and containers is asked for.
        ValueError: when the bytes are no pickle.
    """
    try:
        return _RestrictedUnpickler(io.BytesIO(content)).load()
    except UnsafePickleError:
        raise
    except Exception as error:  # unpickling bad bytes can raise nearly anything
        raise ValueError(f"not a readable pickle ({type(error).__name__}: {error})") from error

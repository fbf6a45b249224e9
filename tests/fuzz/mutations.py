"""Mutate real files: bytes, values in JSON, arrays in npz files, headers of safetensors, and the kind of a file.

Hypothesis draws the mutations, with the function `draw`, and prints those of an input that fails.
"""

import hashlib
import io
import json
import math
import os
import re
import shutil
import socket
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray

Draw = Callable[[st.SearchStrategy[Any]], Any]

# Text that JSON libraries do not write by themselves. `_written` puts it in place of its names.
_RAW = {
    "<too large>": "1e400",
    "<many digits>": "9" * 5_000,
    "<deep list>": "[" * 50_000 + "]" * 50_000,
    "<deep object>": '{"a":' * 50_000 + "0" + "}" * 50_000,
    "<open list>": "[" * 50_000,
    "<many lists>": "[" + "[]," * 1_398_000 + "[]]",
    "<twice>": '{"a": 1, "a": [2]}',
    "<long>": '"' + "x" * 1_000_000 + '"',
}
_NUMBERS = [0, -1, 1, 2, 1.5, -0.0, 1e-320, 1e300, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63), 10**400]
_ODD = st.one_of(
    st.sampled_from([None, True, False, *_NUMBERS, math.nan, math.inf, -math.inf, "", [], {}, [[]], [None], {"": 0}]),
    st.sampled_from(sorted(_RAW)),
    st.sampled_from(["\x1b]0;title\x07", "\u202egnp.exe", "\ud800", "\0", "a\nb\rc\u2028d", "../../../etc", "<b>&'\""]),
    st.text(max_size=10),
    st.integers(),
    st.floats(),
    st.recursive(st.none() | st.integers(), lambda part: st.lists(part) | st.dictionaries(st.text(max_size=3), part)),
)


def _written(tree: Any) -> str:
    text = json.dumps(tree)
    for name, raw in _RAW.items():
        text = text.replace(json.dumps(name), raw)
    return text


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Each value in `tree` as its container and its key there."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    return [place for key in keys for place in ((tree, key), *_places(tree[key]))]


def mutated_tree(draw: Draw, tree: Any) -> Any:
    """A JSON value like `tree`, in which one to three values are others, missing, or repeated."""
    root = [json.loads(json.dumps(tree))]
    for _ in range(draw(st.integers(1, 3))):
        places = _places(root)
        container, key = places[draw(st.integers(0, len(places) - 1))]
        value = container[key]
        match draw(st.sampled_from(["odd", "number", "other", "delete", "insert", "repeat"])):
            case "number" if type(value) in (int, float) and -1e300 < value < 1e300:
                container[key] = draw(
                    st.sampled_from([-value, value + 1, value - 1, value * 1000, value * 1e30, 10**9])
                )
            case "other":
                other, its_key = places[draw(st.integers(0, len(places) - 1))]
                container[key] = json.loads(json.dumps(other[its_key]))
            case "delete" if len(places) > 1 and container is not root:
                del container[key]
            case "insert" if isinstance(value, dict):
                value[draw(st.text(max_size=5))] = draw(_ODD)
            case "repeat" if isinstance(value, list):
                container[key] = value * draw(st.sampled_from([0, 2, 1000]))
            case _:
                container[key] = draw(_ODD)
    return root[0]


def mutated_json(draw: Draw, content: bytes) -> bytes:
    return _written(mutated_tree(draw, json.loads(content))).encode()


def mutated_lines(draw: Draw, content: bytes) -> bytes:
    lines = [json.loads(line) for line in content.splitlines()]
    changed = mutated_tree(draw, lines)
    return "".join(_written(line) + "\n" for line in (changed if isinstance(changed, list) else [changed])).encode()


# Bytes

_changes = st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8), st.booleans()), max_size=6)


def mutated_bytes(draw: Draw, content: bytes) -> bytes:
    """`content` with a few bytes inserted or overwritten, with a part of it repeated, or cut off."""
    changed = bytearray(content)
    for place, new, inserted in draw(_changes):
        start = int(place * len(changed))
        changed[start : start if inserted else start + len(new)] = new
    if draw(st.integers(0, 4)) == 0:
        first, last, to = (int(draw(st.floats(0, 1)) * len(changed)) for _ in range(3))
        changed[to:to] = changed[first:last]
    return bytes(changed[: int(draw(st.sampled_from([1.0, 1.0, 0.9, 0.5, 0.1, 0.0])) * len(changed))])


# Arrays

_DTYPES = ["f2", "f4", "f8", "f16", "i1", "i8", "u1", "u8", ">f4", ">i8", "?", "c8", "S3", "U2", "M8[s]", "V4"]
_SHAPES = ["()", "(0,)", "(-1,)", "(1, 0, 3)", "(10**12,)", "(2**40, 2**40)", "(1,) * 40", "(3, 32)", "'x'", "(1.5,)"]
_DESCRIPTIONS = [
    "'|O'",
    "'<f4'",
    "'|V0'",
    "'<U100000000'",
    "[('a', '<f4')]",
    "'x'",
    "5",
    "('<f4', (2**40,))",
    "'|V2147483647'",
]


def mutated_npz(draw: Draw, content: bytes) -> bytes:
    """An npz file with other arrays, or with other headers of arrays and of members."""
    with np.load(io.BytesIO(content)) as file:
        arrays = dict(file)
    name = draw(st.sampled_from(sorted(arrays)))
    members = {f"{other}.npy": _npy(array) for other, array in arrays.items()}
    match draw(st.sampled_from(["value", "dtype", "shape", "drop", "add", "header", "member"])):
        case "value":
            members[f"{name}.npy"] = _npy(_with_odd_value(draw, arrays[name]))
        case "dtype":
            with np.errstate(all="ignore"):
                members[f"{name}.npy"] = _npy(_cast(arrays[name], draw(st.sampled_from(_DTYPES))))
        case "shape":
            members[f"{name}.npy"] = _npy(_reshaped(draw, arrays[name]))
        case "drop":
            del members[f"{name}.npy"]
        case "add":
            other = draw(
                st.sampled_from(["", "../x", "classes", "mistakes", "\ud800", "a" * 1000]) | st.text(max_size=4)
            )
            members[f"{other}.npy".encode(errors="replace").decode()] = members[f"{name}.npy"]
        case "header":
            shape, kind = draw(st.sampled_from(_SHAPES)), draw(st.sampled_from(_DESCRIPTIONS))
            header = f"{{'descr': {kind}, 'fortran_order': {draw(st.booleans())}, 'shape': {shape}}}\n".encode()
            version = draw(st.sampled_from([b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x09"]))
            length = len(header).to_bytes(2 if version == b"\x01\x00" else 4, "little")
            members[f"{name}.npy"] = (
                b"\x93NUMPY" + version + length + header + bytes(draw(st.sampled_from([0, 8, 10**6])))
            )
        case "member":
            members[f"{name}.npy"] = mutated_bytes(draw, members[f"{name}.npy"])
    return zipped(draw, members)


def zipped(draw: Draw, members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    method = draw(
        st.sampled_from([zipfile.ZIP_DEFLATED] * 3 + [zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    )
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            # zipfile ends a name at a zero byte, and cannot write an empty one.
            archive.writestr(name.partition("\0")[0] or "x", content)
    return lying(draw, buffer.getvalue())


_FIELDS = {
    b"PK\x01\x02": (8, 10, 16, 20, 24, 28, 30, 38, 42),
    b"PK\x03\x04": (6, 8, 14, 18, 22, 26, 28),
    b"PK\x05\x06": (8, 10, 12, 16),
}


def lying(draw: Draw, content: bytes) -> bytes:
    """A zip in which a field of a header may have another value: a size, a checksum, a method, flags, an offset."""
    changed = bytearray(content)
    if draw(st.integers(0, 3)) == 0:
        kind = draw(st.sampled_from([kind for kind in sorted(_FIELDS) if kind in content]))
        headers = [found.start() for found in re.finditer(re.escape(kind), content)]
        start = draw(st.sampled_from(headers)) + draw(st.sampled_from(_FIELDS[kind]))
        value = draw(st.sampled_from([0, 1, 9, 100, 2**16 - 1, 2**31, 2**32 - 1]) | st.integers(0, 2**32 - 1))
        width = draw(st.sampled_from([2, 4]))
        changed[start : start + width] = (value % 256**width).to_bytes(width, "little")
    return bytes(changed)


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _cast(array: NDArray[Any], kind: str) -> NDArray[Any]:
    try:
        return array.astype(kind)
    except (TypeError, ValueError):
        return np.zeros(array.shape, kind)


def _with_odd_value(draw: Draw, array: NDArray[Any]) -> NDArray[Any]:
    changed = array.copy()
    if changed.size:
        odd: Sequence[Any] = ["", "\x1b[31m", "a" * 100, "\ud800"]
        if changed.dtype.kind in "iuf":
            info: Any = np.finfo(changed.dtype) if changed.dtype.kind == "f" else np.iinfo(changed.dtype)
            odd = [info.min, info.max, 0, *([math.nan, math.inf, -math.inf] if changed.dtype.kind == "f" else [])]
        value = draw(st.sampled_from(odd))
        if draw(st.booleans()):
            changed[...] = value
        else:
            changed.reshape(-1)[draw(st.integers(0, changed.size - 1))] = value
    return changed


def _reshaped(draw: Draw, array: NDArray[Any]) -> NDArray[Any]:
    shapes = [array[:0], array[:1], array.reshape(-1), array[None], array[..., None], array.T, array[..., :0]]
    shapes += [
        np.repeat(array, 3, axis=0),
        np.zeros((), array.dtype),
        np.zeros((5000, *array.shape[1:])[:4], array.dtype),
    ]
    return draw(st.sampled_from(shapes))


# Weights and checkpoints

_TORCH_DTYPES = ["float64", "float16", "bfloat16", "int64", "uint8", "bool", "complex64", "float8_e4m3fn", "uint16"]
_CHECKSUM = re.compile(rb'(\{\\"checksum\\": \\")[0-9a-f]{64}')


def mutated_safetensors(draw: Draw, content: bytes) -> bytes:
    """A safetensors file with other tensors, or with another header. The checksum is right."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = json.loads(header.pop("__metadata__")["onecycle"])
    del metadata["checksum"]
    change = draw(st.sampled_from(["metadata", "metadata", "tensor", "tensor", "header", "bytes"]))
    if change == "bytes":
        return sealed(content[: 8 + length] + mutated_bytes(draw, content[8 + length :]))
    if change == "tensor":
        content = _with_other_tensor(draw, safetensors.torch.load(content))
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
    if change == "metadata":
        metadata = mutated_tree(draw, metadata)
    if change == "header":
        header = mutated_tree(draw, header)
    inner = _written(metadata)
    if inner.startswith("{"):
        inner = f'{{"checksum": "{"0" * 64}"{", " if len(inner) > 2 else ""}' + inner[1:]
    text = _written({"__metadata__": {"onecycle": inner}, **header} if isinstance(header, dict) else header).encode()
    size = draw(st.sampled_from([0, 1, 2**40, 2**64 - 1])) if change == "header" and draw(st.booleans()) else len(text)
    return sealed(size.to_bytes(8, "little") + text + content[8 + length :])


def sealed(content: bytes) -> bytes:
    """`content` with the right checksum, if there is a place for it."""
    zeroed = _CHECKSUM.sub(lambda found: found[1] + b"0" * 64, content, count=1)
    digest = hashlib.sha256(zeroed).hexdigest().encode()
    return _CHECKSUM.sub(lambda found: found[1] + digest, content, count=1)


def _with_other_tensor(draw: Draw, tensors: dict[str, torch.Tensor]) -> bytes:
    name = draw(st.sampled_from(sorted(tensors)))
    match draw(st.sampled_from(["value", "dtype", "shape", "drop", "add"])):
        case "value":
            values = [math.nan, math.inf, -1, 0, 1e30, 3e38] if tensors[name].is_floating_point() else [0, 1, 255]
            tensors[name].fill_(draw(st.sampled_from(values)))
        case "dtype":
            large = draw(st.booleans()) and tensors[name].is_floating_point()
            tensors[name] = (tensors[name] + (1e300 if large else 0)).to(
                getattr(torch, draw(st.sampled_from(_TORCH_DTYPES)))
            )
            if large:
                tensors[name] = torch.full(tensors[name].shape, 1e300, dtype=torch.float64)
        case "shape":
            tensors[name] = draw(
                st.sampled_from([tensors[name][None], tensors[name].reshape(-1), tensors[name].reshape(-1)[:0]])
            )
        case "drop":
            del tensors[name]
        case "add":
            tensors[draw(st.text(max_size=5)).encode(errors="replace").decode() or "x"] = torch.zeros(3)
    return safetensors.torch.save({other: tensor.contiguous() for other, tensor in tensors.items()})


# Files

_KINDS: dict[str, Callable[[Draw, bytes], bytes]] = {
    ".json": mutated_json,
    ".jsonl": mutated_lines,
    ".npz": mutated_npz,
    ".safetensors": mutated_safetensors,
}


def mutate(draw: Draw, path: Path, outside: Path) -> None:
    """Change the content of the file at `path`, or put something else in its place, such as a link to `outside`."""
    kind = _KINDS.get(path.suffix)
    how = draw(st.sampled_from([*["kind"] * 6, "bytes", "splice", "replace"] if kind else ["replace"]))
    if how == "replace":
        replace(draw, path, outside)
    elif how == "splice":
        other = draw(
            st.sampled_from(sorted(file for file in path.parent.iterdir() if file.is_file() and not file.is_symlink()))
        )
        path.write_bytes(other.read_bytes())
    elif path.is_file() and not path.is_symlink():
        path.write_bytes((kind if how == "kind" and kind else mutated_bytes)(draw, path.read_bytes()))


def replace(draw: Draw, path: Path, outside: Path) -> None:
    """Put a link, a pipe, a device, a folder or nothing in the place of the file or folder `path`."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    match draw(st.sampled_from(["link", "hard link", "pipe", "folder", "socket", "nothing", "empty", "sparse"])):
        case "link":
            targets = [
                outside / "precious",
                outside,
                outside / "new",
                "/dev/zero",
                "/dev/tty",
                "/proc/self/mem",
                path.name,
                ".",
            ]
            path.symlink_to(draw(st.sampled_from(targets)))
        case "hard link":
            os.link(outside / "precious", path)
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "socket":
            with socket.socket(socket.AF_UNIX) as listening:
                here = os.open(path.parent, os.O_RDONLY)
                listening.bind(f"/proc/self/fd/{here}/{path.name}")  # the path of a socket has at most 107 bytes
                os.close(here)
        case "empty":
            path.touch()
        case "sparse":
            path.touch()
            os.truncate(path, draw(st.sampled_from([1, 2**20, 2**30, 2**40])))

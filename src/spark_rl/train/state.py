"""What a run has learnt, as files that hold numbers and nothing that could run: safetensors and JSON, no pickle.

    model.safetensors       parameters and buffers by name, tied ones once
    optimizer.safetensors   `parameter.exp_avg` and the like
    random-0.json           the states of rank 0's generators, one file a rank

Deviation: accelerate's `save_state` pickles all but the weights, and unpickles whatever lies in the folder.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from xxhash import xxh3_64

MODEL, OPTIMIZER = "model.safetensors", "optimizer.safetensors"
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Their names in safetensors."""


def save_weights(folder: Path, model: Any, optimizer: Any) -> dict[str, str]:
    """Write model and optimizer; the hashes of the files, which are large, by name."""
    return {
        MODEL: write_tensors(folder / MODEL, model_tensors(model)),
        OPTIMIZER: write_tensors(folder / OPTIMIZER, optimizer_tensors(model, optimizer)),
    }


def load_weights(folder: Path, model: Any, optimizer: Any) -> None:
    """The inverse of `save_weights`, into the tensors that are there. The optimizer's settings stay.

    Raises:
        ValueError: they are those of another model.
    """
    tensors = model_tensors(model)
    with safe_open(folder / MODEL, framework="pt") as saved, torch.no_grad():
        if set(saved.keys()) != set(tensors):
            raise _other_model(folder / MODEL, set(saved.keys()) ^ set(tensors))
        for name, tensor in tensors.items():
            value = saved.get_tensor(name)
            if value.shape != tensor.shape:
                raise _other_model(folder / MODEL, {name})
            tensor.copy_(value)
    moments: dict[str, dict[str, Tensor]] = {name: {} for name, _ in model.named_parameters()}
    with safe_open(folder / OPTIMIZER, framework="pt") as saved:
        for key in saved.keys():  # noqa: SIM118 (a file, no mapping)
            name, _, kind = key.rpartition(".")
            moments[name][kind] = saved.get_tensor(key).clone()  # the file is mapped, and may be removed
    state = {i: kinds for i, kinds in enumerate(moments.values()) if kinds}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def model_tensors(model: Any) -> dict[str, Tensor]:
    """Parameters and persistent buffers, each once."""
    first: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        first.setdefault(id(tensor), (name, tensor))
    return dict(first.values())


def optimizer_tensors(model: Any, optimizer: Any) -> dict[str, Tensor]:
    """What the optimizer keeps of each parameter that it has moved."""
    return {
        f"{name}.{kind}": value
        for name, parameter in model.named_parameters()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a safetensors file tensor by tensor, so that no second copy of all is ever held; returns its xxh3 hash.

    Deviation: safetensors' own `save_file` takes all of them at once, on the CPU, and tells no hash.
    """
    largest_items_first = sorted(tensors, key=lambda name: -tensors[name].element_size())  # so that all are aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in largest_items_first:
        tensor, start = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    digest = xxh3_64()
    with path.open("wb") as file:

        def write(data: Any) -> None:
            file.write(data)
            digest.update(data)

        write(len(head).to_bytes(8, "little") + head)
        for name in largest_items_first:
            write(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def random_state(device: torch.device) -> dict[str, Any]:
    """Of all generators that libraries share, as JSON types."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state().tolist(),
        **({} if device.type == "cpu" else {device.type: torch.get_device_module(device).get_rng_state().tolist()}),
    }


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """The inverse of `random_state`; a kind of device that was not used then keeps its own."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if device.type in state and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(torch.tensor(state[device.type], dtype=torch.uint8))


def _other_model(path: Path, names: set[str]) -> ValueError:
    return ValueError(
        f"{path} holds the weights of another model than model.path ({min(names)} differs); put that model back"
    )

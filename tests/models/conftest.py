"""What the tests of the flows share: the public implementation's weights under our names."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

PARITY = Path(__file__).parent / "parity"
LAYER_NAMES = {
    "actnorm/loc": "actnorm.loc",
    "actnorm/log_scale": "actnorm.log_scale",
    "permutation/w_p": "mixing.permutation",
    "permutation/w_l": "mixing.lower",
    "permutation/w_u": "mixing.upper",
    "permutation/w_s": "mixing.log_abs",
    "permutation/s_sign": "mixing.sign",
    "conv1/weight": "coupling.network.conv1.weight",
    "conv1/actnorm_loc": "coupling.network.actnorm1.loc",
    "conv1/actnorm_log_scale": "coupling.network.actnorm1.log_scale",
    "conv2/weight": "coupling.network.conv2.weight",
    "conv2/actnorm_loc": "coupling.network.actnorm2.loc",
    "conv2/actnorm_log_scale": "coupling.network.actnorm2.log_scale",
    "conv3/weight": "coupling.network.conv3.weight",
    "conv3/bias": "coupling.network.bias",
    "conv3/logs": "coupling.network.logs",
} | {
    f"linear{i}/{kind}": f"coupling.network.linear{i}.{kind}"
    for i in (1, 2, 3)
    for kind in ("weight", "bias")
}


class Public(NamedTuple):
    """A parity file: its arrays, their JSON description, and the flow's weights."""

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]
    state: dict[str, Tensor]

    @property
    def images(self) -> Tensor:
        return torch.from_numpy(self.arrays["images_uint8_nchw"])


@pytest.fixture
def public() -> Callable[[str], Public]:
    """Reads the parity file of a name."""

    def read(name: str) -> Public:
        arrays = dict(np.load(PARITY / f"{name}.npz"))
        meta = json.loads(str(arrays["meta"]))
        state = {"initialised": torch.tensor(True)}
        # The product of the factors, where there are factors; the fixed projection otherwise.
        fixed = {"permutation/weight": "mixing.weight"} if meta.get("block") == "dense" else {}
        names = LAYER_NAMES | fixed
        for key, array in arrays.items():
            if key.startswith("param/scale"):
                scale, place, layer = key.removeprefix("param/").split("/", 2)
                prefix = f"flow.{int(scale.removeprefix('scale')) - 1}."
                if place == "latent":
                    state[f"{prefix}latent.{layer}"] = torch.from_numpy(array)
                elif layer in names:
                    step = int(place.removeprefix("step")) - 1
                    state[f"{prefix}steps.{step}.{names[layer]}"] = torch.from_numpy(array)
        return Public(arrays, meta, state)

    return read

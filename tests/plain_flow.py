"""The authors' Glows by their formulas, step by step in float64, from arrays under plain names.

Nothing of the package is used, so that the tests have something to compare it with. The names are
those of the parity files, such as ``param/class0/scale1/gaussian/mean``.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Arrays = dict[str, np.ndarray]


def log_probs(arrays: Arrays, images: Tensor, local: bool = False) -> np.ndarray:
    """log p(v | class) of every class, N×classes (×1 without classes), v = x/256 − 0.5 + 1/512."""
    v = images.double() / 256 - 0.5 + 1 / 512
    if not local:
        return _flow(arrays, v, scales=3)
    patches = [v[:, :, y : y + 8, x : x + 8] for y in range(0, 32, 8) for x in range(0, 32, 8)]
    return sum(_flow(arrays, patch, scales=1) for patch in patches)


def _flow(arrays: Arrays, v: Tensor, scales: int) -> np.ndarray:
    labels = {name.split("/")[1] for name in arrays if name.startswith("param/class")}
    heads = sorted(labels, key=lambda label: int(label.removeprefix("class"))) or [""]
    total = torch.zeros(len(v), len(heads), dtype=torch.float64)
    for scale in range(1, scales + 1):
        n, c, height, width = v.shape
        v = v.reshape(n, c, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
        v = v.reshape(n, 4 * c, height // 2, width // 2)
        step = 1
        while f"param/scale{scale}/step{step}/actnorm/loc" in arrays:
            v, log_det = _step(_below(arrays, f"param/scale{scale}/step{step}/"), v)
            total += log_det[:, None]
            step += 1
        kept, v = v.chunk(2, dim=1) if scale < scales else (v, v)
        z, log_det = _affine(_below(arrays, f"param/scale{scale}/latent/"), kept.flatten(1))
        total += log_det
        for number, head in enumerate(heads):
            own = _below(arrays, f"param/{head}/scale{scale}/")
            if not head:
                total[:, number] += _log_normal(z)
                continue
            y, log_det = _affine(_below(own, "actnorm/"), z)
            mean, log_std = _double(own["gaussian/mean"]), _double(own["gaussian/log_std"])
            total[:, number] += log_det + _log_normal((y - mean) / log_std.exp()) - log_std.sum()
    return total.numpy()


def _step(own: Arrays, x: Tensor) -> tuple[Tensor, Tensor]:
    """One step, fully connected where it has linear layers."""
    shape, dense = x.shape, "linear1/weight" in own
    # As a fully connected step sees it: one position with all values as its channels.
    x = x.reshape(len(x), -1, 1, 1) if dense else x
    positions = x.shape[2] * x.shape[3]
    loc, log_scale = (_double(own[f"actnorm/{name}"]) for name in ("loc", "log_scale"))
    x = (x + loc.reshape(-1, 1, 1)) * log_scale.exp().reshape(-1, 1, 1)
    weight = own["permutation/weight"].astype(np.float64)
    x = torch.einsum("ij,njhw->nihw", torch.from_numpy(weight), x)
    log_det = positions * (log_scale.sum() + np.linalg.slogdet(weight)[1])
    a, b = x.chunk(2, dim=1)
    out = (_dense_network if dense else _network)(own, a)
    scale = torch.sigmoid(out[:, 1::2] + 2)
    x = torch.cat((a, (b + out[:, 0::2]) * scale), dim=1)
    return x.reshape(shape), log_det + scale.log().flatten(1).sum(1)


def _network(own: Arrays, a: Tensor) -> Tensor:
    for name in ("conv1", "conv2"):
        weight = _double(own[f"{name}/weight"])
        a = F.conv2d(a, weight, padding=weight.shape[2] // 2)
        loc, log_scale = (_double(own[f"{name}/actnorm_{part}"]) for part in ("loc", "log_scale"))
        a = ((a + loc.reshape(-1, 1, 1)) * log_scale.exp().reshape(-1, 1, 1)).clamp(min=0)
    out = F.conv2d(a, _double(own["conv3/weight"]), _double(own["conv3/bias"]), padding=1)
    return out * (3 * _double(own["conv3/logs"])).exp().reshape(-1, 1, 1)


def _dense_network(own: Arrays, a: Tensor) -> Tensor:
    a = a.flatten(1)
    for number in (1, 2, 3):
        a = a @ _double(own[f"linear{number}/weight"]).T + _double(own[f"linear{number}/bias"])
        a = a.clamp(min=0) if number < 3 else a
    return a[:, :, None, None]


def _affine(own: Arrays, x: Tensor) -> tuple[Tensor, Tensor]:
    loc, log_scale = _double(own["loc"]), _double(own["log_scale"])
    return (x + loc) * log_scale.exp(), log_scale.sum()


def _log_normal(z: Tensor) -> Tensor:
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)


def _double(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.float64))


def _below(arrays: Arrays, prefix: str) -> Arrays:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def drawn(
    channels: int, hidden: int = 8, depth: int = 2, classes: int = 0, kind: str = "glow"
) -> Arrays:
    """Random weights of a model, of sizes that a trained one could have, and images to score."""
    rng = np.random.default_rng([channels, hidden, depth, classes])
    found: Arrays = {}

    def draw(name: str, *shape: int, scale: float = 0.1) -> None:
        found[name] = (scale * rng.normal(size=shape)).astype(np.float32)

    side, c = (8 if kind == "local" else 32), channels
    for i in (1,) if kind == "local" else (1, 2, 3):
        c, side = 4 * c, side // 2
        features = c * side**2 if kind == "dense" else c
        for k in range(1, depth + 1):
            step = f"param/scale{i}/step{k}/"
            draw(f"{step}actnorm/loc", features)
            draw(f"{step}actnorm/log_scale", features)
            found |= _permutation(rng, features, f"{step}permutation/", kind == "dense")
            if kind == "dense":
                sizes = (features // 2, hidden, hidden, features)
                for number in (1, 2, 3):
                    draw(f"{step}linear{number}/weight", *sizes[number - 1 : number + 1][::-1])
                    draw(f"{step}linear{number}/bias", sizes[number])
                continue
            draw(f"{step}conv1/weight", hidden, c // 2, 3, 3)
            draw(f"{step}conv2/weight", hidden, hidden, 1, 1, scale=0.5)
            draw(f"{step}conv3/weight", c, hidden, 3, 3)
            draw(f"{step}conv3/bias", c)
            draw(f"{step}conv3/logs", c)
            for conv in ("conv1", "conv2"):
                draw(f"{step}{conv}/actnorm_loc", hidden)
                draw(f"{step}{conv}/actnorm_log_scale", hidden)
        c = c // 2 if i < 3 and kind != "local" else c
        draw(f"param/scale{i}/latent/loc", c * side**2)
        draw(f"param/scale{i}/latent/log_scale", c * side**2)
        for label in range(classes):
            for name in ("actnorm/loc", "actnorm/log_scale", "gaussian/mean", "gaussian/log_std"):
                draw(f"param/class{label}/scale{i}/{name}", c * side**2)
    found["images_uint8_nchw"] = rng.integers(256, size=(5, channels, 32, 32), dtype=np.uint8)
    return found


def _permutation(rng: np.random.Generator, size: int, prefix: str, fixed: bool) -> Arrays:
    """W, and its factors where it is not fixed."""
    if fixed:
        # Two reflections and a shuffle: a rotation, and no decomposition of 3072² numbers.
        weight = np.eye(size)[rng.permutation(size)]
        for axis in rng.normal(size=(2, size)):
            weight -= np.outer(axis, 2 / (axis @ axis) * (axis @ weight))
        return {f"{prefix}weight": weight.astype(np.float32)}
    weight = np.linalg.qr(rng.normal(size=(size, size)))[0]
    p, lower, upper = (part.numpy() for part in torch.linalg.lu(torch.from_numpy(weight)))
    diagonal = np.diag(upper)
    log_abs = np.log(np.abs(diagonal)) + 0.1 * rng.normal(size=size)
    upper = np.triu(upper, 1)
    made = {"w_p": p, "w_l": lower, "w_u": upper, "w_s": log_abs, "s_sign": np.sign(diagonal)}
    made["weight"] = p @ lower @ (upper + np.diag(made["s_sign"] * np.exp(log_abs)))
    return {f"{prefix}{name}": part.astype(np.float32) for name, part in made.items()}

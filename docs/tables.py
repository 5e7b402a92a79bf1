"""The tables of `layer_capture.md`, made from the code: `python docs/tables.py` renews them."""

from pathlib import Path

import jax
import jax.numpy as jnp

from laplace_kit.curv import coverage
from laplace_kit.curv.capture.coverage import METHODS
from laplace_kit.curv.capture.layers import KINDS

PAGE = Path(__file__).parent / "layer_capture.md"
BEGIN, END = "<!-- kinds -->\n", "<!-- /kinds -->"

# Models of three examples in which `w` is used: each is traced to see what becomes of it.
INPUTS = {"x": jnp.ones((3, 5, 4)), "tokens": jnp.zeros((3, 5), int)}
EXAMPLES = {
    "dense": {
        "x @ w": (4, 6),
        'jnp.einsum("ntd,hkd->nhtk", x, w)': (2, 3, 4),
        "jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, w)[0]": (3, 4, 4),
    },
    "convolution": {'jax.lax.conv(x, w, (2,), "SAME")': (6, 5, 3)},
    "embedding": {"w[tokens]": (7, 4)},
    "bias": {"x @ v + w": (6,), "x + w": (4,)},
    "scale": {"x * w": (4,)},
    "shared": {"jnp.tanh(x @ w) @ w": (4, 4)},
    "unused": {"x": (4,)},
    "other": {"x @ jnp.exp(w)": (4, 6)},
}


def coverage_of(code, shape):
    """Return what becomes of `w` in a model that is given as an expression."""

    def model_fn(params, inputs):
        return eval(code, {"jax": jax, "jnp": jnp, **params, **inputs})

    return coverage(model_fn, {"w": jnp.ones(shape), "v": jnp.ones((4, 6))}, INPUTS)["w"]


def tables() -> str:
    lines = ["| kind | how the parameter enters | for example `w` in | method |"]
    lines.append("| --- | --- | --- | --- |")
    for kind in KINDS:
        described = set()
        for code, shape in EXAMPLES[kind].items():
            found = coverage_of(code, shape)
            description = "" if found.kind in described else KINDS[found.kind]
            described.add(found.kind)
            lines.append(f"| {found.kind} | {description} | `{code}` | {found.method} |")
    lines += ["", "| method | what is kept of each example |", "| --- | --- |"]
    lines += [f"| {method} | {description} |" for method, description in METHODS.items()]
    return "\n".join(lines) + "\n"


def renewed(page: str) -> str:
    """Return a page with the tables of today between the markers."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + "\n" + tables() + "\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

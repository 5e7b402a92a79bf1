"""Draw the pictures of `curvature.md` from what its own code computes: run this file."""

import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from laplace_kit import curv
from laplace_kit.curv import plots
from laplace_kit.curv.plots import BLUE, GREY, VERMILLION
from laplace_kit.tree import replace

PAGE = Path(__file__).parent / "curvature.md"
IMAGES = Path(__file__).parent / "images"
GREEN = "#009E73"
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.markersize": 3,
    "figure.dpi": 150,
}
NUM_SAMPLES = (4, 8, 16, 32, 64)
LAYER_ENDS = (24, 60)  # of 70 parameters in flat order: first, hidden, out


def page_namespace() -> SimpleNamespace:
    """Run the page's blocks one after the other and return what they define."""
    namespace = {}
    for block in re.findall(
        r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.S | re.M
    ):
        exec(block, namespace)
    return SimpleNamespace(**{name: value for name, value in namespace.items() if name[0] != "_"})


# --- parts of pictures ----------------------------------------------------------------------------


def panels(*widths: float, height: float = 2.2) -> tuple[Figure, list]:
    figure, axes = plt.subplots(
        1,
        len(widths),
        figsize=(sum(widths), height),
        width_ratios=widths,
        layout="constrained",
        squeeze=False,
    )
    return figure, list(axes[0])


def draw_matrix(ax, matrix, title: str, *, size: float | None = None, layers: bool = True):
    """Draw signed square roots of the entries, in red where positive and blue where negative."""
    matrix = np.asarray(matrix)
    size = np.abs(matrix).max() if size is None else size
    roots = np.sign(matrix) * np.sqrt(np.abs(matrix) / size)
    ax.imshow(roots, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    for end in LAYER_ENDS if layers else ():
        ax.axhline(end - 0.5, color="black", linewidth=0.4)
        ax.axvline(end - 0.5, color="black", linewidth=0.4)
    ax.set(title=title, xticks=[], yticks=[])
    ax.spines[:].set_visible(True)
    ax.spines[:].set(linewidth=0.4)


def draw_spectrum(ax, matrix, *, color: str, marker: str = "o", label: str | None = None):
    """Draw the absolute eigenvalues by size; negative ones are crosses."""
    values = np.linalg.eigvalsh(np.asarray(matrix, float))
    values = values[np.argsort(-np.abs(values))]
    number, positive = np.arange(1, len(values) + 1), values > 0
    ax.semilogy(number[positive], values[positive], marker, color=color, label=label)
    ax.set(xlabel="number", title="absolute eigenvalues", ylim=(1e-4, 3e3))
    return number[~positive], -values[~positive]


def draw_estimates(ax, estimates, *, color: str, marker: str, label: str, shift: float = 1.0):
    """Draw estimates with their standard errors against the number of samples."""
    values = [float(estimate.value) for estimate in estimates]
    errors = [float(estimate.standard_error) for estimate in estimates]
    places = shift * np.array(NUM_SAMPLES)
    ax.errorbar(places, values, errors, fmt=marker, color=color, capsize=2, label=label)
    number_of_probes(ax)


def number_of_probes(ax):
    """Let the horizontal axis be the number of probes."""
    ax.set_xscale("log", base=2)
    ax.set(xlabel="number of probes", xticks=NUM_SAMPLES, xticklabels=NUM_SAMPLES)
    ax.minorticks_off()


def draw_exact(ax, value: float, label: str = "exact"):
    ax.axhline(float(value), color=GREY, linestyle="--", linewidth=1, label=label)


def residual_curve(inverse: curv.InverseOperator, v, num_steps: int) -> list[float]:
    """Return the relative residuals when the solver stops after 0, 1, ... steps."""

    @jax.jit  # inside of which an early stop does not warn
    def residual(num):
        return replace(inverse, max_iterations=num).solve(v).residual

    return [1.0, *(float(residual(num)) for num in range(1, num_steps + 1))]


def draw_residuals(ax, curves: dict[str, list[float]], tolerance: float = 3.5e-4):
    styles = zip((BLUE, VERMILLION, GREEN), ("-", "--", "-."), strict=True)
    for (label, residuals), (color, line) in zip(curves.items(), styles, strict=False):
        ax.semilogy(residuals, line, color=color, label=label)
    ax.axhline(tolerance, color=GREY, linewidth=0.8, linestyle=":")
    ax.set(xlabel="steps", ylabel="relative residual", ylim=(tolerance / 3, None))
    ax.legend()


# --- operators ------------------------------------------------------------------------------------


def hessian(page):
    figure, (left, right) = panels(2.2, 3.0)
    matrix = page.hessian.to_dense()
    draw_matrix(left, matrix, "Hessian")
    number, size = draw_spectrum(right, matrix, color=BLUE, label="positive")
    right.semilogy(number, size, "x", color=VERMILLION, label="negative")
    right.legend()
    return figure


def ggn(page):
    figure, (left, right) = panels(2.2, 3.0)
    draw_matrix(left, page.ggn.to_dense(), "GGN")
    draw_spectrum(right, page.hessian.to_dense(), color=GREY, label="Hessian, positive")
    draw_spectrum(right, page.ggn.to_dense(), color=BLUE, marker="x", label="GGN")
    right.legend()
    return figure


def empirical_fisher(page):
    figure, (left, right) = panels(2.2, 2.4)
    draw_matrix(left, page.empirical.to_dense(), "empirical Fisher")
    diagonal, empirical = page.ggn.diagonal(), page.empirical.diagonal()
    ends = float(diagonal.min()) / 2, float(diagonal.max()) * 2
    right.loglog(ends, ends, color=GREY, linewidth=0.8)
    right.loglog(diagonal, empirical, "o", color=BLUE)
    right.set(xlabel="diagonal of the GGN", ylabel="of the empirical Fisher")
    return figure


def mc_fisher(page):
    figure, axes = panels(2.0, 2.0, 2.0)
    matrices = [op.to_dense() for op in (page.one_label, page.many_labels, page.ggn)]
    size = float(jnp.abs(matrices[-1]).max())
    for ax, matrix, title in zip(axes, matrices, ("1 label", "100 labels", "GGN"), strict=True):
        draw_matrix(ax, matrix, title, size=size)
    return figure


def jacobian(page):
    figure, (left, right) = panels(3.6, 2.2)
    rows = page.jacobian.to_dense()[:40]
    draw_matrix(left, rows, "Jacobian, 40 rows", layers=False)
    draw_matrix(right, rows.T, "transposed", layers=False)
    return figure


def kernel(page):
    figure, (ax,) = panels(2.6, height=2.4)
    draw_matrix(ax, page.first_logit, "kernel of the first logit", layers=False)
    return figure


def blocks(page):
    figure, axes = panels(2.0, 2.0, 2.0)
    blocks = (page.by_leaf, page.by_layer, page.by_name)
    titles = ("by leaf", "by layer", "body and head")
    for ax, operator, title in zip(axes, blocks, titles, strict=True):
        draw_matrix(ax, operator.to_dense(), title)
    return figure


def submatrix(page):
    figure, (left, right) = panels(2.2, 2.2)
    draw_matrix(left, page.ggn.to_dense(), "GGN")
    left.add_patch(plt.Rectangle((59.5, 59.5), 10, 10, fill=False, edgecolor=GREEN, linewidth=2))
    draw_matrix(right, page.head.to_dense(), "of the last layer", layers=False)
    right.spines[:].set(color=GREEN, linewidth=2)
    return figure


def algebra(page):
    figure, (left, right) = panels(2.2, 3.0)
    size = float(jnp.abs(page.hessian.to_dense()).max())
    draw_matrix(left, page.residual_part.to_dense(), "Hessian minus GGN", size=size)
    draw_spectrum(right, page.ggn.to_dense(), color=GREY, label="GGN")
    draw_spectrum(right, page.precision.to_dense(), color=BLUE, marker="x", label="GGN + 0.1")
    draw_exact(right, 0.1, "0.1")
    right.legend()
    return figure


def linearized(page):
    def operations(fun, *args) -> float:
        return jax.jit(fun).lower(*args).compile().cost_analysis()["flops"]

    def product(operator):
        return operations(lambda operator, v: operator @ v, operator, page.v)

    gradient = operations(jax.grad(page.objective), page.params)
    number = np.arange(1, 21)
    figure, (ax,) = panels(4.2)
    for operator, color, name in ((page.hessian, VERMILLION, "Hessian"), (page.ggn, BLUE, "GGN")):
        alone, after = (product(op) / gradient for op in (operator, curv.linearized(operator)))
        ax.plot(number, alone * number, "--", color=color, label=name)
        once = alone - after
        ax.plot(number, once + after * number, color=color, label=f"{name}, linearized once")
    ax.set(xlabel="products, one after the other", ylabel="operations, in gradients")
    ax.set(xticks=(1, 5, 10, 15, 20), ylim=(0, None))
    ax.legend()
    return figure


# --- estimates ------------------------------------------------------------------------------------


def trace(page):
    def estimates(method):
        return [
            curv.estimate_trace(page.hessian, key=page.key, num_samples=num, method=method)
            for num in NUM_SAMPLES
        ]

    figure, (ax,) = panels(4.2)
    draw_exact(ax, page.exact)
    draw_estimates(ax, estimates("hutchinson"), color=BLUE, marker="o", label="Hutchinson")
    draw_estimates(
        ax, estimates("xtrace"), color=VERMILLION, marker="s", label="XTrace", shift=1.15
    )
    ax.set(ylabel="trace of the Hessian")
    ax.legend(ncols=3)
    return figure


def diagonal(page):
    figure, (ax,) = panels(3.2, height=2.6)
    exact = np.asarray(page.exact_diagonal)
    ends = np.array([exact.min(), exact.max()])
    ax.plot(ends, ends, color=GREY, linewidth=0.8)
    ax.plot(exact, page.diagonal_estimate.value, "o", color=BLUE, label="Hutchinson")
    ax.plot(exact, page.by_xdiag.value, "x", color=VERMILLION, label="XDiag")
    ax.set(xlabel="exact diagonal of the Hessian", ylabel="estimate, 32 probes")
    ax.legend()
    return figure


def frobenius(page):
    def distances(params):
        hessian = curv.HessianOperator(page.model_fn, params, *page.model[2:])
        difference = hessian - curv.GGNOperator(page.model_fn, params, *page.model[2:])
        return [_relative_norm(difference, hessian, page.key, num) for num in NUM_SAMPLES], (
            jnp.linalg.norm(difference.to_dense()) / jnp.linalg.norm(hessian.to_dense())
        )

    figure, (ax,) = panels(4.2)
    cases = ((page.initial, VERMILLION, "s", "initial"), (page.params, BLUE, "o", "trained"))
    for params, color, marker, label in cases:
        estimates, exact = distances(params)
        draw_exact(ax, exact, "exact" if label == "trained" else "_")
        ax.plot(NUM_SAMPLES, estimates, marker, color=color, label=label)
    number_of_probes(ax)
    ax.set(ylabel="|H - G| / |H|", ylim=(0, None))
    ax.legend(ncols=3, loc="center")
    return figure


def _relative_norm(difference, hessian, key, num_samples: int) -> float:
    part, whole = (
        curv.estimate_frobenius_norm_squared(operator, key=key, num_samples=num_samples).value
        for operator in (difference, hessian)
    )
    return float(jnp.sqrt(part / whole))


def log_det(page):
    dampings = 10.0 ** np.arange(-3, 3)
    estimates = [
        curv.estimate_log_det(page.ggn, damping=damping, key=page.key) for damping in dampings
    ]
    values = np.maximum(np.linalg.eigvalsh(np.asarray(page.ggn.to_dense(), float)), 0)
    fine = np.geomspace(dampings[0], dampings[-1], 100)
    figure, (ax,) = panels(4.2)
    exact = [np.log(values + damping).sum() for damping in fine]
    ax.semilogx(fine, exact, color=GREY, label="exact")
    ax.errorbar(
        dampings,
        [float(estimate.value) for estimate in estimates],
        [float(estimate.standard_error) for estimate in estimates],
        fmt="o",
        color=BLUE,
        capsize=2,
        label="quadrature, 16 probes",
    )
    ax.set(xlabel="damping", ylabel="log det (GGN + damping)")
    ax.legend()
    return figure


def density(page):
    figure, (ax,) = panels(5.2)
    plots.spectral_density(ax, page.density)
    values = np.linalg.eigvalsh(np.asarray(page.hessian.to_dense(), float))
    grid, width = np.asarray(page.density.grid), float(page.density.width)
    bumps = np.exp(-0.5 * ((grid[:, None] - values) / width) ** 2) / (width * np.sqrt(2 * np.pi))
    ax.plot(grid, bumps.mean(1), "--", color=VERMILLION, linewidth=1)
    ax.legend(ax.lines[::2], ("quadrature, 8 probes", "exact"))
    return figure


def eigenpairs(page):
    figure, (left, right) = panels(2.8, 2.8)
    plots.eigenvalue_bars(left, page.top)
    left.set(title="the six largest")
    plots.eigenvalue_bars(right, page.ends)
    right.set(title="three from both ends, untrained")
    return figure


# --- inverses -------------------------------------------------------------------------------------


def solve(page):
    methods = {"conjugate gradients": "cg", "LSMR": "lsmr", "Neumann series": "neumann"}
    curves = {
        name: residual_curve(
            curv.InverseOperator(page.ggn, damping=10.0, method=method), page.v, num_steps=40
        )
        for name, method in methods.items()
    }
    figure, (ax,) = panels(4.2)
    draw_residuals(ax, curves)
    return figure


def preconditioners(page):
    plain = curv.InverseOperator(page.ggn, damping=page.prior_precision)
    jacobi = curv.diagonal_preconditioner(page.ggn, damping=page.prior_precision)
    choices = {"none": None, "Kronecker": page.kron, "diagonal": jacobi}
    curves = {
        name: residual_curve(replace(plain, preconditioner=choice), page.v, num_steps=70)
        for name, choice in choices.items()
    }
    figure, (ax,) = panels(4.2)
    draw_residuals(ax, curves)
    return figure


# --- more -----------------------------------------------------------------------------------------


def finite_difference(page):
    exact = curv.hvp(page.objective, page.params, page.v)

    def error(product) -> float:
        return float(jnp.linalg.norm(product - exact) / jnp.linalg.norm(exact))

    steps = np.geomspace(1e-5, 0.3, 40)
    plain = jax.jit(
        lambda step: curv.finite_difference_hvp(page.objective, page.params, page.v, step=step)
    )
    figure, (ax,) = panels(4.2)
    ax.loglog(steps, [error(plain(step)) for step in steps], color=GREY, label="one step")
    ax.axhline(error(page.estimate.product), color=BLUE, label="extrapolated")
    estimate = float(page.relative_error)
    ax.axhline(estimate, color=VERMILLION, linestyle="--", label="estimate of its error")
    ax.set(xlabel="step", ylabel="relative error")
    ax.legend()
    return figure


def layers(page):
    figure, axes = panels(2.0, 2.0, 2.0, height=1.6)
    columns = page.table.to_dict()
    names = [name.removesuffix("/kernel") for name in columns["layer"]]
    for ax, name in zip(axes, ("trace", "mean diagonal", "largest eigenvalue"), strict=True):
        ax.barh(names, columns[name], color=BLUE)
        ax.invert_yaxis()
        ax.set(title=name)
        ax.label_outer()
    return figure


def landscape(page):
    figure, (left, right) = panels(2.8, 2.8, height=2.4)
    vector = page.leading[0]
    plots.loss_curve(left, page.along_one, curvature=vector @ (page.hessian @ vector))
    plots.loss_surface(right, page.surface)
    return figure


def random_directions(page):
    figure, (ax,) = panels(2.8, height=2.4)
    plots.loss_surface(ax, page.everyday)
    return figure


PICTURES = (
    *(hessian, ggn, empirical_fisher, mc_fisher, jacobian, kernel),
    *(blocks, submatrix, algebra, linearized),
    *(trace, diagonal, frobenius, log_det, density, eigenpairs),
    *(solve, preconditioners),
    *(finite_difference, layers, landscape, random_directions),
)


def save(figure: Figure, path: Path):
    """Write a picture with a palette of colours, which takes a third of the bytes."""
    figure.canvas.draw()
    picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    picture.quantize(256).save(path, optimize=True)
    plt.close(figure)


if __name__ == "__main__":
    page = page_namespace()
    with plt.rc_context(STYLE):
        for draw in PICTURES:
            save(draw(page), IMAGES / f"curvature_{draw.__name__}.png")

"""Modules of torch compute in JAX what they do in torch, and get posteriors as any model does."""

import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import laplace_kit as lk
from laplace_kit.curv.capture.layers import find_layers
from laplace_kit.model.torch_operations import environment

NEEDS = "needs laplace-kit[torch], which `make test-torch` installs"
torch = pytest.importorskip("torch", reason=NEEDS)
torch_modules = pytest.importorskip("torch_modules", reason=NEEDS)
if importlib.util.find_spec("torchax") is None:
    pytest.skip(NEEDS, allow_module_level=True)
nn = torch.nn

Y = np.random.default_rng(0).integers(0, 3, torch_modules.NUM)


def by_torch(module, x):
    """Return the outputs of a module in evaluation mode, which is then set back."""
    was_training = module.training
    args = (x,) if isinstance(x, torch.Tensor) else x if isinstance(x, tuple) else ()
    with torch.no_grad():
        outputs = module.eval()(*args, **(x if isinstance(x, dict) else {}))
    module.train(was_training)
    return getattr(outputs, "logits", outputs).numpy()


def in_double(x):
    """Return inputs in float64; tokens are left as they are."""
    return jax.tree.map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, x)


@pytest.mark.parametrize("name", torch_modules.MODULES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_outputs_are_those_of_torch(name, dtype):
    module, x = torch_modules.made(name)
    if dtype == "float64":
        module, x = module.double(), in_double(x)
    state = {key: value.clone() for key, value in module.state_dict().items()}
    with jax.enable_x64(dtype == "float64"):
        model_fn, params = lk.model.from_torch(module)
        found, again = model_fn(params, x), jax.jit(model_fn)(params, jax.tree.map(jnp.asarray, x))
        assert found.dtype == dtype
        tolerance = {"float32": 1e-6, "float64": 1e-12}[dtype]
        for outputs in (found, again):
            np.testing.assert_allclose(outputs, by_torch(module, x), atol=tolerance, rtol=tolerance)
    assert module.training
    for key, value in module.state_dict().items():
        assert torch.equal(value, state[key])


# --- layers ---------------------------------------------------------------------------------------


def by_exact_rows(module, x):
    """Return the kinds of the parameters that enter no product, by path."""
    model_fn, params = lk.model.from_torch(module)
    one = jax.tree.map(lambda leaf: jnp.asarray(leaf[:1]), x)
    found = find_layers(model_fn, params, one)
    products = [layer.product for layer in found.layers]
    return {leaf.path: leaf.kind for leaf in found.leaves if products[leaf.layer] is None}


NORM = {"weight": "scale", "bias": "bias"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("MLP", {}),
        ("LeNet", {}),
        ("attention", {"attention/in_proj_bias": "shared"}),  # one leaf, for three products
        ("BatchNorm", {f"1/{leaf}": kind for leaf, kind in NORM.items()}),
        ("residual", {f"norm/{leaf}": kind for leaf, kind in NORM.items()}),
        (
            "encoder",
            {
                f"encoder/layers/0/norm{i}/{leaf}": kind
                for i in (1, 2)
                for leaf, kind in NORM.items()
            },
        ),
        ("LSTM", {f"layer/{leaf}_hh_l{i}": "other" for i in (0, 1) for leaf in NORM}),
        ("RNN", {"layer/weight_hh_l0": "other"}),
        ("tied", {"table/weight": "shared"}),
    ],
)
def test_layers_are_found_as_in_a_model_of_jax(name, expected):
    """Exact rows are left to norms, recurrent weights and what is used several times."""
    assert by_exact_rows(*torch_modules.made(name)) == expected


def test_a_parameter_that_is_added_is_a_bias():
    class Shifted(nn.Module):
        def __init__(self, sign):
            super().__init__()
            self.linear = nn.Linear(3, 2, bias=False)
            self.shift = nn.Parameter(torch.ones(2))
            self.sign = sign

        def forward(self, x):
            h = self.linear(x)
            return h + self.shift if self.sign > 0 else h - self.shift

    x = torch_modules.values(4, 3)
    assert by_exact_rows(Shifted(1), x) == {}
    assert by_exact_rows(Shifted(-1), x) == {"shift": "bias"}


# --- posteriors -----------------------------------------------------------------------------------


def fitted(module, x, **options):
    model_fn, params = lk.model.from_torch(module)
    return lk.fit(model_fn, params, (x, torch.tensor(Y)), likelihood="categorical", **options)


def dense(module, x):
    """Return the evidence at prior precision one and the outputs' covariances, all by torch."""
    module = module.eval()
    free = [p for p in module.parameters() if p.requires_grad]
    args = (x,) if isinstance(x, torch.Tensor) else x if isinstance(x, tuple) else ()
    outputs = module(*args, **(x if isinstance(x, dict) else {}))
    rows = [torch.autograd.grad(f, free, retain_graph=True) for f in outputs.flatten()]
    jac = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).numpy()
    jac = jac.reshape(*outputs.shape, -1)
    f = outputs.detach().numpy()
    log_p = f - scipy.special.logsumexp(f, axis=1, keepdims=True)
    p = np.exp(log_p)
    inner = np.eye(3) * p[:, :, None] - p[:, :, None] * p[:, None, :]
    precision = np.einsum("ncp,ncd,ndq->pq", jac, inner, jac) + np.eye(jac.shape[-1])
    theta = torch.cat([p.detach().flatten() for p in free]).numpy()
    evidence = log_p[np.arange(len(Y)), Y].sum() - theta @ theta / 2
    cov = jac @ np.linalg.solve(precision, np.swapaxes(jac, 1, 2))
    return evidence - np.linalg.slogdet(precision)[1] / 2, cov


@pytest.mark.parametrize("name", ["MLP", "BatchNorm", "attention", "LSTM", "tied", "mixed"])
def test_the_full_posterior_is_the_dense_one_of_torch(name, x64):
    module, x = torch_modules.made(name)
    module, x = module.double(), in_double(x)
    evidence, cov = dense(module, x)
    la = fitted(module, x, structure="full")
    np.testing.assert_allclose(la.log_marginal_likelihood(), evidence, rtol=1e-10)
    np.testing.assert_allclose(la.predict(x, covariance="full").f_cov, cov, rtol=1e-7, atol=1e-10)


STRUCTURES = {
    "kron": {"structure": "kron"},
    "ekfac": {"structure": "ekfac"},
    "diagonal": {"structure": "diagonal"},
    "last layer": {"structure": "full", "subset": "last_layer"},
}


def is_usable(module, x, options, path):
    """Fit, tune, predict, save, and load with the module adapted once more."""
    la = fitted(module, x, **options).tune(temperature=False)
    probs = torch.from_dlpack(la.predict(x).probs)
    assert probs.shape == (torch_modules.NUM, 3)
    torch.testing.assert_close(probs.sum(1), torch.ones(torch_modules.NUM))
    la.save(path)
    again = lk.load(path, lk.model.from_torch(module)[0])
    np.testing.assert_allclose(again.predict(x).probs, probs, rtol=1e-5)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_posterior_is_fitted_tuned_saved_and_loaded(structure, tmp_path):
    is_usable(*torch_modules.made("MLP"), STRUCTURES[structure], tmp_path / "la")


@pytest.mark.slow
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", [name for name in torch_modules.MODULES if name != "MLP"])
def test_posteriors_of_all_modules(name, structure, tmp_path):
    module, x = torch_modules.made(name)
    if (name, structure) == ("tied", "last layer"):
        with pytest.raises(ValueError, match="last"):
            fitted(module, x, **STRUCTURES[structure])
        return
    is_usable(module, x, STRUCTURES[structure], tmp_path / "la")


# --- what goes in and comes out -------------------------------------------------------------------


class Applied(nn.Module):
    """A linear layer and a function of what it returns, one level down."""

    def __init__(self, function):
        super().__init__()
        self.part = _Part(function)

    def forward(self, x):
        return self.part(x)


class _Part(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.function = function
        self.held = [torch.ones(2)]
        self.calls = 0

    def forward(self, x):
        return self.function(self, self.linear(x))


X = torch_modules.values(4, 3)


@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        (
            lambda part, h: h if h.sum() > 0 else -h,
            TypeError,
            r"layer 'part' \(_Part\) depends on the values of tensors .* torch\.where",
        ),
        (lambda part, h: h * float(h.max()), TypeError, "'part' .* the values of tensors"),
        (lambda part, h: h[h[:, 0] > 0], TypeError, "'part' .* the values of tensors"),
        (
            lambda part, h: nn.functional.dropout(h),
            ValueError,
            r"randomness in the layer 'part' \(_Part\) .* training=self\.training",
        ),
        (lambda part, h: h + torch.rand_like(h), ValueError, "randomness in the layer 'part'"),
        (
            lambda part, h: h + part.held[0],
            TypeError,
            r"'part' \(_Part\) that is neither a parameter nor a buffer .*register_buffer",
        ),
        (
            lambda part, h: torch.special.airy_ai(h),
            NotImplementedError,
            r"'part' \(_Part\) uses what has no JAX form \(.*airy_ai.*\)",
        ),
        (lambda part, h: (h, h), ValueError, r"Found a tuple .*=lambda out: out\[0\]"),
        (lambda part, h: {"mean": h}, ValueError, r"a dict with mean .*=lambda out: out\['mean'\]"),
    ],
)
def test_what_cannot_be_adapted_names_the_layer_and_the_remedy(function, error, words):
    with pytest.raises(error, match=words):
        lk.model.from_torch(Applied(function), X)


def test_assertions_of_the_module_stay_as_they_are():
    def checked(part, h):
        assert h.ndim == 3
        return h

    with pytest.raises(AssertionError):
        lk.model.from_torch(Applied(checked), X)


def test_packed_sequences_are_refused():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.LSTM(3, 2, batch_first=True)

        def forward(self, x):
            lengths = torch.tensor([3, 2, 2, 1], device="cpu")
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
            return self.layer(packed)[0].data

    with pytest.raises(NotImplementedError, match="_pack_padded_sequence"):
        lk.model.from_torch(Packed(), torch_modules.values(4, 3, 3))


def test_outputs_that_are_not_those_of_torch_are_refused():
    def counting(part, h):
        part.calls += 1
        return h * part.calls

    with pytest.raises(ValueError, match=r"outputs of JAX that differ from torch's by .* Applied"):
        lk.model.from_torch(Applied(counting), X)


@pytest.mark.parametrize(
    ("module", "error", "words"),
    [
        (lambda: 3, TypeError, r"Found int, expected a torch\.nn\.Module"),
        (lambda: torch.jit.script(nn.Linear(3, 2)), TypeError, "Found RecursiveScriptModule"),
        (lambda: nn.Linear(3, 2).double(), TypeError, r"'weight' in float64 .* module\.float\(\)"),
        (lambda: nn.LazyLinear(2), ValueError, "'weight' without values"),
        (lambda: nn.ReLU(), ValueError, "no parameter of ReLU that requires gradients"),
        (lambda: nn.Linear(3, 2).requires_grad_(False), ValueError, r"\.requires_grad_\(True\)"),
        (
            lambda: nn.Sequential(nn.Linear(3, 2), nn.Sequential(nn.Softmax(-1))),
            ValueError,
            r"ends in Softmax, .* module\[:-1\]",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of scripting
def test_modules_that_are_refused(module, error, words):
    with pytest.raises(error, match=words):
        lk.model.from_torch(module())


def test_leaves_are_named_as_in_torch_and_only_random_ones_are_parameters():
    module, _ = torch_modules.made("mixed")
    model_fn, params = lk.model.from_torch(module)
    expected = {"bag": {"weight": 0}, "head": {"bias": 0, "weight": 0}}
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    assert len(jax.tree.leaves(model_fn)) == 4  # the frozen layer, the buffer, the plain tensor
    np.testing.assert_array_equal(params["head"]["weight"], module.head.weight.detach())
    tied, _ = torch_modules.made("tied")
    names = jax.tree.structure({"mix": {"bias": 0, "weight": 0}, "table": {"weight": 0}})
    assert jax.tree.structure(lk.model.from_torch(tied)[1]) == names


def test_training_on_does_not_change_what_was_adapted():
    module, x = torch_modules.made("MLP")
    model_fn, params = lk.model.from_torch(module)
    before = np.asarray(model_fn(params, x))
    with torch.no_grad():
        module[0].weight.mul_(2)
    np.testing.assert_array_equal(model_fn(params, x), before)


def test_modules_within_others_are_unwrapped():
    module, x = torch_modules.made("MLP")
    expected = by_torch(module, x)
    for wrapped in (nn.DataParallel(module), torch.compile(module, backend="eager")):
        model_fn, params = lk.model.from_torch(wrapped)
        np.testing.assert_allclose(model_fn(params, x), expected, atol=1e-6)
        assert set(params) == {"0", "2"}


def test_weights_computed_from_others():
    for normalised in (
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
    ):
        module = nn.Sequential(normalised(nn.Linear(3, 4)), nn.ReLU(), nn.Linear(4, 2))
        _, params = lk.model.from_torch(module, X)
        assert "parametrizations" in params["0"]


def test_modules_in_bfloat16_and_their_inputs():
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).bfloat16()
    model_fn, params = lk.model.from_torch(module, X.bfloat16())
    assert params["0"]["weight"].dtype == "bfloat16"
    lk.model.from_torch(module, jnp.asarray(X.numpy(), "bfloat16"))
    expected = by_torch(module.float(), X)
    np.testing.assert_allclose(model_fn(params, X.bfloat16()).astype(float), expected, atol=0.03)


def test_torchax_that_is_missing_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchax.tensor", None)
    with pytest.raises(ImportError, match=r"no torchax .* pip install 'laplace-kit\[torch\]'"):
        environment.__wrapped__()


def test_torch_is_as_it_was():
    """Importing torchax alone makes all of these fail, other than the first one."""
    fast = torch.backends.mha.get_fastpath_enabled()
    module, x = torch_modules.made("encoder")
    lk.model.from_torch(module, x)
    assert torch.is_grad_enabled()
    assert torch.backends.mha.get_fastpath_enabled() is fast is True
    assert torch.accelerator.current_accelerator() is None or torch.cuda.is_available()
    assert nn.DataParallel(module).module is module
    torch.testing.assert_close(torch.compile(module.eval(), backend="eager")(x), module(x))
    assert torch.get_default_device() == torch.device("cpu")
    assert type(module(x)) is torch.Tensor


@pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")  # without an accelerator
def test_loaders_that_pin_memory():
    module, x = torch_modules.made("MLP")
    model_fn, params = lk.model.from_torch(module)
    rows = torch.utils.data.TensorDataset(x, torch.tensor(Y))
    loader = torch.utils.data.DataLoader(rows, batch_size=6, pin_memory=True)
    options = {"likelihood": "categorical", "structure": "diagonal"}
    assert lk.fit(model_fn, params, loader, **options).num_data == len(Y)


def test_loaders_of_torch_go_in_as_they_are():
    module, x = torch_modules.made("mixed")
    model_fn, params = lk.model.from_torch(module)
    y = torch.tensor(Y)
    pairs = [({name: leaf[i] for name, leaf in x.items()}, y[i]) for i in range(len(y))]
    mappings = [{**inputs, "labels": label} for inputs, label in pairs]
    means = [
        lk.eval.predict_over(
            lk.fit(model_fn, params, data, likelihood="categorical", structure="diagonal").predict,
            data,
        ).probs
        for data in (
            torch.utils.data.DataLoader(pairs, batch_size=5),
            torch.utils.data.DataLoader(mappings, batch_size=5),
            [(x, y)],
        )
    ]
    np.testing.assert_allclose(means[0], means[2], rtol=1e-5)
    np.testing.assert_array_equal(means[0], means[1])


def test_a_draw_goes_back_into_the_module():
    module, x = torch_modules.made("MLP")
    la = fitted(module, x, structure="diagonal")
    draw = la.sample(jax.random.key(0), 1)
    state = {
        f"{layer}.{name}": torch.from_dlpack(leaf[0])
        for layer, leaves in draw.items()
        for name, leaf in leaves.items()
    }
    module.load_state_dict(state)
    model_fn, _ = lk.model.from_torch(module)
    drawn = jax.tree.map(lambda leaf: leaf[0], draw)
    np.testing.assert_allclose(model_fn(drawn, x), by_torch(module, x), atol=1e-6)


# --- Hugging Face ---------------------------------------------------------------------------------

of_hugging_face = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def pretrained(name):
    """Return a small model of Hugging Face with random weights, and its inputs."""
    for library in ("transformers", *(["peft"] if name == "LoRA" else [])):
        pytest.importorskip(library, reason=NEEDS)
    torch.manual_seed(1)
    return torch_modules.HUGGING_FACE[name]()


@of_hugging_face
@pytest.mark.slow
@pytest.mark.parametrize("name", torch_modules.HUGGING_FACE)
def test_models_of_hugging_face(name):
    """Outputs, and which parameters are not in products: norms and positions that are added."""
    module, x = pretrained(name)
    model_fn, params = lk.model.from_torch(module)
    np.testing.assert_allclose(model_fn(params, x), by_torch(module, x), atol=1e-6)
    for path in by_exact_rows(module, x):
        assert any(word in path.lower() for word in ("norm", "ln_", "cls_token", "position"))
    # Llama normalises in float32, whatever the dtype of its parameters.
    tolerance = 1e-7 if name in ("Llama", "LoRA") else 1e-12
    module, x = module.double(), in_double(x)
    with jax.enable_x64(True):
        model_fn, params = lk.model.from_torch(module)
        found, expected = model_fn(params, x), by_torch(module, x)
        np.testing.assert_allclose(found, expected, atol=tolerance, rtol=tolerance)


@of_hugging_face
@pytest.mark.slow
@pytest.mark.parametrize("structure", ["kron", "ekfac", "diagonal", "last layer"])
@pytest.mark.parametrize("name", torch_modules.HUGGING_FACE)
def test_posteriors_of_models_of_hugging_face(name, structure, tmp_path):
    is_usable(*pretrained(name), STRUCTURES[structure], tmp_path / "la")


@of_hugging_face
@pytest.mark.slow
def test_batches_of_a_tokenizer_with_labels():
    transformers = pytest.importorskip("transformers", reason=NEEDS)
    module, x = pretrained("BERT")
    whole = transformers.BatchEncoding({**x, "labels": torch.tensor(Y)})
    rows = [{name: leaf[i] for name, leaf in whole.items()} for i in range(len(Y))]
    collate = transformers.default_data_collator
    loader = torch.utils.data.DataLoader(rows, batch_size=6, collate_fn=collate)
    model_fn, params = lk.model.from_torch(module)
    options = {"likelihood": "categorical", "structure": "diagonal"}
    by_loader, in_memory = (lk.fit(model_fn, params, data, **options) for data in (loader, whole))
    np.testing.assert_allclose(
        by_loader.log_marginal_likelihood(), in_memory.log_marginal_likelihood(), rtol=1e-5
    )


# --- laplace-torch --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "subset", "structure"),
    [
        ("MLP", "all", "full"),
        ("MLP", "last_layer", "full"),
        ("LeNet", "all", "diag"),
        ("BatchNorm", "all", "full"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of the libraries that it imports
def test_numbers_are_those_of_laplace_torch(name, subset, structure):
    laplace = pytest.importorskip("laplace", reason="laplace-torch is not installed")
    module, x = torch_modules.made(name)
    rows = torch.utils.data.TensorDataset(x, torch.tensor(Y))
    theirs = laplace.Laplace(
        module.eval(), "classification", subset_of_weights=subset, hessian_structure=structure
    )
    theirs.fit(torch.utils.data.DataLoader(rows, batch_size=len(Y)))
    ours = fitted(
        module,
        x,
        structure="diagonal" if structure == "diag" else "full",
        subset=None if subset == "all" else "last_layer",
    )
    evidence = theirs.log_marginal_likelihood().item()
    np.testing.assert_allclose(ours.log_marginal_likelihood(), evidence, rtol=1e-5)
    probs = theirs(x, pred_type="glm", link_approx="probit").detach()
    np.testing.assert_allclose(ours.predict(x, link="probit").probs, probs, atol=1e-5)

"""Graphs, differential equations, sampling, memory: smaller libraries around JAX."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.steps import Program
from benchmarks.zoo.training import normal, trained

ROWS = 8


def graph_network() -> Program:
    """Messages along edges, summed at nodes (scatter), pooled for each graph."""
    import haiku as hk
    import jraph

    graphs, nodes, edges = 8, 32, 64

    def net(graph: Any) -> Any:
        def updated(size: int) -> Any:
            return lambda *x: hk.nets.MLP([32, size])(jnp.concatenate(x, -1))

        wide = jraph.GraphMapFeatures(hk.Linear(16), hk.Linear(16), hk.Linear(16))
        layer = lambda: jraph.GraphNetwork(  # noqa: E731
            lambda e, s, r, g: updated(16)(e, s, r, g),
            lambda n, s, r, g: updated(16)(n, s, r, g),
            lambda n, e, g: updated(16)(n, e, g),
        )
        return hk.Linear(1)(layer()(layer()(wide(graph))).globals)[:, 0]

    model = hk.without_apply_rng(hk.transform(net))

    def batch(key: Any) -> Any:
        a, b, c = jax.random.split(key, 3)
        ends = jax.random.randint(a, (2, edges), 0, nodes)
        return jraph.GraphsTuple(
            nodes=jax.random.normal(b, (nodes, 8)), edges=jax.random.normal(c, (edges, 4)),
            senders=ends[0], receivers=ends[1], globals=jnp.ones((graphs, 1)),
            n_node=jnp.full(graphs, nodes // graphs), n_edge=jnp.full(graphs, edges // graphs),
        )  # fmt: skip

    def loss(params: Any, graph: Any, _key: Any) -> Any:
        return ((model.apply(params, graph) - 1.0) ** 2).mean()

    init = lambda key: model.init(key, batch(key))  # noqa: E731
    return trained("graph network", "jraph", init, loss, batch)


def equivariant() -> Program:
    """Spherical harmonics of the edges and tensor products of irreducible representations."""
    import e3nn_jax as e3nn
    from flax import linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any, ends: Any) -> Any:
            send, receive = ends
            h = e3nn.IrrepsArray("4x0e", jnp.ones((x.shape[0], 4)))
            for irreps in ("8x0e + 4x1o + 2x2e", "8x0e"):
                y = e3nn.spherical_harmonics("0e + 1o + 2e", x[receive] - x[send], True)
                message = e3nn.tensor_product(h[send], y)
                message = e3nn.flax.Linear(irreps)(message)
                h = e3nn.scatter_sum(message, dst=receive, output_size=x.shape[0]) / 4
                h = e3nn.flax.Linear(irreps)(h)
            return e3nn.flax.Linear("1x0e")(h).array.sum()

    model = Net()

    def batch(key: Any) -> Any:
        a, b = jax.random.split(key)
        return jax.random.normal(a, (16, 3)), jax.random.randint(b, (2, 64), 0, 16)

    def loss(params: Any, batch: Any, _key: Any) -> Any:
        energy = lambda x: model.apply(params, x, batch[1])  # noqa: E731
        value, force = jax.value_and_grad(energy)(batch[0])
        return (value - 1) ** 2 + ((force - 0.1) ** 2).mean()

    return trained("E(3)-equivariant forces", "e3nn-jax", lambda key: model.init(key, *batch(key)),
                   loss, batch)  # fmt: skip


def neural_ode() -> Program:
    """A differential equation with learnt right-hand side; adaptive steps, an adjoint."""
    import diffrax
    import equinox as eqx

    def make(key: Any) -> Any:
        return eqx.nn.MLP(4, 4, 32, 2, jnp.tanh, key=key)

    static = eqx.partition(make(jax.random.key(0)), eqx.is_inexact_array)[1]

    def loss(params: Any, x: Any, _key: Any) -> Any:
        net = eqx.combine(params, static)

        def solved(y: Any) -> Any:
            return diffrax.diffeqsolve(
                diffrax.ODETerm(lambda _t, y, _args: net(y)), diffrax.Tsit5(), 0.0, 1.0, 0.1, y,
                saveat=diffrax.SaveAt(ts=jnp.linspace(0, 1, 5)),
                stepsize_controller=diffrax.PIDController(1e-3, 1e-5), max_steps=64,
            ).ys  # fmt: skip

        return ((jax.vmap(solved)(x) - 1) ** 2).mean()

    init = lambda key: eqx.filter(make(key), eqx.is_inexact_array)  # noqa: E731
    return trained("neural ODE", "diffrax", init, loss, normal(ROWS, 4))


def normalising_flow() -> Program:
    """Density of a masked autoregressive flow with splines."""
    import equinox as eqx
    from flowjax.bijections import RationalQuadraticSpline
    from flowjax.distributions import Normal
    from flowjax.flows import masked_autoregressive_flow

    def make(key: Any) -> Any:
        return masked_autoregressive_flow(
            key, base_dist=Normal(jnp.zeros(4)), flow_layers=2, nn_width=16,
            transformer=RationalQuadraticSpline(knots=4, interval=4),
        )  # fmt: skip

    static = eqx.partition(make(jax.random.key(0)), eqx.is_inexact_array)[1]

    def loss(params: Any, x: Any, _key: Any) -> Any:
        import paramax

        flow = paramax.unwrap(eqx.combine(params, static))
        return -flow.log_prob(x).mean()

    init = lambda key: eqx.filter(make(key), eqx.is_inexact_array)  # noqa: E731
    return trained("autoregressive flow", "flowjax", init, loss, normal(32, 4))


def variational() -> Program:
    """Stochastic variational inference of a Bayesian regression."""
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoNormal

    def model(x: Any, y: Any = None) -> None:
        w = numpyro.sample("w", dist.Normal(0, 1).expand([8]).to_event(1))
        scale = numpyro.sample("scale", dist.LogNormal(0, 1))
        with numpyro.plate("rows", x.shape[0]):
            numpyro.sample("y", dist.Normal(x @ w, scale), obs=y)

    svi = SVI(model, AutoNormal(model), optax.adam(1e-2, eps=1e-4), Trace_ELBO(num_particles=4))

    def batch(key: Any) -> Any:
        x = jax.random.normal(key, (64, 8))
        return x, x.sum(-1)

    def init(key: Any) -> Any:
        return svi.init(key, *batch(key))

    def step(state: Any, rows: Any) -> Any:
        return svi.update(state, *rows)

    return Program("variational inference", "numpyro", step, init, batch)


def no_u_turns() -> Program:
    """A Hamiltonian sampler whose trees grow in while loops, many chains at once."""
    import blackjax

    def density(x: Any) -> Any:
        return -0.5 * ((x - 1) ** 2).sum() - 0.1 * (x**4).sum()

    sampler = blackjax.nuts(density, 0.3, jnp.ones(4), max_num_doublings=4)

    def init(key: Any) -> Any:
        chains = jax.vmap(sampler.init)(jax.random.normal(key, (ROWS, 4)))
        return {"chains": chains, "key": key}

    def step(state: Any, _batch: Any) -> Any:
        key, mine = jax.random.split(state["key"])
        chains, info = jax.vmap(sampler.step)(jax.random.split(mine, ROWS), state["chains"])
        return {"chains": chains, "key": key}, {"accepted": info.acceptance_rate}

    return Program("NUTS", "blackjax", step, init, lambda _: jnp.zeros(()))


def recurrent() -> Program:
    """A linear recurrence as an associative scan (S6, as in Mamba)."""
    import equinox as eqx
    from memax.equinox.train_utils import get_residual_memory_models

    def make(key: Any) -> Any:
        return get_residual_memory_models(
            hidden=16, output=4, num_layers=2, input=8, models=["S6"], key=key
        )["S6"]

    static = eqx.partition(make(jax.random.key(0)), eqx.is_inexact_array)[1]

    def loss(params: Any, batch: Any, key: Any) -> Any:
        model = eqx.combine(params, static)

        def one(x: Any, start: Any) -> Any:
            return model(model.initialize_carry(), (x, start))[1]

        y = jax.vmap(one)(batch, jnp.zeros(batch.shape[:2], bool).at[:, 0].set(True))
        return ((y - batch[..., :4]) ** 2).mean()

    init = lambda key: eqx.filter(make(key), eqx.is_inexact_array)  # noqa: E731
    return trained("selective state space", "memax", init, loss, normal(ROWS, 16, 8))


def kalman() -> Program:
    """Maximum likelihood of a linear Gaussian state space model: a filter and its gradient."""
    from dynamax.linear_gaussian_ssm import LinearGaussianSSM

    model = LinearGaussianSSM(4, 2)

    def init(key: Any) -> Any:
        return model.initialize(key)[0]

    def loss(params: Any, y: Any, _key: Any) -> Any:
        return -jax.vmap(lambda y: model.marginal_log_prob(params, y))(y).mean() / y.shape[1]

    return trained("Kalman filter", "dynamax", init, loss, normal(ROWS, 12, 2))


def evolution() -> Program:
    """A covariance matrix that adapts to a population's fitness."""
    from evosax.algorithms import CMA_ES

    strategy = CMA_ES(population_size=16, solution=jnp.zeros(8))
    options = strategy.default_params

    def init(key: Any) -> Any:
        return {"state": strategy.init(key, jnp.ones(8), options), "key": key}

    def step(state: Any, goal: Any) -> Any:
        key, a, b = jax.random.split(state["key"], 3)
        population, inner = strategy.ask(a, state["state"], options)
        fitness = ((population - goal) ** 2).sum(-1)
        inner, metrics = strategy.tell(b, population, fitness, inner, options)
        return {"state": inner, "key": key}, {"best": metrics["best_fitness"]}

    return Program("CMA-ES", "evosax", step, init, normal(8))


def transport() -> Program:
    """Sinkhorn's iteration, differentiated through its fixed point."""
    from ott.geometry import pointcloud
    from ott.solvers import linear

    def loss(params: Any, x: Any, _key: Any) -> Any:
        made = jnp.tanh(x @ params["w"]) @ params["v"]
        geometry = pointcloud.PointCloud(made, x, epsilon=0.5)
        return linear.solve(geometry, max_iterations=50).reg_ot_cost

    def init(key: Any) -> Any:
        return {"w": jax.random.normal(key, (4, 16)), "v": jax.random.normal(key, (16, 4)) / 4}

    return trained("optimal transport", "ott-jax", init, loss, normal(32, 4))


def molecules() -> Program:
    """Molecular dynamics: forces of all pairs, a thermostat."""
    from jax_md import energy, simulate, space

    displacement, shift = space.periodic(6.0)
    potential = energy.soft_sphere_pair(displacement)
    start, apply = simulate.nvt_nose_hoover(potential, shift, 1e-3, 0.1)

    def init(key: Any) -> Any:
        return start(key, 6 * jax.random.uniform(key, (32, 2)), mass=1.0)

    def step(state: Any, _batch: Any) -> Any:
        state = jax.lax.fori_loop(0, 4, lambda _, s: apply(s), state)
        return state, {"energy": potential(state.position)}

    return Program("molecular dynamics", "jax-md", step, init, lambda _: jnp.zeros(()))


def bilevel() -> Program:
    """A penalty's weight, trained through the solution of the problem that it is in."""
    import jaxopt

    def inner(w: Any, penalty: Any, x: Any) -> Any:
        return ((x @ w - x[:, :1]) ** 2).mean() + jnp.exp(penalty) * (w**2).sum()

    solver = jaxopt.GradientDescent(inner, maxiter=10, implicit_diff=True, unroll=False)

    def loss(penalty: Any, x: Any, _key: Any) -> Any:
        w = solver.run(jnp.zeros((8, 1)), penalty, x).params
        return ((x @ w - x[:, 1:2]) ** 2).mean()

    return trained("bilevel problem", "jaxopt", lambda _: jnp.zeros(()), loss, normal(32, 8))


PROGRAMS = [
    graph_network, equivariant, neural_ode, normalising_flow, variational, no_u_turns,
    recurrent, kalman, evolution, transport, molecules, bilevel,
]  # fmt: skip

"""The linear branch: softmax attention over what a plan skips, to first order, cached as well as at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from core.strategies import memory_specs
from hypothesis import given, settings, strategies as st
from torch import Tensor
from worlds import random_weights, tiny_spec

from dreamloop.models.core import conditioning
from dreamloop.models.core.plan import shares
from dreamloop.models.core.spec import DynamicsSpec, MemorySpec, PlanSpec, WorldSpec
from dreamloop.models.networks.dit import Dynamics
from dreamloop.models.networks.linear import attend_skipped
from dreamloop.models.networks.ring import RingPass

SMALL = DynamicsSpec(width=16, layers=2, heads=2, mlp_width=16)
B, H, R, T, N, KEYS, D = 2, 2, 3, 2, 4, 3, 8  # KEYS: rows of a key block


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def case(seed: int = 0) -> dict[str, Tensor]:
    """Random arguments of `attend_skipped`: blocks with tails, and a row that skips nothing."""
    generator = np.random.default_rng(seed)
    length = generator.integers(0, KEYS + 1, (B, N))
    skipped = (generator.random((B, 1, R, N)) < 0.6) & (length > 0)[:, None, None]
    skipped[0, 0, 1] = False
    length[1, 0], skipped[1, :, :, 0] = KEYS, True  # every row of the second player skips something
    written = np.arange(KEYS) < length[..., None]
    return {"query": random(B, H, R, T, D), "keys": random(B, H, N, KEYS, D, seed=1),
            "values": random(B, H, N, KEYS, D, seed=2), "written": torch.from_numpy(written)[:, None],
            "share": torch.from_numpy(shares(skipped, length[:, None, None])), "projection": random(H, D, D, seed=3)}


def test_each_key_weighs_one_and_its_score_above_the_mean() -> None:
    """By brute force, query by query; what no row may read is not a number."""
    given_ = case()
    q, k, v, written, share, projection = given_.values()
    found = attend_skipped(q, *(torch.where(written[..., None], x, torch.nan) for x in (k, v)), written, share,
                           projection)
    expected = torch.zeros_like(found)
    for b, h, r, t in np.ndindex(B, H, R, T):
        read = (share[b, 0, r] > 0)[:, None] & written[b, 0]
        if read.any():
            scores = k[b, h][read] @ q[b, h, r, t] / D**0.5
            weights = (1 + scores - scores.mean()) / len(scores)
            expected[b, h, r, t] = weights @ v[b, h][read] @ projection[h]
    assert float((found - expected).abs().max()) <= 1e-12
    assert not found[0, :, 1].any() and found[1].abs().min() > 0


def test_it_is_softmax_where_scores_are_small() -> None:
    """What is left out is of second order: a tenth of the scores, a hundredth of the error."""
    q, k, v, written, share, _ = case().values()
    keys, values = (torch.where(written[..., None], x, 0.0).flatten(2, 3) for x in (k, v))
    read = ((share > 0)[..., None] & written[:, :, None]).flatten(3)[1:, :, :, None]  # of the second player

    def error(scale: float) -> float:
        scores = scale * torch.einsum("bhrtd,bhkd->bhrtk", q, keys)[1:] / D**0.5
        exact = scores.masked_fill(~read, -torch.inf).softmax(-1) @ values[1:, :, None]
        found = attend_skipped(scale * q, k, v, written, share, torch.eye(D, dtype=torch.float64).expand(H, D, D))
        return float((found[1:] - exact).abs().max())

    assert error(1e-2) <= 1.2e-2 * error(1e-1) <= 1.2e-2 * 0.02


def test_gradients_are_those_of_the_formula() -> None:
    given_ = case(1)
    leaves = [given_[name].requires_grad_() for name in ("query", "keys", "values", "projection")]

    def run(q: Tensor, k: Tensor, v: Tensor, projection: Tensor) -> Tensor:
        return attend_skipped(q, k, v, given_["written"], given_["share"], projection)
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


@st.composite
def skipping_specs(draw: st.DrawFn) -> WorldSpec:
    """Tiny worlds of 6 tokens a frame whose plan has a linear branch, over any memory."""
    plan = PlanSpec(draw(st.sampled_from(("window", "radial"))), draw(st.integers(1, 3)), draw(st.integers(1, 6)),
                    linear=True)
    return tiny_spec(dynamics=SMALL, memory=draw(memory_specs(5)), plan=plan)


def network(spec: WorldSpec) -> Dynamics:
    net = Dynamics(spec)
    net.load_state_dict({name.removeprefix("dynamics."): torch.from_numpy(value)
                         for name, value in random_weights(spec).items() if name.startswith("dynamics.")})
    return net.double().requires_grad_(False)


def cached(net: Dynamics, clip: dict[str, Tensor], view_frames: int | None = None) -> Tensor:
    """The clip frame by frame through the ring."""
    spec, frames = net.spec, clip["x"].shape[1]
    ring = torch.zeros(spec.ring_shape(1), dtype=torch.float64)
    made = []
    for t in range(frames):
        inputs = conditioning.pass_inputs(spec, np.array([t + 1]), np.zeros(1, np.uint64),
                                          clip["action"][:, t].numpy(), 0, view_frames)
        made.append(net(*(value[:, t : t + 1] for value in clip.values()), RingPass(spec, ring, inputs).attend))
    return torch.cat(made, dim=1)


def clip_of(spec: WorldSpec, frames: int) -> dict[str, Tensor]:
    """Random inputs of `Dynamics.sequence`, one player, in the order of its arguments."""
    latents, action = random(2, 1, frames, *spec.latent_shape), random(1, frames, spec.actions.size, seed=1)
    condition = torch.from_numpy(conditioning.condition(action.numpy(), *np.full((3, 1, frames), 0.5))).double()
    return {"previous": latents[0], "x": latents[1], "action": action, "condition": condition}


@settings(max_examples=8, deadline=None)
@given(skipping_specs())
def test_cached_equals_uncached_for_any_plan_and_memory(spec: WorldSpec) -> None:
    """From the first frame past every wrap-around: sinks, dilated slots, blocks with tails."""
    net = network(spec)
    clip = clip_of(spec, min(2 * spec.memory.slots + 4, 18))
    assert float((cached(net, clip) - net.sequence(**clip)).abs().max()) <= 1e-5  # angles of the ring are float32


def test_the_branch_reads_what_the_window_does_not() -> None:
    """An old frame that no list holds changes the next one through the branch, and only through it; a view
    that is narrowed gives it what it takes from the lists."""
    spec = tiny_spec(dynamics=DynamicsSpec(width=16, layers=1, heads=2, mlp_width=16), memory=MemorySpec(6),
                     plan=PlanSpec("window", 2, 4, linear=True))
    net, clip = network(spec), clip_of(spec, 6)
    other = {**clip, "x": clip["x"].clone()}
    other["x"][:, 1] += 1.0
    assert float((net.sequence(**clip) - net.sequence(**other))[:, 5].abs().max()) > 1e-4
    assert float((cached(net, clip) - cached(net, clip, view_frames=2))[:, 5].abs().max()) > 1e-6
    for block in net.blocks:
        block.skipped.zero_()
    assert torch.equal(net.sequence(**clip)[:, 5], net.sequence(**other)[:, 5])


def test_a_fresh_network_is_the_one_without_the_branch() -> None:
    plain = tiny_spec(plan=PlanSpec("radial", 1, 2))
    torch.manual_seed(0)
    usual = Dynamics(plain).double()
    torch.nn.init.normal_(usual.output.weight)
    branched = Dynamics(tiny_spec(plan=PlanSpec("radial", 1, 2, linear=True))).double()
    missing, unknown = branched.load_state_dict(usual.state_dict(), strict=False)
    assert missing == ["blocks.0.skipped", "blocks.1.skipped"] and not unknown
    clip = clip_of(plain, 8)
    assert torch.equal(branched.sequence(**clip), usual.sequence(**clip))

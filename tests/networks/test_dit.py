"""The dynamics: names and shapes as specified, still at the start, causal, and moved by its own action."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from worlds import random_weights, tiny_spec

from dreamloop.models.core import conditioning
from dreamloop.models.core.plan import frame_mask
from dreamloop.models.core.spec import DynamicsSpec, MemorySpec, PlanSpec, WorldSpec, weight_shapes
from dreamloop.models.networks.dit import Dynamics, sequence_geometry

FRAMES = 9
MEMORIES = {
    "window": MemorySpec(window_frames=4),
    "dilated": MemorySpec(window_frames=3, dilated_frames=2, dilation=3),
    "sinks": MemorySpec(window_frames=3, sink_frames=2, max_age=4),
    "all": MemorySpec(window_frames=2, sink_frames=2, dilated_frames=2, dilation=3, max_age=4),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small lose more to waking threads than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network(spec: WorldSpec) -> Dynamics:
    """The network of `spec` in float64, with random weights of which none is trivial."""
    net = Dynamics(spec)
    net.load_state_dict({name.removeprefix("dynamics."): torch.from_numpy(value)
                         for name, value in random_weights(spec).items() if name.startswith("dynamics.")})
    return net.double().requires_grad_(False)


def clip(spec: WorldSpec, frames: int = FRAMES) -> dict[str, Tensor]:
    """Random inputs of `Dynamics.sequence` for a clip of one player."""
    generator = np.random.default_rng(4)
    action = generator.integers(0, 2, (1, frames, spec.actions.size)).astype(np.float64)
    condition = conditioning.condition(action, *np.full((3, 1, frames), 0.5))
    latents = generator.standard_normal((2, 1, frames, *spec.latent_shape))
    return {name: torch.from_numpy(np.asarray(value, np.float64)) for name, value in
            dict(previous=latents[0], x=latents[1], action=action, condition=condition).items()}


def changed_frames(before: Tensor, after: Tensor) -> list[int]:
    """Frames of (1, F, C, h, w) that differ by more than rounding."""
    return torch.nonzero((before - after).abs().amax((0, 2, 3, 4)) > 1e-9)[:, 0].tolist()


@pytest.mark.parametrize("patch", [1, 2])
def test_state_has_the_names_and_shapes_of_the_specification(patch: int) -> None:
    spec = tiny_spec(frame_height=64, frame_width=64, plan=PlanSpec(),
                     dynamics=DynamicsSpec(width=24, layers=3, heads=3, mlp_width=20, patch=patch))
    found = {f"dynamics.{name}": tuple(value.shape) for name, value in Dynamics(spec).state_dict().items()}
    assert found == {name: shape for name, shape in weight_shapes(spec).items() if name.startswith("dynamics.")}


def test_at_the_start_the_next_latent_is_the_last_one() -> None:
    torch.manual_seed(0)
    spec = tiny_spec()
    inputs = clip(spec)
    torch.testing.assert_close(Dynamics(spec).double().sequence(**inputs), inputs["previous"], rtol=0, atol=0)


def test_at_the_start_a_gradient_reaches_the_last_layer() -> None:
    """Still, but not stuck: one step of any optimiser moves it."""
    torch.manual_seed(0)
    net, inputs = Dynamics(tiny_spec()).double(), clip(tiny_spec())
    (net.sequence(**inputs) - inputs["x"]).square().mean().backward()
    assert net.output.weight.grad is not None and net.output.weight.grad.abs().max() > 0


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_unpatchify_undoes_patchify(patch: int) -> None:
    spec = tiny_spec(frame_height=64, frame_width=128, plan=PlanSpec(),
                     dynamics=DynamicsSpec(width=32, layers=1, heads=2, mlp_width=8, patch=patch))
    net = Dynamics(spec)
    latents = torch.randn(2, 3, *spec.latent_shape, generator=torch.Generator().manual_seed(0))
    tokens = net.patchify(latents)
    assert tokens.shape == (2, 3, spec.tokens, spec.token_channels)
    assert torch.equal(net.unpatchify(tokens), latents)
    # a token is a square of the picture: row-major over the grid, channel-major inside
    row, column = divmod(1, spec.grid[1])
    square = latents[0, 0, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
    assert torch.equal(tokens[0, 0, 1], square.reshape(-1))


@pytest.mark.parametrize("memory", MEMORIES.values(), ids=MEMORIES)
@pytest.mark.parametrize("first", [1, 2, 50])
def test_a_frame_changes_itself_and_what_can_see_it_and_nothing_else(memory: MemorySpec, first: int) -> None:
    """Causal, and exactly as far-reaching as the mask allows, over any number of layers. Each row of
    the batch has one input of one frame changed: so frame t's action moves frame t, not its neighbour."""
    spec = tiny_spec(memory=memory)
    net, inputs = network(spec), clip(spec)
    before = net.sequence(**inputs, first=first)
    reach = np.linalg.matrix_power(frame_mask(memory, spec.plan, first, FRAMES).astype(np.int64), spec.dynamics.layers)
    cases = [(name, frame) for name in inputs for frame in (0, 3, FRAMES - 1)]
    changed = {key: value.repeat(len(cases), *[1] * (value.ndim - 1)) for key, value in inputs.items()}
    for row, (name, frame) in enumerate(cases):
        changed[name][row, frame] += 1.0
    after = net.sequence(**changed, first=first)
    for row, (name, frame) in enumerate(cases):
        expected = np.flatnonzero(reach[:, frame]).tolist()
        assert expected[0] == frame
        assert changed_frames(before, after[row : row + 1]) == expected, (name, frame)


@pytest.mark.parametrize("memory", MEMORIES.values(), ids=MEMORIES)
def test_a_longer_clip_begins_like_a_shorter_one(memory: MemorySpec) -> None:
    spec = tiny_spec(memory=memory)
    net, inputs = network(spec), clip(spec)
    short = net.sequence(**{name: value[:, :5] for name, value in inputs.items()})
    torch.testing.assert_close(net.sequence(**inputs)[:, :5], short, rtol=0, atol=1e-10)


def test_a_clip_does_not_know_its_absolute_time() -> None:
    """Differences of time are all there is: the same clip one period of the ring later is the same dream."""
    spec = tiny_spec(memory=MEMORIES["dilated"])
    net, inputs = network(spec), clip(spec)
    period = 3 * 2 * 3
    later = net.sequence(**inputs, first=1 + 10_000 * period)
    torch.testing.assert_close(net.sequence(**inputs, first=1), later, rtol=0, atol=1e-8)


def test_time_matters_all_the_same() -> None:
    """Without rotary time the order of the past would be lost."""
    spec = tiny_spec(memory=MEMORIES["window"])
    net, inputs = network(spec), clip(spec)
    order = [1, 0, *range(2, FRAMES)]
    swapped = {name: value[:, order] for name, value in inputs.items()}
    assert 2 in changed_frames(net.sequence(**inputs), net.sequence(**swapped))


def test_a_look_in_inference_mode_does_not_spoil_training_afterwards() -> None:
    spec = tiny_spec(name="looked at first")  # a spec of its own: what a clip needs is kept per spec
    net, inputs = Dynamics(spec).double(), clip(spec)
    with torch.inference_mode():
        net.sequence(**inputs)
    net.sequence(**inputs).square().mean().backward()


def test_every_phase_of_a_dilated_ring_is_one_graph() -> None:
    spec = tiny_spec(memory=MemorySpec(window_frames=3, dilated_frames=2, dilation=4))
    phases = [sequence_geometry(spec, first, 16, torch.device("cpu"), torch.float32) for first in range(1, 9)]
    assert len({str(phase.stretches) for phase in phases}) == 1
    assert not torch.equal(phases[0].mask, phases[1].mask) and torch.equal(phases[0].mask, phases[4].mask)
    for phase in phases:
        outside = phase.mask.clone()
        for rows, keys in phase.stretches:
            outside[rows, keys] = False
        assert not outside.any(), "no key that a row sees is left out"
    assert any(keys.start for _, keys in phases[0].stretches), "and not all of them are looked at"


def test_players_of_a_batch_do_not_touch_each_other() -> None:
    spec = tiny_spec()
    net, inputs = network(spec), clip(spec)
    pair = {name: torch.cat([value, value.flip(1)]) for name, value in inputs.items()}
    torch.testing.assert_close(net.sequence(**pair)[:1], net.sequence(**inputs), rtol=0, atol=1e-10)

"""What every engine is held to: the whole history at once, and one step, both in float64.

The uncached path is `Dynamics.sequence` over all frames since frame 1. After each step the latent is
drawn towards zero, as `prime` may replace it too, so that random weights stay in a sensible range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dreamloop.models.core import conditioning
from dreamloop.models.core.spec import DynamicsSpec, MemorySpec, PlanSpec
from dreamloop.models.core.world import World
from dreamloop.models.networks.dit import Dynamics
from dreamloop.runtime.engines.base import Engine, State
from dreamloop.runtime.engines.native_engine import NativeEngine, floats_of
from dreamloop.runtime.engines.torch_engine import TorchEngine

FRAMES = 40  # past every wrap-around and past `max_age`
CACHED_BOUND = 1e-3  # the contract; measured errors are about 1e-6
FLOOR = 5e-7  # a few units in the last place of what is compared
DAMPING = 0.8

SCENARIOS: dict[str, dict[str, Any]] = {
    "sinks_dilated_window_and_block_tail": {},
    "window_plan": {"plan": PlanSpec("window", window_frames=3, block_tokens=4)},
    "radial_plan": {"memory": MemorySpec(window_frames=13), "plan": PlanSpec("radial", 2, block_tokens=2)},
    "radial_plan_with_sinks": {"memory": MemorySpec(window_frames=6, sink_frames=2, dilated_frames=3, dilation=4,
                                                    max_age=20), "plan": PlanSpec("radial", 1, block_tokens=4)},
    "window_only": {"memory": MemorySpec(window_frames=5), "plan": PlanSpec()},
    "dilated_without_sinks": {"memory": MemorySpec(window_frames=3, dilated_frames=3, dilation=4)},
    "sinks_clamped_early": {"memory": MemorySpec(window_frames=2, sink_frames=3, max_age=5)},
    "patch_of_two_padded": {"frame_height": 44, "frame_width": 70, "plan": PlanSpec(block_tokens=3),
                            "dynamics": DynamicsSpec(width=32, layers=2, heads=4, mlp_width=48, patch=2)},
    "two_noise_levels": {"dynamics": DynamicsSpec(width=32, layers=2, heads=2, mlp_width=48, sigmas=(1.0, 0.4))},
}

# engines that read what a plan skips to first order
WITH_LINEAR: dict[str, dict[str, Any]] = {
    "linear_window": {"plan": PlanSpec("window", 2, block_tokens=4, linear=True)},
    "linear_radial": {"memory": MemorySpec(window_frames=9), "plan": PlanSpec("radial", 1, 2, linear=True)}}

# what is chosen at play is no mask of training: one step is held to the oracle, the whole history is not
CHOSEN_AT_PLAY: dict[str, dict[str, Any]] = {
    "top_k": {"memory": MemorySpec(window_frames=9), "plan": PlanSpec("top_k", block_tokens=2, top_blocks=4)},
    "top_k_with_sinks_and_a_tail": {"plan": PlanSpec("top_k", block_tokens=4, top_blocks=2)},
    "top_k_of_whole_frames": {"memory": MemorySpec(window_frames=4, dilated_frames=3, dilation=4),
                              "plan": PlanSpec("top_k", top_blocks=3)}}


@dataclass
class Trajectory:
    """One player's history: `previous` latents that went in, actions, latents that came out, frame by frame."""

    seed: int
    previous: list[np.ndarray]
    actions: list[np.ndarray]
    latents: list[np.ndarray]


def ring_of(state: State) -> np.ndarray:
    """The ring as numpy floats, (L, 2, B, H, S * Tp, D), shared with the state or a copy."""
    if isinstance(state.ring, np.ndarray):
        return floats_of(state.ring)
    return (state.ring.float() if state.ring.dtype == torch.bfloat16 else state.ring).cpu().numpy()


def moved(engine: Engine, state: State) -> State:
    """A copy of a state of any engine, as a state of `engine`."""
    copy = engine.new_state(state.batch)
    if isinstance(engine, NativeEngine):
        engine.load_ring(copy, ring_of(state))
    elif isinstance(copy.ring, np.ndarray):
        copy.ring[...] = ring_of(state)
    else:
        copy.ring.copy_(torch.from_numpy(ring_of(state)))
    copy.latent, copy.frame, copy.seed = state.latent.copy(), state.frame.copy(), state.seed.copy()
    return copy


def joined(engine: Engine, states: list[State]) -> State:
    """Several states as one batch of players."""
    whole = engine.new_state(sum(state.batch for state in states))
    if isinstance(whole.ring, np.ndarray):
        whole.ring[...] = np.concatenate([state.ring for state in states], axis=2)
    else:
        whole.ring.copy_(torch.from_numpy(np.concatenate([ring_of(state) for state in states], axis=2)))
    whole.latent = np.concatenate([state.latent for state in states])
    whole.frame = np.concatenate([state.frame for state in states])
    whole.seed = np.concatenate([state.seed for state in states])
    return whole


def start(engine: Engine, seed: int) -> State:
    """One player with a random latent."""
    state = engine.new_state(1)
    state.seed[:] = seed
    state.latent[:] = np.random.default_rng(seed).standard_normal(state.latent.shape)
    return state


def random_actions(world: World, batch: int, frame: int) -> np.ndarray:
    """(B, A) float32 of zeros and ones, a function of the frame."""
    drawn = np.random.default_rng(1000 + frame).integers(0, 2, (batch, world.spec.actions.size))
    return drawn.astype(np.float32)


def play(engine: Engine, state: State, frames: int, histories: list[Trajectory] | None = None) -> list[Trajectory]:
    """Step all players `frames` times and record each of them, going on from their histories."""
    histories = histories or [Trajectory(int(seed), [], [], []) for seed in state.seed]
    for _ in range(frames):
        actions = random_actions(engine.world, state.batch, int(state.frame[0]))
        previous = state.latent
        engine.step(state, actions)
        for player, history in enumerate(histories):
            history.previous.append(previous[player].copy())
            history.actions.append(actions[player])
            history.latents.append(state.latent[player].copy())
        state.latent = state.latent * np.float32(DAMPING)
    return histories


def dynamics_fp64(world: World) -> Dynamics:
    model = Dynamics(world.spec)
    model.load_state_dict({name.removeprefix("dynamics."): torch.from_numpy(value)
                           for name, value in world.weights.items() if name.startswith("dynamics.")})
    return model.to(torch.float64).eval().requires_grad_(False)


@torch.inference_mode()
def uncached(world: World, history: Trajectory) -> np.ndarray:
    """z of every frame from the whole history at once, (F, C, h, w) float64.

    With several noise levels the past keys are those of each frame's last pass, so a frame's earlier
    passes are run as the last frame of a clip of their own.
    """
    spec, model, count = world.spec, dynamics_fp64(world), len(history.latents)
    sigmas = spec.dynamics.sigmas
    times, seeds = np.arange(1, count + 1), np.full(count, history.seed, np.uint64)
    passes = [conditioning.pass_inputs(spec, times, seeds, np.stack(history.actions), i) for i in range(len(sigmas))]
    previous = torch.from_numpy(np.stack(history.previous)).double()
    action = torch.from_numpy(passes[-1].action).double()
    conditions = [torch.from_numpy(p.condition).double() for p in passes]
    noises = [torch.from_numpy(p.noise).double() for p in passes]

    def run(x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        n = len(x)
        return model.sequence(previous[None, :n], x[None], action[None, :n], condition[None])[0]

    if len(sigmas) == 1:
        return run(noises[0], conditions[0]).numpy()
    last_x: list[torch.Tensor] = []
    for t in range(count):
        x = noises[0][t]
        for index in range(len(sigmas) - 1):
            clip = torch.stack([*last_x, x])
            z = run(clip, torch.cat([conditions[-1][:t], conditions[index][t : t + 1]]))[-1]
            x = (1 - sigmas[index + 1]) * z + sigmas[index + 1] * noises[index + 1][t]
        last_x.append(x)
    return run(torch.stack(last_x), conditions[-1]).numpy()


def check_cached_equals_uncached(engine: Engine, frames: int = FRAMES) -> None:
    """Every frame of a session equals its place in the whole history under the frame mask."""
    history = play(engine, start(engine, seed=3), frames)[0]
    error = np.max(np.abs(np.stack(history.latents) - uncached(engine.world, history)))
    assert error <= CACHED_BOUND


def check_players_at_different_frames(engine: Engine) -> None:
    """A batch whose players stand at frames 0, 7 and 19 goes on as each player alone would."""
    states, histories = [], []
    for seed, frames in ((5, 0), (6, 7), (7, 19)):
        state = start(engine, seed)
        histories += play(engine, state, frames)
        states.append(state)
    play(engine, joined(engine, states), 15, histories)
    assert [len(history.latents) for history in histories] == [15, 22, 34]
    for history in histories:
        error = np.max(np.abs(np.stack(history.latents) - uncached(engine.world, history)))
        assert error <= CACHED_BOUND


def step_errors(engine: Engine, frames: int = FRAMES, plain: str = "fp32") -> tuple[float, float]:
    """Largest error of one step, (engine, torch in precision `plain`), against float64 from the very same state:
    latents, and keys and values as they lie in the ring afterwards."""
    exact, torch_engine = TorchEngine(engine.world, "fp64"), TorchEngine(engine.world, plain)
    state = start(engine, seed=11)
    errors = []
    for frame in range(frames):
        actions = random_actions(engine.world, 1, frame)
        expected, usual = moved(exact, state), moved(torch_engine, state)
        for other, its_state in ((exact, expected), (torch_engine, usual), (engine, state)):
            other.step(its_state, actions)
        errors.append([max_difference(state, expected), max_difference(usual, expected)])
        state.latent = state.latent * np.float32(DAMPING)
    worst = np.max(errors, axis=0)  # numpy's maximum keeps a NaN
    return float(worst[0]), float(worst[1])


def max_difference(a: State, b: State) -> float:
    """Largest absolute difference of two states' latents and rings; NaN if there is one."""
    return float(np.max([np.max(np.abs(a.latent - b.latent)), np.max(np.abs(ring_of(a) - ring_of(b)))]))

"""Random but valid specifications, shared by the property-based tests of the core."""

from __future__ import annotations

from hypothesis import settings, strategies as st

from dreamloop.models.core.spec import (
    PLAN_POLICIES,
    SKIPPING,
    ActionSpec,
    AutoencoderSpec,
    Axis,
    Button,
    DynamicsSpec,
    MemorySpec,
    PlanSpec,
    WorldSpec,
)

QUICK = settings(max_examples=60, deadline=None)  # no deadline: the machine may be busy with something else


@st.composite
def memory_specs(draw: st.DrawFn, largest: int = 9) -> MemorySpec:
    """Memories of every kind: with and without sinks, with and without a dilated ring."""
    dilated = draw(st.integers(0, largest))
    sinks = draw(st.integers(0, largest))
    return MemorySpec(
        window_frames=draw(st.integers(1, largest)), sink_frames=sinks, dilated_frames=dilated,
        dilation=draw(st.integers(2, largest)) if dilated else 0, max_age=draw(st.integers(1, 60)) if sinks else 0)


@st.composite
def plan_specs(draw: st.DrawFn, tokens: int = 1) -> PlanSpec:
    """Plans of every policy, with blocks of any size up to the `tokens` of a frame."""
    block_tokens = draw(st.integers(0, tokens))
    policy = draw(st.sampled_from(PLAN_POLICIES))
    return PlanSpec(policy, draw(st.integers(1, 30)) if policy in SKIPPING else 0, block_tokens,
                    draw(st.integers(1, 12)) if policy == "top_k" else 0, policy in SKIPPING and draw(st.booleans()))


names = st.text("abcdefghijklmnopqrstuvwxyz_0123456789", min_size=1, max_size=12)
key_names = st.lists(names, max_size=3).map(tuple)


@st.composite
def action_specs(draw: st.DrawFn) -> ActionSpec:
    chosen = draw(st.lists(names, min_size=1, max_size=6, unique=True))
    buttons = draw(st.integers(0, len(chosen)))
    return ActionSpec(
        tuple(Button(name, draw(key_names), draw(key_names), draw(key_names)) for name in chosen[:buttons]),
        tuple(Axis(name, draw(st.floats(0.01, 100)), draw(names), draw(names)) for name in chosen[buttons:]))


@st.composite
def world_specs(draw: st.DrawFn) -> WorldSpec:
    """Small worlds whose every number varies."""
    stages = draw(st.integers(1, 4))
    counts = st.lists(st.integers(0, 2), min_size=stages, max_size=stages).map(tuple)
    autoencoder = AutoencoderSpec(
        draw(st.integers(1, 8)), draw(st.lists(st.integers(1, 24), min_size=stages, max_size=stages).map(tuple)),
        draw(counts), draw(counts))
    patch = draw(st.integers(1, 3))
    unit = autoencoder.downsample * patch
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    heads = draw(st.integers(1, 3))
    falling = draw(st.lists(st.floats(0.01, 0.99), max_size=3, unique=True))
    return WorldSpec(
        name=draw(names), game=draw(names), fps=draw(st.floats(1, 120)),
        # up to all but one pixel of a token short of the padded size
        frame_height=max(rows * unit - draw(st.integers(0, unit - 1)), 8),
        frame_width=max(columns * unit - draw(st.integers(0, unit - 1)), 8),
        actions=draw(action_specs()), autoencoder=autoencoder,
        dynamics=DynamicsSpec(
            width=heads * 8 * draw(st.integers(1, 3)), layers=draw(st.integers(1, 3)), heads=heads,
            mlp_width=draw(st.integers(1, 40)), patch=patch, sigmas=(1.0, *sorted(falling, reverse=True)),
            rope_base=draw(st.floats(1.5, 10_000))),
        memory=draw(memory_specs()), plan=draw(plan_specs(rows * columns)))

"""The specification: what goes out comes back, and what does not fit is refused by name."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from core.strategies import QUICK, action_specs, world_specs
from hypothesis import given, settings, strategies as st
from worlds import random_weights, tiny_spec

from dreamloop.models.core.errors import ActionError, WorldError
from dreamloop.models.core.spec import (
    ActionSpec,
    AutoencoderSpec,
    Axis,
    Button,
    DynamicsSpec,
    MemorySpec,
    PlanSpec,
    WorldSpec,
    from_json,
    to_json,
    weight_shapes,
)

Path = tuple[Any, ...]
AXIS = ActionSpec((Button("attack"),), (Axis("look", limit=2.5),))
PLAIN = to_json(tiny_spec(actions=AXIS))


def places(data: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every (path, value) of parsed JSON, the whole of it first."""
    yield path, data
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def at(data: Any, path: Path) -> Any:
    for key in path:
        data = data[key]
    return data


def replaced(path: Path, value: Any) -> Any:
    """A copy of the plain spec with the value at `path` replaced."""
    changed = copy.deepcopy(PLAIN)
    if not path:
        return value
    at(changed, path[:-1])[path[-1]] = value
    return changed


def dotted(path: Path) -> str:
    return "world" + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)


OBJECTS = [path for path, value in places(PLAIN) if isinstance(value, dict)]
LEAVES = [path for path, value in places(PLAIN) if not isinstance(value, dict | list)]
LISTS = [path for path, value in places(PLAIN) if isinstance(value, list)]


@QUICK
@given(world_specs())
def test_a_spec_survives_json(spec: WorldSpec) -> None:
    text = json.dumps(to_json(spec))
    again = from_json(json.loads(text))
    assert again == spec and hash(again) == hash(spec)
    assert json.dumps(to_json(again)) == text


@QUICK
@given(world_specs())
def test_sizes_agree_with_each_other(spec: WorldSpec) -> None:
    down, patch = spec.autoencoder.downsample, spec.dynamics.patch
    side = down * patch
    assert 0 <= spec.padded_height - spec.frame_height < side and spec.padded_height % side == 0
    assert 0 <= spec.padded_width - spec.frame_width < side and spec.padded_width % side == 0
    channels, height, width = spec.latent_shape
    assert (height * down, width * down) == (spec.padded_height, spec.padded_width)
    assert spec.tokens * patch**2 == height * width
    assert spec.tokens * spec.token_channels == channels * height * width
    padded = spec.blocks_per_frame * spec.block_tokens
    assert spec.tokens <= padded < spec.tokens + spec.block_tokens
    pools = spec.tokens_padded - padded
    assert pools % spec.block_tokens == 0
    assert pools >= spec.blocks_per_frame if spec.plan.policy == "top_k" else pools == 0
    assert spec.ring_shape(3)[4] == spec.memory.slots * spec.tokens_padded
    assert all(all(side >= 1 for side in shape) for shape in weight_shapes(spec).values())


@pytest.mark.parametrize("path", OBJECTS, ids=dotted)
def test_an_unknown_key_is_refused_by_name(path: Path) -> None:
    changed = copy.deepcopy(PLAIN)
    at(changed, path)["colour"] = 1
    with pytest.raises(WorldError, match="colour") as caught:
        from_json(changed)
    assert dotted(path) + ":" in str(caught.value)


@pytest.mark.parametrize("key", ["name", "game", "frame_height", "frame_width", "fps", "actions", "autoencoder",
                                 "dynamics", "memory"])
def test_a_missing_key_is_refused_by_name(key: str) -> None:
    changed = copy.deepcopy(PLAIN)
    del changed[key]
    with pytest.raises(WorldError, match=f"missing key {key}"):
        from_json(changed)


@pytest.mark.parametrize("path", [("actions", "buttons"), ("actions", "buttons", 0, "name"), ("dynamics", "width"),
                                  ("autoencoder", "widths"), ("memory", "window_frames")], ids=dotted)
def test_a_missing_key_further_down_is_refused_with_its_place(path: Path) -> None:
    changed = copy.deepcopy(PLAIN)
    del at(changed, path[:-1])[path[-1]]
    with pytest.raises(WorldError, match=f"missing key {path[-1]}") as caught:
        from_json(changed)
    assert dotted(path[:-1]) + ":" in str(caught.value)


@pytest.mark.parametrize("path", [path for path, _ in places(PLAIN)], ids=dotted)
def test_a_wrong_type_is_refused_by_name(path: Path) -> None:
    wrong: list[Any] = [None, True, {"a": 1}, [None], "7", 1.5, 10**400, math.nan, math.inf]
    right = at(PLAIN, path)
    if isinstance(right, str):
        wrong.remove("7")
    elif isinstance(right, float):
        wrong.remove(1.5)
    elif isinstance(right, int):
        wrong.remove(10**400)  # a value that is out of range, not of the wrong type
    elif isinstance(right, dict):
        wrong.append([])
    for value in wrong:
        with pytest.raises(WorldError) as caught:
            from_json(replaced(path, value))
        assert dotted(path) in str(caught.value), value
        assert "\n" not in str(caught.value)


IMPOSSIBLE: list[tuple[str, Path, Any]] = [
    ("format", ("format",), 2), ("name", ("name",), ""), ("name", ("name",), "../x"), ("name", ("name",), "a\nb"),
    ("name", ("name",), "\ud800"), ("game", ("game",), "a/b"),
    ("actions", ("actions", "buttons", 0, "name"), "a\x1b[2J"),
    ("name", ("name",), "x" * 101),
    ("frame_height", ("frame_height",), 7), ("frame_width", ("frame_width",), 4097), ("fps", ("fps",), 0.0),
    ("fps", ("fps",), -35.0), ("fps", ("fps",), 1001), ("actions", ("actions", "buttons", 0, "name"), "look"),
    ("actions", ("actions", "buttons", 0, "name"), ""), ("limit", ("actions", "axes", 0, "limit"), 0),
    ("latent_channels", ("autoencoder", "latent_channels"), 0), ("width", ("autoencoder", "widths"), [8, 0, 8]),
    ("width", ("autoencoder", "widths"), []), ("width", ("autoencoder", "widths"), [8] * 6),
    ("encoder_blocks", ("autoencoder", "encoder_blocks"), [1]),
    ("decoder_blocks", ("autoencoder", "decoder_blocks"), [1, -1, 1]), ("layers", ("dynamics", "layers"), 0),
    ("layers", ("dynamics", "layers"), 129), ("width", ("dynamics", "width"), 10**9),
    ("heads", ("dynamics", "heads"), 0), ("heads", ("dynamics", "heads"), 3),
    ("head size", ("dynamics", "heads"), 8), ("mlp_width", ("dynamics", "mlp_width"), 0),
    ("patch", ("dynamics", "patch"), 0), ("patch", ("dynamics", "patch"), 9), ("sigmas", ("dynamics", "sigmas"), []),
    ("sigmas", ("dynamics", "sigmas"), [0.9]), ("sigmas", ("dynamics", "sigmas"), [1.0, 0.5, 0.5]),
    ("sigmas", ("dynamics", "sigmas"), [1.0, 0.0]), ("rope_base", ("dynamics", "rope_base"), 1.0),
    ("window_frames", ("memory", "window_frames"), 0), ("window_frames", ("memory", "window_frames"), 10**30),
    ("sink_frames", ("memory", "sink_frames"), -1), ("max_age", ("memory", "max_age"), 0),
    ("dilated_frames", ("memory", "dilated_frames"), 1025), ("dilation", ("memory", "dilated_frames"), 0),
    ("dilation", ("memory", "dilation"), 0), ("dilation", ("memory", "dilation"), 1),
    ("policy", ("plan", "policy"), "spiral"), ("window_frames", ("plan", "window_frames"), 3),
    ("window_frames", ("plan", "policy"), "window"), ("block_tokens", ("plan", "block_tokens"), -1),
    ("block_tokens", ("plan", "block_tokens"), 7),
]


@pytest.mark.parametrize(("named", "path", "value"), IMPOSSIBLE, ids=lambda value: str(value)[:40])
def test_an_impossible_value_is_refused_by_name(named: str, path: Path, value: Any) -> None:
    with pytest.raises(WorldError, match=named) as caught:
        from_json(replaced(path, value))
    assert "\n" not in str(caught.value)


def test_a_list_of_a_million_entries_is_refused() -> None:
    with pytest.raises(WorldError, match="1024"):
        from_json(replaced(("dynamics", "sigmas"), [1.0] * 10**6))


scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
                    st.sampled_from([0, 1, -1, 2**31, 2**63, 10**30, "dense", "window", ""]))
anything = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.text(max_size=6), inner, max_size=3), max_leaves=6)


@settings(QUICK, max_examples=300)
@given(st.lists(st.tuples(st.sampled_from(LEAVES + LISTS + OBJECTS), anything), min_size=1, max_size=3))
def test_any_json_is_a_spec_or_a_world_error(changes: list[tuple[Path, Any]]) -> None:
    data = copy.deepcopy(PLAIN)
    for path, value in changes:
        try:
            if path:
                at(data, path[:-1])[path[-1]] = value
            else:
                data = value
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change has taken that place away
    try:
        spec = from_json(data)
    except WorldError:
        return
    assert from_json(to_json(spec)) == spec


def test_weight_shapes_are_those_of_the_tiny_world() -> None:
    """Pinned by count and by a few: a change here makes every shipped world unreadable."""
    shapes = weight_shapes(tiny_spec())
    assert len(shapes) == len(random_weights(tiny_spec())) == 64
    assert shapes["autoencoder.encoder.stem.weight"] == (8, 48, 3, 3)
    assert shapes["dynamics.input.weight"] == (32, 8)
    assert shapes["dynamics.condition.first.weight"] == (32, 3 + 3 * 8)
    assert shapes["dynamics.blocks.1.qkv.weight"] == (96, 32) and "dynamics.blocks.1.qkv.bias" not in shapes


def test_a_linear_branch_stands_in_the_json_only_where_there_is_one() -> None:
    """So worlds from before it keep their text, and with it their hash."""
    plain, branched = PlanSpec("window", 2), PlanSpec("window", 2, linear=True)
    assert to_json(plain) == {"policy": "window", "window_frames": 2, "block_tokens": 0, "top_blocks": 0}
    assert to_json(branched) == {**to_json(plain), "linear": True}
    text = to_json(tiny_spec(plan=branched))
    assert from_json(text).plan == branched and from_json({**text, "plan": to_json(plain)}).plan == plain
    with pytest.raises(WorldError, match=r"plan\.linear"):
        from_json({**text, "plan": {**to_json(plain), "linear": 1}})


@pytest.mark.parametrize("plan", [{}, {"policy": "top_k", "top_blocks": 3}])
def test_a_linear_branch_is_refused_where_nothing_is_skipped_by_age(plan: dict[str, Any]) -> None:
    with pytest.raises(WorldError, match="linear is for policies window and radial"):
        PlanSpec(**plan, linear=True)


def test_a_linear_branch_has_one_square_matrix_a_head_and_a_cap() -> None:
    plain, branched = tiny_spec(plan=PlanSpec("window", 2)), tiny_spec(plan=PlanSpec("window", 2, linear=True))
    added = {name: shape for name, shape in weight_shapes(branched).items() if name not in weight_shapes(plain)}
    assert added == {f"dynamics.blocks.{i}.skipped": (2, 16, 16) for i in range(2)}
    wide = dict(dynamics=DynamicsSpec(16384, 1, 16, 8), memory=MemorySpec(400))
    tiny_spec(**wide, plan=PlanSpec("window", 2, 1))
    with pytest.raises(WorldError, match=r"linear branch keeps \d+ bytes of sums a layer, above the cap"):
        tiny_spec(**wide, plan=PlanSpec("window", 2, 1, linear=True))


# -- actions -----------------------------------------------------------------------------------------


@QUICK
@given(action_specs(), st.data())
def test_names_mapping_and_vector_say_the_same(actions: ActionSpec, data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.sampled_from(actions.names)))
    by_names = actions.vector(chosen)
    by_mapping = actions.vector(dict.fromkeys(chosen, 1.0))
    assert by_names.dtype == np.float32 and by_names.shape == (actions.size,)
    np.testing.assert_array_equal(by_names, by_mapping)
    np.testing.assert_array_equal(by_names, actions.vector(by_names))
    for i, name in enumerate(actions.names):
        assert (by_names[i] != 0) == (name in chosen)


@QUICK
@given(action_specs(), st.floats(-1e30, 1e30))
def test_values_are_clipped_to_their_range(actions: ActionSpec, value: float) -> None:
    vector = actions.vector(dict.fromkeys(actions.names, value))
    for i in range(len(actions.buttons)):
        assert vector[i] == np.float32(min(max(value, 0), 1))
    for axis, got in zip(actions.axes, vector[len(actions.buttons) :], strict=True):
        assert abs(got) <= np.float32(axis.limit)
        assert got == np.float32(value) or abs(got) == np.float32(axis.limit)


def test_no_input_is_zero_and_one_name_is_not_spelt_out() -> None:
    assert AXIS.vector(None).tolist() == AXIS.vector(()).tolist() == [0.0, 0.0]
    assert AXIS.vector("attack").tolist() == [1.0, 0.0]


@pytest.mark.parametrize("action", [5, [["attack"]], {"attack": "x"}, {"attack": None}, {"look": 10**400},
                                    np.array(["a", "b"]), np.array([1j, 0])], ids=str)
def test_what_is_no_action_at_all_is_refused(action: Any) -> None:
    with pytest.raises(ActionError):
        AXIS.vector(action)


def test_a_value_beyond_float32_is_clipped_like_any_other() -> None:
    assert AXIS.vector({"look": 1e300, "attack": -1e300}).tolist() == [0.0, 2.5]


def test_a_ring_and_a_plan_above_their_caps_are_refused() -> None:
    """Few weights can ask for much memory: 4096 x 4096 pixels are a million tokens."""
    huge = dict(frame_height=4096, frame_width=4096, actions=AXIS, autoencoder=AutoencoderSpec(1, (1,), (0,), (0,)))
    with pytest.raises(WorldError, match="memory: a ring of"):
        tiny_spec(**huge, memory=MemorySpec(4096), plan=PlanSpec())
    with pytest.raises(WorldError, match="plan: block lists of"):
        tiny_spec(**huge, memory=MemorySpec(1), plan=PlanSpec(block_tokens=1))


@pytest.mark.parametrize("action", [{"fly"}, {"fly": 1.0}, "fly", ["attack", "fly"], [0.0, 1.0]])
def test_an_unknown_action_lists_the_known_ones(action: Any) -> None:
    with pytest.raises(ActionError, match="this world knows: attack, look"):
        AXIS.vector(action)


@pytest.mark.parametrize("action", [np.zeros(3), np.zeros((1, 2)), np.float32(1) * np.ones(1), np.array([np.nan, 0]),
                                    {"look": math.inf}, {"attack": math.nan}])
def test_a_vector_of_a_wrong_shape_or_value_is_refused(action: Any) -> None:
    with pytest.raises(ActionError):
        AXIS.vector(action)

"""What lies beside an export's graphs: its README, its sizes as plain numbers, and the example that runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dreamloop.models.core.spec import LEVEL_FEATURES
from dreamloop.models.core.world import World

EXAMPLE_POLICIES = ("dense", "window")  # plans that the example makes by itself
FORM_TEXT = {
    "portable": """
   The graph reads the whole ring and writes nothing into it. `mask` (1, 1, T, S Tp + T) is added to the scores:
   0 where a key is read, -1e9 where not. Its first S Tp columns are the ring, with the frame's own slot masked
   (what lies there is about to be overwritten); the last T columns are the fresh keys, 0. After the pass copy
   `new_key_l` and `new_value_l` (1, H, T, D) into rows slot Tp .. slot Tp + T of `key_l` and `value_l`.""",
    "sparse": """
   The graph gathers only the blocks of keys that are listed, N = {block_tokens} tokens each;
   block = slot (Tp / N) + part. `block_index` holds the blocks of the slots that are read, the frame's own slot
   among them (it stands for the fresh keys), `block_count` how many places of a list count, `block_length` how many
   tokens of each block of the ring are written, `slot` the frame's own slot. After the pass copy `new_key_l` and
   `new_value_l` (1, H, T, D) into rows slot Tp .. slot Tp + T of `key_l` and `value_l`.""",
    "in_place": """
   The graph writes the fresh keys and values into the ring, at row `write_index` = slot Tp, and then reads it.
   Give `key_l` (input) and `ring_key_l` (output) the SAME buffer, and `value_l` and `ring_value_l` too: TensorRT
   demands it, and ONNX Runtime then copies nothing. `mask` (1, 1, T, S Tp) bool is true where a key is read, the
   frame's own slot included."""}


def layout(world: World) -> dict[str, Any]:
    """The sizes of a world as plain JSON numbers, which the example and any port read."""
    spec, d, m = world.spec, world.spec.dynamics, world.spec.memory
    return {"world": world.name, "world_hash": world.hash, "fps": spec.fps,
            "frame": [spec.frame_height, spec.frame_width], "latent": list(spec.latent_shape), "grid": list(spec.grid),
            "actions": list(spec.actions.names), "layers": d.layers, "heads": d.heads, "head_size": d.head_size,
            "tokens": spec.tokens, "tokens_padded": spec.tokens_padded, "block_tokens": spec.block_tokens,
            "slots": m.slots, "sinks": m.sink_frames, "dilated_frames": m.dilated_frames, "dilation": m.dilation,
            "window_frames": m.window_frames, "max_age": m.max_age, "plan": spec.plan.policy,
            "plan_window_frames": spec.plan.window_frames, "sigmas": list(d.sigmas), "rope_base": d.rope_base,
            "level_features": LEVEL_FEATURES}


def write(world: World, form: str, precision: str, folder: Path, engines: dict[str, Any]) -> None:
    """README.md, layout.json and, for plans that it knows, run.py."""
    (folder / "layout.json").write_text(json.dumps(layout(world), indent=2) + "\n", "utf-8")
    runs = world.spec.plan.policy in EXAMPLE_POLICIES
    if runs:
        source = Path(__file__).with_name("export_example.py").read_text("utf-8")
        (folder / "run.py").write_text(source, "utf-8")
    (folder / "README.md").write_text(_text(world, form, precision, folder, engines, runs), "utf-8")


def _text(world: World, form: str, precision: str, folder: Path, engines: dict[str, Any], runs: bool) -> str:
    sizes = layout(world)
    levels = ", ".join(map(str, sizes["sigmas"]))
    latent, (height, width), passes = ", ".join(map(str, sizes["latent"])), sizes["frame"], len(sizes["sigmas"])
    example = ("`run.py` is the same as a program, without dreamloop: `pip install numpy onnxruntime`, then\n"
               "`python run.py --check` plays the session in `check/` and compares, `python run.py` dreams 100 frames."
               if runs else f"The plan `{sizes['plan']}` makes its lists as `models/core/plan.py` of dreamloop does; "
               "there is no run.py for it.")
    program = "" if not runs else f"""## ONNX Runtime, in short

```python
import numpy as np
from run import Player                          # the rules above, about a hundred lines of numpy

player = Player(np.load("start.npy"))
noise = np.random.default_rng(0)
for frame in range(100):
    player.next(np.eye({len(sizes['actions'])})[0], noise.standard_normal(({passes}, {latent})))
picture = player.picture()                      # uint8 ({height}, {width}, 3)
```
"""
    sinks = "" if not sizes["sinks"] else """
- **Sinks.** Frames 1 .. sinks stay for ever. Their keys are stored without the turn of time (`store_cos`, `store_sin`
  (1, T, D/2): the angles of space alone for a sink frame, those of `cos`, `sin` otherwise), and turned at each pass:
  `sink_cos`, `sink_sin` (1, sinks, D/2) are the time angles of t - min(t - s, max_age) for s = 1 .. sinks."""
    careful = "" if not precision.startswith("int8") else """
- In ONNX Runtime set the session option `session.x64quantprecision` to 1: on a CPU without VNNI products of int8
  overflow else."""
    built = "".join(f"\n- `{name}.engine`: {report['library']}, {report['arch']}; another version or GPU refuses it, "
                    f"and it is to be exported again. `{name}.engine.json` says what it was built from."
                    for name, report in engines.items())
    return f"""# {world.name}, for other programs

Graphs of a dreamed game world: one step makes one frame from the frame before and what is pressed. Form `{form}`,
precision `{precision}`, one player, {sizes['fps']:g} frames a second. `layout.json` holds every number below.
{example}

- `step.onnx`: one pass of the world. `decode.onnx`: latents to a picture. `encode.onnx`: a picture to latents.
- `start.npy`: latents of a first frame, (1, C, h, w) float32 behind an npy header of 128 bytes.{built}{careful}

## Inputs and outputs

The ring is {_ring_type(precision)}. C, h, w = {latent}; L = {sizes['layers']} layers; H = {sizes['heads']} heads of
D = {sizes['head_size']}; T = {sizes['tokens']} tokens of a frame, Tp = {sizes['tokens_padded']} with padding;
S = {sizes['slots']} slots.

{_table(folder)}
## One frame

1. t = t + 1 (the first is 1). `previous` is z of the last frame, at first `start.npy`, or `encode.onnx` of any
   picture.
2. Take slot = slot_of(t), and note that it now holds frame t:

       t <= sinks               slot t - 1
       t % dilation == 0        slot sinks + (t / dilation) % dilated_frames
       otherwise                slot sinks + dilated_frames + n % window_frames

   with sinks = {sizes['sinks']}, dilation = {sizes['dilation']} (0: none), dilated_frames = {sizes['dilated_frames']},
   window_frames = {sizes['window_frames']}, and n the number of frames before t of the third kind.
   Nothing else of the ring ever changes; it starts as zeros.
3. Read: the plan is `{sizes['plan']}`{_window(sizes)}.{FORM_TEXT[form].format(**sizes)}
4. `cos`, `sin` (1, T, D/2): of angles made in double precision. The first half of the D/2 pairs turns by
   t base^(-i / n), i = 0 .. n - 1, n = D/4; the third quarter by the token's row, the last by its column, times
   base^(-i / m), m = D/8. base = {sizes['rope_base']:g}.{sinks}
5. `condition`: the action, then for the noise level s, the step size and 0 each: sin and cos of
   0.5 pi 2^k times it, k = 0 .. {LEVEL_FEATURES // 2 - 1}. Noise levels of a frame's passes: {levels}.
   The step size is the noise level: every pass makes the clean latent.
6. `x`: normal noise in the first pass; in pass k the mix (1 - s_k) z + s_k noise. A frame takes {passes} pass(es);
   the last one's keys and values stay.
7. z is the new latent; `decode.onnx` makes (1, {height}, {width}, 3) uint8 of it.

`action`, one number each, 1 = down: {', '.join(sizes['actions'])}.

{program}
In C++ and C# bind the ring once (`Ort::IoBinding`, `OrtIoBinding`): its memory is constant, and no frame has to copy
it. To hold a port to, `check/` has actions (frames, A), noise (frames, passes, C, h, w) and latents
(frames, C, h, w).
"""


def _ring_type(precision: str) -> str:
    return {"fp16": "float16", "bf16": "bfloat16"}.get(precision.split("-")[-1], "float32")


def _window(sizes: dict[str, Any]) -> str:
    if sizes["plan"] == "dense":
        return ": every slot that holds a frame"
    if sizes["plan"] == "window":
        return f": slots whose frame is at most {sizes['plan_window_frames']} frames old, and sinks"
    return ""


def _table(folder: Path) -> str:
    """Names, shapes and types of every graph's edges, the layers' rings as one line."""
    import onnx
    lines = ["| graph | | name | shape | type |", "|---|---|---|---|---|"]
    for kind in ("step", "decode", "encode"):
        graph = onnx.load(folder / f"{kind}.onnx").graph
        for way, values in (("in", graph.input), ("out", graph.output)):
            for value in values:
                if value.name.rsplit("_", 1)[-1].isdigit() and not value.name.endswith("_0"):
                    continue
                name = value.name[:-1] + "l" if value.name.endswith("_0") else value.name
                shape = ", ".join(str(d.dim_value) for d in value.type.tensor_type.shape.dim)
                kind_name = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
                lines.append(f"| {kind} | {way} | `{name}` | ({shape}) | {kind_name} |")
    return "\n".join(lines) + "\n"

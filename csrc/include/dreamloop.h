/* The C interface of dreamloop: play a packed world from any program, without Python.
 *
 *     dreamloop_options options = {0};
 *     dreamloop_world *world;
 *     if (dreamloop_open_file("doom-arena.dream", &options, &world)) fail(dreamloop_error());
 *
 * Every function that can fail returns DREAMLOOP_OK or the code of what went wrong, and dreamloop_error() then
 * says it in one line. A world may be used by one thread at a time; after its first frame it takes no memory.
 *
 * Letters: B players, L layers, S slots, T tokens of a frame, H heads, D head size, C latent channels.
 */
#ifndef DREAMLOOP_H
#define DREAMLOOP_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    DREAMLOOP_OK = 0,
    DREAMLOOP_BAD_ARGUMENT = 1, /* an argument is out of its range */
    DREAMLOOP_BAD_FILE = 2,     /* a file cannot be read, or is not what it should be */
    DREAMLOOP_CANNOT_RUN = 3,   /* this machine cannot do what was asked for */
    DREAMLOOP_NO_MEMORY = 4
};

/* Why the last call of this thread failed; valid until the next one. */
const char *dreamloop_error(void);

typedef struct dreamloop_world dreamloop_world;

/* Zeros stand for the default. threads: 1 to 64, by default 2, or 1 where there is one core; tier: "portable",
 * "avx2", "avx512", "avx512vnni", by default the environment variable DREAMLOOP_ISA, else the fastest that runs
 * here; precision: "fp32" (default), "bf16", "int8"; "int8-static" plays the world by itself when it is opened and keeps
 * the scales that it finds there, instead of making them anew at every frame. */
typedef struct {
    int threads;
    const char *tier;
    const char *precision;
} dreamloop_options;

/* Opens a packed world (models/core/packed.py says what is in it) from memory, which may be freed afterwards. */
int dreamloop_open(const void *bytes, int64_t size, const dreamloop_options *options, dreamloop_world **world);

int dreamloop_open_file(const char *path, const dreamloop_options *options, dreamloop_world **world);

/* The end of a world, after that of its states; NULL is allowed. */
void dreamloop_close(dreamloop_world *world);

/* What a world is, and how it runs. Strings live as long as the world. */
typedef struct {
    int64_t frame_height, frame_width, actions, buttons, starts;
    int64_t latent_channels, latent_height, latent_width;
    int64_t layers, heads, head_size, tokens, slots, tokens_padded, block_tokens, query_blocks, sink_frames, passes;
    int64_t top_blocks;     /* above 0: the plan is top_k */
    int64_t ring_row_bytes; /* 4 D; in int8, D + 4 */
    double fps;
    int threads;
    const char *tier, *precision;
} dreamloop_description;

void dreamloop_describe(const dreamloop_world *world, dreamloop_description *description);

/* The name of a button or axis, in the order of the action's values; NULL where there is none. */
const char *dreamloop_action_name(const dreamloop_world *world, int64_t index);

/* -- one player ---------------------------------------------------------------------------------------
 * A state is everything that makes the next frame what it is. The same seed, start and actions give the same
 * frames, bit for bit, on the same tier and precision, for any number of threads. */

typedef struct dreamloop_state dreamloop_state;

/* A player at start frame `start`, with an empty memory. */
int dreamloop_new_state(dreamloop_world *world, uint64_t seed, int64_t start, dreamloop_state **state);
void dreamloop_free_state(dreamloop_state *state);

/* Index of the last frame made; 0 at the start. */
int64_t dreamloop_frame(const dreamloop_state *state);

/* The next frame. action: a value for every button (0 or 1) and axis, clipped to its range, or NULL for no input;
 * pixels: (H, W, 3) bytes whose rows lie row_bytes apart, or NULL to decode nothing. */
int dreamloop_step(dreamloop_state *state, const float *action, uint8_t *pixels, int64_t row_bytes);

/* The frame that the state stands at, decoded once more (frame 0: the start after the autoencoder); changes nothing. */
int dreamloop_render(dreamloop_state *state, uint8_t *pixels, int64_t row_bytes);

/* A bookmark: a state of its own that shares nothing with the first. */
int dreamloop_copy_state(const dreamloop_state *from, dreamloop_state **to);

/* To and from the caller's memory. What another world, tier or precision saved is refused, and changes nothing. */
int64_t dreamloop_state_bytes(const dreamloop_state *state);
int dreamloop_save_state(const dreamloop_state *state, void *bytes, int64_t size);
int dreamloop_load_state(dreamloop_state *state, const void *bytes, int64_t size);

/* -- the parts, for a host that keeps its own state ---------------------------------------------------- */

/* One pass of the network for B players, with everything that the host makes for it (models/core/conditioning.py
 * says what each is), all contiguous float32 unless stated:
 *
 * ring         (L, 2, B, H, S * T_padded, D), read and written in place; rows of ring_row_bytes
 * previous, x  (B, C, latent height, latent width)
 * action       (B, A)          condition    (B, A + 24)
 * cosine, sine, store_cosine, store_sine    (B, T, D/2)
 * sink_cosine, sink_sine       (B, sinks, D/2)
 * slot         (B) int64
 * block_index  (B or 1, H or 1, query_blocks, max_blocks) int32; block_count, block_length: see csrc/cpu/kernels.h
 * block_kept   as block_count, where the plan is top_k, else NULL: how many blocks of a list are read in any case
 */
typedef struct {
    int64_t batch;
    void *ring;
    const float *previous, *x, *action, *condition;
    const float *cosine, *sine, *store_cosine, *store_sine, *sink_cosine, *sink_sine;
    const int64_t *slot;
    const int32_t *block_index, *block_count, *block_length, *block_kept;
    int64_t list_players, list_heads, length_players, max_blocks;
} dreamloop_pass_inputs;

/* z (B, C, latent height, latent width) of the frame; z overlaps no input. Slots and lists must be in range. */
int dreamloop_pass(dreamloop_world *world, const dreamloop_pass_inputs *inputs, float *z);

/* One latent (C, latent height, latent width) to pixels (H, W, 3), whose rows lie row_bytes apart. */
int dreamloop_decode(dreamloop_world *world, const float *latent, uint8_t *pixels, int64_t row_bytes);

/* Its inverse. */
int dreamloop_encode(dreamloop_world *world, const uint8_t *pixels, int64_t row_bytes, float *latent);

/* Operations a second (a multiplication and an addition are two) that the world's threads reach together in products
 * of "fp32", "bf16" or "int8" that stay in the caches: the limit that a frame's time can be compared with. */
int dreamloop_measure_limit(dreamloop_world *world, const char *precision, double *operations);

/* What a pass does, in its order, and the seconds that each took in the last pass of the world, all layers together:
 * where the milliseconds of a frame go. `attention` has the norms and turns of queries and keys in it, `narrow` makes
 * bytes or bf16 of rows. The name is NULL where there is none. */
enum { DREAMLOOP_OPERATIONS = 10 };
const char *dreamloop_operation_name(int operation);
double dreamloop_operation_seconds(const dreamloop_world *world, int operation);

#ifdef __cplusplus
}
#endif
#endif

/* A dreamed world in a C program, without Python:
 *
 *     python -m dreamloop.models.core.packed doom-arena doom-arena.dream
 *     cmake -B build/embed -DDREAMLOOP_PYTHON=OFF . && cmake --build build/embed --target embed
 *     build/embed/embed doom-arena.dream 300 last.ppm
 *
 * plays 300 frames, holding each of the world's controls in turn for half a second, saves the middle, goes back
 * to it once, and writes the last frame as a picture.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "dreamloop.h"

enum { HOLD_FRAMES = 16 };

static void check(int code) {
    if (code == DREAMLOOP_OK) return;
    fprintf(stderr, "embed: %s\n", dreamloop_error());
    exit(code);
}

static double now_ms(void) {
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

/* One control after the other, one at a time. */
static void scripted(int64_t frame, float *action, int64_t count) {
    for (int64_t i = 0; i < count; i++) action[i] = frame / HOLD_FRAMES % count == i ? 1.0f : 0.0f;
}

static void play(dreamloop_state *player, int64_t until, float *action, int64_t actions, uint8_t *pixels, int64_t row) {
    while (dreamloop_frame(player) < until) {
        scripted(dreamloop_frame(player), action, actions);
        check(dreamloop_step(player, action, pixels, row));
    }
}

static void write_picture(const char *path, const uint8_t *pixels, const dreamloop_description *world) {
    FILE *file = fopen(path, "wb");
    const size_t size = (size_t)(world->frame_width * world->frame_height * 3);
    if (!file || fprintf(file, "P6 %d %d 255\n", (int)world->frame_width, (int)world->frame_height) < 0 ||
        fwrite(pixels, 1, size, file) != size || fclose(file) != 0) {
        fprintf(stderr, "embed: cannot write %s\n", path);
        exit(1);
    }
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: embed WORLD.dream [FRAMES [PICTURE.ppm [PRECISION [THREADS]]]]\n");
        return 1;
    }
    const int64_t frames = argc > 2 ? atoll(argv[2]) : 300;
    dreamloop_world *world;
    dreamloop_description about;
    const dreamloop_options options = {argc > 5 ? atoi(argv[5]) : 0, NULL, argc > 4 ? argv[4] : NULL};
    check(dreamloop_open_file(argv[1], &options, &world));
    dreamloop_describe(world, &about);
    printf("%dx%d, %s %s on %d threads; controls:", (int)about.frame_width, (int)about.frame_height, about.tier,
           about.precision, about.threads);
    for (int64_t i = 0; i < about.actions; i++) printf(" %s", dreamloop_action_name(world, i));
    printf("\n");

    const int64_t row = 3 * about.frame_width;
    uint8_t *pixels = malloc((size_t)(row * about.frame_height));
    float *action = malloc((size_t)about.actions * sizeof *action);
    dreamloop_state *player, *bookmark;
    check(dreamloop_new_state(world, 7, 0, &player));
    const double began = now_ms();
    play(player, frames / 2, action, about.actions, pixels, row);
    check(dreamloop_copy_state(player, &bookmark));
    play(player, frames, action, about.actions, pixels, row);
    const double took_ms = now_ms() - began;
    printf("%lld frames, %.2f ms a frame\n", (long long)frames, took_ms / (double)(frames > 0 ? frames : 1));

    /* the bookmark, saved and loaded as a saved game would be, lives the same second half again, bit for bit */
    const int64_t saved_bytes = dreamloop_state_bytes(bookmark);
    void *saved = malloc((size_t)saved_bytes);
    dreamloop_state *loaded;
    check(dreamloop_save_state(bookmark, saved, saved_bytes));
    check(dreamloop_new_state(world, 0, 0, &loaded));
    check(dreamloop_load_state(loaded, saved, saved_bytes));
    uint8_t *again = malloc((size_t)(row * about.frame_height));
    play(loaded, frames, action, about.actions, again, row);
    check(dreamloop_render(loaded, again, row));
    check(dreamloop_render(player, pixels, row));
    for (int64_t i = 0; i < row * about.frame_height; i++)
        if (pixels[i] != again[i]) {
            fprintf(stderr, "embed: the bookmark dreamt another dream\n");
            return 1;
        }
    if (argc > 3) write_picture(argv[3], pixels, &about);
    dreamloop_free_state(loaded);
    dreamloop_free_state(bookmark);
    dreamloop_free_state(player);
    dreamloop_close(world);
    free(action);
    free(saved);
    free(again);
    free(pixels);
    return 0;
}

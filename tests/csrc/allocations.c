/* Does a world take memory while it plays? Counts what malloc and its kin are asked for, by whomever, C++ included.
 *
 *     allocations WORLD.dream PRECISION THREADS FRAMES
 *
 * prints how often memory was taken in FRAMES frames after the first, and by how many kilobytes the process grew
 * between frame 1,000 and the last. glibc only: the real functions are its own.
 */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "dreamloop.h"

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static long taken; /* atomic, for the threads of the pool */

void *malloc(size_t size) { return __atomic_add_fetch(&taken, 1, __ATOMIC_RELAXED), __libc_malloc(size); }
void *calloc(size_t count, size_t size) {
    return __atomic_add_fetch(&taken, 1, __ATOMIC_RELAXED), __libc_calloc(count, size);
}
void *realloc(void *old, size_t size) { return __atomic_add_fetch(&taken, 1, __ATOMIC_RELAXED), __libc_realloc(old, size); }
void *aligned_alloc(size_t align, size_t size) {
    return __atomic_add_fetch(&taken, 1, __ATOMIC_RELAXED), __libc_memalign(align, size);
}

static void check(int code) {
    if (code == DREAMLOOP_OK) return;
    fprintf(stderr, "allocations: %s\n", dreamloop_error());
    exit(code);
}

static long resident_kb(void) {
    long pages = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (!file || fscanf(file, "%ld %ld", &pages, &resident) != 2) exit(1);
    fclose(file);
    return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

int main(int argc, char **argv) {
    if (argc != 5) return 1;
    const dreamloop_options options = {atoi(argv[3]), NULL, argv[2]};
    dreamloop_world *world;
    dreamloop_state *player;
    dreamloop_description about;
    check(dreamloop_open_file(argv[1], &options, &world));
    dreamloop_describe(world, &about);
    check(dreamloop_new_state(world, 1, 0, &player));
    uint8_t *pixels = malloc((size_t)(3 * about.frame_width * about.frame_height));
    float *action = calloc((size_t)about.actions, sizeof *action);
    const long before = taken;
    if (before < 10) return 1; /* opening a world takes memory: the count works */
    check(dreamloop_step(player, action, pixels, 3 * about.frame_width));
    const long first = taken, frames = atol(argv[4]);
    long early_kb = resident_kb();
    long own = taken - first;
    for (long frame = 0; frame < frames; frame++) {
        action[frame % about.actions] = (float)(frame & 1);
        check(dreamloop_step(player, action, pixels, 3 * about.frame_width));
        if (frame == 1000) {
            const long now = taken;
            early_kb = resident_kb();
            own += taken - now;
        }
    }
    const long playing = taken - first - own;
    printf("%ld taken, %ld KB more\n", playing, resident_kb() - early_kb);
    return 0;
}

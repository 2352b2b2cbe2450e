/* Where exceptions end: every function of the C interface runs inside `guarded`. */
#ifndef DREAMLOOP_GUARD_H
#define DREAMLOOP_GUARD_H

#include "world.h"

namespace dreamloop {

/* What dreamloop_error() returns in this thread. */
std::string &last_error();

template <typename Body> int guarded(Body body) {
    try {
        body();
        return DREAMLOOP_OK;
    } catch (const Error &error) {
        last_error() = error.what();
        return error.code;
    } catch (const std::bad_alloc &) {
        last_error() = "not enough memory";
        return DREAMLOOP_NO_MEMORY;
    } catch (const std::exception &error) { /* threads that cannot be started */
        last_error() = error.what();
        return DREAMLOOP_CANNOT_RUN;
    }
}

/* `text`: a literal, or a function that makes a string; a frame that goes well takes no memory for what it could say. */
template <typename Text> void require(bool ok, const Text &text, int code = DREAMLOOP_BAD_ARGUMENT) {
    if (ok) return;
    if constexpr (std::is_invocable_v<Text>) throw Error(code, text());
    else throw Error(code, text);
}

} // namespace dreamloop
#endif

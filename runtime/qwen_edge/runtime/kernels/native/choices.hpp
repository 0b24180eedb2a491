// Which kernels this processor runs, and memory of the threads that run them.

#pragma once

#include <string>
#include <vector>

#include "kernels.hpp"

namespace qwen_edge {

struct Choice {
    const char* name;
    const Kernels* kernels;
    bool uses_tiles;
};

// What this processor can run, best first.
const std::vector<Choice>& choices();

// The best one for "auto", or that of a name; null where there is none.
const Choice* find_choice(const std::string& name);

// Memory of the calling thread that is kept for the next call with this type and use.
template <typename T, int kUse>
T* keep(size_t count) {
    static thread_local std::vector<T> memory;
    if (memory.size() < count) memory.resize(count);
    return memory.data();
}

}  // namespace qwen_edge

// How functions of the library are made callable from outside.

#pragma once

#if defined(_WIN32)
#define QWEN_EDGE_EXPORT extern "C" __declspec(dllexport)
#else
#define QWEN_EDGE_EXPORT extern "C" __attribute__((visibility("default")))
#endif

# Read by CMake inside llama.cpp's project(), see scripts/setup. The Python package needs libllama and
# libggml only; without "common" (the base of llama.cpp's own tools) and mtmd, 83 build steps replace 193.
set(LLAMA_BUILD_COMMON OFF)

# Read by CMake inside llama.cpp's project(), see scripts/setup. The Python package needs libllama and
# libggml only; "common" (llama.cpp's own command line tools) doubles the time of the build.
set(LLAMA_BUILD_COMMON OFF)

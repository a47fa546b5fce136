/* The engine's layers by themselves, on rows [frames, channels]: for tests, measurements and
 * other engines. */
#ifndef OMNISPARSE_KERNELS_H_
#define OMNISPARSE_KERNELS_H_

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define OMNISPARSE_EXPORT __attribute__((visibility("default")))
#else
#define OMNISPARSE_EXPORT
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct omnisparse_linear omnisparse_linear;

/* Instruction sets that this build and this CPU have, best first, with blanks between them. */
OMNISPARSE_EXPORT const char* omnisparse_isas(void);
/* The one in use. */
OMNISPARSE_EXPORT const char* omnisparse_isa(void);
/* Uses one for what is loaded from now on; "": the best. 0 if there is none of that name. */
OMNISPARSE_EXPORT int omnisparse_force_isa(const char* name);

/* A matrix [rows, columns], type 0: float32, 1: float16, 2: int8 with a scale for each row.
 * block_rows 0: dense, row after row; else its blocks, the column of each, and where each row
 * of blocks begins (and the last one ends). gated: see epilogue 5. NULL on wrong arguments. */
OMNISPARSE_EXPORT omnisparse_linear* omnisparse_linear_new(
    int rows, int columns, int type, const void* values, const float* scale, int block_rows,
    int block_columns, const uint16_t* block_column, const int32_t* block_begin,
    const float* bias, int gated, int threads);
OMNISPARSE_EXPORT void omnisparse_linear_free(omnisparse_linear* linear);
/* Bytes of the packed matrix. */
OMNISPARSE_EXPORT size_t omnisparse_linear_bytes(const omnisparse_linear* linear);
/* y [frames, outputs]; epilogue 0: store, 1: ReLU, 2: swish, 3: tanh, 4: GELU, 5: the first
 * half times the sigmoid of the second, 6: y += factor * output, 7: hard tanh, 8: SELU.
 * width: of tiles, 8, 16, 32, or 0 to choose. 0 on success. */
OMNISPARSE_EXPORT int omnisparse_linear_run(omnisparse_linear* linear, const float* x,
                                            int frames, int epilogue, float factor, int width,
                                            float* y);
/* Runs it `times` times on the tiles of the last run, for measurements. */
OMNISPARSE_EXPORT void omnisparse_linear_repeat(omnisparse_linear* linear, int times);

OMNISPARSE_EXPORT void omnisparse_layer_norm(const float* x, int frames, int channels,
                                             const float* gamma, const float* beta,
                                             float epsilon, float* y);
/* activation 0: none, 1: ReLU, 2: swish, 3: tanh, 4: GELU, 5: hard tanh, 6: SELU */
OMNISPARSE_EXPORT void omnisparse_activate(float* x, int count, int activation);
OMNISPARSE_EXPORT void omnisparse_log_softmax(const float* x, int frames, int channels,
                                              float* y);
/* past: [channels, kernel - 1] or NULL for zeros, replaced; before: how many of it are seen */
OMNISPARSE_EXPORT void omnisparse_depthwise(const float* x, int frames, int channels,
                                            const float* weight, const float* bias, int kernel,
                                            int before, float* past, float* y);
/* qkv [frames, 3 * heads * width] of a whole recording; positions [2 * keys - 1, heads * width]
 * of the distances keys - 1 .. 1 - keys, or NULL. The last `frames` of `keys` frames ask; past
 * [keys - frames, 2 * heads * width] are the keys and values before them. */
OMNISPARSE_EXPORT void omnisparse_attend(const float* qkv, int frames, int keys, int heads,
                                         int width, const float* past, const float* positions,
                                         const float* bias_u, const float* bias_v, int threads,
                                         float* y);

#ifdef __cplusplus
}
#endif

#endif /* OMNISPARSE_KERNELS_H_ */

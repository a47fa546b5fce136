// The loops that each instruction set has its own version of.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops.h"

namespace omnisparse {

// Quantised activations of one tile, as the products of an instruction set take them.
struct Quantised {
  void* data;    // dense: [inputs / group][width][group], else [inputs][width]
  float* scale;  // of each lane
};

// The weights of one block of rows, and what becomes of their product.
struct RowBlock {
  const void* weights;
  const uint16_t* columns;  // null: all, in order
  int count;                // columns; of quantised weights a multiple of the group
  int rows;                 // 8, 4 or 1
};

struct KernelTable {
  const char* name;
  int group;            // columns that one product of quantised numbers takes together
  int quantised_bytes;  // of one number
  bool offset;          // whether 128 is added to quantised activations

  // out[rows][width] = W x, x: [inputs][width]
  void (*product)(const RowBlock& block, const float* x, int width, float* out);
  void (*product_window)(const RowBlock& block, const Window& x, int width, float* out);
  // the same of quantised numbers, scaled by lane alone
  void (*product8)(const RowBlock& block, const Quantised& x, int width, const int32_t* sum,
                   const float* scale, float* out);
  void (*quantise)(const float* x, int inputs, int width, bool dense, const Quantised& q);
  void (*quantise_window)(const Window& x, int inputs, int width, bool dense,
                          const Quantised& q);
  // most[lane] <- the greater of it and the absolute values in x [channels], `apart` floats
  // from channel to channel; by their bits, of which NaN's are the greatest. `lanes` is a
  // multiple of 8.
  void (*largest)(const float* x, int channels, long apart, int lanes, float* most);
  // out[rows][width] + bias, through an epilogue but kAdd and kGate, into y [rows][width]
  void (*finish)(Epilogue epilogue, const float* out, const float* bias, int rows, int width,
                 float* y);
  // the same into rows `first` .. of places, all four of which are written to
  void (*finish_places)(Epilogue epilogue, const float* out, const float* bias, int rows,
                        int width, int first, const Places& y);
  // y += factor * (out + bias)
  void (*finish_add)(const float* out, const float* bias, int rows, int width, float factor,
                     float* y);
  // y = (a + bias_a) * sigmoid(b + bias_b)
  void (*gate)(const float* a, const float* b, const float* bias_a, const float* bias_b,
               int rows, int width, float* y);
  void (*norm)(const float* x, const float* gamma, const float* beta, float epsilon,
               int channels, int width, float* y);
  void (*activate)(float* x, size_t count, Activation activation);
  // y[t] = bias + sum over k of weight[k] * x[t + k], t < count (a multiple of 8)
  void (*convolve)(const float* x, const float* weight, float bias, int kernel, int count,
                   float* y);
  // out[r][n] = sum over k of a[r * step_row + k * step] * x[k * stride + n], 8 rows,
  // n < count (a multiple of 8)
  void (*rows8)(const float* a, long step_row, long step, int terms, const float* x,
                long stride, int count, float* out, long out_stride);
  // x <- exp(factor * x - max) / sum over the first `count`; zeros up to `padded`, a multiple
  // of the lanes
  void (*softmax)(float* x, int count, int padded, float factor);
  void (*log_softmax)(float* x, int channels, int width);
  // y[c * rows_stride_y + r] = x[r * stride_x + c], an 8 x 8 block
  void (*transpose8)(const float* x, long stride_x, float* y, long stride_y);
  void (*log_floor)(float* x, size_t count, float floor);
  void (*add)(float* x, const float* y, int count);          // x += y
  void (*multiply)(float* x, const float* y, size_t count);  // x *= y; a multiple of 8
};

// That of the best instruction set of this CPU, or of the one that was forced.
const KernelTable& kernels();
// "" for the best. False if this CPU or this build has it not.
bool force_isa(const char* name);
// The instruction sets that this build and this CPU have, best first.
const char* available_isas();
// Throws an Error where the environment asks for none of these.
void require_isa();

const KernelTable* plain_table();
const KernelTable* avx2_table();
const KernelTable* avx512_table();
const KernelTable* avx512vnni_table();
const KernelTable* neon_table();

}  // namespace omnisparse

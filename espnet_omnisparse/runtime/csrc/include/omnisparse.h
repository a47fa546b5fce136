/* Speech recognition with packed models: files that `omnisparse export` writes.
 *
 *   omnisparse_model* model = omnisparse_load("model.omni", 1);
 *   omnisparse_stream* stream = omnisparse_stream_new(model, NULL);
 *   omnisparse_stream_push(stream, samples, count);   // as often as there is audio
 *   omnisparse_stream_finish(stream);
 *   puts(omnisparse_stream_text(stream));
 *
 * Any number of streams may run over one model, each used by one thread at a time. */
#ifndef OMNISPARSE_H_
#define OMNISPARSE_H_

#include <stddef.h>

#include "omnisparse_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct omnisparse_model omnisparse_model;
typedef struct omnisparse_stream omnisparse_stream;

typedef struct omnisparse_stream_options {
  int whole; /* 1: the recording is encoded as a whole, when it has ended */
  int chunk; /* encoder frames encoded together, and seen before them; 0, -1: the model's own */
  int left;
  int beam;  /* hypotheses kept; 1: greedy search */
  int keep;  /* 1: outputs are kept for omnisparse_stream_output */
} omnisparse_stream_options;

enum { OMNISPARSE_FEATURES, OMNISPARSE_ENCODER, OMNISPARSE_LOG_PROBABILITIES };

/* What went wrong last in this thread, in one sentence. */
OMNISPARSE_EXPORT const char* omnisparse_last_error(void);
OMNISPARSE_EXPORT const char* omnisparse_version(void);

/* NULL if the file is not a whole packed model that this program can run. */
OMNISPARSE_EXPORT omnisparse_model* omnisparse_load(const char* path, int threads);
/* Streams may outlive it. */
OMNISPARSE_EXPORT void omnisparse_free(omnisparse_model* model);
/* The model's description as JSON. */
OMNISPARSE_EXPORT const char* omnisparse_info(const omnisparse_model* model);
OMNISPARSE_EXPORT int omnisparse_sample_rate(const omnisparse_model* model);
OMNISPARSE_EXPORT int omnisparse_vocabulary(const omnisparse_model* model);
OMNISPARSE_EXPORT const char* omnisparse_token(const omnisparse_model* model, int id);
/* Whether it can be given a chunk, and the size of its own, 0 if it has none. */
OMNISPARSE_EXPORT int omnisparse_can_stream(const omnisparse_model* model);
OMNISPARSE_EXPORT int omnisparse_chunk(const omnisparse_model* model);

/* NULL options: the model's own chunk, or whole recordings if it has none; greedy search. */
OMNISPARSE_EXPORT omnisparse_stream* omnisparse_stream_new(
    omnisparse_model* model, const omnisparse_stream_options* options);
OMNISPARSE_EXPORT void omnisparse_stream_free(omnisparse_stream* stream);
/* Samples of one channel at the model's rate, full scale being 1. 0 on success. */
OMNISPARSE_EXPORT int omnisparse_stream_push(omnisparse_stream* stream, const float* samples,
                                             size_t count);
/* Ends the recording. 0 on success. */
OMNISPARSE_EXPORT int omnisparse_stream_finish(omnisparse_stream* stream);
/* Begins another recording. */
OMNISPARSE_EXPORT void omnisparse_stream_reset(omnisparse_stream* stream);
/* The text so far, until the next call with this stream. */
OMNISPARSE_EXPORT const char* omnisparse_stream_text(omnisparse_stream* stream);
/* How many tokens there are so far; their ids and times in seconds until the next call. */
OMNISPARSE_EXPORT size_t omnisparse_stream_tokens(omnisparse_stream* stream, const int** ids,
                                                  const float** seconds);
/* Rows of an output that the last push or finish has made, until the next call. */
OMNISPARSE_EXPORT size_t omnisparse_stream_output(omnisparse_stream* stream, int kind,
                                                  const float** values, size_t* columns);

#ifdef __cplusplus
}
#endif

#endif /* OMNISPARSE_H_ */

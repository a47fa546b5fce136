#include <memory>
#include <string>

#include "error.h"
#include "kernels/table.h"
#include "omnisparse.h"
#include "stream.h"

using namespace omnisparse;

struct omnisparse_model {
  std::shared_ptr<Model> model;
};

struct omnisparse_stream {
  std::unique_ptr<Stream> stream;
  std::vector<int> ids;
  std::vector<float> seconds;
};

namespace {

thread_local std::string last_error;

// Calls what may throw; the sentence is kept.
template <class Call>
bool guarded(const Call& call) {
  try {
    call();
    return true;
  } catch (const std::bad_alloc&) {
    last_error = "There is not enough memory.";
  } catch (const Error& error) {
    last_error = error.what();
  } catch (const std::exception& error) {
    last_error = std::string("The model file is damaged (") + error.what() + ").";
  }
  return false;
}

Chunk chunk_of(const Model& model, const omnisparse_stream_options& options) {
  const Chunk own = model.encoder()->chunk();
  if (options.whole || (options.chunk == 0 && own.size == 0)) return {};
  Chunk chunk{options.chunk != 0 ? options.chunk : own.size,
              options.left >= 0 ? options.left : own.left};
  if (chunk.size < 1 || chunk.size > 1 << 16 || chunk.left > 1 << 16)
    throw Error("A chunk has at least 1 frame, and no more than 65536.");
  if (!model.can_stream())
    throw Error("This model cannot stream, since it sees the future: it takes whole recordings.");
  return chunk;
}

}  // namespace

extern "C" {

const char* omnisparse_last_error(void) { return last_error.c_str(); }
const char* omnisparse_version(void) { return "0.2.0"; }

omnisparse_model* omnisparse_load(const char* path, int threads) {
  omnisparse_model* made = nullptr;
  guarded([&] {
    if (threads < 1 || threads > 256) throw Error("The number of threads must be 1 to 256.");
    require_isa();
    auto model = std::make_unique<omnisparse_model>();
    model->model = std::make_shared<Model>(path, threads);
    made = model.release();
  });
  return made;
}

void omnisparse_free(omnisparse_model* model) { delete model; }
const char* omnisparse_info(const omnisparse_model* model) { return model->model->info().c_str(); }
int omnisparse_sample_rate(const omnisparse_model* model) { return model->model->sample_rate(); }
int omnisparse_vocabulary(const omnisparse_model* model) {
  return model->model->spelling().size();
}
const char* omnisparse_token(const omnisparse_model* model, int id) {
  const Spelling& spelling = model->model->spelling();
  return id >= 0 && id < spelling.size() ? spelling.token(id).c_str() : nullptr;
}
int omnisparse_can_stream(const omnisparse_model* model) { return model->model->can_stream(); }
int omnisparse_chunk(const omnisparse_model* model) {
  return model->model->encoder()->chunk().size;
}

omnisparse_stream* omnisparse_stream_new(omnisparse_model* model,
                                         const omnisparse_stream_options* options) {
  omnisparse_stream* made = nullptr;
  guarded([&] {
    const omnisparse_stream_options usual{0, 0, -1, 1, 0};
    const omnisparse_stream_options& wanted = options != nullptr ? *options : usual;
    auto stream = std::make_unique<omnisparse_stream>();
    stream->stream = std::make_unique<Stream>(model->model, chunk_of(*model->model, wanted),
                                              wanted.beam, wanted.keep != 0);
    made = stream.release();
  });
  return made;
}

void omnisparse_stream_free(omnisparse_stream* stream) { delete stream; }

int omnisparse_stream_push(omnisparse_stream* stream, const float* samples, size_t count) {
  return guarded([&] { stream->stream->push(samples, count); }) ? 0 : 1;
}

int omnisparse_stream_finish(omnisparse_stream* stream) {
  return guarded([&] { stream->stream->finish(); }) ? 0 : 1;
}

void omnisparse_stream_reset(omnisparse_stream* stream) { stream->stream->reset(); }

const char* omnisparse_stream_text(omnisparse_stream* stream) {
  const char* text = "";
  guarded([&] { text = stream->stream->text().c_str(); });
  return text;
}

size_t omnisparse_stream_tokens(omnisparse_stream* stream, const int** ids,
                                const float** seconds) {
  const bool done = guarded([&] { stream->stream->tokens(stream->ids, stream->seconds); });
  *ids = stream->ids.data();
  *seconds = stream->seconds.data();
  return done ? stream->ids.size() : 0;
}

size_t omnisparse_stream_output(omnisparse_stream* stream, int kind, const float** values,
                                size_t* columns) {
  if (kind < 0 || kind > OMNISPARSE_LOG_PROBABILITIES) return 0;
  const Output& output = stream->stream->output(static_cast<Stream::Kind>(kind));
  *values = output.rows.data();
  *columns = output.columns;
  return output.columns != 0 ? output.rows.size() / output.columns : 0;
}

}  // extern "C"

// All that one vector instruction set brings to the table besides products.
#pragma once
#include "kernels_depthwise.hpp"
#include "kernels_matvec.hpp"
#include "kernels_pixels.hpp"
#include "kernels_rows.hpp"

namespace paredown::engine {
namespace {

inline void add_vector_kernels(Kernels& t) {
    t.packed_depthwise_size = packed_depthwise_size;
    t.pack_depthwise = pack_depthwise;
    t.depthwise = {depthwise_units, depthwise_scratch, depthwise};
    t.packed_matvec_size = packed_matvec_size;
    t.pack_matvec = pack_matvec;
    t.matvec = {matvec_units, matvec_scratch, matvec};
    t.pool = {pool_units, nothing<Pooling>, pool};
    t.global_pool = {global_units, nothing<GlobalPool>, global_pool};
    t.norm = {norm_units, norm_scratch, norm};
    t.softmax = {softmax_units, softmax_scratch, softmax};
    t.eltwise = {eltwise_units, eltwise_scratch, eltwise};
    t.resize = {resize_units, nothing<Resize>, resize};
    t.transpose = {transpose_units, transpose_scratch, transpose};
}

}  // namespace
}  // namespace paredown::engine

// The compute kernels of the native engine: one table per instruction set, chosen at run time.
//
// Every entry takes a plain argument struct, a range [begin, end) of its work units (so that an
// executor may split it over threads) and a scratch area of its own per thread. Units are
// independent: any split, in any order, gives the same bits. No entry allocates or throws.
//
// Activations are NHWC, that is rows (pixels) of channels with a stride between rows. A quantised
// value q stands for scale * (q - zero).
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace paredown::engine {

enum class DType : int32_t { f32, bf16, u8, s8, s32 };
enum class Act : int32_t {
    none, relu, relu6, silu, hardswish, gelu, gelu_tanh, sigmoid, hardsigmoid, tanh
};

constexpr size_t size_of(DType t) {
    return t == DType::f32 || t == DType::s32 ? 4 : t == DType::bf16 ? 2 : 1;
}

// What happens to an accumulator before it is stored, in this order:
//   v = acc * scale[n] + bias[n];  v += residual (here unless residual_after);  v = act(v);
//   v += residual (here if residual_after);  store v, quantised types as round(v / out_scale) + zero.
// Quantised residuals count as residual_scale * (r - residual_zero). Rounding is to nearest even;
// quantised outputs are clamped to their range.
struct Epilogue {
    const float* scale = nullptr;  // per output column; null is 1. int8: scale of a times scale of w
    const float* bias = nullptr;   // per output column; null is 0
    const void* residual = nullptr;
    int64_t residual_stride = 0;  // elements between rows of the residual
    DType residual_type = DType::f32;
    float residual_scale = 1;
    int32_t residual_zero = 0;
    bool residual_after = false;
    Act act = Act::none;
    DType out_type = DType::f32;  // f32, bf16, u8, s8
    float out_scale = 1;
    int32_t out_zero = 0;
};

// The shape of weights before packing: (out, in / groups, kh, kw), contiguous, as torch has them.
// A matrix (n, k) is the 1 x 1 case. `type` is f32, bf16 (given as f32, rounded by the packing) or s8.
struct Weights {
    DType type = DType::f32;
    int64_t out = 0, in = 0;
    int64_t kh = 1, kw = 1, groups = 1;
};

// c (m, n) = epilogue(a (m, k) w (k, n)), w packed from (n, k). a is f32 with f32 weights, bf16 with
// bf16 weights, u8 or s8 with s8 weights (the zero point is taken into account by packed column sums).
struct Gemm {
    const void* a = nullptr;
    int64_t lda = 0;  // elements between rows of a
    DType a_type = DType::f32;
    int32_t a_zero = 0;
    const void* w = nullptr;  // packed
    void* c = nullptr;
    int64_t ldc = 0;
    int64_t m = 0, n = 0, k = 0;
    Epilogue ep;
};

// Two-dimensional convolution; also depthwise (groups == c == out_c, packed by pack_depthwise) and the
// geometry of pooling. Padding counts as the value zero (quantised: in_zero). in_type f32 with bf16
// weights is allowed too: the input is rounded while it is read.
struct Conv {
    const void* in = nullptr;
    int64_t in_stride = 0;  // elements between pixels
    DType in_type = DType::f32;
    int32_t in_zero = 0;
    DType weight_type = DType::f32;
    const void* w = nullptr;  // packed
    int64_t n = 1, h = 0, width = 0, c = 0;
    int64_t out_h = 0, out_w = 0, out_c = 0;
    int64_t kh = 1, kw = 1, stride_h = 1, stride_w = 1, pad_top = 0, pad_left = 0;
    int64_t dilation_h = 1, dilation_w = 1, groups = 1;
    void* out = nullptr;
    int64_t out_stride = 0;  // elements between pixels
    Epilogue ep;
};

enum class PoolKind : int32_t { max, average };

// Pooling over Conv's geometry (w, groups, out_c and ep unused apart from ep's out_type, out_scale,
// out_zero and act). The input's scale is in_scale.
struct Pooling {
    Conv conv;
    PoolKind kind = PoolKind::max;
    bool count_padding = false;  // average: divide by kh * kw everywhere
    float in_scale = 1;
};

// Mean over the pixels of each image: in (n, pixels, c) -> out (n, c).
struct GlobalPool {
    const void* in = nullptr;
    DType in_type = DType::f32;
    float in_scale = 1;
    int32_t in_zero = 0;
    int64_t n = 1, pixels = 0, c = 0, in_stride = 0;
    void* out = nullptr;
    int64_t out_stride = 0;
    DType out_type = DType::f32;
    float out_scale = 1;
    int32_t out_zero = 0;
};

// out = softmax(scale * q k^T + mask) v for each batch and head; kv heads may be fewer (grouped).
// Strides in elements; the last dimension is contiguous. f32 or bf16 throughout, f32 inside.
struct Attention {
    DType type = DType::f32;
    const void *q = nullptr, *k = nullptr, *v = nullptr;
    void* out = nullptr;
    int64_t batch = 1, heads = 1, kv_heads = 1, q_len = 0, kv_len = 0, dim = 0;
    int64_t q_batch = 0, q_head = 0, q_row = 0;
    int64_t k_batch = 0, k_head = 0, k_row = 0;
    int64_t v_batch = 0, v_head = 0, v_row = 0;
    int64_t out_batch = 0, out_head = 0, out_row = 0;
    float scale = 1;
    const float* mask = nullptr;  // added to the scores; stride 0 broadcasts
    int64_t mask_batch = 0, mask_head = 0, mask_row = 0;
    bool causal = false;  // query i sees keys up to i + kv_len - q_len
};

// Layer norm (or RMS norm) of each row: (x - mean) / sqrt(var + eps) * gamma + beta.
// With `add`, x = in + add first, and x is also written to `sum` where given (type of in).
// With `in_rows`, row i is that of row in_rows[i] of `in`; where that is -1 it is all zero instead.
struct Norm {
    const void* in = nullptr;
    int64_t in_stride = 0;
    const int32_t* in_rows = nullptr;
    DType in_type = DType::f32;
    const void* add = nullptr;  // same type as in
    int64_t add_stride = 0;
    void* sum = nullptr;
    int64_t sum_stride = 0;
    const float *gamma = nullptr, *beta = nullptr;  // null: 1, 0
    float eps = 1e-5F;
    bool rms = false;
    int64_t rows = 0, cols = 0;
    void* out = nullptr;
    int64_t out_stride = 0;
    DType out_type = DType::f32;
    float out_scale = 1;
    int32_t out_zero = 0;
};

// Softmax of scale * x over each row.
struct Softmax {
    const void* in = nullptr;
    int64_t in_stride = 0;
    DType in_type = DType::f32;
    float scale = 1;
    int64_t rows = 0, cols = 0;
    void* out = nullptr;
    int64_t out_stride = 0;
    DType out_type = DType::f32;
};

enum class Binary : int32_t { none, add, mul, sub };

// out = act(a op b), elementwise; with Binary::none a cast, quantisation or lone activation.
// b's element for (row, col) is b[(row / b_rows) * b_stride + col * b_col]: b_rows = 1, b_col = 1 for a
// tensor of a's shape; b_stride = 0 for a vector over channels; b_rows = pixels of an image for a
// squeeze-and-excitation gate (n, c); b_stride = 0, b_col = 0 for a scalar.
// With `a_rows`, row i takes row a_rows[i] of a; where that is -1, a counts as zero.
struct Eltwise {
    const void* a = nullptr;
    int64_t a_stride = 0;
    const int32_t* a_rows = nullptr;
    DType a_type = DType::f32;
    float a_scale = 1;
    int32_t a_zero = 0;
    Binary op = Binary::none;
    const void* b = nullptr;
    int64_t b_stride = 0, b_rows = 1, b_col = 1;
    DType b_type = DType::f32;
    float b_scale = 1;
    int32_t b_zero = 0;
    Act act = Act::none;
    int64_t rows = 0, cols = 0;
    void* out = nullptr;
    int64_t out_stride = 0;
    DType out_type = DType::f32;
    float out_scale = 1;
    int32_t out_zero = 0;
};

// Resize to (out_h, out_w), as torch's interpolate: bilinear with or without align_corners, else
// nearest. in and out of one type (quantised values keep their scale and zero point).
struct Resize {
    const void* in = nullptr;
    int64_t in_stride = 0;
    DType type = DType::f32;
    int64_t n = 1, h = 0, width = 0, c = 0, out_h = 0, out_w = 0;
    bool bilinear = true, align_corners = false;
    float scale_h = 0, scale_w = 0;  // input pixels per output pixel; 0: from the sizes
    void* out = nullptr;
    int64_t out_stride = 0;
};

// (n, c, pixels) <-> (n, pixels, c) with a conversion: f32 and bf16 between each other; from f32 to
// u8 / s8 (quantising) and back; or one type copied.
struct Transpose {
    const void* in = nullptr;
    DType in_type = DType::f32;
    bool to_nhwc = true;
    int64_t n = 1, c = 0, pixels = 0;
    int64_t nhwc_stride = 0;  // elements between pixels on the NHWC side
    void* out = nullptr;
    DType out_type = DType::f32;
    float scale = 1;  // of the quantised side
    int32_t zero = 0;
};

// Weight-only quantised product for few rows: y (m, n) = epilogue(x (m, k) w (k, n)), m <= 16;
// w = scales[n][k / group] * q, q in [-127, 127] (bits 8) or [-8, 7] (bits 4). x is f32 or bf16.
// How whole numbers q stand for weights: scale (q - zero), both (n, ceil(k / group)); null zeros are all 0.
struct Grid {
    const float* scales = nullptr;
    const int8_t* zeros = nullptr;
    int8_t zero(size_t i) const { return zeros == nullptr ? int8_t{0} : zeros[i]; }
};

struct Matvec {
    const void* x = nullptr;
    int64_t ldx = 0;
    DType x_type = DType::f32;
    const void* w = nullptr;  // packed by pack_matvec, its grid included
    int32_t bits = 8;
    int64_t group = 0;  // columns of k per scale; a multiple of 32, or k
    int64_t m = 1, n = 0, k = 0;
    void* y = nullptr;
    int64_t ldy = 0;
    Epilogue ep;
};

// A 1 x 1 convolution and the depthwise one that alone reads it, as one kernel: a row of the expanded
// tensor is made when the second needs it, never all of them. `expand.c` and `depthwise.in` are unused.
struct ExpandDepthwise {
    Gemm expand;
    Conv depthwise;
};

// Two products of rows as one kernel: `project` reads what `expand` makes (m, n), which is made in slices of
// its columns and never whole in memory. `expand` has no residual; its c and the a of `project` are unused.
struct Mlp {
    Gemm expand, project;
};

// How sparse weights of a matrix are held: lists of the inputs of one output, or of four outputs that share
// theirs (floats only); blocks of 16 outputs by four bytes of k; blocks of 16 outputs by 64 bytes of k (AMX);
// a bit for each weight with the values of those that are no zero, expanded and multiplied as dense ones.
// A level packs a form that it has no kernel for as lanes.
enum class SparseForm : int32_t { single, quads, lanes, tiles, masked };

template <typename Args>
struct Entry {
    int64_t (*units)(const Args&) = nullptr;                                   // how much work
    size_t (*scratch)(const Args&) = nullptr;                                  // bytes per thread, 64-byte aligned
    void (*run)(const Args&, int64_t begin, int64_t end, void* scratch) = nullptr;  // a part of it
    int64_t (*grain)(const Args&) = nullptr;  // units that share what is done once for them; null: 1
};

struct Kernels {
    const char* isa = nullptr;

    // Weights of gemm and conv. packed_size is in bytes; both buffers 64-byte aligned.
    size_t (*packed_size)(const Weights&) = nullptr;
    void (*pack)(const Weights&, const void* from, void* to) = nullptr;
    // Depthwise weights (c, 1, kh, kw): out == in == groups.
    size_t (*packed_depthwise_size)(const Weights&) = nullptr;
    void (*pack_depthwise)(const Weights&, const void* from, void* to) = nullptr;
    // Matvec weights: q (n, k) as int8 (also for bits 4: -8 to 7, and so are its zeros).
    size_t (*packed_matvec_size)(const Matvec&) = nullptr;
    void (*pack_matvec)(const Matvec&, const int8_t* q, const Grid&, void* to) = nullptr;

    // Sparse weights of a product (1 x 1, one group): the size depends on where their zeros lie.
    size_t (*packed_sparse_size)(const Weights&, SparseForm, const void* from) = nullptr;
    void (*pack_sparse)(const Weights&, SparseForm, const void* from, void* to) = nullptr;

    Entry<Gemm> gemm;
    Entry<Gemm> sparse;  // `w` packed by pack_sparse
    Entry<Conv> conv, depthwise;
    Entry<Pooling> pool;
    Entry<GlobalPool> global_pool;
    Entry<Attention> attention;
    Entry<Norm> norm;
    Entry<Softmax> softmax;
    Entry<Eltwise> eltwise;
    Entry<Resize> resize;
    Entry<Transpose> transpose;
    Entry<Matvec> matvec;
    Entry<ExpandDepthwise> expand_depthwise;
    Entry<Mlp> mlp;
};

// Each fills its table; entries a level has nothing better for are taken from `base`.
// Weights packed by a table are only good for that table.
Kernels scalar_kernels();
#ifdef PAREDOWN_X86
Kernels avx2_kernels(const Kernels& base);
Kernels avx512_kernels(const Kernels& base);
Kernels avx512_vnni_kernels(const Kernels& base);
Kernels avx512_bf16_kernels(const Kernels& base);  // VNNI too; no level of its own
Kernels amx_kernels(const Kernels& base);
// Expansion of bytes and pairs of bytes; no levels of their own. The first wants VNNI and BF16 too.
Kernels avx512_vbmi2_kernels(const Kernels& base);
Kernels amx_vbmi2_kernels(const Kernels& base);
#endif

// The table of a level of `paredown::levels()`; throws std::invalid_argument naming the usable ones.
const Kernels& kernels(const std::string& isa);

}  // namespace paredown::engine

// The readable reference of every product kernel: plain loops, sums in double or int64. Always built.
#include "kernels_common.hpp"
#include "kernels_scalar.hpp"

namespace paredown::engine {
namespace {

// Packed weights of this level are the plain ones: (out, in / groups, kh, kw).
size_t packed_size(const Weights& w) {
    return static_cast<size_t>(w.out * (w.in / w.groups) * w.kh * w.kw) * size_of(w.type);
}

void pack(const Weights& w, const void* from, void* to) {
    const int64_t count = w.out * (w.in / w.groups) * w.kh * w.kw;
    if (w.type == DType::bf16)
        for (int64_t i = 0; i < count; ++i)
            static_cast<uint16_t*>(to)[i] = to_bf16(static_cast<const float*>(from)[i]);
    else
        std::memcpy(to, from, packed_size(w));
}

DType weight_type(DType a) { return a == DType::u8 || a == DType::s8 ? DType::s8 : a; }

int64_t gemm_units(const Gemm& g) { return g.m; }
int64_t conv_units(const Conv& c) { return c.n * c.out_h; }
template <typename Args>
size_t no_scratch(const Args&) { return 0; }

double gemm_sum(const Gemm& g, int64_t row, int64_t column) {
    const DType w_type = weight_type(g.a_type);
    double acc = 0;
    for (int64_t l = 0; l < g.k; ++l)
        acc += static_cast<double>(load_one(g.a, g.a_type, row * g.lda + l, 1, g.a_zero)) *
               load_one(g.w, w_type, column * g.k + l);
    return acc;
}

void gemm(const Gemm& g, int64_t begin, int64_t end, void*) {
    for (int64_t i = begin; i < end; ++i)
        for (int64_t j = 0; j < g.n; ++j) finish_one(g.ep, gemm_sum(g, i, j), i, j, g.c, g.ldc);
}

// The sum of one output of channel `oc`, whose group's inputs are the channels from `first` on.
double conv_sum(const Conv& v, int64_t image, int64_t oy, int64_t ox, int64_t first, int64_t oc) {
    const int64_t in_group = v.c / v.groups;
    const bool rounded = v.in_type == DType::f32 && v.weight_type == DType::bf16;
    double acc = 0;
    for (int64_t ky = 0; ky < v.kh; ++ky)
        for (int64_t kx = 0; kx < v.kw; ++kx) {
            const int64_t y = oy * v.stride_h - v.pad_top + ky * v.dilation_h;
            const int64_t x = ox * v.stride_w - v.pad_left + kx * v.dilation_w;
            if (y < 0 || y >= v.h || x < 0 || x >= v.width) continue;
            const int64_t pixel = (image * v.h + y) * v.width + x;
            for (int64_t ic = 0; ic < in_group; ++ic) {
                float value = load_one(v.in, v.in_type, pixel * v.in_stride + first + ic, 1, v.in_zero);
                if (rounded) value = from_bf16(to_bf16(value));
                const int64_t at = ((oc * in_group + ic) * v.kh + ky) * v.kw + kx;
                acc += static_cast<double>(value) * load_one(v.w, v.weight_type, at);
            }
        }
    return acc;
}

void conv(const Conv& v, int64_t begin, int64_t end, void*) {
    const int64_t in_group = v.c / v.groups, out_group = v.out_c / v.groups;
    for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t image = unit / v.out_h, oy = unit % v.out_h;
        for (int64_t ox = 0; ox < v.out_w; ++ox)
            for (int64_t oc = 0; oc < v.out_c; ++oc)
                finish_one(v.ep, conv_sum(v, image, oy, ox, oc / out_group * in_group, oc),
                           unit * v.out_w + ox, oc, v.out, v.out_stride);
    }
}

// One channel of one image at a time: its plane of the expanded tensor, then the depthwise sums over it.
int64_t expand_depthwise_units(const ExpandDepthwise& f) { return f.depthwise.n * f.depthwise.c; }
size_t expand_depthwise_scratch(const ExpandDepthwise& f) {
    return static_cast<size_t>(f.depthwise.h * f.depthwise.width) * sizeof(float);
}

void expand_depthwise(const ExpandDepthwise& f, int64_t begin, int64_t end, void* scratch) {
    const Gemm& g = f.expand;
    Conv v = f.depthwise;
    v.in = scratch;
    v.in_stride = 1;
    const int64_t pixels = v.h * v.width;
    for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t image = unit / v.c, c = unit % v.c;
        Epilogue ep = g.ep;  // of this one channel
        if (ep.scale != nullptr) ep.scale += c;
        if (ep.bias != nullptr) ep.bias += c;
        for (int64_t i = 0; i < pixels; ++i)
            finish_one(ep, gemm_sum(g, image * pixels + i, c), i, 0, scratch, 1);
        for (int64_t oy = 0; oy < v.out_h; ++oy)
            for (int64_t ox = 0; ox < v.out_w; ++ox)
                finish_one(v.ep, conv_sum(v, 0, oy, ox, 0, c), (image * v.out_h + oy) * v.out_w + ox, c, v.out,
                           v.out_stride);
    }
}

// One row at a time: all of it between the products, stored as the plan's type, then each output.
int64_t mlp_units(const Mlp& f) { return f.expand.m; }
size_t mlp_scratch(const Mlp& f) {
    return static_cast<size_t>(f.expand.n) * size_of(f.expand.ep.out_type);
}

void mlp(const Mlp& f, int64_t begin, int64_t end, void* scratch) {
    Gemm project = f.project;
    project.a = scratch;
    project.lda = 0;
    for (int64_t i = begin; i < end; ++i) {
        for (int64_t j = 0; j < f.expand.n; ++j)
            finish_one(f.expand.ep, gemm_sum(f.expand, i, j), 0, j, scratch, 0);
        for (int64_t j = 0; j < project.n; ++j)
            finish_one(project.ep, gemm_sum(project, i, j), i, j, project.c, project.ldc);
    }
}

// Packed matvec weights: q as int8 (n, k), then the scales (n, groups), floats, then the zeros, bytes.
int64_t scale_groups(const Matvec& a) { return ceil_div(a.k, a.group); }
size_t scales_at(const Matvec& a) { return static_cast<size_t>(round_up(a.n * a.k, 64)); }
size_t packed_matvec_size(const Matvec& a) {
    return scales_at(a) + static_cast<size_t>(a.n * scale_groups(a)) * (sizeof(float) + 1);
}

void pack_matvec(const Matvec& a, const int8_t* q, const Grid& grid, void* to) {
    const auto count = static_cast<size_t>(a.n * scale_groups(a));
    char* tail = static_cast<char*>(to) + scales_at(a);
    std::memcpy(to, q, static_cast<size_t>(a.n * a.k));
    std::memcpy(tail, grid.scales, count * sizeof(float));
    for (size_t i = 0; i < count; ++i) tail[count * sizeof(float) + i] = static_cast<char>(grid.zero(i));
}

int64_t matvec_units(const Matvec& a) { return a.n; }

void matvec(const Matvec& a, int64_t begin, int64_t end, void*) {
    const auto* q = static_cast<const int8_t*>(a.w);
    const char* tail = static_cast<const char*>(a.w) + scales_at(a);
    const auto* zeros = reinterpret_cast<const int8_t*>(tail) + a.n * scale_groups(a) * int64_t{sizeof(float)};
    for (int64_t j = begin; j < end; ++j)
        for (int64_t i = 0; i < a.m; ++i) {
            double acc = 0;
            for (int64_t l = 0; l < a.k; ++l) {
                float scale;
                const int64_t at = j * scale_groups(a) + l / a.group;
                std::memcpy(&scale, tail + static_cast<size_t>(at) * sizeof scale, sizeof scale);
                acc += static_cast<double>(load_one(a.x, a.x_type, i * a.ldx + l)) * scale * (q[j * a.k + l] - zeros[at]);
            }
            finish_one(a.ep, acc, i, j, a.y, a.ldy);
        }
}

int64_t attention_units(const Attention& a) { return a.batch * a.heads * a.q_len; }
size_t attention_scratch(const Attention& a) { return static_cast<size_t>(a.kv_len) * sizeof(double); }

void attention(const Attention& a, int64_t begin, int64_t end, void* scratch) {
    auto* weight = static_cast<double*>(scratch);
    for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t b = unit / (a.heads * a.q_len), h = unit / a.q_len % a.heads, i = unit % a.q_len;
        const int64_t kv_head = h / (a.heads / a.kv_heads);
        const int64_t keys = a.causal ? most(0, least(a.kv_len, i + 1 + a.kv_len - a.q_len)) : a.kv_len;
        const int64_t q_at = b * a.q_batch + h * a.q_head + i * a.q_row;
        double top = -INFINITY, sum = 0;
        for (int64_t j = 0; j < keys; ++j) {
            const int64_t k_at = b * a.k_batch + kv_head * a.k_head + j * a.k_row;
            double score = 0;
            for (int64_t d = 0; d < a.dim; ++d)
                score += static_cast<double>(load_one(a.q, a.type, q_at + d)) *
                         load_one(a.k, a.type, k_at + d);
            score *= a.scale;
            if (a.mask != nullptr)
                score += a.mask[b * a.mask_batch + h * a.mask_head + i * a.mask_row + j];
            weight[j] = score;
            top = score > top ? score : top;
        }
        for (int64_t j = 0; j < keys; ++j) {
            weight[j] = top == -INFINITY ? 0 : std::exp(weight[j] - top);
            sum += weight[j];
        }
        const int64_t out_at = b * a.out_batch + h * a.out_head + i * a.out_row;
        for (int64_t d = 0; d < a.dim; ++d) {
            double value = 0;
            for (int64_t j = 0; j < keys; ++j)
                value += weight[j] * load_one(a.v, a.type,
                                              b * a.v_batch + kv_head * a.v_head + j * a.v_row + d);
            store_one(a.out, a.type, out_at + d, sum > 0 ? static_cast<float>(value / sum) : 0, 1, 0);
        }
    }
}

}  // namespace

Kernels scalar_kernels() {
    Kernels t;
    t.isa = "scalar";
    t.packed_size = t.packed_depthwise_size = packed_size;
    t.pack = t.pack_depthwise = pack;
    t.packed_matvec_size = packed_matvec_size;
    t.pack_matvec = pack_matvec;
    t.gemm = {gemm_units, no_scratch<Gemm>, gemm};
    t.conv = t.depthwise = {conv_units, no_scratch<Conv>, conv};
    t.expand_depthwise = {expand_depthwise_units, expand_depthwise_scratch, expand_depthwise};
    t.mlp = {mlp_units, mlp_scratch, mlp};
    t.matvec = {matvec_units, no_scratch<Matvec>, matvec};
    t.attention = {attention_units, attention_scratch, attention};
    add_scalar_rows(t);
    add_scalar_sparse(t);
    return t;
}

}  // namespace paredown::engine

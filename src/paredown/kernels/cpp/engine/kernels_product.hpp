// Matrix products and convolutions: chunks of rows (kernels_band.hpp) against panels of weights.
//
// One work unit is a block of rows of one panel, counted chunk by chunk, then panel by panel, then block
// by block: a thread keeps its panel of weights in L1 / L2 and passes over the rows of the chunk.
#pragma once
#include "kernels_band.hpp"

namespace paredown::engine {
namespace {

// Rows [x, x + rows) of one line, so that every one of them is an output.
template <int MaxRows>
struct LineBlocks {
    int64_t per_line, size, total;

    explicit LineBlocks(const Geometry& g)
        : per_line(ceil_div(g.line, MaxRows)), size(ceil_div(g.line, per_line)), total(g.lines * per_line) {}
};

// Weights that the next blocks of rows will read, brought nearer (to L2: whole networks of weights live in L3
// or memory) while others are computed.
struct Ahead {
    const char* weights = nullptr;
    int64_t lines = 0;  // with each 64 bytes of k
};

inline Conv as_conv(const Gemm& g) {
    Conv v;
    v.in = g.a;
    v.in_stride = g.lda;
    v.in_type = g.a_type;
    v.in_zero = g.a_zero;
    v.weight_type = is_quantised(g.a_type) ? DType::s8 : g.a_type;
    v.w = g.w;
    v.h = v.out_h = 1;
    v.width = v.out_w = g.m;
    v.c = g.k;
    v.out_c = g.n;
    v.out = g.c;
    v.out_stride = g.ldc;
    v.ep = g.ep;
    return v;
}

// How products by vector instructions cut their rows.
template <Sum S, int MaxRows>
struct Lines {
    static Geometry geometry(const Conv& v) { return geometry_of<S>(v); }
    static int64_t blocks(const Geometry& g) { return LineBlocks<MaxRows>(g).total; }
};

// Walks the units [begin, end) of a product. `Each` is called as each(chunk rows' address, chunk's first
// output row, output rows there, block, weights of the panel, finish, columns).
template <Sum S, class Cut, typename Each>
void walk(const Geometry& g, int64_t begin, int64_t end, char* scratch, Finish (&finish)[2],
          Each&& each) {
    const Conv& v = g.v;
    const int64_t blocks = Cut::blocks(g), per_chunk = g.l.panels * blocks;
    const int32_t zero_point = converted_zero<S>(v.in_type, v.in_zero);
    finish[0] = finish[1] = make_finish<is_integer(S)>(v.ep, v.out, v.out_stride);
    int turn = 0;  // two in turn: the last block of a panel may be finished during the next panel
    int64_t chunk_now = -1, panel_now = -1;
    const char *a = nullptr, *w = nullptr;
    int64_t image = 0, band = 0, group = 0;
    for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t chunk = unit / per_chunk, rest = unit % per_chunk;
        const int64_t panel = rest / blocks, block = rest % blocks;
        if (chunk != chunk_now) {
            image = chunk / (g.bands * g.l.groups);
            band = chunk / g.l.groups % g.bands;
            group = chunk % g.l.groups;
            a = prepare<S>(g, image, band, group, scratch);
        }
        if (chunk != chunk_now || panel != panel_now) {
            const int64_t index = group * g.l.panels + panel;
            w = static_cast<const char*>(v.w) + index * g.l.panel_bytes();
            const auto* sums = is_integer(S) ? reinterpret_cast<const int32_t*>(
                                                   static_cast<const char*>(v.w) + g.l.sums_at()) +
                                                   index * kPanel
                                             : nullptr;
            turn ^= 1;
            finish[turn].select(group * g.l.out + panel * kPanel,
                                static_cast<int>(least(kPanel, g.l.out - panel * kPanel)), sums,
                                zero_point);
            finish[turn].ahead = kPanel;
            chunk_now = chunk;
            panel_now = panel;
        }
        // The chunk's rows as lines of outputs; the last band may have fewer.
        const int64_t first = g.pointwise ? band * g.line : (image * v.out_h + band * g.band_rows) * v.out_w;
        const int64_t rows = g.pointwise ? least(g.line, v.out_w - first)
                                         : least(g.band_rows, v.out_h - band * g.band_rows) * v.out_w;
        each(a, first, rows, block, w, finish[turn]);
    }
}

// ---- products by vector instructions: rows x two vectors of sums in registers

#ifdef __AVX512F__
constexpr int kRows = 14;
#else
constexpr int kRows = 6;
#endif

template <Sum S>
struct Dot;

PAREDOWN_INLINE F broadcast(const char* p) {
    float bits;
    std::memcpy(&bits, p, sizeof bits);
    return set(bits);
}

struct FloatDot {
    using V = F;
    static V none() { return zero(); }
    PAREDOWN_INLINE V add(V sum, F a, F b) { return fma(a, b, sum); }
};
template <>
struct Dot<Sum::f32> : FloatDot {};
template <>
struct Dot<Sum::wide> : FloatDot {};

#ifdef __AVX512F__
PAREDOWN_INLINE I bits_of(F v) { return _mm512_castps_si512(v); }
#else
PAREDOWN_INLINE I bits_of(F v) { return _mm256_castps_si256(v); }
#endif

template <>
struct Dot<Sum::s16> {
    using V = I;
    static V none() { return set_int(0); }
    PAREDOWN_INLINE V add(V sum, F a, F b) {
#ifdef __AVX512F__
        return add_int(sum, _mm512_madd_epi16(bits_of(a), bits_of(b)));
#else
        return add_int(sum, _mm256_madd_epi16(bits_of(a), bits_of(b)));
#endif
    }
};

#ifdef __AVX512VNNI__
template <>
struct Dot<Sum::u8s8> {
    using V = I;
    static V none() { return set_int(0); }
    PAREDOWN_INLINE V add(V sum, F a, F b) {
        return _mm512_dpbusd_epi32(sum, bits_of(a), bits_of(b));
    }
};
#endif
#ifdef __AVX512BF16__
template <>
struct Dot<Sum::bf16> {
    using V = F;
    static V none() { return zero(); }
    PAREDOWN_INLINE V add(V sum, F a, F b) {
        return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
    }
};
#endif

// Products of `bytes` of each of `Rows` rows, `stride` bytes apart, with a panel at `w`, which moves on.
template <Sum S, int Rows>
PAREDOWN_INLINE void add_rows(typename Dot<S>::V (&acc)[Rows][2], const char* a, int64_t stride, int64_t bytes,
                              const char*& w) {
    // Three rows per base register, at 0, 1 and 2 strides from it.
    const char* base[(Rows + 2) / 3];
    for (int i = 0; i < (Rows + 2) / 3; ++i) {
        base[i] = a + 3 * i * stride;
        asm("" : "+r"(base[i]));
    }
    for (int64_t k = 0; k < bytes; k += 4, w += kPanel * 4) {
        F b0, b1;
        std::memcpy(&b0, w, sizeof b0);
        std::memcpy(&b1, w + 4 * W, sizeof b1);
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r) {
            const F x = broadcast(base[r / 3] + r % 3 * stride + k);
            acc[r][0] = Dot<S>::add(acc[r][0], x, b0);
            acc[r][1] = Dot<S>::add(acc[r][1], x, b1);
        }
    }
}

// Sums of `Rows` rows, `stride` bytes apart, against one panel.
template <Sum S, int Rows>
void sum_rows(const char* a, int64_t stride, const int64_t* offsets, int64_t taps, int64_t tap_bytes,
              const char* w, void* sums) {
    typename Dot<S>::V acc[Rows][2];
    for (auto& row : acc) row[0] = row[1] = Dot<S>::none();
    for (int64_t tap = 0; tap < taps; ++tap) add_rows<S, Rows>(acc, a + offsets[tap], stride, tap_bytes, w);
    for (int r = 0; r < Rows; ++r)
        for (int i = 0; i < 2; ++i)
            std::memcpy(static_cast<char*>(sums) + (r * kPanel + i * W) * 4, &acc[r][i], sizeof acc[r][i]);
}

template <Sum S>
using SumRows = void (*)(const char*, int64_t, const int64_t*, int64_t, int64_t, const char*, void*);

template <Sum S>
SumRows<S> sum_rows_of(int rows) {
    switch (rows) {
        case 1: return sum_rows<S, 1>;
        case 2: return sum_rows<S, 2>;
        case 3: return sum_rows<S, 3>;
        case 4: return sum_rows<S, 4>;
        case 5: return sum_rows<S, 5>;
        case 6: return sum_rows<S, 6>;
#ifdef __AVX512F__
        case 7: return sum_rows<S, 7>;
        case 8: return sum_rows<S, 8>;
        case 9: return sum_rows<S, 9>;
        case 10: return sum_rows<S, 10>;
        case 11: return sum_rows<S, 11>;
        case 12: return sum_rows<S, 12>;
        case 13: return sum_rows<S, 13>;
        case 14: return sum_rows<S, 14>;
#endif
        default: return nullptr;
    }
}

template <Sum S>
void product(const Conv& v, int64_t begin, int64_t end, void* scratch) {
    const Geometry g = geometry_of<S>(v);
    const LineBlocks<kRows> blocks(g);
    int64_t offsets[kMaxTaps];
    tap_offsets(g, offsets);
    const int64_t taps = g.l.columns ? 1 : g.l.taps;
    const int64_t tap_bytes = g.l.columns ? g.l.k_bytes : g.l.tap_bytes;
    // Bytes of k beyond the activations meet zero weights; in place they are not there to be read.
    const int64_t used = g.direct ? g.l.in * element_size(S) : tap_bytes;
    alignas(64) char sums[kRows * kPanel * 4];
    Finish finish[2];
    walk<S, Lines<S, kRows>>(
        g, begin, end, static_cast<char*>(scratch), finish,
        [&](const char* a, int64_t first, int64_t rows, int64_t block, const char* w, const Finish& f) {
            const int64_t line = block / blocks.per_line, x = block % blocks.per_line * blocks.size;
            const int64_t here = g.flat ? rows : g.line;  // outputs in this line
            if (line * g.line >= rows || x >= here) return;
            const int count = static_cast<int>(least(blocks.size, here - x));
            sum_rows_of<S>(count)(a + (line * g.pitch + x) * g.row_bytes, g.row_bytes, offsets, taps, used, w,
                                  sums);
            f.rows(f, sums, first + line * g.line + x, count);
        });
}

// A chunk that is copied into place is copied by everyone who has a part in it.
template <class Cut>
int64_t grain_of(const Conv& v) {
    const Geometry g = Cut::geometry(v);
    return g.direct ? 1 : g.l.panels * Cut::blocks(g);
}

template <class Cut>
int64_t units_of(const Conv& v) {
    const Geometry g = Cut::geometry(v);
    return g.chunks() * g.l.panels * Cut::blocks(g);
}

template <class Cut>
size_t scratch_of(const Conv& v) { return Cut::geometry(v).scratch; }

// ---- table entries

constexpr DType weights_of(Sum s) {
    if (is_integer(s)) return DType::s8;
    return s == Sum::f32 ? DType::f32 : DType::bf16;
}

// Products with weights of one type. Those with others stay with the table that this is added to, so a
// level brings only what it does better.
template <Sum S, class Cut, void (*Run)(const Conv&, int64_t, int64_t, void*)>
struct Products {
    static inline Kernels before;
    static bool mine(const Conv& v) { return v.weight_type == weights_of(S); }

    static int64_t units(const Conv& v) { return mine(v) ? units_of<Cut>(v) : before.conv.units(v); }
    static size_t scratch(const Conv& v) { return mine(v) ? scratch_of<Cut>(v) : before.conv.scratch(v); }
    static void run(const Conv& v, int64_t begin, int64_t end, void* scratch) {
        return mine(v) ? Run(v, begin, end, scratch) : before.conv.run(v, begin, end, scratch);
    }
    static int64_t grain(const Conv& v) {
        if (mine(v)) return grain_of<Cut>(v);
        return before.conv.grain == nullptr ? 1 : before.conv.grain(v);
    }
    static int64_t gemm_units(const Gemm& g) {
        const Conv v = as_conv(g);
        return mine(v) ? units(v) : before.gemm.units(g);
    }
    static size_t gemm_scratch(const Gemm& g) {
        const Conv v = as_conv(g);
        return mine(v) ? scratch(v) : before.gemm.scratch(g);
    }
    static void gemm(const Gemm& g, int64_t begin, int64_t end, void* scratch) {
        const Conv v = as_conv(g);
        return mine(v) ? run(v, begin, end, scratch) : before.gemm.run(g, begin, end, scratch);
    }
    static int64_t gemm_grain(const Gemm& g) {
        const Conv v = as_conv(g);
        if (mine(v)) return grain(v);
        return before.gemm.grain == nullptr ? 1 : before.gemm.grain(g);
    }
    static void add(Kernels& t) {
        before = t;
        t.conv = {units, scratch, run, grain};
        t.gemm = {gemm_units, gemm_scratch, gemm, gemm_grain};
    }
};

// The same with the form that weights of the type are packed in.
template <Sum S>
struct VectorProducts {
    using P = Products<S, Lines<S, kRows>, product<S>>;
    static size_t packed_size(const Weights& w) {
        return w.type == weights_of(S) ? packed_size_of<S>(w) : P::before.packed_size(w);
    }
    static void pack(const Weights& w, const void* from, void* to) {
        return w.type == weights_of(S) ? pack_weights<S>(w, from, to) : P::before.pack(w, from, to);
    }
    static void add(Kernels& t) {
        P::add(t);
        t.packed_size = packed_size;
        t.pack = pack;
    }
};

template <Sum... S>
void add_products(Kernels& t) { (VectorProducts<S>::add(t), ...); }

}  // namespace
}  // namespace paredown::engine

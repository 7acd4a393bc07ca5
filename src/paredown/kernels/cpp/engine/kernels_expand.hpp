// A 1 x 1 convolution made row by row into the ring of the depthwise one behind it (kernels_depthwise.hpp):
// a block of channels is one panel of weights, the expanded tensor never in memory. Bands make the rows of
// their halo anew. Expanded values are rounded as if they had been stored: the bits are those of two kernels.
#pragma once
#include "kernels_depthwise.hpp"
#include "kernels_product.hpp"

namespace paredown::engine {
namespace {

constexpr int kExpandPanels = static_cast<int>(kTileChannels / kPanel);

template <class P>
struct ExpandPlan {
    DepthwisePlan ring;
    Layout l;
    bool direct;  // whole blocks of pixels are read where they lie
    int64_t rows_at, sums_at;
    size_t scratch;

    explicit ExpandPlan(const ExpandDepthwise& f)
        : ring(f.depthwise),
          l(layout_of<P::kSum>({is_quantised(f.expand.a_type) ? DType::s8 : f.expand.a_type, f.expand.n,
                                f.expand.k})) {
        direct = in_place<P::kSum>(f.expand.a_type) && f.expand.k * element_size(P::kSum) == l.k_bytes;
        rows_at = static_cast<int64_t>(ring.scratch);
        sums_at = rows_at + P::kBlock * l.k_bytes;
        scratch = static_cast<size_t>(round_up(sums_at + P::kBlock * kSumsRow, 64));
    }
};

// `count` activations in the form of S, zeros behind them.
template <Sum S>
PAREDOWN_INLINE void pad_row(const char* from, DType type, int64_t count, char* to, int64_t padded) {
    const int64_t dense = count * element_size(S);
#ifdef __AVX512F__
    if (granule(S) == 64 && in_place<S>(type)) {
        for (int64_t i = 0; i < padded; i += 64) {
            const int64_t left = dense - i;
            const __mmask64 here = left >= 64 ? ~__mmask64(0) : (__mmask64(1) << left) - 1;
            _mm512_storeu_si512(to + i, _mm512_maskz_loadu_epi8(here, from + i));
        }
        return;
    }
#endif
    convert<S>(from, type, to, count);
    std::memset(to + dense, 0, static_cast<size_t>(padded - dense));
}

// Sums of `count` pixels for one panel into a row of the ring, as the depthwise convolution reads what
// was stored: floats, or integers less their zero point.
template <Act A, DType Out, bool Integer>
void keep_rows(const Finish& f, const char* sums, int64_t count, int64_t columns, float* to) {
    const Column<Integer> low(f, 0), high(f, W);
    const Clamp<Out> clamp(A, f.inverse_scale, f.ep->out_zero);
    const F zero_point = set(static_cast<float>(f.ep->out_zero));
    const auto value = [&](F v) {
        if constexpr (folds(A, Out)) return clamp.bounded(v) - zero_point;
        v = activate<A, Out != DType::f32>(v);
        if constexpr (Out == DType::u8 || Out == DType::s8) {
            const Clamp<Out> range(Act::none, f.inverse_scale, f.ep->out_zero);
            v = range.bounded(quantise(v, f.inverse_scale, f.ep->out_zero)) - zero_point;
        }
        if constexpr (Out == DType::bf16) v = rounded_to_bf16(v);
        return v;
    };
    for (int64_t i = 0; i < count; ++i, sums += kSumsRow) {
        store(to + i * W, value(scaled(low, sums)));
        store(to + (columns + i) * W, value(scaled(high, sums + W * 4)));
    }
}

using KeepRows = void (*)(const Finish&, const char*, int64_t, int64_t, float*);

template <bool Integer>
KeepRows keep_rows_of(const Epilogue& ep) {
    KeepRows keep = nullptr;
    with_activation(ep.act, [&](auto act) {
        with_type(ep.out_type, [&](auto type) {
            keep = keep_rows<decltype(act)::value, decltype(type)::value, Integer>;
        });
    });
    return keep;
}

// P multiplies blocks of rows with a panel: kSum, kBlock, start, stop, multiply.
template <class P>
void expand_depthwise(const ExpandDepthwise& f, int64_t begin, int64_t end, void* area) {
    constexpr Sum S = P::kSum;
    const Gemm& g = f.expand;
    const Conv& v = f.depthwise;
    const ExpandPlan<P> p(f);
    auto* scratch = static_cast<char*>(area);
    char *rows = scratch + p.rows_at, *sums = scratch + p.sums_at;
    const int64_t pixel = g.lda * static_cast<int64_t>(size_of(g.a_type));
    const KeepRows keep = keep_rows_of<is_integer(S)>(g.ep);
    Finish finish[kExpandPanels];
    for (Finish& one : finish) one = make_finish<is_integer(S)>(g.ep, nullptr, 0);
    const auto select = [&](int64_t c, int64_t channels) {
        for (int64_t i = 0; i < kExpandPanels && i * kPanel < channels; ++i) {
            const int64_t panel = c / kPanel + i;
            const auto* of_weights = is_integer(S) ? reinterpret_cast<const int32_t*>(
                                                         static_cast<const char*>(g.w) + p.l.sums_at()) +
                                                         panel * kPanel
                                                   : nullptr;
            finish[i].select(c + i * kPanel, static_cast<int>(least(kPanel, channels - i * kPanel)), of_weights,
                             converted_zero<S>(g.a_type, g.a_zero));
        }
    };
    const auto fill = [&](int64_t row, int64_t first_x, int64_t low, int64_t high, int64_t c, int64_t channels,
                          float* to) {
        const char* from = static_cast<const char*>(g.a) + (row * v.width + first_x) * pixel;
        for (int64_t x = low; x < high; x += P::kBlock) {
            const int64_t count = least(P::kBlock, high - x);
            const char* at = from + x * pixel;
            int64_t stride = pixel;
            if (!p.direct || count < P::kBlock) {  // no pixel beyond the last may be read
                for (int64_t i = 0; i < count; ++i)
                    pad_row<S>(at + i * pixel, g.a_type, g.k, rows + i * p.l.k_bytes, p.l.k_bytes);
                at = rows;
                stride = p.l.k_bytes;
            }
            for (int64_t i = 0; i < kExpandPanels && i * kPanel < channels; ++i) {
                const char* w = static_cast<const char*>(g.w) + (c / kPanel + i) * p.l.panel_bytes();
                P::multiply(g.a_type, at, stride, static_cast<int>(count), p.l.k_bytes, w, sums);
                keep(finish[i], sums, count, p.ring.columns, to + (2 * i * p.ring.columns + x) * W);
            }
        }
    };
    P::start();
    for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t c = unit % p.ring.blocks * kTileChannels;
        select(c, least(kTileChannels, v.c - c));
        depthwise_unit(v, p.ring, unit, scratch, fill);
    }
    P::stop();
}

// Vectors: a few rows at a time.
template <Sum S>
struct RowProduct {
    static constexpr Sum kSum = S;
    static constexpr int kBlock = kRows;
    static void start() {}
    static void stop() {}
    static void multiply(DType, const char* a, int64_t stride, int rows, int64_t bytes, const char* w, char* sums) {
        const int64_t offset = 0;
        sum_rows_of<S>(rows)(a, stride, &offset, 1, bytes, w, sums);
    }
};

// Expansions of one type of activations; others stay with the table that this is added to.
template <class P>
struct Expand {
    static inline Entry<ExpandDepthwise> before;
    static bool mine(const ExpandDepthwise& f) {
        const DType type = f.expand.a_type;
        return (is_quantised(type) ? DType::s8 : type) == weights_of(P::kSum);
    }
    static size_t scratch(const ExpandDepthwise& f) {
        return mine(f) ? ExpandPlan<P>(f).scratch : before.scratch(f);
    }
    static int64_t units(const ExpandDepthwise& f) {
        return mine(f) ? depthwise_units(f.depthwise) : before.units(f);
    }
    static void run(const ExpandDepthwise& f, int64_t begin, int64_t end, void* scratch) {
        return mine(f) ? expand_depthwise<P>(f, begin, end, scratch) : before.run(f, begin, end, scratch);
    }
    static void add(Kernels& t) {
        before = t.expand_depthwise;
        t.expand_depthwise = {units, scratch, run};
    }
};

template <Sum... S>
void add_expansions(Kernels& t) { (Expand<RowProduct<S>>::add(t), ...); }

}  // namespace
}  // namespace paredown::engine

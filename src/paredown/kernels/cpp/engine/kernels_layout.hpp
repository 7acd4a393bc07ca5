// How weights lie in memory for the product kernels, and how activations are brought to the same form.
//
// A panel holds kPanel output channels; along k it goes in steps of four bytes (one float, two bf16 or
// 16-bit, four bytes), so that one broadcast of four bytes of an activation row meets one vector of
// weights: [group][panel][step][channel in panel][4 bytes]. The rows of 16 steps are at the same time
// two AMX tiles side by side. Sums of integer weights over k follow, [group][panel][channel], 32 bit.
#pragma once
#include "kernels_finish.hpp"

namespace paredown::engine {
namespace {

// How products are summed: the form that activations and weights take, not the type they come in.
enum class Sum {
    f32,   // floats
    wide,  // bf16 widened to float, for levels without bf16 products
    bf16,  // pairs of bf16
    s16,   // bytes widened to pairs of 16 bit, for levels without byte products
    u8s8,  // quads of unsigned by signed bytes; signed activations are moved by 128
    s8,    // quads of signed bytes (AMX), or unsigned ones where the activation is unsigned
};

constexpr int element_size(Sum s) {
    return s == Sum::f32 || s == Sum::wide ? 4 : s == Sum::bf16 || s == Sum::s16 ? 2 : 1;
}
constexpr bool is_integer(Sum s) { return s == Sum::s16 || s == Sum::u8s8 || s == Sum::s8; }
// k is padded to this many bytes: a whole tile row where tiles may read the panel.
constexpr int granule(Sum s) {
    return s == Sum::bf16 || s == Sum::u8s8 || s == Sum::s8 ? 64 : 4;
}

struct Layout {
    int64_t merge;     // groups treated as one, their weights block-diagonal
    int64_t groups;    // after merging
    int64_t in, out;   // channels of one merged group
    int64_t taps;      // kernel positions
    bool columns;      // positions of a few channels each lie densely, k padded once
    int64_t tap_bytes; // of one position
    int64_t k_bytes;   // of one output channel
    int64_t panels;    // of one merged group

    int64_t panel_bytes() const { return k_bytes * kPanel; }
    int64_t sums_at() const { return groups * panels * panel_bytes(); }
};

template <Sum S>
Layout layout_of(const Weights& w) {
    Layout l;
    l.merge = 1;
    const int64_t out_one = w.out / w.groups;
    for (int64_t m = 2; m <= w.groups && m * out_one <= kPanel; ++m)
        if (w.groups % m == 0) l.merge = m;
    l.groups = w.groups / l.merge;
    l.in = w.in / l.groups;
    l.out = w.out / l.groups;
    l.taps = w.kh * w.kw;
    const int64_t bytes = l.in * element_size(S), padded = round_up(bytes, granule(S));
    l.columns = l.taps > 1 && (bytes < 64 || padded * 2 > bytes * 3);
    l.tap_bytes = l.columns ? bytes : padded;
    l.k_bytes = round_up(l.taps * l.tap_bytes, granule(S));
    l.panels = ceil_div(l.out, kPanel);
    return l;
}

template <Sum S>
size_t packed_size_of(const Weights& w) {
    const Layout l = layout_of<S>(w);
    return static_cast<size_t>(l.sums_at() + (is_integer(S) ? l.groups * l.panels * kPanel * 4 : 0));
}

template <Sum S>
void pack_weights(const Weights& w, const void* from, void* to) {
    const Layout l = layout_of<S>(w);
    char* base = static_cast<char*>(to);
    std::memset(base, 0, packed_size_of<S>(w));
    const int64_t in_one = w.in / w.groups, out_one = w.out / w.groups;
    for (int64_t oc = 0; oc < w.out; ++oc) {
        const int64_t group = oc / l.out, local = oc % l.out, panel = local / kPanel, lane = local % kPanel;
        const int64_t first_in = local / out_one * in_one;  // within the merged group
        char* p = base + (group * l.panels + panel) * l.panel_bytes() + lane * 4;
        int32_t sum = 0;
        for (int64_t ic = 0; ic < in_one; ++ic)
            for (int64_t tap = 0; tap < l.taps; ++tap) {
                const int64_t at = (oc * in_one + ic) * l.taps + tap;
                const int64_t byte = tap * l.tap_bytes + (first_in + ic) * element_size(S);
                char* cell = p + byte / 4 * kPanel * 4 + byte % 4;
                if constexpr (is_integer(S)) {
                    const int8_t value = static_cast<const int8_t*>(from)[at];
                    sum += value;
                    const int16_t wide = value;
                    std::memcpy(cell, S == Sum::s16 ? static_cast<const void*>(&wide) : &value,
                                element_size(S));
                } else {
                    const float value = static_cast<const float*>(from)[at];
                    const uint16_t rounded = to_bf16(value);
                    const float widened = S == Sum::wide ? from_bf16(rounded) : value;
                    std::memcpy(cell, S == Sum::bf16 ? static_cast<const void*>(&rounded) : &widened,
                                element_size(S));
                }
            }
        if constexpr (is_integer(S))
            std::memcpy(base + l.sums_at() + ((group * l.panels + panel) * kPanel + lane) * 4, &sum, 4);
    }
}

// Activations of type `from` may be read in place.
template <Sum S>
constexpr bool in_place(DType from) {
    return (S == Sum::f32 && from == DType::f32) || (S == Sum::bf16 && from == DType::bf16) ||
           (S == Sum::u8s8 && from == DType::u8) || (S == Sum::s8 && is_quantised(from));
}

// Copies `count` activations into the form of S.
template <Sum S>
void convert(const void* from, DType type, void* to, int64_t count) {
    if (in_place<S>(type)) {
        const int64_t bytes = count * element_size(S);
        const char* p = static_cast<const char*>(from);
        char* q = static_cast<char*>(to);
        int64_t i = 0;
        for (; i + 4 * W <= bytes; i += 4 * W) {
            F v;
            std::memcpy(&v, p + i, sizeof v);
            std::memcpy(q + i, &v, sizeof v);
        }
        if (i < bytes) std::memcpy(q + i, p + i, static_cast<size_t>(bytes - i));
        return;
    }
    if constexpr (S == Sum::wide) {
        auto* q = static_cast<float*>(to);
        for (int64_t i = 0; i < count; i += W) {
            const int n = static_cast<int>(least(count - i, W));
            F v = load_value(from, type, i, n, 1, 0);
            if (type == DType::f32) {  // rounded as if it had been stored as bf16
                alignas(64) uint16_t rounded[W];
                store_as<DType::bf16>(rounded, v);
                v = load_as<DType::bf16>(rounded);
            }
            store_n<DType::f32>(q + i, v, n);
        }
    }
    if constexpr (S == Sum::bf16)
        for (int64_t i = 0; i < count; i += W) {
            const int n = static_cast<int>(least(count - i, W));
            store_n<DType::bf16>(static_cast<uint16_t*>(to) + i, load_value(from, type, i, n, 1, 0), n);
        }
    if constexpr (S == Sum::s16) {
        auto* q = static_cast<int16_t*>(to);
        if (type == DType::u8)
            for (int64_t i = 0; i < count; ++i) q[i] = static_cast<const uint8_t*>(from)[i];
        else
            for (int64_t i = 0; i < count; ++i) q[i] = static_cast<const int8_t*>(from)[i];
    }
    if constexpr (S == Sum::u8s8)
        for (int64_t i = 0; i < count; ++i)
            static_cast<uint8_t*>(to)[i] = static_cast<const uint8_t*>(from)[i] ^ 0x80U;
}

// The zero point of activations after `convert`.
template <Sum S>
int32_t converted_zero(DType from, int32_t zero_point) {
    return S == Sum::u8s8 && from == DType::s8 ? zero_point + 128 : zero_point;
}

// Fills `count` elements with what stands for the number zero.
template <Sum S>
void fill_zero(void* to, int64_t count, int32_t zero_point) {
    if constexpr (!is_integer(S)) std::memset(to, 0, static_cast<size_t>(count * element_size(S)));
    if constexpr (S == Sum::u8s8 || S == Sum::s8) std::memset(to, zero_point, static_cast<size_t>(count));
    if constexpr (S == Sum::s16)
        for (int64_t i = 0; i < count; ++i) static_cast<int16_t*>(to)[i] = static_cast<int16_t>(zero_point);
}

}  // namespace
}  // namespace paredown::engine

// Sparse products that multiply as dense ones: Xia et al. 2023, "Flash-LLM" (arXiv:2309.10285), section 4.
//
// With few rows a product waits for its weights. They are held as a bit for each weight and the values of
// those that are no zero, read once, and expanded a piece at a time into the panel that the dense kernels
// multiply: zeros are multiplied too, only their bytes are saved. The sums are those of the dense kernel to
// the bit. The paper holds a position of 16 bits beside each value and scatters by shared memory; a bit mask
// costs less from 6 % of weights left on and is what the expanding instructions of AVX-512 take.
//
// [panel][block of 16 cells of k][masks, then values]: a cell is four bytes of k for the outputs of a panel
// (kernels_layout.hpp), two vectors; a block is two AMX tiles side by side.
#pragma once
#include "kernels_sparse.hpp"

namespace paredown::engine {
namespace {

constexpr int64_t kBlockCells = 16;
constexpr int64_t kCellRow = kPanel * 4;  // bytes of an expanded cell
constexpr int64_t kBlockBytes = kBlockCells * kCellRow;
constexpr int64_t kBlockDepth = kBlockCells * 4;  // bytes of k
constexpr int kCellVectors = kPanel / W;
// The last values are loaded as a whole vector.
constexpr int64_t kLoadSlack = 64;

// As a weight is held, in bytes, and how many of them are in four bytes of k.
constexpr int held_size(Sum s) { return s == Sum::f32 ? 4 : is_integer(s) ? 1 : 2; }
constexpr int planes_of(Sum s) { return 4 / element_size(s); }

template <int Bits>
struct MaskOf;
template <>
struct MaskOf<8> { using T = uint8_t; };
template <>
struct MaskOf<16> { using T = uint16_t; };
template <>
struct MaskOf<32> { using T = uint32_t; };
template <>
struct MaskOf<64> { using T = uint64_t; };
template <Sum S>
using Mask = typename MaskOf<planes_of(S) * W>::T;

template <Sum S>
constexpr int64_t kMasksBytes = kBlockCells * kCellVectors * static_cast<int64_t>(sizeof(Mask<S>));

// What packed weights begin with; places in bytes from there. `form` stands where SparseHead has it.
struct alignas(64) MaskedHead {
    int64_t form = static_cast<int64_t>(SparseForm::masked);
    int64_t panels = 0, blocks = 0, starts = 64, data = 0, sums = 0, total = 0, spare = 0;
};
static_assert(sizeof(MaskedHead) == sizeof(SparseHead));

inline MaskedHead masked_head_of(const void* w) {
    MaskedHead head;
    std::memcpy(static_cast<void*>(&head), w, sizeof head);
    return head;
}

// Where in a vector the weight of an output (lane) and a part of a cell (plane) stands.
template <Sum S>
constexpr int place_of(int lane, int plane) {
#ifdef __AVX512VBMI2__
    return lane * planes_of(S) + plane;  // as they lie in memory: one expansion gives them all
#else
    return plane * W + lane;  // an expansion of 32-bit lanes for each plane
#endif
}

// The weight at (output, k) as it is held; whether it is any but zero.
template <Sum S>
bool held_weight(const Weights& w, const void* from, int64_t output, int64_t k, char* to) {
    if (output >= w.out || k >= w.in) return false;
    const int64_t at = output * w.in + k;
    if constexpr (is_integer(S)) {
        const int8_t value = static_cast<const int8_t*>(from)[at];
        std::memcpy(to, &value, 1);
        return value != 0;
    } else {
        const float value = static_cast<const float*>(from)[at];
        const uint16_t rounded = to_bf16(value);
        std::memcpy(to, S == Sum::f32 ? static_cast<const void*>(&value) : &rounded, held_size(S));
        return S == Sum::f32 ? value != 0 : from_bf16(rounded) != 0;
    }
}

// Calls vector(panel, block, index in block, mask, values, bytes of them) in the order of memory.
template <Sum S, typename Vector>
void each_masked(const Weights& w, const void* from, const MaskedHead& head, Vector&& vector) {
    constexpr int planes = planes_of(S), size = held_size(S);
    for (int64_t panel = 0; panel < head.panels; ++panel)
        for (int64_t block = 0; block < head.blocks; ++block)
            for (int64_t i = 0; i < kBlockCells * kCellVectors; ++i) {
                const int64_t first_output = panel * kPanel + i % kCellVectors * W;
                const int64_t first_k = (block * kBlockCells + i / kCellVectors) * planes;
                char ordered[W * 4], values[W * 4];
                Mask<S> mask = 0;
                for (int lane = 0; lane < W; ++lane)
                    for (int plane = 0; plane < planes; ++plane) {
                        const int place = place_of<S>(lane, plane);
                        if (held_weight<S>(w, from, first_output + lane, first_k + plane, ordered + place * size))
                            mask = static_cast<Mask<S>>(mask | Mask<S>{1} << place);
                    }
                int64_t bytes = 0;
                for (int place = 0; place < planes * W; ++place)
                    if (mask >> place & 1) {
                        std::memcpy(values + bytes, ordered + place * size, size);
                        bytes += size;
                    }
                vector(panel, block, i, mask, values, bytes);
            }
}

template <Sum S>
MaskedHead masked_head(const Weights& w, const void* from) {
    MaskedHead head;
    head.panels = ceil_div(w.out, kPanel);
    head.blocks = ceil_div(w.in * element_size(S), kBlockDepth);
    head.data = round_up(head.starts + head.panels * 8, 64);
    int64_t values = 0;
    for (int64_t i = 0; i < w.out * w.in; ++i) {
        char value[4];
        values += held_weight<S>(w, from, i / w.in, i % w.in, value) ? held_size(S) : 0;
    }
    head.sums = round_up(head.data + head.panels * head.blocks * kMasksBytes<S> + values + kLoadSlack, 64);
    head.total = head.sums + (is_integer(S) ? head.panels * kPanel * 4 : 0);
    return head;
}

template <Sum S>
void pack_masked(const Weights& w, const void* from, void* to) {
    const MaskedHead head = masked_head<S>(w, from);
    char* base = static_cast<char*>(to);
    std::memset(base, 0, static_cast<size_t>(head.total));
    std::memcpy(base, &head, sizeof head);
    int64_t at = 0, masks = 0;
    each_masked<S>(w, from, head, [&](int64_t panel, int64_t block, int64_t i, Mask<S> mask, const char* values,
                                      int64_t bytes) {
        if (i == 0) {
            if (block == 0) std::memcpy(base + head.starts + panel * 8, &at, 8);
            masks = at;
            at += kMasksBytes<S>;
        }
        std::memcpy(base + head.data + masks + i * static_cast<int64_t>(sizeof mask), &mask, sizeof mask);
        std::memcpy(base + head.data + at, values, static_cast<size_t>(bytes));
        at += bytes;
    });
    if constexpr (is_integer(S)) {
        auto* sums = reinterpret_cast<int32_t*>(base + head.sums);
        for (int64_t o = 0; o < w.out; ++o)
            for (int64_t i = 0; i < w.in; ++i) sums[o] += static_cast<const int8_t*>(from)[o * w.in + i];
    }
}

// ---- expanding

#ifdef __AVX512F__
PAREDOWN_INLINE I expand_lanes(I x, uint32_t mask) {
    return _mm512_maskz_expand_epi32(static_cast<__mmask16>(mask), x);
}
PAREDOWN_INLINE I shift_left(I x, int bits) { return _mm512_slli_epi32(x, static_cast<unsigned>(bits)); }
PAREDOWN_INLINE I either(I a, I b) { return _mm512_or_si512(a, b); }
template <int Size>
PAREDOWN_INLINE I load_lanes(const char* p) {
    if constexpr (Size == 4) return _mm512_loadu_si512(p);
    if constexpr (Size == 2) return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
PAREDOWN_INLINE F as_floats(I x) { return _mm512_castsi512_ps(x); }
#else
// For each mask the place, among those taken, of every lane.
struct Places {
    uint8_t of[256][8];
    constexpr Places() : of() {
        for (int mask = 0; mask < 256; ++mask)
            for (int lane = 0, taken = 0; lane < 8; ++lane) {
                of[mask][lane] = static_cast<uint8_t>(taken);
                taken += mask >> lane & 1;
            }
    }
};
constexpr Places kPlaces;

PAREDOWN_INLINE I expand_lanes(I x, uint32_t mask) {
    const I places = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(kPlaces.of[mask])));
    const I bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const I taken = _mm256_cmpeq_epi32(_mm256_and_si256(set_int(static_cast<int>(mask)), bits), bits);
    return _mm256_and_si256(_mm256_permutevar8x32_epi32(x, places), taken);
}
PAREDOWN_INLINE I shift_left(I x, int bits) { return _mm256_slli_epi32(x, bits); }
PAREDOWN_INLINE I either(I a, I b) { return _mm256_or_si256(a, b); }
template <int Size>
PAREDOWN_INLINE I load_lanes(const char* p) {
    if constexpr (Size == 4) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    if constexpr (Size == 2) return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
PAREDOWN_INLINE F as_floats(I x) { return _mm256_castsi256_ps(x); }
#endif

// The next vector of weights; `values` moves behind those that it took.
template <Sum S>
PAREDOWN_INLINE F expand(Mask<S> mask, const char*& values) {
    constexpr int size = held_size(S);
#ifdef __AVX512VBMI2__
    if constexpr (size < 4 && element_size(S) == size) {
        const I packed = _mm512_loadu_si512(values);
        values += __builtin_popcountll(mask) * size;
        if constexpr (size == 2) return as_floats(_mm512_maskz_expand_epi16(mask, packed));
        else return as_floats(_mm512_maskz_expand_epi8(mask, packed));
    }
#endif
    I whole = set_int(0);
    for (int plane = 0; plane < planes_of(S); ++plane) {
        const auto here = static_cast<uint32_t>(mask >> (plane * W) & ((uint64_t{1} << W) - 1));
        I part = expand_lanes(load_lanes<size>(values), here);
        values += __builtin_popcount(here) * size;
        if constexpr (S == Sum::wide) part = shift_left(part, 16);
        if constexpr (S == Sum::s16) {  // signed bytes to 16 bit: up to the top, and down with the sign
#ifdef __AVX512F__
            part = _mm512_srai_epi32(_mm512_slli_epi32(part, 24), 24);
            if (plane == 0) part = _mm512_and_si512(part, set_int(0xFFFF));
#else
            part = _mm256_srai_epi32(_mm256_slli_epi32(part, 24), 24);
            if (plane == 0) part = _mm256_and_si256(part, set_int(0xFFFF));
#endif
        }
        if (plane > 0) part = shift_left(part, plane * 8 * element_size(S));
        whole = either(whole, part);
    }
    return as_floats(whole);
}

// A walk over the blocks of one panel. What lies some blocks ahead is fetched: no reader of ours is as far
// ahead of itself as memory is away.
constexpr int64_t kFetchAhead = 8192;

template <Sum S>
struct MaskedReader {
    const char *masks, *values;

    explicit MaskedReader(const char* at) : masks(at), values(at + kMasksBytes<S>) {}
    F vector(int64_t i) {
        Mask<S> mask;
        std::memcpy(&mask, masks + i * static_cast<int64_t>(sizeof mask), sizeof mask);
        return expand<S>(mask, values);
    }
    // To the next block: its masks follow the values of this one.
    void next() {
        for (const char* p = masks; p < values; p += 64) fetch(p + kFetchAhead);
        masks = values;
        values += kMasksBytes<S>;
    }
    // A whole block, as the dense kernels have it.
    void block(char* to) {
#pragma GCC unroll 32
        for (int64_t i = 0; i < kBlockCells * kCellVectors; ++i) {
            const F v = vector(i);
            std::memcpy(to + i * 4 * W, &v, sizeof v);
        }
        next();
    }
};

template <Sum S>
const char* masked_panel(const void* w, const MaskedHead& head, int64_t panel) {
    const char* base = static_cast<const char*>(w);
    int64_t start;
    std::memcpy(&start, base + head.starts + panel * 8, 8);
    return base + head.data + start;
}

// ---- rows of activations

template <Sum S>
struct MaskedRows {
    int64_t k_bytes, row_bytes;  // of a row as it is read; from one to the next
    bool direct;

    MaskedRows(const Gemm& g, int64_t granule) {
        const int64_t dense = g.k * element_size(S);
        k_bytes = round_up(dense, granule);
        direct = in_place<S>(g.a_type) && k_bytes == dense;
        row_bytes = direct ? g.lda * element_size(S) : k_bytes;
    }
    int64_t copied(const Gemm& g) const { return direct ? 0 : g.m * k_bytes; }
    // The rows' address, copied to `scratch` where they cannot be read in place.
    const char* place(const Gemm& g, char* scratch) const {
        const char* a = static_cast<const char*>(g.a);
        if (direct) return a;
        const int64_t dense = g.k * element_size(S), stride = g.lda * static_cast<int64_t>(size_of(g.a_type));
        for (int64_t i = 0; i < g.m; ++i) {
            char* row = scratch + i * k_bytes;
            convert<S>(a + i * stride, g.a_type, row, g.k);
            std::memset(row + dense, 0, static_cast<size_t>(k_bytes - dense));
        }
        return scratch;
    }
};

// Points a finish at one panel.
template <Sum S>
void select_panel(Finish& f, const Gemm& g, const MaskedHead& head, int64_t panel) {
    const auto* sums = reinterpret_cast<const int32_t*>(static_cast<const char*>(g.w) + head.sums);
    f.select(panel * kPanel, static_cast<int>(least(kPanel, g.n - panel * kPanel)),
             is_integer(S) ? sums + panel * kPanel : nullptr, converted_zero<S>(g.a_type, g.a_zero));
}

// ---- by vector instructions

// Few rows: expanded weights are multiplied where they are, in registers.
template <Sum S, int Rows>
void sum_masked(const char* a, int64_t stride, int64_t k_bytes, const char* w, char* sums) {
    using V = typename Dot<S>::V;
    V acc[Rows][kCellVectors];
    for (auto& row : acc)
        for (V& v : row) v = Dot<S>::none();
    MaskedReader<S> reader(w);
    for (int64_t k = 0; k < k_bytes; k += kBlockDepth) {
        const int64_t cells = least(kBlockCells, (k_bytes - k) / 4);
        for (int64_t cell = 0; cell < cells; ++cell) {
            F b[kCellVectors];
            for (int v = 0; v < kCellVectors; ++v) b[v] = reader.vector(cell * kCellVectors + v);
            for (int r = 0; r < Rows; ++r) {
                const F x = broadcast(a + r * stride + k + cell * 4);
                for (int v = 0; v < kCellVectors; ++v) acc[r][v] = Dot<S>::add(acc[r][v], x, b[v]);
            }
        }
        reader.next();
    }
    for (int r = 0; r < Rows; ++r) std::memcpy(sums + r * kSumsRow, acc[r], sizeof acc[r]);
}

using SumMasked = void (*)(const char*, int64_t, int64_t, const char*, char*);
constexpr int64_t kFewRows = 4;

template <Sum S>
SumMasked sum_masked_of(int64_t rows) {
    switch (rows) {
        case 1: return sum_masked<S, 1>;
        case 2: return sum_masked<S, 2>;
        case 3: return sum_masked<S, 3>;
        default: return sum_masked<S, 4>;
    }
}

template <Sum S>
void sparse_masked(const Gemm& g, int64_t begin, int64_t end, void* scratch) {
    const MaskedHead head = masked_head_of(g.w);
    const MaskedRows<S> rows(g, 4);
    char* expanded = static_cast<char*>(scratch);
    const bool few = g.m <= kFewRows;
    const char* a = rows.place(g, expanded + (few ? 0 : head.blocks * kBlockBytes));
    alignas(64) char sums[kRows * kSumsRow];
    Finish finish = make_finish<is_integer(S)>(g.ep, g.c, g.ldc);
    const int64_t offset = 0;
    for (int64_t panel = begin; panel < end; ++panel) {
        const char* w = masked_panel<S>(g.w, head, panel);
        select_panel<S>(finish, g, head, panel);
        if (few) {
            sum_masked_of<S>(g.m)(a, rows.row_bytes, rows.k_bytes, w, sums);
            finish.rows(finish, sums, 0, static_cast<int>(g.m));
            continue;
        }
        MaskedReader<S> reader(w);
        for (int64_t block = 0; block < head.blocks; ++block) reader.block(expanded + block * kBlockBytes);
        for (int64_t row = 0; row < g.m; row += kRows) {
            const int count = static_cast<int>(least(kRows, g.m - row));
            sum_rows_of<S>(count)(a + row * rows.row_bytes, rows.row_bytes, &offset, 1, rows.k_bytes, expanded, sums);
            finish.rows(finish, sums, row, count);
        }
    }
}

// ---- table entries

// Masked weights of one type; other types and forms stay with the table that this is added to.
template <Sum S>
struct SparseMasked {
    static inline Kernels before;
    static bool mine(const Gemm& g) {
        return as_conv(g).weight_type == weights_of(S) &&
               head_of(g.w).form == static_cast<int64_t>(SparseForm::masked);
    }
    static bool mine(const Weights& w, SparseForm form) {
        return w.type == weights_of(S) && form == SparseForm::masked;
    }
    static size_t size(const Weights& w, SparseForm form, const void* from) {
        if (!mine(w, form)) return before.packed_sparse_size(w, form, from);
        return static_cast<size_t>(masked_head<S>(w, from).total);
    }
    static void pack(const Weights& w, SparseForm form, const void* from, void* to) {
        mine(w, form) ? pack_masked<S>(w, from, to) : before.pack_sparse(w, form, from, to);
    }
    static int64_t units(const Gemm& g) { return mine(g) ? ceil_div(g.n, kPanel) : before.sparse.units(g); }
    static size_t scratch(const Gemm& g) {
        if (!mine(g)) return before.sparse.scratch(g);
        const int64_t panel = g.m <= kFewRows ? 0 : masked_head_of(g.w).blocks * kBlockBytes;
        return static_cast<size_t>(panel + MaskedRows<S>(g, 4).copied(g));
    }
    static void run(const Gemm& g, int64_t begin, int64_t end, void* scratch) {
        mine(g) ? sparse_masked<S>(g, begin, end, scratch) : before.sparse.run(g, begin, end, scratch);
    }
    static int64_t grain(const Gemm& g) {
        if (!mine(g)) return before.sparse.grain == nullptr ? 1 : before.sparse.grain(g);
        return MaskedRows<S>(g, 4).direct ? 1 : units(g);  // rows are copied for each piece of the work
    }
    static void add(Kernels& t) {
        before = t;
        t.packed_sparse_size = size;
        t.pack_sparse = pack;
        t.sparse = {units, scratch, run, grain};
    }
};

template <Sum... S>
void add_masked(Kernels& t) { (SparseMasked<S>::add(t), ...); }

}  // namespace
}  // namespace paredown::engine

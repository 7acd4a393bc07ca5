// Two products of rows as one kernel: linear, activation, linear. What lies between them is made for some
// rows and a slice of its columns at a time, and the slice is at once multiplied into the sums of the second.
//
// A pass takes as many rows as L2 holds with their sums: weights come once for each pass. A slice is as wide
// as the panel of the second's weights that meets it may be to stay in L1. Sums go on where the slice before
// left them, in order of k, and values between are rounded as if stored: the bits are those of two products.
#pragma once
#include "kernels_expand.hpp"

namespace paredown::engine {
namespace {

constexpr int64_t kPassBytes = 1 << 20;
constexpr int64_t kManyPasses = 6;
// Bytes of weights. Integers were faster with less: their rows are read beside the panel, not past it.
constexpr int64_t slice_panel(Sum s) { return is_integer(s) ? 16 << 10 : 24 << 10; }

template <class P>
struct MlpPlan {
    Layout first, second;
    bool direct;  // whole rows are read where they lie
    int64_t slice, slices;  // columns of the slices but the last
    int64_t rows;           // of a pass
    int64_t stored_stride, hidden_stride;  // bytes between rows: as stored, and as the second product reads them
    int64_t rows_at, hidden_at, sums_at;
    size_t scratch;

    explicit MlpPlan(const Mlp& f)
        : first(layout_of<P::kSum>({weights_of(P::kSum), f.expand.n, f.expand.k})),
          second(layout_of<P::kSum>({weights_of(P::kSum), f.project.n, f.project.k})) {
        constexpr Sum S = P::kSum;
        const DType between = f.project.a_type;
        direct = in_place<S>(f.expand.a_type) && f.expand.k * element_size(S) == first.k_bytes;
        const int64_t panels = first.panels, widest = most(2, slice_panel(S) / kPanel / (kPanel * element_size(S)));
        slices = ceil_div(panels, widest);
        slice = round_up(ceil_div(panels, slices), 2) * kPanel;  // whole rows of a tile, of bytes too
        slices = ceil_div(f.expand.n, slice);
        // Rows an odd number of cache lines apart: else they push each other out of L1.
        hidden_stride = round_up(slice * element_size(S), 128) + 64;
        stored_stride = in_place<S>(between) ? 0 : round_up(slice * static_cast<int64_t>(size_of(between)), 64);
        const int64_t sums = slices > 1 ? second.panels * kSumsRow : 0;
        const int64_t each = first.k_bytes + hidden_stride + stored_stride + sums;
        rows = most(P::kBlock, kPassBytes / each / P::kBlock * P::kBlock);
        rows = least(rows, round_up(f.expand.m, P::kBlock));
        rows_at = 0;
        hidden_at = rows_at + (direct ? P::kBlock : rows) * first.k_bytes;
        hidden_at = round_up(hidden_at, 64);
        const int64_t stored_at = hidden_at + rows * hidden_stride;
        sums_at = stored_at + round_up(rows * stored_stride, 64);
        scratch = static_cast<size_t>(round_up(sums_at + rows * sums, 64));
    }
    int64_t stored_at() const { return hidden_at + rows * hidden_stride; }
};

// Points `f` at a panel of one of the products.
template <Sum S>
void select_columns(Finish& f, const Gemm& g, const Layout& l, int64_t panel) {
    const auto* sums = is_integer(S) ? reinterpret_cast<const int32_t*>(static_cast<const char*>(g.w) + l.sums_at()) +
                                           panel * kPanel
                                     : nullptr;
    f.select(panel * kPanel, static_cast<int>(least(kPanel, g.n - panel * kPanel)), sums,
             converted_zero<S>(g.a_type, g.a_zero));
}

// P multiplies blocks of rows with a part of a panel, from nothing or from sums, and finishes them or leaves
// the sums: kSum, kUnit, kBlock, kWhole, start, multiply, settle, stop.
template <class P>
class MlpRun {
    static constexpr Sum S = P::kSum;

public:
    MlpRun(const Mlp& f, void* area)
        : f_(f), p_(f), scratch_(static_cast<char*>(area)), hidden_(scratch_ + p_.hidden_at) {
        stored_ = in_place<S>(f.project.a_type) ? hidden_ : scratch_ + p_.stored_at();
        stored_stride_ = stored_ == hidden_ ? p_.hidden_stride : p_.stored_stride;
        const auto size = static_cast<int64_t>(size_of(f.project.a_type));
        for (Finish& one : inner_) one = make_finish<is_integer(S)>(f.expand.ep, stored_, stored_stride_ / size);
        for (Finish& one : outer_) {
            one = make_finish<is_integer(S)>(f.project.ep, f.project.c, f.project.ldc);
            one.ahead = kPanel;
        }
    }

    void units(int64_t begin, int64_t end) {
        const int64_t from = begin * P::kUnit, to = least(end * P::kUnit, f_.expand.m);
        if (from >= to) return;
        const int64_t passes = ceil_div(to - from, p_.rows);
        const int64_t each = round_up(ceil_div(to - from, passes), P::kBlock);
        product_.start();
        for (int64_t row = from; row < to; row += each) pass(row, least(each, to - row));
        product_.settle();
        product_.stop();
    }

private:
    // Rows [row, row + rows) through both products.
    void pass(int64_t row, int64_t rows) {
        row_ = row;
        rows_ = rows;
        blocks_ = ceil_div(rows, P::kBlock);
        place();
        for (int64_t s = 0; s < p_.slices; ++s) {
            const int64_t from = s * p_.slice, columns = least(p_.slice, f_.expand.n - from);
            expand(from, columns);
            project(from, columns);
        }
    }

    // Activations that cannot be read where they lie: all of them, or a last block of fewer rows than a tile.
    void place() {
        const Gemm& g = f_.expand;
        pixel_ = g.lda * static_cast<int64_t>(size_of(g.a_type));
        in_ = static_cast<const char*>(g.a) + row_ * pixel_;
        const bool edge = P::kWhole > 1 && rows_ % P::kWhole != 0;
        const int64_t first = !p_.direct ? 0 : edge ? (blocks_ - 1) * P::kBlock : rows_;
        for (int64_t r = first; r < rows_; ++r)
            pad_row<S>(in_ + r * pixel_, g.a_type, g.k, scratch_ + (r - first) * p_.first.k_bytes, p_.first.k_bytes);
        copied_ = first;
    }

    int rows_of(int64_t block) const { return static_cast<int>(least(P::kBlock, rows_ - block * P::kBlock)); }

    // Columns [from, from + columns) of what lies between.
    void expand(int64_t from, int64_t columns) {
        const Gemm& g = f_.expand;
        const int64_t k = p_.first.k_bytes, first = from / kPanel, last = ceil_div(from + columns, kPanel);
        const char* slice = static_cast<const char*>(f_.project.w) + from * element_size(S) * kPanel;
        for (int64_t panel = first; panel < last; ++panel) {
            Finish& finish = inner_[panel & 1];
            select_columns<S>(finish, g, p_.first, panel);
            finish.column -= from;
            const char* w = static_cast<const char*>(g.w) + panel * p_.first.panel_bytes();
            const char* next = panel + 1 < last ? w + p_.first.panel_bytes() : slice;
            for (int64_t b = 0; b < blocks_; ++b) {
                const int64_t r = b * P::kBlock;
                const bool here = r >= copied_;
                const char* a = here ? scratch_ + (r - copied_) * k : in_ + r * pixel_;
                product_.multiply(g.a_type, a, here ? k : pixel_, rows_of(b), k, w, nullptr, nullptr, &finish, r,
                                  ahead(next, p_.first.panel_bytes(), b, k));
            }
        }
        const int64_t dense = columns * element_size(S), padded = round_up(dense, granule(S));
        // The last block's values may still be on their way while the first is read, if they are not the same.
        if (blocks_ == 1 || stored_ != hidden_ || dense != padded) product_.settle();
        for (int64_t r = 0; r < rows_; ++r) {
            char* to = hidden_ + r * p_.hidden_stride;
            if (stored_ != hidden_)
                pad_row<S>(stored_ + r * stored_stride_, f_.project.a_type, columns, to, padded);
            else if (dense != padded)
                std::memset(to + dense, 0, static_cast<size_t>(padded - dense));
            else
                break;
        }
    }

    // What lies between, from column `from` on, into the sums of every output.
    void project(int64_t from, int64_t columns) {
        const Gemm& g = f_.project;
        const bool fresh = from == 0, last = from + columns == f_.expand.n;
        const int64_t k = round_up(columns * element_size(S), granule(S)), panels = p_.second.panels;
        const char* w = static_cast<const char*>(g.w) + from * element_size(S) * kPanel;
        const char* slice = static_cast<const char*>(f_.expand.w) + (from + columns) / kPanel * p_.first.panel_bytes();
        char* sums = scratch_ + p_.sums_at;
        for (int64_t panel = 0; panel < panels; ++panel, w += p_.second.panel_bytes()) {
            Finish& finish = outer_[panel & 1];
            if (last) select_columns<S>(finish, g, p_.second, panel);
            const char* next = panel + 1 < panels ? w + p_.second.panel_bytes() : last ? nullptr : slice;
            for (int64_t b = 0; b < blocks_; ++b) {
                const int64_t r = b * P::kBlock;
                product_.multiply(g.a_type, hidden_ + r * p_.hidden_stride, p_.hidden_stride, rows_of(b), k, w,
                                  fresh ? nullptr : sums, last ? nullptr : sums, last ? &finish : nullptr, row_ + r,
                                  ahead(next, k * kPanel, b, k));
                sums += P::kBlock * kSumsRow;
            }
        }
    }

    // The part of `bytes` at `next` that is brought nearer with block b.
    Ahead ahead(const char* next, int64_t bytes, int64_t b, int64_t k) const {
        if (next == nullptr) return {};
        const int64_t part = ceil_div(bytes, blocks_ * 64);
        return {next + b * part * 64, ceil_div(part, most(1, k / 64))};
    }

    const Mlp& f_;
    const MlpPlan<P> p_;
    P product_;
    Finish inner_[2], outer_[2];
    char *scratch_, *hidden_, *stored_;
    const char* in_ = nullptr;
    int64_t stored_stride_ = 0, pixel_ = 0, row_ = 0, rows_ = 0, blocks_ = 0, copied_ = 0;
};

// Products of one type of activations; others stay with the table that this is added to.
template <class P>
struct MlpOf {
    static inline Entry<Mlp> before;
    static bool mine(const Mlp& f) {
        const DType type = f.expand.a_type;
        return (is_quantised(type) ? DType::s8 : type) == weights_of(P::kSum);
    }
    static size_t scratch(const Mlp& f) { return mine(f) ? MlpPlan<P>(f).scratch : before.scratch(f); }
    static int64_t units(const Mlp& f) { return mine(f) ? ceil_div(f.expand.m, P::kUnit) : before.units(f); }
    static int64_t grain(const Mlp& f) {
        if (!mine(f)) return before.grain == nullptr ? 1 : before.grain(f);
        // A cut within what one pass would hold brings all weights once more: only where passes are many.
        const int64_t rows = MlpPlan<P>(f).rows;
        return (f.expand.m >= kManyPasses * rows ? rows : round_up(f.expand.m, P::kUnit)) / P::kUnit;
    }
    static void run(const Mlp& f, int64_t begin, int64_t end, void* scratch) {
        mine(f) ? MlpRun<P>(f, scratch).units(begin, end) : before.run(f, begin, end, scratch);
    }
    static void add(Kernels& t) {
        before = t.mlp;
        t.mlp = {units, scratch, run, grain};
    }
};

}  // namespace
}  // namespace paredown::engine

// Every field of every argument struct of kernels.hpp, read by its own name.
#include "fields.hpp"

namespace paredown::engine {

namespace {

template <typename T>
void take(std::map<std::string, T>& from, const std::string& prefix, std::map<std::string, T>& to) {
    for (auto at = from.begin(); at != from.end();) {
        if (at->first.compare(0, prefix.size(), prefix) != 0) {
            ++at;
            continue;
        }
        to[at->first.substr(prefix.size())] = at->second;
        at = from.erase(at);
    }
}

}  // namespace

Fields Fields::taken(const std::string& prefix) {
    Fields out;
    take(numbers, prefix, out.numbers);
    take(words, prefix, out.words);
    take(refs, prefix, out.refs);
    return out;
}

bool sparse_form(const std::string& kind, SparseForm& form) {
    static const std::map<std::string, SparseForm> known = {{"sparse_single", SparseForm::single},
                                                            {"sparse_quads", SparseForm::quads},
                                                            {"sparse_lanes", SparseForm::lanes},
                                                            {"sparse_tiles", SparseForm::tiles},
                                                            {"sparse_masked", SparseForm::masked}};
    const auto at = known.find(kind);
    if (at == known.end()) return false;
    form = at->second;
    return true;
}

#define FIELD(name) f.get(#name, a.name)

void read(Fields& f, Epilogue& a) {
    FIELD(scale); FIELD(bias); FIELD(residual); FIELD(residual_stride);
    FIELD(residual_type); FIELD(residual_scale); FIELD(residual_zero); FIELD(residual_after);
    FIELD(act); FIELD(out_type); FIELD(out_scale); FIELD(out_zero);
}

void read(Fields& f, Gemm& a) {
    FIELD(a); FIELD(lda); FIELD(a_type); FIELD(a_zero);
    FIELD(w); FIELD(c); FIELD(ldc); FIELD(m);
    FIELD(n); FIELD(k);
    read(f, a.ep);
}

void read(Fields& f, Conv& a) {
    FIELD(in); FIELD(in_stride); FIELD(in_type); FIELD(in_zero);
    FIELD(weight_type); FIELD(w); FIELD(n); FIELD(h);
    FIELD(width); FIELD(c); FIELD(out_h); FIELD(out_w);
    FIELD(out_c); FIELD(kh); FIELD(kw); FIELD(stride_h);
    FIELD(stride_w); FIELD(pad_top); FIELD(pad_left); FIELD(dilation_h);
    FIELD(dilation_w); FIELD(groups); FIELD(out); FIELD(out_stride);
    read(f, a.ep);
}

void read(Fields& f, Pooling& a) {
    FIELD(kind); FIELD(count_padding); FIELD(in_scale);
    read(f, a.conv);
}

void read(Fields& f, GlobalPool& a) {
    FIELD(in); FIELD(in_type); FIELD(in_scale); FIELD(in_zero);
    FIELD(n); FIELD(pixels); FIELD(c); FIELD(in_stride);
    FIELD(out); FIELD(out_stride); FIELD(out_type); FIELD(out_scale);
    FIELD(out_zero);
}

void read(Fields& f, Attention& a) {
    FIELD(type); FIELD(q); FIELD(k); FIELD(v);
    FIELD(out); FIELD(batch); FIELD(heads); FIELD(kv_heads);
    FIELD(q_len); FIELD(kv_len); FIELD(dim); FIELD(q_batch);
    FIELD(q_head); FIELD(q_row); FIELD(k_batch); FIELD(k_head);
    FIELD(k_row); FIELD(v_batch); FIELD(v_head); FIELD(v_row);
    FIELD(out_batch); FIELD(out_head); FIELD(out_row); FIELD(scale);
    FIELD(mask); FIELD(mask_batch); FIELD(mask_head); FIELD(mask_row);
    FIELD(causal);
}

void read(Fields& f, Norm& a) {
    FIELD(in); FIELD(in_stride); FIELD(in_rows); FIELD(in_type); FIELD(add);
    FIELD(add_stride); FIELD(sum); FIELD(sum_stride); FIELD(gamma);
    FIELD(beta); FIELD(eps); FIELD(rms); FIELD(rows);
    FIELD(cols); FIELD(out); FIELD(out_stride); FIELD(out_type);
    FIELD(out_scale); FIELD(out_zero);
}

void read(Fields& f, Softmax& a) {
    FIELD(in); FIELD(in_stride); FIELD(in_type); FIELD(scale);
    FIELD(rows); FIELD(cols); FIELD(out); FIELD(out_stride);
    FIELD(out_type);
}

void read(Fields& f, Eltwise& a) {
    FIELD(a); FIELD(a_stride); FIELD(a_rows); FIELD(a_type); FIELD(a_scale);
    FIELD(a_zero); FIELD(op); FIELD(b); FIELD(b_stride);
    FIELD(b_rows); FIELD(b_col); FIELD(b_type); FIELD(b_scale);
    FIELD(b_zero); FIELD(act); FIELD(rows); FIELD(cols);
    FIELD(out); FIELD(out_stride); FIELD(out_type); FIELD(out_scale);
    FIELD(out_zero);
}

void read(Fields& f, Resize& a) {
    FIELD(in); FIELD(in_stride); FIELD(type); FIELD(n);
    FIELD(h); FIELD(width); FIELD(c); FIELD(out_h);
    FIELD(out_w); FIELD(bilinear); FIELD(align_corners); FIELD(scale_h);
    FIELD(scale_w); FIELD(out); FIELD(out_stride);
}

void read(Fields& f, Transpose& a) {
    FIELD(in); FIELD(in_type); FIELD(to_nhwc); FIELD(n);
    FIELD(c); FIELD(pixels); FIELD(nhwc_stride); FIELD(out);
    FIELD(out_type); FIELD(scale); FIELD(zero);
}

void read(Fields& f, Matvec& a) {
    FIELD(x); FIELD(ldx); FIELD(x_type); FIELD(w);
    FIELD(bits); FIELD(group); FIELD(m); FIELD(n);
    FIELD(k); FIELD(y); FIELD(ldy);
    read(f, a.ep);
}

void read(Fields& f, ExpandDepthwise& a) {
    Fields expand = f.taken("expand_");
    read(expand, a.expand);
    expand.demand_empty("expand");
    f.places.insert(f.places.end(), expand.places.begin(), expand.places.end());
    read(f, a.depthwise);
}

void read(Fields& f, Mlp& a) {
    Fields expand = f.taken("expand_");
    read(expand, a.expand);
    expand.demand_empty("expand");
    f.places.insert(f.places.end(), expand.places.begin(), expand.places.end());
    const DType from = a.expand.a_type, between = a.expand.ep.out_type;
    if (size_of(from) != size_of(between) || from == DType::s32 || between == DType::s32)
        throw std::invalid_argument("operator mlp multiplies one type twice");
    Gemm& p = a.project;
    f.get("w", p.w);
    f.get("c", p.c);
    f.get("ldc", p.ldc);
    f.get("n", p.n);
    read(f, p.ep);
    p.m = a.expand.m;
    p.k = a.expand.n;
    p.a_type = between;
    p.a_zero = a.expand.ep.out_zero;
}

void read(Fields& f, Weights& a) {
    FIELD(type); FIELD(out); FIELD(in); FIELD(kh);
    FIELD(kw); FIELD(groups);
}

#undef FIELD

}  // namespace paredown::engine

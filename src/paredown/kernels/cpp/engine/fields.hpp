// Named fields of one operator, as the plan gives them: numbers, words and places of tensors.
#pragma once
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels.hpp"

namespace paredown::engine {

// Where a tensor begins: a byte offset into the arena, a constant, or an input or output of the call.
struct Ref {
    enum class Space { arena, constant, input, output };
    Space space = Space::arena;
    int64_t index = 0;   // which constant, input or output
    int64_t offset = 0;  // bytes
};

// A pointer that is set anew at every run.
struct Patch {
    void* where = nullptr;  // a pointer of some type, written as bytes
    Ref ref;
};

class Fields {
public:
    std::map<std::string, double> numbers;
    std::map<std::string, std::string> words;
    std::map<std::string, Ref> refs;

    // Each takes a field out, leaving the default where it is absent.
    template <typename T>
    void get(const char* name, T& into) {
        static_assert(std::is_arithmetic_v<T>);
        if (const auto at = numbers.find(name); at != numbers.end()) {
            into = static_cast<T>(at->second);
            numbers.erase(at);
        }
    }
    void get(const char* name, bool& into) {
        double value = into;
        get(name, value);
        into = value != 0;
    }
    void get(const char* name, DType& into) {
        into = word(name, into, {{"float32", DType::f32}, {"bfloat16", DType::bf16}, {"uint8", DType::u8},
                                 {"int8", DType::s8}, {"int32", DType::s32}});
    }
    void get(const char* name, Act& into) {
        into = word(name, into, {{"none", Act::none}, {"relu", Act::relu}, {"relu6", Act::relu6},
                                 {"silu", Act::silu}, {"hardswish", Act::hardswish}, {"gelu", Act::gelu},
                                 {"gelu_tanh", Act::gelu_tanh}, {"sigmoid", Act::sigmoid},
                                 {"hardsigmoid", Act::hardsigmoid}, {"tanh", Act::tanh}});
    }
    void get(const char* name, PoolKind& into) {
        into = word(name, into, {{"max", PoolKind::max}, {"average", PoolKind::average}});
    }
    void get(const char* name, Binary& into) {
        into = word(name, into, {{"none", Binary::none}, {"add", Binary::add}, {"mul", Binary::mul},
                                 {"sub", Binary::sub}});
    }
    template <typename T>
    void get(const char* name, T*& into) {
        const auto at = refs.find(name);
        if (at == refs.end()) return;
        places.push_back({&into, at->second});
        refs.erase(at);
    }

    // The fields whose names begin with `prefix`, without it, taken out.
    Fields taken(const std::string& prefix);

    // Pointers asked for, to be set by who knows the addresses.
    std::vector<Patch> places;

    // Throws for a field nobody asked for: plan and engine would disagree on what it means.
    void demand_empty(const std::string& op) const {
        std::string left;
        for (const auto& [name, _] : numbers) left += " " + name;
        for (const auto& [name, _] : words) left += " " + name;
        for (const auto& [name, _] : refs) left += " " + name;
        if (!left.empty()) throw std::invalid_argument("operator " + op + " has no field" + left);
    }

private:
    template <typename T>
    T word(const char* name, T otherwise, const std::map<std::string, T>& known) {
        const auto at = words.find(name);
        if (at == words.end()) return otherwise;
        const auto found = known.find(at->second);
        if (found == known.end())
            throw std::invalid_argument(std::string(name) + " is " + at->second + ", which no kernel knows");
        words.erase(at);
        return found->second;
    }
};

// Whether a kind of weights is sparse_single, sparse_quads, sparse_lanes, sparse_tiles or sparse_masked, and
// which.
bool sparse_form(const std::string& kind, SparseForm& form);

// The fields of each argument struct, by the names of kernels.hpp.
void read(Fields& f, Epilogue& a);
void read(Fields& f, Gemm& a);
void read(Fields& f, Conv& a);
void read(Fields& f, Pooling& a);
void read(Fields& f, GlobalPool& a);
void read(Fields& f, Attention& a);
void read(Fields& f, Norm& a);
void read(Fields& f, Softmax& a);
void read(Fields& f, Eltwise& a);
void read(Fields& f, Resize& a);
void read(Fields& f, Transpose& a);
void read(Fields& f, Matvec& a);
void read(Fields& f, ExpandDepthwise& a);  // the first one's as "expand_..."
void read(Fields& f, Mlp& a);  // the first one's as "expand_...", the second's a, m and k follow from it
void read(Fields& f, Weights& a);

}  // namespace paredown::engine

// A plan as C++ holds it: constants, one arena, and steps that a pool of threads walks through.
#pragma once
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "fields.hpp"
#include "kernels.hpp"
#include "run.hpp"

namespace paredown::engine {

// Zeroed memory of 64-byte alignment, a large one in huge pages where the system gives them: pages of 4 KiB
// have to be looked up all the time where weights are read once, and prefetching stops at their ends.
class Block {
public:
    explicit Block(size_t bytes = 0);
    uint8_t* data() const { return data_.get(); }
    size_t size() const { return size_; }

private:
    struct Free {
        size_t mapped;  // bytes, 0 for memory of malloc
        void operator()(uint8_t* p) const;
    };
    std::unique_ptr<uint8_t, Free> data_{nullptr, Free{0}};
    size_t size_ = 0;
};

// Constants side by side in few blocks. A block is touched only where a constant lies.
class Constants {
public:
    // `bytes` zeros, 64-byte aligned; they stay where they are.
    uint8_t* add(size_t bytes);
    size_t count() const { return all_.size(); }
    uint8_t* data(size_t index) const { return all_[index].data; }
    size_t size(size_t index) const { return all_[index].bytes; }
    size_t bytes() const { return bytes_; }

private:
    struct Constant {
        uint8_t* data;
        size_t bytes;
    };
    std::vector<Block> blocks_;
    std::vector<Constant> all_;
    size_t used_ = 0;  // of the last block
    size_t bytes_ = 0;
};

class Engine {
public:
    Engine(const std::string& isa, int threads, size_t arena_bytes, std::vector<size_t> inputs,
           std::vector<size_t> outputs);

    // Constants are copied, weights packed for this instruction set. Both return an index for Ref.
    int64_t constant(const void* data, size_t bytes);
    int64_t weights(const std::string& kind, const Weights& shape, const void* data);
    int64_t matvec(const Matvec& shape, const int8_t* q, const Grid& grid);

    // Adds an operator; throws std::invalid_argument for an unknown one, an unknown field or a place
    // outside of the arena.
    void add(const std::string& op, Fields fields);
    void finish();

    // Steps [first, last). One run at a time; pointers are those of whole contiguous tensors.
    void run(const std::vector<const void*>& inputs, const std::vector<void*>& outputs, size_t first,
             size_t last);

    // As run, with the seconds of each step added to `seconds`.
    void run_timed(const std::vector<const void*>& inputs, const std::vector<void*>& outputs,
                   size_t first, size_t last, std::vector<double>& seconds);

    const std::string& isa() const { return isa_; }
    int threads() const { return threads_; }
    size_t steps() const { return steps_.size(); }
    std::vector<int64_t> units() const;  // how many parts each step may be cut into
    size_t weight_bytes() const;
    size_t arena_bytes() const { return arena_.size(); }
    size_t scratch_bytes() const { return scratch_.size(); }
    uint8_t* arena() const { return arena_.data(); }
    const std::vector<size_t>& input_bytes() const { return input_bytes_; }
    const std::vector<size_t>& output_bytes() const { return output_bytes_; }

private:
    const void* address(const Ref& ref) const;
    void go(const std::vector<const void*>& inputs, const std::vector<void*>& outputs, size_t first,
            size_t last, double* seconds);
    void point(const std::vector<const void*>& inputs, const std::vector<void*>& outputs,
               size_t first, size_t last);

    std::string isa_;
    int threads_;
    const Kernels* kernels_;
    Block arena_, scratch_;
    size_t scratch_each_ = 0;
    Constants constants_;
    std::vector<size_t> input_bytes_, output_bytes_;
    Steps steps_;
    std::shared_ptr<Run> run_;
    std::mutex turn_;
    bool finished_ = false;
};

}  // namespace paredown::engine

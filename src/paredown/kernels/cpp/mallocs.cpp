// A malloc interposer for the measuring child: LD_PRELOADed, it counts live bytes and their peak.
//
// Runtimes outside torch (onnxruntime, openvino) tell nobody what they allocate, so their calls are
// counted where they enter the C library. Counted: the usable size of every malloc family block, and
// readable, non-executable anonymous mappings made through mmap (arenas). Read-only mapped files
// (weights) stand in the same table but are not counted here: the reader looks at which of their
// pages a run touches. Left out: what the C library maps for itself (thread stacks; large malloc
// blocks, which are counted as blocks).
#include <errno.h>
#include <malloc.h>
#include <sys/mman.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include <sys/syscall.h>
#include <unistd.h>

extern "C" {
void* __libc_malloc(size_t);
void __libc_free(void*);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
}

namespace {

std::atomic<int64_t> live{0}, peak{0}, blocks{0};

void raise_peak(int64_t now) {
    int64_t seen = peak.load(std::memory_order_relaxed);
    while (now > seen && !peak.compare_exchange_weak(seen, now, std::memory_order_relaxed)) {
    }
}

void add(int64_t bytes) { raise_peak(live.fetch_add(bytes, std::memory_order_relaxed) + bytes); }

void* taken(void* p) {
    if (p != nullptr) {
        blocks.fetch_add(1, std::memory_order_relaxed);
        add(static_cast<int64_t>(malloc_usable_size(p)));
    }
    return p;
}

void given(void* p) {
    if (p != nullptr) live.fetch_sub(static_cast<int64_t>(malloc_usable_size(p)), std::memory_order_relaxed);
}

// Mappings that are counted, so that munmap of something else takes nothing off. A fixed table: this
// code may not allocate.
struct Mapping {
    uintptr_t start;
    size_t length;
    bool file;
};
constexpr size_t kMappings = 16384;
Mapping mappings[kMappings];
size_t used = 0;
std::atomic_flag busy = ATOMIC_FLAG_INIT;

struct Lock {
    Lock() {
        while (busy.test_and_set(std::memory_order_acquire)) {
        }
    }
    ~Lock() { busy.clear(std::memory_order_release); }
};

void map_added(void* p, size_t length, bool file) {
    Lock lock;
    if (used == kMappings) return;  // never reached in practice; then the mapping stays uncounted
    mappings[used++] = {reinterpret_cast<uintptr_t>(p), length, file};
    if (!file) add(static_cast<int64_t>(length));
}

// Takes [start, start + length) off every counted mapping; what is left of one stays counted.
void map_removed(uintptr_t start, size_t length) {
    Lock lock;
    const uintptr_t end = start + length;
    for (size_t i = 0; i < used;) {
        Mapping& m = mappings[i];
        const uintptr_t m_end = m.start + m.length;
        const uintptr_t low = start > m.start ? start : m.start, high = end < m_end ? end : m_end;
        if (low >= high) {
            ++i;
            continue;
        }
        if (!m.file) live.fetch_sub(static_cast<int64_t>(high - low), std::memory_order_relaxed);
        const Mapping before{m.start, low - m.start, m.file}, after{high, m_end - high, m.file};
        if (before.length == 0 && after.length == 0) {
            m = mappings[--used];
            continue;
        }
        m = before.length != 0 ? before : after;
        if (before.length != 0 && after.length != 0 && used < kMappings) mappings[used++] = after;
        ++i;
    }
}

size_t whole_pages(size_t length) {
    static const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    return (length + page - 1) / page * page;
}

}  // namespace

extern "C" {

void* malloc(size_t size) { return taken(__libc_malloc(size)); }

void* calloc(size_t n, size_t size) { return taken(__libc_calloc(n, size)); }

void free(void* p) {
    given(p);
    __libc_free(p);
}

void* realloc(void* p, size_t size) {
    const auto before = p != nullptr ? static_cast<int64_t>(malloc_usable_size(p)) : 0;
    void* q = __libc_realloc(p, size);
    if (q != nullptr) {
        add(static_cast<int64_t>(malloc_usable_size(q)));
        live.fetch_sub(before, std::memory_order_relaxed);
    } else if (size == 0) {
        live.fetch_sub(before, std::memory_order_relaxed);  // realloc(p, 0) frees
    }
    return q;
}

void* reallocarray(void* p, size_t n, size_t size) {
    size_t total = 0;
    if (__builtin_mul_overflow(n, size, &total)) {
        errno = ENOMEM;
        return nullptr;
    }
    return realloc(p, total);
}

void* memalign(size_t alignment, size_t size) { return taken(__libc_memalign(alignment, size)); }

void* aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }

void* valloc(size_t size) { return memalign(whole_pages(1), size); }

void* pvalloc(size_t size) { return memalign(whole_pages(1), whole_pages(size)); }

int posix_memalign(void** out, size_t alignment, size_t size) {
    if (alignment % sizeof(void*) != 0 || (alignment & (alignment - 1)) != 0 || alignment == 0)
        return EINVAL;
    void* p = memalign(alignment, size);
    if (p == nullptr) return ENOMEM;
    *out = p;
    return 0;
}

void* mmap(void* at, size_t length, int protection, int flags, int file, off_t offset) noexcept {
    const auto result = syscall(SYS_mmap, at, length, protection, flags, file, offset);
    void* p = reinterpret_cast<void*>(result);
    if (p == MAP_FAILED) return p;
    if ((flags & MAP_FIXED) != 0) map_removed(reinterpret_cast<uintptr_t>(p), whole_pages(length));
    if ((protection & (PROT_READ | PROT_WRITE)) != 0 && (protection & PROT_EXEC) == 0)
        map_added(p, whole_pages(length), file >= 0 && (protection & PROT_WRITE) == 0);
    return p;
}

void* mmap64(void* at, size_t length, int protection, int flags, int file, off_t offset) noexcept {
    return mmap(at, length, protection, flags, file, offset);
}

int munmap(void* p, size_t length) noexcept {
    const long result = syscall(SYS_munmap, p, length);
    if (result == 0) map_removed(reinterpret_cast<uintptr_t>(p), whole_pages(length));
    return static_cast<int>(result);
}

// The control face, called through ctypes in the measuring child.
int64_t paredown_live_bytes() { return live.load(); }
int64_t paredown_peak_bytes() { return peak.load(); }
int64_t paredown_blocks() { return blocks.load(); }

// Drops the pages of mapped files from this process; they are read again where they are needed.
void paredown_forget_files() {
    Lock lock;
    for (size_t i = 0; i < used; ++i)
        if (mappings[i].file)
            madvise(reinterpret_cast<void*>(mappings[i].start), mappings[i].length, MADV_DONTNEED);
}

// The `index`-th mapped file; -1 when there are no more.
int paredown_file_mapping(int64_t index, uint64_t* start, uint64_t* length) {
    Lock lock;
    for (size_t i = 0; i < used; ++i)
        if (mappings[i].file && index-- == 0) {
            *start = mappings[i].start;
            *length = mappings[i].length;
            return 0;
        }
    return -1;
}

void paredown_reset_peak() { peak.store(live.load()); }

}  // extern "C"

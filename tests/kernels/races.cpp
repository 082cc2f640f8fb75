// Finds data races in a kernel that runs behind shim.h: what two threads do to one byte, at least
// one of them writing, without a barrier between them.
//
// The kernel is compiled with -fsanitize=thread, whose calls before every load and store end here
// instead of in its own runtime (it knows no fibres and no CUDA barriers). Two accesses are ordered
// if a barrier of the block lies between them or, within a warp, one of the warp. Blocks are never
// ordered, except by an atomic of each on one address (the last block takes the others' results):
// what the first did before its atomic, in that thread or before a barrier, and before a
// __threadfence of its own thread or of the atomic's, comes before what the second does after its
// atomic, in that thread or after a barrier. Atomics do not race with each other. Writing the value that is there already is no race: flags are set so.
// It sees what happened, not what might have: the shapes of the tests decide what is covered.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <unordered_map>
#include <vector>

namespace {

constexpr int kPage = 12, kWarp = 32;
constexpr uint16_t kNobody = 0xffff;

struct Access {
    uint32_t epoch = 0;  // of the block; see Now
    uint32_t turn = 0;   // barriers that its warp had passed
    uint32_t fences = 0;  // that its thread had passed
    uint16_t thread = kNobody;
    int32_t block = -1;
    const void* from = nullptr;
};

struct Cell {
    Access write, read, other;  // other: a read by another lane of the last reader's warp, or block
    uint32_t readers = 0;       // warps that read since the last barrier, as bits
    bool atomic = false;        // the last write was one
    int block = -1;             // of shared memory: whose it is
};

// Words of four bytes have a cell, and each of their bytes one for accesses that are smaller.
struct Word {
    Cell whole;
    std::unique_ptr<Cell[]> bytes;
};

struct Page {
    Word words[1 << (kPage - 2)];
};

struct Claim {  // a write over another's: a race unless the value stays
    uint8_t* at;
    uint8_t old;
    Access first, second;
};

// An atomic on global memory after fences: what of its block others may see.
struct Release {
    uint32_t epoch, fence_epoch;  // of the atomic; of its thread's last fence
    uint16_t thread;
    std::vector<uint32_t> fences;  // that each thread of the block had passed
};

struct Block {
    std::vector<uint32_t> fences, fence_epochs;
    std::unordered_map<uintptr_t, Release> releases;  // by address
    std::unordered_map<uintptr_t, Access> acquires;   // the first atomic on each address
};

std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
std::unordered_map<int, Block> blocks;
std::vector<uint32_t> turns;  // of each warp of the block
std::vector<Claim> claims;
uintptr_t shared_first, shared_last, own_first, own_last;
uint32_t epoch = 1;  // grows with every barrier of a block, every block and every launch
uint32_t launch_epoch;
int block;
Block* mine;
unsigned thread_;
bool watching, found;

// The line of the source, where addr2line is there to tell it.
void tell_line(const void* from) {
    Dl_info info;
    if (!from || !dladdr(from, &info)) return;
    char command[4096];
    const auto offset = static_cast<const char*>(from) - static_cast<const char*>(info.dli_fbase);
    std::snprintf(command, sizeof command, "addr2line -e '%s' %#tx >&2", info.dli_fname, offset - 1);
    if (std::system(command)) std::fprintf(stderr, "race at %p\n", from);
}

void tell(const Access& a, const Access& b, const void* at, const char* what) {
    if (found) return;
    found = true;
    const uintptr_t place = reinterpret_cast<uintptr_t>(at);
    const bool in_shared = place >= shared_first && place < shared_last;
    std::fprintf(stderr, "race: %s in %s memory, thread %u of block %d and thread %u of block %d\n",
                 what, in_shared ? "shared" : "global", a.thread, a.block, b.thread, b.block);
    tell_line(a.from);
    tell_line(b.from);
}

bool ordered(const Access& a, const Access& now) {
    if (a.epoch < launch_epoch || a.thread == kNobody) return true;
    if (a.block != now.block) {
        for (const auto& [place, release] : blocks.find(a.block)->second.releases) {
            const auto acquire = mine->acquires.find(place);
            if (acquire == mine->acquires.end()) continue;
            const Access& seen = acquire->second;
            const bool carried = seen.thread == now.thread || seen.epoch < now.epoch;
            const bool before = a.thread == release.thread || a.epoch < release.epoch;
            const bool fenced =
                release.fences[a.thread] > a.fences || a.epoch < release.fence_epoch;
            if (carried && before && fenced) return true;
        }
        return false;
    }
    if (a.epoch != now.epoch || a.thread == now.thread) return true;
    return a.thread / kWarp == now.thread / kWarp && a.turn != now.turn;
}

Word& word_of(uintptr_t place) {
    static uintptr_t last = ~uintptr_t{0};
    static Page* page = nullptr;
    if (place >> kPage != last || pages.empty()) {
        last = place >> kPage;
        auto& held = pages[last];
        if (!held) held.reset(new Page);
        page = held.get();
    }
    return page->words[(place >> 2) & ((1 << (kPage - 2)) - 1)];
}

void settle() {
    for (const Claim& claim : claims) {
        if (*claim.at != claim.old) tell(claim.first, claim.second, claim.at, "two writes");
    }
    claims.clear();
}

// Hold an access against what was noted of a cell, which stands for the bytes [at, at + size).
void check(const Cell& cell, const Access& now, uint8_t* at, int size, bool writes, bool atomic) {
    if (!(atomic && cell.atomic) && !ordered(cell.write, now)) {
        if (!writes || atomic || cell.atomic) {
            tell(cell.write, now, at, writes ? "two writes" : "a write and a read");
            return;
        }
        for (int i = 0; i < size; ++i) claims.push_back({at + i, at[i], cell.write, now});
    }
    if (!writes) return;
    const bool others = cell.read.epoch == epoch && cell.read.block == now.block &&
                        (cell.readers & ~(1u << (now.thread / kWarp))) != 0;
    if (others || !ordered(cell.read, now) || !ordered(cell.other, now)) {
        tell(ordered(cell.other, now) ? cell.read : cell.other, now, at, "a read and a write");
    }
}

void note(Cell& cell, const Access& now, bool writes, bool atomic) {
    if (writes) {
        cell.write = now;
        cell.atomic = atomic;
        return;
    }
    if (cell.read.epoch != epoch) cell.readers = 0;
    cell.readers |= 1u << (now.thread / kWarp);
    if (cell.read.thread != now.thread || cell.read.block != now.block) cell.other = cell.read;
    cell.read = now;
}

Access access_now(const void* from) {
    return {epoch, turns[thread_ / kWarp], mine->fences[thread_], static_cast<uint16_t>(thread_),
            block, from};
}

void access(void* where, size_t size, bool writes, bool atomic, const void* from) {
    if (!watching || found) return;
    if (!claims.empty()) settle();
    uintptr_t place = reinterpret_cast<uintptr_t>(where);
    if (place >= own_first && place < own_last) return;  // a stack of the shim
    const Access now = access_now(from);
    const bool in_shared = place >= shared_first && place < shared_last;
    for (const uintptr_t last = place + size; place < last;) {
        const bool whole = place % 4 == 0 && last - place >= 4;
        Word& word = word_of(place);
        if (in_shared && word.whole.block != block) {  // another block's shared memory
            word.whole = Cell();
            word.whole.block = block;
            word.bytes.reset();
        }
        auto* at = reinterpret_cast<uint8_t*>(place);
        check(word.whole, now, at, whole ? 4 : 1, writes, atomic);
        if (whole) {
            for (int i = 0; word.bytes && i < 4; ++i) {
                check(word.bytes[i], now, at + i, 1, writes, atomic);
            }
            note(word.whole, now, writes, atomic);
        } else {
            if (!word.bytes) word.bytes.reset(new Cell[4]);
            check(word.bytes[place % 4], now, at, 1, writes, atomic);
            note(word.bytes[place % 4], now, writes, atomic);
        }
        place += whole ? 4 : 1;
    }
}

}  // namespace

extern "C" {

// The shim tells what happens.
void races_launch(unsigned warps, void* shared, size_t bytes, void* own, size_t own_bytes) {
    pages.clear();
    blocks.clear();
    turns.assign(warps, 0);
    shared_first = reinterpret_cast<uintptr_t>(shared);
    shared_last = shared_first + bytes;
    own_first = reinterpret_cast<uintptr_t>(own);
    own_last = own_first + own_bytes;
    launch_epoch = ++epoch;
    found = watching = false;
}
void races_block(int number) {
    block = number;
    mine = &blocks[number];
    mine->fences.assign(turns.size() * kWarp, 0);
    mine->fence_epochs.assign(turns.size() * kWarp, 0);
    ++epoch;
}
void races_watch(unsigned thread) {
    thread_ = thread;
    watching = true;
}
void races_rest() {
    settle();
    watching = false;
}
void races_warp_barrier(unsigned warp) { ++turns[warp]; }
void races_block_barrier() { ++epoch; }
void races_fence() {
    ++mine->fences[thread_];
    mine->fence_epochs[thread_] = epoch;
}
int races_found() { return found; }
void races_atomic(void* where, size_t size) {
    const uintptr_t place = reinterpret_cast<uintptr_t>(where);
    access(where, size, true, true, __builtin_return_address(0));
    if (watching && !(place >= shared_first && place < shared_last)) {
        mine->acquires.emplace(place, access_now(nullptr));
        const auto thread = static_cast<uint16_t>(thread_);
        mine->releases[place] = {epoch, mine->fence_epochs[thread], thread, mine->fences};
    }
}

// What the compiler calls.
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
#define HOOKS(size)                                                         \
    void __tsan_read##size(void* at) {                                      \
        access(at, size, false, false, __builtin_return_address(0));        \
    }                                                                       \
    void __tsan_write##size(void* at) {                                     \
        access(at, size, true, false, __builtin_return_address(0));         \
    }                                                                       \
    void __tsan_unaligned_read##size(void* at) { __tsan_read##size(at); }   \
    void __tsan_unaligned_write##size(void* at) { __tsan_write##size(at); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void* at, size_t size) {
    access(at, size, false, false, __builtin_return_address(0));
}
void __tsan_write_range(void* at, size_t size) {
    access(at, size, true, false, __builtin_return_address(0));
}
void __tsan_vptr_update(void**, void*) {}
}

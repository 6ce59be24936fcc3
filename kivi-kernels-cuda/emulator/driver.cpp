// A CUDA driver that runs kernels on the CPU: as much of it as kivi-kernels-cuda calls. Built as libcuda.so.1.
//
// A block at a time, a fiber a thread. A fiber runs until it comes to a barrier, of its block or of its warp; the last
// to come lets the others go. Operations of a whole warp (shuffles, products) are barriers of it whose last thread does
// the work. EMULATOR_REVERSE=1 runs threads and blocks in the opposite order; EMULATOR_MULTIPROCESSORS says how many
// there are; EMULATOR_LOST=N loses the device at the N-th launch. Memory is filled with ones when it is allocated, and ends where an unmapped page begins.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

struct Dim {
    unsigned x, y, z;
};

extern "C" {
Dim threadIdx, blockIdx, gridDim;
char* emulator_shared;  // the block's dynamic shared memory
void emulator_switch(void** save, void* load);
}

// Saves what a call must keep, and goes on with another stack.
asm(R"(
.text
.globl emulator_switch
emulator_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
)");

namespace {

constexpr int WARP = 32, MAX_THREADS = 1024;
constexpr size_t STACK = 128 << 10, PAGE = 4096, MAX_SHARED = 232448;

enum State { RUNS, WAITS_FOR_WARP, WAITS_FOR_TEAM, WAITS_FOR_BLOCK, DONE };

struct Kernel {
    void (*run)(void* params);
    std::string name;
    size_t param_bytes;
    unsigned max_shared = 48 << 10;
};

Kernel* kernel;
void* params;
int threads, current;
bool reverse;
void *stack_of[MAX_THREADS], *main_stack, *operand[MAX_THREADS];
State state[MAX_THREADS];
int at_block, at_team[MAX_THREADS / WARP], at_warp[MAX_THREADS / WARP], done, done_of_warp[MAX_THREADS / WARP];
long pauses;
std::vector<void (*)()> block_starts;  // of loaded kernels

[[noreturn]] void fail(const char* what) {
    fprintf(stderr, "emulator: %s: %s, block %u %u %u, thread %d\n", kernel->name.c_str(), what, blockIdx.x, blockIdx.y,
            blockIdx.z, current);
    abort();
}

void* map(size_t bytes) {
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? nullptr : p;
}

// The i-th thread after (or before) this one, warp by warp.
int neighbour(int i) {
    int warps = (threads + WARP - 1) / WARP, sign = reverse ? -1 : 1;
    int lane = (current % WARP + sign * i % WARP + 2 * WARP) % WARP;
    int warp = (current / WARP + sign * (i / WARP) + 2 * warps) % warps;
    return warp * WARP + lane;
}

// Runs another fiber that can run, of the same warp if there is one.
void yield() {
    int from = current;
    for (int i = 1; i <= (threads + WARP - 1) / WARP * WARP; ++i) {
        int next = neighbour(i);
        if (next < threads && state[next] == RUNS) {
            current = threadIdx.x = next;
            if (next != from) {
                emulator_switch(&stack_of[from], stack_of[next]);
            }
            return;
        }
    }
    if (done == threads) {
        emulator_switch(&stack_of[from], main_stack);
    }
    fail("threads wait for others that do not come");
}

void release(State waiting, int first, int count) {
    for (int i = first; i < first + count && i < threads; ++i) {
        state[i] = state[i] == waiting ? RUNS : state[i];
    }
}

void release_block() {
    at_block = 0;
    release(WAITS_FOR_BLOCK, 0, threads);
}

void thread_main() {
    kernel->run(params);
    state[current] = DONE;
    done += 1;
    done_of_warp[current / WARP] += 1;
    if (at_block > 0 && at_block == threads - done) {
        release_block();
    }
    yield();
    abort();
}

void run_block(unsigned shared) {
    static char* stacks = (char*)map(MAX_THREADS * STACK);
    for (int i = 0; i < threads; ++i) {
        uint64_t* top = (uint64_t*)(stacks + (i + 1) * STACK - 72);
        *top = 0;
        *--top = (uint64_t)thread_main;
        top -= 6;  // registers, of any value
        stack_of[i] = top;
        state[i] = RUNS;
    }
    memset(at_warp, 0, sizeof at_warp);
    memset(at_team, 0, sizeof at_team);
    memset(done_of_warp, 0, sizeof done_of_warp);
    if (threads % WARP) {
        done_of_warp[threads / WARP] = WARP - threads % WARP;
    }
    at_block = done = pauses = 0;
    memset(emulator_shared, 0xff, shared);
    for (auto start : block_starts) {
        start();
    }
    current = threadIdx.x = reverse ? threads - 1 : 0;
    emulator_switch(&main_stack, stack_of[current]);
}

std::recursive_mutex mutex;
std::map<void*, std::pair<void*, size_t>> allocations;

// A launch with the bytes of its parameters, as a graph keeps it.
struct Launch {
    Kernel* kernel;
    Dim grid;
    unsigned threads, shared;
    std::vector<char> params;
};
using Graph = std::vector<Launch>;
std::map<void*, Graph*> recording;  // by stream

// Copies to pinned memory arrive when somebody waits.
struct Arrival {
    void* to;
    std::vector<char> bytes;
};
std::vector<Arrival> arrivals;
std::map<char*, size_t> pinned;

void arrive() {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    for (auto& arrival : arrivals) {
        memcpy(arrival.to, arrival.bytes.data(), arrival.bytes.size());
    }
    arrivals.clear();
}

bool is_pinned(const void* p) {
    auto after = pinned.upper_bound((char*)p);
    return after != pinned.begin() && (char*)p < (--after)->first + after->second;
}

// What is not a launch cannot be recorded.
bool records(void* stream) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    return recording.count(stream);
}

void run_grid(const Launch& launch) {
    static char* end = (char*)map((1 << 20) + PAGE) + (1 << 20);
    mprotect(end, PAGE, PROT_NONE);
    unsigned shared = (launch.shared + 127) / 128 * 128;
    emulator_shared = end - shared;
    kernel = launch.kernel;
    params = (void*)launch.params.data();
    gridDim = launch.grid;
    threads = launch.threads;
    for (unsigned z = 0; z < gridDim.z; ++z) {
        for (unsigned y = 0; y < gridDim.y; ++y) {
            for (unsigned x = 0; x < gridDim.x; ++x) {
                blockIdx = {reverse ? gridDim.x - 1 - x : x, y, z};
                run_block(shared);
            }
        }
    }
}

}  // namespace

// What compiled kernels call.
extern "C" {

void emulator_block_barrier() {
    state[current] = WAITS_FOR_BLOCK;
    if (++at_block == threads - done) {
        release_block();
    } else {
        yield();
    }
}

// So many threads from a multiple of that on, none of which has returned.
void emulator_team_barrier(int size) {
    int first = current / size * size, warp = first / WARP;
    state[current] = WAITS_FOR_TEAM;
    if (++at_team[warp] == size) {
        at_team[warp] = 0;
        release(WAITS_FOR_TEAM, first, size);
    } else {
        yield();
    }
}

// The last lane calls work with what all lanes gave.
void emulator_warp(void (*work)(void**), void* given) {
    int warp = current / WARP;
    operand[current] = given;
    state[current] = WAITS_FOR_WARP;
    if (++at_warp[warp] == WARP - done_of_warp[warp]) {
        at_warp[warp] = 0;
        if (work) {
            work(operand + warp * WARP);
        }
        release(WAITS_FOR_WARP, warp * WARP, WARP);
    } else {
        yield();
    }
}

int emulator_lane() { return current % WARP; }

// In a loop that waits for another thread.
void emulator_pause() {
    if (++pauses > 100000000) {
        fail("waits for ever");
    }
    yield();
}

void emulator_fail(const char* what) { fail(what); }

void emulator_at_block_start(void (*f)()) { block_starts.push_back(f); }
}

// The driver's functions.
extern "C" {
using Result = int;
enum : Result { SUCCESS = 0, INVALID = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500, LAUNCH_FAILED = 719, UNSUPPORTED = 900 };

// EMULATOR_LOST=1000: the 1000th launch fails, and from then on the device is lost to every call that needs it.
static long launches;
static bool lost() {
    const char* at = getenv("EMULATOR_LOST");
    return at && launches >= atol(at);
}
static Result if_there(Result result) { return lost() ? LAUNCH_FAILED : result; }

Result cuInit(unsigned) {
    reverse = getenv("EMULATOR_REVERSE");
    return SUCCESS;
}
Result cuDriverGetVersion(int* version) { return *version = 13000, SUCCESS; }
Result cuDeviceGetCount(int* n) { return *n = 1, SUCCESS; }
Result cuDeviceGet(int* device, int) { return *device = 0, SUCCESS; }
Result cuDeviceGetName(char* name, int size, int) { return snprintf(name, size, "emulator"), SUCCESS; }
Result cuDeviceGetAttribute(int* value, int attribute, int) {
    const char* multiprocessors = getenv("EMULATOR_MULTIPROCESSORS");
    switch (attribute) {
        case 16:
            return *value = multiprocessors ? atoi(multiprocessors) : 40, SUCCESS;
        case 75:  // compute capability
            return *value = 9, SUCCESS;
        case 76:
            return *value = 0, SUCCESS;
        case 81:  // shared memory of a multiprocessor
            return *value = MAX_SHARED + 1024, SUCCESS;
        case 97:  // and of a block
            return *value = MAX_SHARED, SUCCESS;
        default:
            return *value = 1, SUCCESS;
    }
}
Result cuDevicePrimaryCtxRetain(void** context, int) { return *context = (void*)0x10, SUCCESS; }
Result cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
Result cuCtxGetCurrent(void** context) { return *context = (void*)0x10, SUCCESS; }
Result cuCtxSetCurrent(void*) { return SUCCESS; }
Result cuCtxSynchronize() { return if_there(SUCCESS); }
Result cuStreamCreate(void** stream, unsigned) {
    static uint64_t number = 0x20;
    return *stream = (void*)number++, if_there(SUCCESS);
}
Result cuStreamWaitEvent(void*, void*, unsigned) { return if_there(SUCCESS); }
Result cuEventCreate(void** event, unsigned) { return *event = (void*)0x30, if_there(SUCCESS); }
Result cuEventDestroy_v2(void*) { return if_there(SUCCESS); }
Result cuEventRecord(void*, void*) { return if_there(SUCCESS); }
Result cuEventSynchronize(void*) { return arrive(), if_there(SUCCESS); }
Result cuMemHostAlloc(void** host, size_t bytes, unsigned) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    *host = map(bytes);
    memset(*host, 0xff, bytes);
    pinned[(char*)*host] = bytes;
    return if_there(SUCCESS);
}
Result cuMemFreeHost(void* host) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    munmap(host, pinned[(char*)host]);
    pinned.erase((char*)host);
    return if_there(SUCCESS);
}
Result cuStreamDestroy_v2(void*) { return if_there(SUCCESS); }
Result cuStreamSynchronize(void* stream) {
    if (records(stream)) {
        return UNSUPPORTED;
    }
    return arrive(), if_there(SUCCESS);
}
Result cuMemGetInfo_v2(size_t* free, size_t* total) { return *free = *total = 1 << 30, if_there(SUCCESS); }

Result cuMemAllocAsync(uint64_t* address, size_t bytes, void* stream) {
    if (bytes == 0 || records(stream) || lost()) {
        return if_there(INVALID);
    }
    size_t pages = (bytes + PAGE - 1) / PAGE * PAGE;
    char* start = bytes > (size_t)1 << 34 ? nullptr : (char*)map(pages + PAGE);
    if (!start) {
        return OUT_OF_MEMORY;
    }
    mprotect(start + pages, PAGE, PROT_NONE);
    memset(start, 0xff, pages);
    char* last = start + pages - (bytes + 15) / 16 * 16;  // as far back as alignment lets it be
    std::lock_guard<std::recursive_mutex> lock(mutex);
    allocations[last] = {start, pages + PAGE};
    *address = (uint64_t)last;
    return SUCCESS;
}
Result cuMemFreeAsync(uint64_t address, void*) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    auto found = allocations.find((void*)address);
    if (found == allocations.end()) {
        return INVALID;
    }
    munmap(found->second.first, found->second.second);
    allocations.erase(found);
    return if_there(SUCCESS);
}
Result cuMemAlloc_v2(uint64_t* address, size_t bytes) { return cuMemAllocAsync(address, bytes, nullptr); }
Result cuMemFree_v2(uint64_t address) { return cuMemFreeAsync(address, nullptr); }
Result cuMemsetD8Async(uint64_t to, unsigned char x, size_t n, void* stream) {
    return records(stream) ? UNSUPPORTED : (memset((void*)to, x, n), if_there(SUCCESS));
}
Result cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t n, void* stream) {
    return records(stream) ? UNSUPPORTED : (memcpy((void*)to, from, n), if_there(SUCCESS));
}
Result cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t n, void* stream) {
    if (records(stream)) {
        return UNSUPPORTED;
    }
    std::lock_guard<std::recursive_mutex> lock(mutex);
    if (is_pinned(to)) {
        arrivals.push_back({to, {(char*)from, (char*)from + n}});
    } else {
        memcpy(to, (void*)from, n);
    }
    return if_there(SUCCESS);
}
Result cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t n, void* stream) {
    return records(stream) ? UNSUPPORTED : (memmove((void*)to, (void*)from, n), if_there(SUCCESS));
}
Result cuPointerGetAttribute(void*, int, uint64_t) { return INVALID; }
Result cuGetErrorString(int, const char** s) { return *s = "emulated error", SUCCESS; }
Result cuGetErrorName(int, const char** s) { return *s = "EMULATED", SUCCESS; }

// An image is what the emulator's NVRTC makes: 8 bytes of name, 8 of size, a shared library.
Result cuModuleLoadData(void** module, const void* image) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    uint64_t size;
    memcpy(&size, (const char*)image + 8, 8);
    int file = memfd_create("kernels", 0);
    for (uint64_t at = 0; at < size;) {
        ssize_t n = write(file, (const char*)image + 16 + at, size - at);
        if (n <= 0) {
            return OUT_OF_MEMORY;
        }
        at += n;
    }
    *module = dlopen(("/proc/self/fd/" + std::to_string(file)).c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!*module) {
        fprintf(stderr, "emulator: %s\n", dlerror());
    }
    return *module ? SUCCESS : INVALID;
}
Result cuModuleUnload(void*) { return if_there(SUCCESS); }
Result cuModuleGetFunction(void** function, void* module, const char* name) {
    void* run = dlsym(module, (std::string("emulator_run_") + name).c_str());
    auto size = (unsigned (*)())dlsym(module, (std::string("emulator_size_") + name).c_str());
    *function = run ? new Kernel{(void (*)(void*))run, name, size()} : nullptr;
    return run ? SUCCESS : NOT_FOUND;
}
Result cuFuncSetAttribute(void* function, int attribute, int value) {
    bool shared = attribute == 8;
    if (shared && value > (int)MAX_SHARED) {
        return INVALID;
    }
    if (shared) {
        ((Kernel*)function)->max_shared = value;
    }
    return SUCCESS;
}
Result cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared, void* stream, void** arguments, void**) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    Kernel* k = (Kernel*)function;
    bool fits = bx <= MAX_THREADS && by == 1 && bz == 1 && gy <= 65535 && gz <= 65535;
    if (!fits || !bx || !gx || !gy || !gz || shared > k->max_shared) {
        return INVALID;
    }
    char* bytes = (char*)arguments[0];
    Launch launch{k, {gx, gy, gz}, bx, shared, {bytes, bytes + k->param_bytes}};
    if (lost()) {
        return LAUNCH_FAILED;
    }
    launches += 1;  // one that fails says so to what comes behind it
    auto graph = recording.find(stream);
    graph == recording.end() ? run_grid(launch) : graph->second->push_back(launch);
    return SUCCESS;
}

// As CUlaunchAttribute and CUlaunchConfig are.
struct LaunchAttribute {
    unsigned id, unused;
    union {
        char pad[64];
        int value;
    };
};
struct LaunchConfig {
    Dim grid, block;
    unsigned shared;
    void* stream;
    LaunchAttribute* attributes;
    unsigned count;
};

// Whether the next launch on a stream must start when all before it are done (settled.rs): the first of a graph, and what is
// behind a plan.
bool is_awaited(void* stream) {
    auto graph = recording.find(stream);
    return graph != recording.end() && (graph->second->empty() || graph->second->back().kernel->name == "plan_decode");
}

// Launches that may overlap; here they are one after the other.
Result cuLaunchKernelEx(const LaunchConfig* c, void* function, void** arguments, void** extra) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    if (c->count && is_awaited(c->stream)) {
        fprintf(stderr, "emulator: %s may not overlap what is before it\n", ((Kernel*)function)->name.c_str());
        return INVALID;
    }
    constexpr unsigned PROGRAMMATIC_STREAM_SERIALIZATION = 6;
    for (unsigned i = 0; i < c->count; ++i) {
        if (c->attributes[i].id != PROGRAMMATIC_STREAM_SERIALIZATION || c->attributes[i].value != 1) {
            return INVALID;
        }
    }
    return cuLaunchKernel(function, c->grid.x, c->grid.y, c->grid.z, c->block.x, c->block.y, c->block.z, c->shared,
                          c->stream, arguments, extra);
}

// EMULATOR_GRAPHS=1 says what is recorded and replayed.
Result cuStreamBeginCapture_v2(void* stream, int) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    bool new_one = recording.emplace(stream, nullptr).second;
    return new_one ? (recording[stream] = new Graph, if_there(SUCCESS)) : INVALID;
}
Result cuStreamEndCapture(void* stream, void** graph) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    if (!recording.count(stream)) {
        return INVALID;
    }
    *graph = recording[stream];
    recording.erase(stream);
    return if_there(SUCCESS);
}
Result cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    if (getenv("EMULATOR_GRAPHS")) {
        fprintf(stderr, "emulator: recorded %zu launches\n", ((Graph*)graph)->size());
    }
    return *executable = new Graph(*(Graph*)graph), if_there(SUCCESS);
}
Result cuGraphLaunch(void* executable, void* stream) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    if (getenv("EMULATOR_GRAPHS")) {
        fprintf(stderr, "emulator: replays %zu launches\n", ((Graph*)executable)->size());
    }
    if (recording.count(stream) || lost()) {
        return if_there(UNSUPPORTED);
    }
    launches += ((Graph*)executable)->size();
    for (auto& launch : *(Graph*)executable) {
        run_grid(launch);
    }
    return SUCCESS;
}
Result cuGraphExecDestroy(void* executable) { return delete (Graph*)executable, if_there(SUCCESS); }
Result cuGraphDestroy(void* graph) { return delete (Graph*)graph, if_there(SUCCESS); }
}

// The prices a time loop on a GPU pays for every step: how long blocks wait for one another, and how long it takes to
// hand h round, by each way there is. Needs no torch:
//
//   nvcc -std=c++20 -gencode=arch=compute_90a,code=sm_90a benchmarks/exchange.cu -o exchange
//
// Prints one JSON object a line; "ns" is the median of several launches, "low" and "high" the least and the most of
// them. A round's price is the difference of a long and a short launch over their difference in rounds, so launching is
// not in it. Every exchange is checked as it is timed: the exit status is 1 when a value did not arrive. Clusters need
// compute capability 9.0.

#include <cooperative_groups.h>
#include <cuda/atomic>
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "../csrc/cuda/device.cuh"

namespace cg = cooperative_groups;

namespace {

constexpr int kThreads = 256, kLaunches = 9;
constexpr unsigned kShort = 500, kLong = 5500;
constexpr int kMaxWords = 1024;  // h of 16 rows and 512 units in 16 bits: 16 KB

void check(cudaError_t status, int line) {
    if (status == cudaSuccess) return;
    std::fprintf(stderr, "line %d: %s\n", line, cudaGetErrorString(status));
    std::exit(2);
}
#define CHECK(call) check(call, __LINE__)

using Shared = cuda::atomic_ref<unsigned, cuda::thread_scope_device>;

// One counter: every block adds one, all wait for the sum.
struct ByCounter {
    static constexpr const char* name = "counter";
    static __device__ void wait(unsigned* state, unsigned round) {
        __syncthreads();
        if (threadIdx.x == 0) {
            Shared(state[0]).fetch_add(1, cuda::memory_order_release);
            while (Shared(state[0]).load(cuda::memory_order_acquire) < gridDim.x * (round + 1));
        }
        __syncthreads();
    }
};

// A flag a block: each raises its own, and thread i of every block watches that of block i.
struct ByFlags {
    static constexpr const char* name = "flags";
    static __device__ void wait(unsigned* state, unsigned round) {
        __syncthreads();
        if (threadIdx.x == 0) Shared(state[blockIdx.x]).store(round + 1, cuda::memory_order_release);
        if (threadIdx.x < gridDim.x) {
            while (Shared(state[threadIdx.x]).load(cuda::memory_order_acquire) < round + 1);
        }
        __syncthreads();
    }
};

struct ByGridSync {
    static constexpr const char* name = "grid.sync";
    static __device__ void wait(unsigned*, unsigned) { cg::this_grid().sync(); }
};

// A round: every block writes its part of h, waits for the others and reads the whole of it; what is written depends on
// what was read. words = 0: the barrier alone. h: [2][words] in global memory.
template <class Barrier>
__global__ void grid_rounds(unsigned rounds, int words, uint4* h, unsigned* state, unsigned* wrong) {
    unsigned value = 0, lost = 0;
    for (unsigned round = 0; round < rounds; ++round) {
        uint4* now = h + (round & 1) * words;
        for (int i = blockIdx.x + gridDim.x * threadIdx.x; i < words; i += gridDim.x * blockDim.x)
            __stcg(now + i, make_uint4(value + 1, value + 1, value + 1, value + 1));
        Barrier::wait(state, round);
        value = round + 1;
        for (int i = words ? threadIdx.x % words : 0; i < words; i += blockDim.x) {
            const uint4 got = __ldcg(now + i);  // past L1, which may hold what was there before
            lost += got.x != round + 1 || got.w != round + 1;
            value = got.y;
        }
    }
    if (lost) atomicAdd(wrong, lost);
}

// The same within a cluster: every block writes its part into the shared memory of all.
__global__ void cluster_rounds(unsigned rounds, int words, unsigned* wrong) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    extern __shared__ uint4 h[];  // [2][words]
    const cg::cluster_group cluster = cg::this_cluster();
    const unsigned blocks = cluster.num_blocks(), rank = cluster.block_rank();
    const int part = words / int(blocks), lane = threadIdx.x % 32;
    unsigned value = 0, lost = 0;
    cluster.sync();  // nobody writes to a block that has not begun
    for (unsigned round = 0; round < rounds; ++round) {
        uint4* now = h + (round & 1) * words;
        for (unsigned peer = threadIdx.x / 32; peer < blocks; peer += blockDim.x / 32) {
            uint4* there = cluster.map_shared_rank(now, peer) + rank * part;
            for (int i = lane; i < part; i += 32) there[i] = make_uint4(value + 1, value + 1, value + 1, value + 1);
        }
        cluster.sync();
        value = round + 1;
        for (int i = words ? threadIdx.x % words : 0; i < words; i += blockDim.x) {
            const uint4 got = now[i];
            lost += got.x != round + 1 || got.w != round + 1;
            value = got.y;
        }
    }
    cluster.sync();  // nor to one that has ended
    if (lost) atomicAdd(wrong, lost);
#endif
}

// As the loops of clusters do it: what is sent is counted where it arrives, and nobody meets but the threads of a block.
__global__ void mailbox_rounds(unsigned rounds, int words, unsigned* wrong) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    using fused_rnn::cuda::Gpu;
    struct Words {
        unsigned at[4];
    };
    extern __shared__ uint4 h[];  // [2][words], then two mailboxes
    auto* boxes = reinterpret_cast<Gpu::Mailbox*>(h + 2 * words);
    const cg::cluster_group cluster = cg::this_cluster();
    const int blocks = int(cluster.num_blocks()), part = words / blocks, lane = threadIdx.x % 32;
    uint4* mine = h + cluster.block_rank() * part;
    unsigned value = 0, lost = 0;
    if (threadIdx.x == 0)
        for (int i = 0; i < 2; ++i) Gpu::open(boxes + i);
    cluster.sync();
    for (unsigned round = 0; round < rounds; ++round) {
        const unsigned which = round & 1;
        if (threadIdx.x == 0) Gpu::expect(boxes + which, words * int(sizeof(uint4)));
        for (int peer = threadIdx.x / 32; peer < blocks; peer += blockDim.x / 32)
            for (int i = lane; i < part; i += 32)
                Gpu::send16(peer, mine + which * words + i, boxes + which,
                            Words{{value + 1, value + 1, value + 1, value + 1}});
        Gpu::await(boxes + which, round / 2 & 1);
        value = round + 1;
        for (int i = threadIdx.x % words; i < words; i += blockDim.x) {
            const uint4 got = h[which * words + i];
            lost += got.x != round + 1 || got.w != round + 1;
            value = got.y;
        }
        __syncthreads();  // before anything is sent of the next round, as then others may go on to write here again
    }
    cluster.sync();
    if (lost) atomicAdd(wrong, lost);
#endif
}

__global__ void nothing() {}

struct Bench {
    cudaDeviceProp chip{};
    cudaStream_t stream{};
    cudaEvent_t begin{}, end{};
    uint4* h{};
    unsigned *state{}, *wrong{};  // counters and flags; the number of lost values
    size_t apart = 0;             // shared memory of a block that keeps a second one off its multiprocessor
    unsigned lost = 0;            // in the last launch
    bool right = true;

    Bench() {
        CHECK(cudaGetDeviceProperties(&chip, 0));
        CHECK(cudaStreamCreate(&stream));
        CHECK(cudaEventCreate(&begin));
        CHECK(cudaEventCreate(&end));
        CHECK(cudaMalloc(&h, 2 * kMaxWords * sizeof(uint4)));
        CHECK(cudaMalloc(&state, 4096));
        wrong = state + 1000;
        apart = chip.sharedMemPerMultiprocessor / 2 + 1024;
    }

    // Nanoseconds between two events around what `launch` puts into the stream.
    double took(const std::function<void()>& launch) {
        CHECK(cudaMemsetAsync(state, 0, 4096, stream));
        CHECK(cudaEventRecord(begin, stream));
        launch();
        CHECK(cudaGetLastError());
        CHECK(cudaEventRecord(end, stream));
        CHECK(cudaStreamSynchronize(stream));
        float ms = 0;
        CHECK(cudaEventElapsedTime(&ms, begin, end));
        CHECK(cudaMemcpy(&lost, wrong, sizeof lost, cudaMemcpyDeviceToHost));
        right = right && lost == 0;
        return ms * 1e6;
    }

    void say(const std::string& what, int blocks, int clusters, int words, const std::function<double()>& price) {
        std::vector<double> found(kLaunches);
        price();
        std::generate(found.begin(), found.end(), price);
        std::sort(found.begin(), found.end());
        const int bytes = words * int(sizeof(uint4));
        std::printf("{\"what\": \"%s\", \"blocks\": %d, \"clusters\": %d, ", what.c_str(), blocks, clusters);
        std::printf("\"bytes\": %d, \"ns\": %.1f, \"low\": %.1f, \"high\": %.1f}\n", bytes, found[kLaunches / 2],
                    found[0], found.back());
        std::fflush(stdout);
    }

    double a_round(const std::function<void(unsigned)>& launch) {
        const double little = took([&] { launch(kShort); });
        return (took([&] { launch(kLong); }) - little) / (kLong - kShort);
    }

    template <class Barrier>
    void grid(int blocks, int words) {
        auto* kernel = grid_rounds<Barrier>;
        CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(apart)));
        const auto launch = [&](unsigned rounds) {
            void* arguments[] = {&rounds, &words, &h, &state, &wrong};
            CHECK(cudaLaunchCooperativeKernel(kernel, blocks, kThreads, arguments, apart, stream));
        };
        const std::string what = words ? "grid exchange, " : "grid barrier, ";
        say(what + Barrier::name, blocks, 0, words, [&] { return a_round(launch); });
    }

    void cluster(const char* what, void (*rounds_of)(unsigned, int, unsigned*), int blocks, int words) {
        CHECK(cudaFuncSetAttribute(rounds_of, cudaFuncAttributeMaxDynamicSharedMemorySize, int(apart)));
        CHECK(cudaFuncSetAttribute(rounds_of, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
        cudaLaunchAttribute attribute{};
        attribute.id = cudaLaunchAttributeClusterDimension;
        attribute.val.clusterDim = {unsigned(blocks), 1, 1};
        cudaLaunchConfig_t config{unsigned(blocks), kThreads, apart, stream, &attribute, 1};
        int most = 0;
        CHECK(cudaOccupancyMaxActiveClusters(&most, rounds_of, &config));
        if (most == 0) std::fprintf(stderr, "no cluster of %d blocks fits\n", blocks);
        for (int clusters = 1; clusters <= most; clusters = clusters < most ? most : most + 1) {  // one alone, and all
            config.gridDim = blocks * clusters;
            const auto launch = [&](unsigned rounds) {
                CHECK(cudaLaunchKernelEx(&config, rounds_of, rounds, words, wrong));
            };
            say(what, blocks, clusters, words, [&] { return a_round(launch); });
        }
    }

    void launches() {
        constexpr int kMany = 1000;
        const auto all = [&] {
            for (int i = 0; i < kMany; ++i) nothing<<<1, 32, 0, stream>>>();
        };
        say("empty launch in a stream", 1, 0, 0, [&] { return took(all) / kMany; });
        cudaGraph_t graph{};
        cudaGraphExec_t ready{};
        CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
        all();
        CHECK(cudaStreamEndCapture(stream, &graph));
        CHECK(cudaGraphInstantiate(&ready, graph, 0));
        say("empty launch in a graph", 1, 0, 0,
            [&] { return took([&] { CHECK(cudaGraphLaunch(ready, stream)); }) / kMany; });
        say("launch and wait, by the host's clock", 1, 0, 0, [&] {
            const auto start = std::chrono::steady_clock::now();
            nothing<<<1, 32, 0, stream>>>();
            CHECK(cudaStreamSynchronize(stream));
            return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start).count();
        });
    }
};

}  // namespace

int main() {
    Bench bench;
    std::printf("{\"device\": \"%s\", \"capability\": \"%d.%d\", \"multiprocessors\": %d, \"launches\": %d}\n",
                bench.chip.name, bench.chip.major, bench.chip.minor, bench.chip.multiProcessorCount, kLaunches);
    bench.launches();
    for (const int blocks : {16, 32, 64, 132}) {
        if (blocks > bench.chip.multiProcessorCount) continue;
        bench.grid<ByCounter>(blocks, 0);
        bench.grid<ByFlags>(blocks, 0);
        bench.grid<ByGridSync>(blocks, 0);
        for (const int words : {64, kMaxWords}) bench.grid<ByFlags>(blocks, words);  // 1 and 16 KB
    }
    for (const int blocks : {2, 4, 8, 16}) {
        if (bench.chip.major < 9) break;
        bench.cluster("cluster barrier", cluster_rounds, blocks, 0);
        for (const int words : {64, kMaxWords}) {
            bench.cluster("cluster exchange, barrier", cluster_rounds, blocks, words);
            bench.cluster("cluster exchange, mailboxes", mailbox_rounds, blocks, words);
        }
    }
    if (!bench.right) std::fprintf(stderr, "values did not arrive\n");
    return bench.right ? 0 : 1;
}

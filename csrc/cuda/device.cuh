// The machine as the kernels see it: who am I, barriers, asynchronous copies, warp exchange, tensor cores. Kernels are
// templates over it; tests run them on the CPU over another one with the same face (tests/simt/host_device.h).
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "args.h"

namespace fused_rnn::cuda {

class Gpu {
  public:
    __device__ static int thread() { return static_cast<int>(threadIdx.x); }
    __device__ static int threads() { return static_cast<int>(blockDim.x); }
    __device__ static int block() { return static_cast<int>(blockIdx.x); }
    __device__ static int blocks() { return static_cast<int>(gridDim.x); }
    __device__ static void* shared() {
        extern __shared__ __align__(16) unsigned char memory[];
        return memory;
    }

    // All threads of the block; what they wrote, to shared and to global memory, is seen after it.
    __device__ static void sync(Sync) { __syncthreads(); }

    // The halves of a barrier between blocks. One thread of each block calls them, behind and before a sync(). PTX's causality
    // is transitive: by sync(), release, acquire and sync() all threads of the one see what all of the other wrote, with no
    // fence. A fence would cost a step one more trip to memory; so it would after relaxed polling.
    __device__ static void arrive(unsigned* arrivals) {
        asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(arrivals) : "memory");
    }
    // Until `count` arrivals. The difference is taken as signed: the counter may wrap around.
    __device__ static void await(const unsigned* arrivals, unsigned count) {
        unsigned seen;
        do {
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(arrivals) : "memory");
        } while (static_cast<int>(seen - count) < 0);
    }

    // 16 bytes from global to shared memory, past L1, which does not see what other blocks write.
    __device__ static void copy16(void* to, const void* from) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address(to)), "l"(from) : "memory");
    }
    __device__ static void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
    // Until all but the last `pending` committed groups of this thread have arrived.
    template <int pending>
    __device__ static void await_copies() {
        asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
    }

    // What another block may have written since this kernel began. It stays behind what was stored before it, and loads that
    // follow each other do not wait for each other.
    template <class T>
    __device__ static T fresh(const T* from) {
        if constexpr (sizeof(T) == 2) {
            unsigned short bits;
            asm volatile("ld.relaxed.gpu.global.u16 %0, [%1];" : "=h"(bits) : "l"(from) : "memory");
            return T{bits};
        } else if constexpr (sizeof(T) == 4) {
            float value;
            asm volatile("ld.relaxed.gpu.global.f32 %0, [%1];" : "=f"(value) : "l"(from) : "memory");
            return value;
        } else {
            double value;
            asm volatile("ld.relaxed.gpu.global.f64 %0, [%1];" : "=d"(value) : "l"(from) : "memory");
            return value;
        }
    }

    // The same number, of which the compiler knows nothing: what follows from it is computed where it is needed, not kept in
    // registers through a loop.
    __device__ static unsigned again(unsigned x) {
        asm volatile("" : "+r"(x));
        return x;
    }
    // Global memory that will be read soon.
    __device__ static void prefetch(const void* from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }

    // Of a cluster: its blocks meet, and what all their threads wrote is seen after it.
    __device__ static void meet_cluster() {
        asm volatile("barrier.cluster.arrive.release;\n\tbarrier.cluster.wait.acquire;" ::: "memory");
    }
    // A counter of bytes in shared memory, an mbarrier: it has ended a phase when as many have come as one thread
    // expected. Phases have parity 0 and 1 in turn.
    using Mailbox = uint64_t;
    __device__ static void open(Mailbox* box) {
        asm volatile(
            "mbarrier.init.shared::cta.b64 [%0], 1;\n\tfence.mbarrier_init.release.cluster;" ::"r"(address(box))
            : "memory");
    }
    __device__ static void expect(Mailbox* box, int bytes) {
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address(box)), "r"(bytes)
                     : "memory");
    }
    // Only what came to shared memory is seen after it: an acquire for all memory throws L1 away, and with it what every step
    // reads from there. Before CUDA 12.8 no fence says so; the plain wait, of the block's own scope, is the same instruction.
    __device__ static void await(Mailbox* box, unsigned parity) {
        unsigned done;
        do {
            asm volatile(
                "{\n\t.reg .pred done;\n\t"
#if __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1208
                "mbarrier.try_wait.parity.relaxed.cluster.shared::cta.b64 done, [%1], %2;\n\t"
                "fence.acquire.sync_restrict::shared::cluster.cluster;\n\t"
#else
                "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n\t"
#endif
                "selp.u32 %0, 1, 0, done;\n\t}"
                : "=r"(done)
                : "r"(address(box)), "r"(parity)
                : "memory");
        } while (!done);
    }
    // 16 bytes into the shared memory of a block of the cluster, counted by its mailbox. `to` and `box` are where they are
    // in this block's.
    template <class Words>
    __device__ static void send16(int peer, void* to, Mailbox* box, const Words& words) {
        asm volatile(
            "{\n\t.reg .b32 there, counter;\n\t"
            "mapa.shared::cluster.u32 there, %0, %2;\n\t"
            "mapa.shared::cluster.u32 counter, %1, %2;\n\t"
            "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [there], {%3, %4, %5, %6}, [counter];"
            "\n\t}" ::"r"(address(to)),
            "r"(address(box)), "r"(peer), "r"(words.at[0]), "r"(words.at[1]), "r"(words.at[2]), "r"(words.at[3])
            : "memory");
    }

    // Of a warp: bit i is lane i's.
    __device__ static unsigned ballot(bool mine) { return __ballot_sync(0xffffffffu, mine); }
    template <class T>
    __device__ static T shuffle_xor(T value, int mask) {
        return __shfl_xor_sync(0xffffffffu, value, mask);
    }

    // c += a b over 16 of the summed dimension: PTX mma.m16n8k16, a row-major, b column-major, f32 sums.
    __device__ static void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bf16) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
    __device__ static void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], f16) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }

    // c += a b over 8 of it: mma.m16n8k8, of TF32 as tf32() makes it.
    __device__ static void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], float) {
        asm volatile(
            "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
    __device__ static float tf32(float x) {
        uint32_t bits;
        asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
        return __uint_as_float(bits);
    }

    __device__ static float widen(float x) { return x; }
    __device__ static double widen(double x) { return x; }
    __device__ static float widen(bf16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }
    __device__ static float widen(f16 x) { return __half2float(__ushort_as_half(x.bits)); }
    __device__ static void narrow(float x, float& to) { to = x; }
    __device__ static void narrow(double x, double& to) { to = x; }
    __device__ static void narrow(float x, bf16& to) { to.bits = __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
    __device__ static void narrow(float x, f16& to) { to.bits = __half_as_ushort(__float2half_rn(x)); }

  private:
    __device__ static unsigned address(const void* shared) {
        return static_cast<unsigned>(__cvta_generic_to_shared(shared));
    }
};

}  // namespace fused_rnn::cuda

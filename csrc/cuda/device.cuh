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

    // The halves of a barrier between blocks. One thread of each block calls them, behind and before a sync().
    __device__ static void arrive(unsigned* arrivals) {
        __threadfence();
        asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(arrivals) : "memory");
    }
    // Until `count` arrivals. The difference is taken as signed: the counter may wrap around.
    __device__ static void await(const unsigned* arrivals, unsigned count) {
        unsigned seen;
        do {
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(arrivals) : "memory");
        } while (static_cast<int>(seen - count) < 0);
        __threadfence();
    }

    // 16 bytes from global to shared memory, past L1, which does not see what other blocks write.
    __device__ static void copy16(void* to, const void* from) {
        asm volatile(
            "cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(to))),
            "l"(from)
            : "memory");
    }
    __device__ static void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
    // Until all but the last `pending` committed groups of this thread have arrived.
    template <int pending>
    __device__ static void await_copies() {
        asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
    }

    // What another block may have written since this kernel began.
    template <class T>
    __device__ static T fresh(const T* from) {
        if constexpr (sizeof(T) == 2) {
            const unsigned short bits = __ldcg(reinterpret_cast<const unsigned short*>(from));
            return T{bits};
        } else {
            return __ldcg(from);
        }
    }

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

    __device__ static float widen(float x) { return x; }
    __device__ static double widen(double x) { return x; }
    __device__ static float widen(bf16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }
    __device__ static float widen(f16 x) { return __half2float(__ushort_as_half(x.bits)); }
    __device__ static void narrow(float x, float& to) { to = x; }
    __device__ static void narrow(double x, double& to) { to = x; }
    __device__ static void narrow(float x, bf16& to) { to.bits = __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
    __device__ static void narrow(float x, f16& to) { to.bits = __half_as_ushort(__float2half_rn(x)); }
};

}  // namespace fused_rnn::cuda

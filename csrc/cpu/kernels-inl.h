// All kernels of one instruction set. An isa_*.cpp opens a target region and a namespace, sets
// FUSED_RNN_VECTOR_BYTES, and includes this once. The order is that of dependence.
#define FUSED_RNN_INLINE inline __attribute__((always_inline))
#define FUSED_RNN_OUTLINE __attribute__((noinline))

// clang-format off
#include "simd-inl.h"
#include "../core/activations.h"
#include "activations-inl.h"
#include "../core/cells.h"
#include "../core/philox.h"
#include "gemm-inl.h"
#include "squares-inl.h"
#include "regular-inl.h"
#include "units-inl.h"
#include "row_blocks-inl.h"
#include "cell_rows-inl.h"
#include "norm-inl.h"
#include "two_products-inl.h"
#include "cell_choice-inl.h"
#include "loops-inl.h"
#include "rows-inl.h"
// clang-format on

template <class F, class S>
constexpr Kernels<F, S> make_kernels() {
    return {Simd<F>::W,
            forward_loop<Rows<F>, F, S>,
            backward_loop<Rows<F>, F, S>,
            forward_rows<F, S>,
            second_rows<F, S>,
            backward_rows<F, S>,
            output_gradient_rows<F, S>,
            rebuild_rows<F, S>,
            rebuild_candidates<F, S>,
            unprojected_rows<F, S>,
            candidate_rows<F, S>,
            draw_mask<F>,
            mask_rows<F>,
            clip_rows<F, S>,
            pack_transposed<F, S>,
            pack_plain<F, S>,
            pack_plain<F, F>,
            multiply_panels<F>,
            multiply_across<F>,
            dot_rows<F, S>,
            sum_rows<F, S>,
            outer_rows<F, F>,
            outer_rows<F, S>,
            copy_rows<F, S, F>,
            copy_rows<F, F, S>,
            add_column_sums<F>,
            add_column_products<F>,
            sigmoid_n<F, S>,
            tanh_n<F, S>};
}

static constexpr Kernels<float, float> f32_kernels = make_kernels<float, float>();
static constexpr Kernels<double, double> f64_kernels = make_kernels<double, double>();
static constexpr Kernels<float, bf16> bf16_kernels = make_kernels<float, bf16>();
static constexpr Kernels<float, f16> f16_kernels = make_kernels<float, f16>();

// Random numbers that are a function of where they are needed: Philox 4x32 of ten rounds (Salmon et al. 2011, "Parallel
// random numbers: as easy as 1, 2, 3"). Nothing is kept from one number to the next, so masks can be computed again in the
// backward pass, and no division of the work changes them. philox.py has the same in tensors.
//
// Included inside the namespace of each instruction set, as cells.h. U is a 32-bit unsigned number, or a vector of them;
// `multiply_wide(a, m, high)` gives the low half of the product, and the high one.

template <class U>
struct RandomWords {
    U x[4];
};

template <class U>
FUSED_RNN_INLINE RandomWords<U> philox(RandomWords<U> counter, uint64_t key) {
    U* const x = counter.x;
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round) {
        U high0, high1;
        const U low0 = multiply_wide(x[0], 0xD2511F53u, high0), low1 = multiply_wide(x[2], 0xCD9E8D57u, high1);
        x[0] = high1 ^ x[1] ^ k0;
        x[1] = low1;
        x[2] = high0 ^ x[3] ^ k1;
        x[3] = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return counter;
}

// What numbers are drawn for; the third word of the counter. The first is the unit, the second the step, the key is the
// row's seed.
enum class Draw : uint32_t {
    kZoneout = 0,           // the first word of the result decides on h, the second on c
    kRecurrentDropout = 1,  // the first word, at step 0
};

// An event of probability p happens where the upper kChanceBits of a word are below this.
constexpr int kChanceBits = 30;
FUSED_RNN_INLINE int32_t chance(double p) { return static_cast<int32_t>(p * (1 << kChanceBits)); }

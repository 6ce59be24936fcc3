// codes.cuh: packed keys and values of one layout, fixed when this is compiled, as operands of mma.m16n8k16:
//   KIVI_K_BITS, KIVI_V_BITS (2, 4, 8; 16: rows as they are), KIVI_HEAD_DIM, KIVI_GROUP_SIZE, KIVI_PAGE_TOKENS
//
// A field of a word is a code in each of its halves: a pair along the contracted index. Masked, not shifted, it is a
// pair of subnormal f16: code 2^(bits place - 24). Places reach as far as the 10 bits of a significand; further fields
// are shifted first.
//
// Keys: the contracted index is the channel, in any order that q has too. Lane 4 g + t takes row g's words
// chunk * 4 + t, a chunk being 1, 2 or 4 words; words that are left over are shared by 2 or 4 lanes.
//
// Values: the contracted index is the token; lane 4 g + t takes unit g of the pairs t and t + 4 of 16 tokens. Row h of
// tile i is channel 16 i + 2 g + h.
#pragma once
#include "page.cuh"
#include "ptx.cuh"

constexpr u32 K_BITS = KIVI_K_BITS, V_BITS = KIVI_V_BITS, HEAD_DIM = KIVI_HEAD_DIM, GROUP_SIZE = KIVI_GROUP_SIZE;
constexpr bool K_CODES = K_BITS < 16, V_CODES = V_BITS < 16;
constexpr u32 PAGE_TOKENS = KIVI_PAGE_TOKENS;
constexpr u32 STEPS = HEAD_DIM / 16;  // products along a head, and tiles of 16 channels of it
constexpr u32 VALUE_GROUPS = (HEAD_DIM + GROUP_SIZE - 1) / GROUP_SIZE;
constexpr u32 K_WORDS = HEAD_DIM * K_BITS / 32, V_WORDS = HEAD_DIM * V_BITS / 32;  // of a token
constexpr u32 ROW_STRIDE = HEAD_DIM + 8;  // of rows in shared memory: 16 bytes more, so that 8 lie in different banks
// Words of a page: where its parts begin (PageLayout).
constexpr u32 K_PARAMS_START = PAGE_TOKENS * K_WORDS;
constexpr u32 V_START = K_PARAMS_START + (K_CODES ? PAGE_TOKENS / GROUP_SIZE * HEAD_DIM : 0);
constexpr u32 V_PARAMS_START = V_START + PAGE_TOKENS * V_WORDS;
constexpr u32 PAGE_WORDS = V_PARAMS_START + (V_CODES ? PAGE_TOKENS * VALUE_GROUPS : 0);
constexpr float LOG2_E = 1.44269504f;
constexpr float SUBNORMAL = 16777216.0f;  // 2^24: what a masked code is short of

static_assert(HEAD_DIM % 16 == 0 && HEAD_DIM % 64 != 48, "head_dim");

// Sides that have no codes never use theirs; 8 bits let them compile.
constexpr u32 K_CODE_BITS = K_CODES ? K_BITS : 8, V_CODE_BITS = V_CODES ? V_BITS : 8;

// How many fields of a word are within a significand.
template <u32 BITS>
constexpr u32 PLACES = 10 / BITS;

// Field j of a word, in its place.
template <u32 BITS>
__device__ __forceinline__ u32 field(u32 word, u32 j) {
    u32 place = j % PLACES<BITS>;
    return word >> ((j - place) * BITS) & ((1u << BITS) - 1) * 0x10001u << (place * BITS);
}

// What a code of field j is multiplied by for being in its place, but for 2^-24.
template <u32 BITS>
__device__ constexpr float factor_of(u32 j) {
    return (float)(1u << (j % PLACES<BITS> * BITS));
}

// The words of a token's keys that a lane takes.
struct KeyWords {
    static constexpr u32 FIELDS = 16 / K_CODE_BITS;  // of a word
    static constexpr u32 OWN = HEAD_DIM * K_CODE_BITS / 128;
    // As many words as a lane reads at a time, of tokens that begin at multiples of them.
    static constexpr u32 CHUNK = (OWN | K_WORDS) % 4 == 0 ? 4 : (OWN | K_WORDS) % 2 == 0 ? 2 : 1;
    static constexpr u32 LEFT = HEAD_DIM * K_CODE_BITS / 32 % 4;  // words; 4 / LEFT lanes share one
    static constexpr u32 SHARE = LEFT ? FIELDS * LEFT / 4 : 0;  // fields of it that are a lane's
    static_assert(LEFT != 3 && SHARE % 2 == 0, "head_dim");

    u32 own[OWN ? OWN : 1];
    u32 left;

    __device__ __forceinline__ static u32 own_word(u32 i, u32 t) { return (i / CHUNK * 4 + t) * CHUNK + i % CHUNK; }
    __device__ __forceinline__ static u32 left_word(u32 t) { return 4 * OWN + t * LEFT / 4; }
    __device__ __forceinline__ static u32 left_field(u32 t) { return SHARE * (t % (LEFT ? 4 / LEFT : 1)); }

    // What step n needs and steps before it did not.
    // The codes of a token lie at an address; own ones begin 4 CHUNK t further.
    __device__ __forceinline__ void load(u32 n, u32 token, u32 t) {
        if (is_own(n) && 2 * n % (FIELDS * CHUNK) == 0) {
            u32 x[CHUNK], first = 2 * n / FIELDS;
            read_shared(x, token + first * 16 + t * (4 * CHUNK));
#pragma unroll
            for (u32 i = 0; i < CHUNK; ++i) {
                own[first + i] = x[i];
            }
        } else if (2 * n == OWN * FIELDS) {
            u32 x[1];
            read_shared(x, token + left_word(t) * 4);
            left = x[0] >> (left_field(t) * K_CODE_BITS);
        }
    }

    // Of step n, whose pairs are fields j and j + 1 of a word.
    __device__ static constexpr bool is_own(u32 n) { return 2 * n < OWN * FIELDS; }
    __device__ static constexpr u32 field_of(u32 n) { return is_own(n) ? 2 * n % FIELDS : 2 * n - OWN * FIELDS; }

    // The first of the lane's two pairs of channels.
    __device__ __forceinline__ static u32 pair_of(u32 n, u32 t) {
        return is_own(n) ? own_word(2 * n / FIELDS, t) * FIELDS + field_of(n)
                         : left_word(t) * FIELDS + left_field(t) + field_of(n);
    }

    // Where its scales and zeros lie behind those of channel 0: bytes, with PAD more behind each 128. What is the lane's
    // is the same for all own words.
    template <class Padded>
    __device__ __forceinline__ static u32 params_at(u32 n, u32 t, Padded padded) {
        constexpr u32 OF_LANE = CHUNK * FIELDS * 8;
        return is_own(n) ? padded(pair_of(n, 0) * 8) + padded(t * OF_LANE) : padded(pair_of(n, t) * 8);
    }

    __device__ __forceinline__ u32 pair(u32 n, u32 h) const {
        return field<K_CODE_BITS>(is_own(n) ? own[2 * n / FIELDS] : left, field_of(n) + h);
    }
};

// The words of a pair of tokens' values that a lane takes.
struct ValueWords {
    static constexpr u32 FIELDS = 16 / V_CODE_BITS;
    static constexpr u32 OWN = HEAD_DIM / 64 * V_CODE_BITS / 2;  // of whole blocks of 64 channels
    static constexpr u32 REST = HEAD_DIM % 64 / 8;          // codes of what is left
    static constexpr u32 LEFT = (REST * V_CODE_BITS + 15) / 16;  // words with those
    // Lanes to such a word.
    static constexpr u32 SHARE = REST && REST * V_CODE_BITS < 16 ? 16 / (REST * V_CODE_BITS) : 1;

    u32 own[OWN ? OWN : 1];
    u32 left[LEFT ? LEFT : 1];

    // Those of a pair of tokens; at finds a byte of its codes.
    template <class At>
    __device__ __forceinline__ void load(u32 g, At at) {
        constexpr u32 CHUNK = OWN % 4 == 0 ? 4 : OWN % 2 == 0 ? 2 : 1;
#pragma unroll
        for (u32 i = 0; i < OWN; i += CHUNK) {
            u32 x[CHUNK];
            read_shared(x, at((g * OWN + i) * 4));
#pragma unroll
            for (u32 j = 0; j < CHUNK; ++j) {
                own[i + j] = x[j];
            }
        }
#pragma unroll
        for (u32 i = 0; i != LEFT; ++i) {
            u32 x[1];
            read_shared(x, at((8 * OWN + g * LEFT / SHARE + i) * 4));
            left[i] = x[0] >> (g % SHARE * REST * V_CODE_BITS);
        }
    }

    // Row h of tile i of two tokens.
    __device__ __forceinline__ u32 pair(u32 i, u32 h) const {
        u32 code = (i < HEAD_DIM / 64 * 4 ? 2 * i : 2 * i - HEAD_DIM / 64 * 8) + h;
        return field<V_CODE_BITS>(i < HEAD_DIM / 64 * 4 ? own[code / FIELDS] : left[code / FIELDS], code % FIELDS);
    }

    __device__ static constexpr float factor(u32 i, u32 h) { return factor_of<V_CODE_BITS>((2 * i + h) % FIELDS); }
};

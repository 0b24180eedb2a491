// Many rows of activations on matrix tiles (AMX), in bfloat16 with sums in float32.
//
// A tile of weights is 16 rows by 32 columns, unpacked and scaled a block at a time; a tile of
// activations 16 pairs of columns by 16 rows. So sums come out with weights' rows down and
// activations' across, and are turned when they are written.

#include "kernels.hpp"

#include <cstring>

#include <immintrin.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace qwen_edge {
namespace amx {
namespace {

constexpr int kTileColumns = 32;  // of bfloat16: 64 bytes
constexpr int kMostColumns = 2560;  // unpacked at once: a block then fits the second cache
// Columns that are multiplied at once: two rows of tiles of weights, 32 KB, then stay in the first
// cache while all activations pass by. Measured with 512 rows: 1.5 to 1.6 TFLOPS on two cores with
// all columns at once and weights row by row.
constexpr int kSliceColumns = 512;

struct alignas(64) TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes_per_row[16] = {};
    uint8_t rows[16] = {};
};

// GCC 12 does not know that tile instructions read memory, and drops stores for them.
inline void finish_stores() { __asm__ volatile("" ::: "memory"); }

// Takes the tiles for a task and gives them back as they were: the engine may be using them.
class Tiles {
public:
    Tiles() {
        _tile_storeconfig(&before_);
        TileShapes shapes;
        for (int i = 0; i < 8; ++i) shapes.bytes_per_row[i] = 64, shapes.rows[i] = 16;
        finish_stores();
        _tile_loadconfig(&shapes);
    }
    ~Tiles() {
        if (before_.palette)
            _tile_loadconfig(&before_);
        else
            _tile_release();
    }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;

private:
    TileShapes before_;
};

// A table of what each 4-bit code stands for in a group with this scale, twice: 32 bfloat16.
inline __m512i make_table(uint16_t scale) {
    const __m512 codes = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1);
    const __m512 values = _mm512_mul_ps(codes, _mm512_set1_ps(_cvtsh_ss(scale)));
    const __m256i half = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(values));
    return _mm512_inserti64x4(_mm512_castsi256_si512(half), half, 1);
}

// Where column `column` of row `row` is in a block of unpacked weights: tile after tile.
inline size_t place_of(int row, int column, int count) {
    const int tile = row / kTileRows * (count / kTileColumns) + column / kTileColumns;
    return (static_cast<size_t>(tile) * kTileRows + row % kTileRows) * kTileColumns + column % kTileColumns;
}

// Columns [from, from + count) of a row of weights as bfloat16, into row `at` of a block. Groups
// shorter than 128 columns are multiples of 32, so a step of 32 columns has one scale.
void unpack_row(const Weights& weights, int row, int from, int count, int at, uint16_t* block) {
    const int groups = weights.columns / weights.group;
    const uint16_t* scales = weights.scales + static_cast<size_t>(row) * groups;
    const uint8_t* codes = weights.codes + (static_cast<size_t>(row) * weights.columns + from) * weights.bits / 8;
    const int step = weights.group < kColumnStep ? weights.group : kColumnStep;
    for (int column = 0; column < count; column += step) {
        const uint16_t scale = scales[(from + column) / weights.group];
        if (weights.bits == 4) {
            const __m512i table = make_table(scale);
            for (int i = column; i < column + step; i += 32) {
                const __m512i bytes = _mm512_cvtepu8_epi32(
                    _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + i / 2)));
                const __m512i places = _mm512_and_si512(
                    _mm512_or_si512(bytes, _mm512_slli_epi32(bytes, 12)), _mm512_set1_epi32(0x000F000F));
                _mm512_store_si512(block + place_of(at, i, count), _mm512_permutexvar_epi16(places, table));
            }
            continue;
        }
        const __m512 factor = _mm512_set1_ps(_cvtsh_ss(scale));
        const __m512i zero = _mm512_set1_epi32(weights.zero_points ? weights.zero_points[row] : 0);
        for (int i = column; i < column + step; i += 16) {
            const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + i));
            const __m512i whole = weights.zero_points ? _mm512_sub_epi32(_mm512_cvtepu8_epi32(bytes), zero)
                                                      : _mm512_cvtepi8_epi32(bytes);
            const __m512 values = _mm512_mul_ps(_mm512_cvtepi32_ps(whole), factor);
            _mm256_store_si256(
                reinterpret_cast<__m256i*>(block + place_of(at, i, count)),
                reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(values)));
        }
    }
}

// Adds the products of 32 rows of weights and 32 of activations over `count` columns to `sums`
// [32 rows of weights][32 of activations], or writes them there if `is_first`.
inline void multiply_slice(
    const uint16_t* top, const uint16_t* bottom, const uint32_t* left, const uint32_t* right, int count,
    float* sums, bool is_first) {
    constexpr int kStride = 2 * kTileRows * 4;
    float* const lower = sums + kTileRows * 2 * kTileRows;
    if (is_first) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, sums, kStride);
        _tile_loadd(1, sums + kTileRows, kStride);
        _tile_loadd(2, lower, kStride);
        _tile_loadd(3, lower + kTileRows, kStride);
    }
    constexpr int kWeights = kTileRows * kTileColumns, kActivations = kTileColumns / 2 * kTileRows;
    for (int tile = 0; tile < count / kTileColumns; ++tile) {
        _tile_loadd(4, top + tile * kWeights, 64);
        _tile_loadd(6, left + tile * kActivations, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, right + tile * kActivations, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, bottom + tile * kWeights, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, kStride);
    _tile_stored(1, sums + kTileRows, kStride);
    _tile_stored(2, lower, kStride);
    _tile_stored(3, lower + kTileRows, kStride);
}

// Sixteen vectors of sixteen 32-bit numbers, rows and columns changed.
inline void turn(__m512i (&rows)[16]) {
    __m512i pairs[16], fours[16];
    for (int i = 0; i < 8; ++i) {
        pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 2; ++j) {
            fours[4 * i + 2 * j] = _mm512_unpacklo_epi64(pairs[4 * i + j], pairs[4 * i + 2 + j]);
            fours[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(pairs[4 * i + j], pairs[4 * i + 2 + j]);
        }
    for (int j = 0; j < 4; ++j) {
        const __m512i a = _mm512_shuffle_i32x4(fours[j], fours[4 + j], 0x88);
        const __m512i b = _mm512_shuffle_i32x4(fours[8 + j], fours[12 + j], 0x88);
        const __m512i c = _mm512_shuffle_i32x4(fours[j], fours[4 + j], 0xDD);
        const __m512i d = _mm512_shuffle_i32x4(fours[8 + j], fours[12 + j], 0xDD);
        rows[j] = _mm512_shuffle_i32x4(a, b, 0x88);
        rows[4 + j] = _mm512_shuffle_i32x4(c, d, 0x88);
        rows[8 + j] = _mm512_shuffle_i32x4(a, b, 0xDD);
        rows[12 + j] = _mm512_shuffle_i32x4(c, d, 0xDD);
    }
}

int panels_of(int rows) { return (rows + 2 * kTileRows - 1) / (2 * kTileRows) * 2; }

}  // namespace

bool is_available() {
#if defined(__linux__)
    // ARCH_REQ_XCOMP_PERM for tile data (18): without it the first tile instruction is a fault.
    static const bool is_granted = __builtin_cpu_supports("amx-bf16") && __builtin_cpu_supports("avx512bf16") &&
                                   syscall(SYS_arch_prctl, 0x1023, 18) == 0;
    return is_granted;
#else
    return false;
#endif
}

size_t packed_bytes(int rows, int columns) {
    return static_cast<size_t>(panels_of(rows)) * kTileRows * columns * sizeof(uint16_t);
}

void pack_panel(const float* source, int rows, int columns, int panel, void* packed) {
    uint32_t* target = static_cast<uint32_t*>(packed) + static_cast<size_t>(panel) * (columns / 2) * kTileRows;
    for (int column = 0; column < columns; column += 2 * kTileRows) {
        __m512i pairs[16];
        for (int i = 0; i < kTileRows; ++i) {
            const int row = panel * kTileRows + i;
            const float* at = source + static_cast<size_t>(row) * columns + column;
            pairs[i] = row < rows ? reinterpret_cast<__m512i>(
                                        _mm512_cvtne2ps_pbh(_mm512_loadu_ps(at + 16), _mm512_loadu_ps(at)))
                                  : _mm512_setzero_si512();
        }
        turn(pairs);
        for (int i = 0; i < 16; ++i)
            _mm512_storeu_si512(target + static_cast<size_t>(column / 2 + i) * kTileRows, pairs[i]);
    }
}

size_t scratch_bytes(int rows) {
    return static_cast<size_t>(kBlockRows) * kMostColumns * sizeof(uint16_t) +
           static_cast<size_t>(kBlockRows) * panels_of(rows) * kTileRows * sizeof(float) + 128;
}

void multiply(
    const Weights& weights, const void* packed, int rows, int begin, float* outputs, size_t stride,
    void* scratch) {
    const Tiles tiles;
    const int columns = weights.columns, panels = panels_of(rows);
    const int block = weights.rows - begin < kBlockRows ? weights.rows - begin : kBlockRows;
    uint16_t* unpacked = reinterpret_cast<uint16_t*>((reinterpret_cast<uintptr_t>(scratch) + 63) / 64 * 64);
    float* sums = reinterpret_cast<float*>(unpacked + static_cast<size_t>(kBlockRows) * kMostColumns);
    constexpr size_t kPair = 2 * kTileRows;  // activation rows that are computed together
    for (int from = 0; from < columns;) {
        const int count = columns - from < kMostColumns ? columns - from : kMostColumns;
        for (int row = 0; row < kBlockRows; ++row)  // beyond the last one, that one again
            unpack_row(weights, begin + (row < block ? row : block - 1), from, count, row, unpacked);
        finish_stores();
        for (int slice = 0; slice < count; slice += kSliceColumns) {
            const int width = count - slice < kSliceColumns ? count - slice : kSliceColumns;
            for (int row = 0; row < kBlockRows; row += 2 * kTileRows) {
                const uint16_t* top = unpacked + place_of(row, slice, count);
                const uint16_t* bottom = unpacked + place_of(row + kTileRows, slice, count);
                for (int panel = 0; panel < panels; panel += 2) {
                    const uint32_t* left = static_cast<const uint32_t*>(packed) +
                                           (static_cast<size_t>(panel) * columns + from + slice) / 2 * kTileRows;
                    const uint32_t* right = left + static_cast<size_t>(columns / 2) * kTileRows;
                    float* at = sums + (static_cast<size_t>(panel / 2) * kBlockRows + row) * kPair;
                    multiply_slice(top, bottom, left, right, width, at, from + slice == 0);
                }
            }
        }
        from += count;
    }
    for (int row = 0; row < block; row += kTileRows)
        for (int first = 0; first < rows; first += kTileRows) {
            __m512i lanes[16];
            const float* at = sums + (static_cast<size_t>(first / kPair) * kBlockRows + row) * kPair + first % kPair;
            for (int i = 0; i < 16; ++i) lanes[i] = _mm512_loadu_si512(at + i * kPair);
            turn(lanes);
            const int wide = block - row < kTileRows ? block - row : kTileRows;
            const __mmask16 mask = static_cast<__mmask16>((1u << wide) - 1);
            for (int i = 0; i < kTileRows && first + i < rows; ++i)
                _mm512_mask_storeu_epi32(outputs + (first + i) * stride + begin + row, mask, lanes[i]);
        }
}

}  // namespace amx
}  // namespace qwen_edge

#include "weights.hpp"

#include <sstream>

namespace qwen_edge {

std::string read_shapes(const ov::Shape& codes, const ov::Shape& scales, const ov::Shape* zero_points, int64_t columns, Weights& weights) {
    std::ostringstream problem;
    problem << "codes of shape " << codes << " and scales of shape " << scales << " for " << columns << " columns";
    if (codes.size() != 2 || scales.size() != 2 || !codes[0] || codes[0] != scales[0] || !scales[1] || scales[1] % 2 || columns <= 0)
        return problem.str();
    const int64_t groups = static_cast<int64_t>(scales[1] / 2), bytes = static_cast<int64_t>(codes[1]);
    const int bits = bytes == columns ? 8 : bytes * 2 == columns ? 4 : 0;
    const int64_t group = columns % groups ? 0 : columns / groups;
    const bool is_short = bits == 4 && (group == 32 || group == 64);
    if (!bits || columns % kColumnStep || !group || (group % kColumnStep && !is_short)) return problem.str();
    if (zero_points && (bits != 8 || groups != 1 || *zero_points != ov::Shape({codes[0], 1}))) {
        problem << ", zero points of shape " << *zero_points << " with " << bits << " bits";
        return problem.str();
    }
    weights.rows = static_cast<int>(codes[0]), weights.columns = static_cast<int>(columns);
    weights.group = static_cast<int>(group), weights.bits = bits;
    return "";
}

}  // namespace qwen_edge

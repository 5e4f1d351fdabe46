#include "limits.h"

#include <algorithm>
#include <cstdlib>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace fused_rnn::cuda {

namespace {

[[noreturn]] void not_understood(const std::string& part) {
    throw std::runtime_error("FUSED_RNN_CUDA_LIMITS: not understood: " + part);
}

// "name=1" or "name=1:2:3"
std::vector<int> values_of(const std::string& part) {
    std::vector<int> values;
    const size_t equals = part.find('=');
    std::istringstream numbers(equals == std::string::npos ? "" : part.substr(equals + 1));
    for (std::string number; std::getline(numbers, number, ':');) {
        try {
            values.push_back(std::stoi(number));
        } catch (const std::exception&) {
            not_understood(part);
        }
    }
    return values;
}

}  // namespace

DeviceLimits lowered(DeviceLimits limits) {
    const char* text = std::getenv("FUSED_RNN_CUDA_LIMITS");
    if (!text || !*text) return limits;
    std::istringstream parts(text);
    for (std::string part; std::getline(parts, part, ',');) {
        const std::string name = part.substr(0, part.find('='));
        const std::vector<int> values = values_of(part);
        if (name == "counts" && values.size() == kClusterSizes) {  // clusters of 1, 2, 4, 8, 16 blocks
            for (int i = 0; i < kClusterSizes; ++i) limits.clusters[i] = std::min(limits.clusters[i], values[i]);
            continue;
        }
        if (values.size() != 1) not_understood(part);
        const int value = values[0];
        if (name == "sms") {
            limits.sms = std::min(limits.sms, value);
        } else if (name == "shared") {
            limits.shared_per_block = std::min(limits.shared_per_block, value);
        } else if (name == "cooperative") {
            limits.cooperative = limits.cooperative && value;
        } else if (name == "clusters") {  // of so many blocks at most
            for (int i = 0; i < kClusterSizes; ++i)
                if (1 << i > value) limits.clusters[i] = 0;
        } else if (name == "clusters_first") {
            limits.clusters_first = value;
        } else if (name == "loops") {
            limits.loops = limits.loops && value;
        } else {
            not_understood(part);
        }
    }
    return limits;
}

}  // namespace fused_rnn::cuda
